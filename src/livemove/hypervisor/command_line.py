"""From a frozen VM and a place on a host to QEMU's arguments; pure.

What the guest can see comes from the :class:`FrozenVm` alone, so that both ends of a migration build the same machine;
a :class:`Place` holds what differs between hosts.

``-action`` keeps the process when the guest powers off or panics: that is an event with a state behind it (``shutdown``,
``guest-panicked``), not a process that has vanished. SIGTERM and QMP's ``quit`` still end it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from livemove.base.errors import Bug
from livemove.base.units import MIB
from livemove.hypervisor.frozen import DIRECT_CACHE_MODES, FrozenDisk, FrozenNic, FrozenVm

QMP_SOCKET = "qmp.sock"
CONSOLE_SOCKET = "console.sock"
CONSOLE_LOG = "console.log"
# Name of the memory backend, and so of the RAM block in QEMU's migration stream.
RAM_ID = "ram0"


@dataclass(frozen=True, slots=True)
class Place:
    """Where on a host a VM runs.

    :param run_dir: directory of its sockets and logs, one VM each.
    :param accelerator: ``kvm`` or ``tcg``.
    :param taps: names of the tap devices, one for each network card, in order.
    :param vhost: whether the kernel carries the packets of virtio cards (``/dev/vhost-net`` is there).
    :param sandbox: whether QEMU and kernel have seccomp.
    """

    run_dir: Path
    accelerator: str
    taps: tuple[str, ...]
    vhost: bool
    sandbox: bool = True


def command_line(frozen: FrozenVm, place: Place, *, qemu: str, incoming: bool) -> list[str]:
    """QEMU's program and arguments.

    :param incoming: the VM arrives by migration: paused, waiting for ``migrate-incoming``.
    :raise Bug: not exactly one tap for each network card.
    """
    if len(place.taps) != len(frozen.nics):
        raise Bug(f"{frozen.name} has {len(frozen.nics)} network cards, but {len(place.taps)} taps were made.")
    arguments = [qemu, *_process(frozen, place), *_machine(frozen, place), *_boot(frozen)]
    if frozen.console:
        arguments += _console(place.run_dir)
    for index, disk in enumerate(frozen.disks):
        arguments += _disk(frozen, disk, boot_index=index)
    for nic, tap in zip(frozen.nics, place.taps, strict=True):
        arguments += _nic(frozen, nic, tap, vhost=place.vhost)
    for device in frozen.passthrough:
        arguments += _device("vfio-pci", id=device.id, host=device.host, bus=frozen.root_bus, addr=device.pci_address)
    arguments += frozen.extra_arguments
    if incoming:
        arguments += ["-S", "-incoming", "defer"]
    return arguments


def _process(frozen: FrozenVm, place: Place) -> list[str]:
    qmp = place.run_dir / QMP_SOCKET
    arguments = ["-name", f"{frozen.name},debug-threads=on", "-uuid", frozen.uuid]
    arguments += ["-no-user-config", "-nodefaults", "-display", "none", "-msg", "timestamp=on"]
    # QEMU needs none of these calls once it runs, and a guest that broke into it would. VFIO works under the filter too.
    if place.sandbox:
        arguments += ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"]
    arguments += [
        "-chardev",
        f"socket,id=qmp,path={_escaped(qmp)},server=on,wait=off",
        "-mon",
        "chardev=qmp,mode=control",
    ]
    arguments += ["-action", "shutdown=pause,panic=pause,reboot=reset", "-rtc", "base=utc"]
    return arguments


def _machine(frozen: FrozenVm, place: Place) -> Iterator[str]:
    # The guest's memory is not written into core dumps of QEMU.
    machine = f"{frozen.machine},memory-backend={RAM_ID},usb=off,dump-guest-core=off"
    if frozen.uefi_code:
        machine += ",pflash0=uefi-code,pflash1=uefi-vars"
    backend: dict[str, Any] = {"qom-type": "memory-backend-memfd", "id": RAM_ID, "size": frozen.memory_bytes}
    if frozen.backing == "private":
        # There is no file through which the memory could be allocated beside QEMU, so QEMU does it before it starts.
        backend |= {"qom-type": "memory-backend-ram", "share": False, "prealloc": frozen.populate}
    elif frozen.backing == "hugetlb":
        backend |= {"share": True, "hugetlb": True, "hugetlbsize": frozen.hugepage_bytes}
    else:
        backend |= {"share": True}
    yield from ("-accel", place.accelerator, "-machine", machine)
    yield from (
        "-cpu",
        f"{frozen.cpu_model},enforce",
        "-smp",
        f"cpus={frozen.cpus},sockets=1,cores={frozen.cpus},threads=1",
    )
    yield from ("-m", f"{frozen.memory_bytes // MIB}M", "-object", json.dumps(backend))
    # Tells of a guest's panic (GUEST_PANICKED); an ISA device, so that it takes no PCI slot.
    yield from _device("pvpanic", id="pvpanic")


def _boot(frozen: FrozenVm) -> Iterator[str]:
    if frozen.uefi_code:
        yield from _blockdev("uefi-code", "raw", _file(frozen.uefi_code, read_only=True), read_only=True)
        cache = {"direct": frozen.uefi_vars_shared, "no-flush": False}
        yield from _blockdev("uefi-vars", "raw", _file(frozen.uefi_vars, cache=cache), cache=cache)
    if frozen.kernel:
        yield from ("-kernel", frozen.kernel)
        if frozen.initrd:
            yield from ("-initrd", frozen.initrd)
        if frozen.arguments:
            yield from ("-append", frozen.arguments)


def _console(run_dir: Path) -> Iterator[str]:
    socket, log = _escaped(run_dir / CONSOLE_SOCKET), _escaped(run_dir / CONSOLE_LOG)
    yield "-chardev"
    yield f"socket,id=console,path={socket},server=on,wait=off,logfile={log},logappend=on"
    yield from ("-serial", "chardev:console")


def _disk(frozen: FrozenVm, disk: FrozenDisk, *, boot_index: int) -> Iterator[str]:
    cache = {"direct": disk.cache in DIRECT_CACHE_MODES, "no-flush": disk.cache == "unsafe"}
    file = _file(disk.path, kind=disk.kind, read_only=disk.readonly, cache=cache)
    yield from _blockdev(disk.id, disk.format, file, read_only=disk.readonly, cache=cache)
    options: dict[str, Any] = {"id": f"{disk.id}-device", "drive": disk.id, "bus": frozen.root_bus}
    options |= {"addr": disk.pci_address, "serial": disk.serial} if disk.serial else {"addr": disk.pci_address}
    # The guest stops at a disk error instead of seeing it, so that a journey under way can end in order.
    options |= {"werror": "stop", "rerror": "stop"}
    options["write-cache"] = "off" if disk.cache in ("directsync", "writethrough") else "on"
    if not frozen.kernel:
        options["bootindex"] = boot_index + 1
    yield from _device("virtio-blk-pci", **options)


def _nic(frozen: FrozenVm, nic: FrozenNic, tap: str, *, vhost: bool) -> Iterator[str]:
    network = f"tap,id={nic.id},ifname={_escaped(tap)},script=no,downscript=no"
    yield from ("-netdev", f"{network},vhost={'on' if vhost and nic.model.startswith('virtio') else 'off'}")
    options = {"id": f"{nic.id}-device", "netdev": nic.id, "mac": nic.mac}
    yield from _device(nic.model, **options, bus=frozen.root_bus, addr=nic.pci_address)


def _file(
    path: str, *, kind: str = "file", read_only: bool = False, cache: dict[str, bool] | None = None
) -> dict[str, Any]:
    node: dict[str, Any] = {"driver": "host_device" if kind == "block" else "file", "filename": path, "locking": "auto"}
    node["read-only"] = read_only
    return node | {"cache": cache} if cache is not None else node


def _blockdev(
    name: str, driver: str, file: dict[str, Any], *, read_only: bool = False, cache: dict[str, bool] | None = None
) -> Iterator[str]:
    node: dict[str, Any] = {"driver": driver, "node-name": name, "read-only": read_only}
    if cache is not None:
        node["cache"] = cache
    yield from ("-blockdev", json.dumps({**node, "file": {**file, "node-name": f"{name}-file"}}))


def _device(driver: str, **options: Any) -> Iterator[str]:
    yield from ("-device", json.dumps({"driver": driver, **options}))


def _escaped(value: Path | str) -> str:
    """A value inside ``key=value,key=value``: QEMU reads a doubled comma as one."""
    return str(value).replace(",", ",,")
