"""The definition as it was when the VM started, resolved to what QEMU is told: the form in which a VM travels.

A destination must show the guest exactly the machine that it was started on: versioned machine type, concrete CPU model,
PCI addresses, MACs, device ids. :func:`freeze` decides all of that once; nothing below it has a default that a newer
livemove or QEMU could change under a running guest.

Slots of the root bus (``pcie.0`` of q35, ``pci.0`` of pc)::

    0x00 0x01   the chipset's own        0x0a-0x0f   passed-through devices
    0x02-0x09   network cards            0x10-0x1e   disks            0x1f   the chipset's own
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from livemove.base.errors import CpuUnsupported, NotMigratable, QemuTooOld, UnsafeDisk
from livemove.hypervisor.definition import Definition
from livemove.hypervisor.probe import QemuFacts

# Raised when a field is added or changes its meaning; a host refuses versions that it does not know.
FROZEN_VERSION = 1

# x86-64-v2, which current distributions ask for, built up from the model that has no vendor's own features. svm is off
# because KVM has it on AMD only. Tried with 'enforce' under TCG of QEMU 10.0: no warning. The vendor that the guest
# reads is the host's under KVM, so Intel to AMD is for guests that can bear that.
BASELINE_CPU = "qemu64-v1,svm=off,ssse3=on,sse4.1=on,sse4.2=on,popcnt=on"

_FIRST_NIC_SLOT, _FIRST_PASSTHROUGH_SLOT, _FIRST_DISK_SLOT = 0x02, 0x0A, 0x10
# Modes that open the file with O_DIRECT, so that no host's page cache holds a stale copy of a shared disk.
DIRECT_CACHE_MODES = ("none", "directsync")


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FrozenDisk(_Frozen):
    """A disk of a started VM; `id` is the device's name in QEMU and, with suffixes, that of its block nodes."""

    id: str
    path: str
    format: Literal["raw", "qcow2"]
    kind: Literal["file", "block"]
    shared: bool
    cache: Literal["none", "directsync", "writeback", "writethrough", "unsafe"]
    serial: str
    readonly: bool
    pci_address: str


class FrozenNic(_Frozen):
    """A network card of a started VM; exactly one of `bridge` and `tap` is not empty."""

    id: str
    bridge: str
    tap: str
    mac: str
    model: str
    pci_address: str


class FrozenPassthrough(_Frozen):
    """A device of the host in a started VM that never moves."""

    id: str
    host: str
    pci_address: str


class FrozenVm(_Frozen):
    """Everything of a VM that source and destination must agree on; sizes in bytes, paths as on every host."""

    version: int
    name: str
    uuid: str
    definition_digest: str
    accelerator: str
    machine: str
    cpu_model: str
    cpus: int
    memory_bytes: int
    backing: Literal["memfd", "private", "hugetlb"]
    hugepage_bytes: int
    populate: bool
    kernel: str
    initrd: str
    arguments: str
    uefi_code: str
    uefi_vars: str
    uefi_vars_shared: bool
    console: bool
    migratable: bool
    disks: tuple[FrozenDisk, ...]
    nics: tuple[FrozenNic, ...]
    passthrough: tuple[FrozenPassthrough, ...]
    extra_arguments: tuple[str, ...]

    @property
    def root_bus(self) -> str:
        """Name of the bus that the devices' PCI addresses are on."""
        return "pci.0" if self.machine == "pc" or self.machine.startswith("pc-i440fx-") else "pcie.0"

    @property
    def cpu_name(self) -> str:
        """The CPU model without its features, as ``QemuFacts.cpu_models`` lists it."""
        return self.cpu_model.partition(",")[0]

    @property
    def files(self) -> tuple[str, ...]:
        """Every path that must be there on a host that runs the VM."""
        paths = (self.kernel, self.initrd, self.uefi_code, self.uefi_vars, *(disk.path for disk in self.disks))
        return tuple(path for path in paths if path)


def definition_digest(text: str) -> str:
    """Tells whether a definition's text was edited: SHA-256 of it, in hex."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def freeze(
    definition: Definition,
    facts: QemuFacts,
    *,
    uuid: str,
    mac_for: Callable[[int], str],
    digest: str = "",
) -> FrozenVm:
    """The VM that `definition` means on a host with `facts`.

    :param mac_for: the hardware address of the n-th network card, for those that the definition gives none.
    :param digest: :func:`definition_digest` of the text that the definition was read from; without it, of its fields.
    :raise QemuTooOld: this QEMU has no such machine type.
    :raise CpuUnsupported: this QEMU and host cannot give the guest that CPU model.
    """
    machine = facts.machines.get(definition.machine, definition.machine)
    if machine not in facts.machine_types:
        newest = ", ".join(f"{alias} is {name}" for alias, name in sorted(facts.machines.items()))
        raise QemuTooOld(
            f"QEMU {facts.version_text} on this host has no machine type '{machine}' ({newest}).",
            remedy="Install a newer QEMU on this host, or name a machine type that it has.",
        )
    memory, boot, uefi = definition.memory, definition.boot, definition.uefi
    frozen = FrozenVm(
        version=FROZEN_VERSION,
        name=definition.name,
        uuid=uuid,
        definition_digest=digest or definition_digest(definition.model_dump_json()),
        accelerator=facts.accelerator,
        machine=machine,
        cpu_model=BASELINE_CPU if definition.cpu.model == "baseline" else definition.cpu.model,
        cpus=definition.cpu.count,
        memory_bytes=memory.size_bytes,
        backing=memory.backing,
        hugepage_bytes=memory.hugepage_bytes if memory.backing == "hugetlb" else 0,
        populate=memory.populate,
        kernel=boot.kernel,
        initrd=boot.initrd,
        arguments=boot.arguments,
        uefi_code=uefi.code if uefi else "",
        uefi_vars=uefi.vars if uefi else "",
        uefi_vars_shared=uefi.shared if uefi else False,
        console=definition.console,
        migratable=definition.migratable,
        disks=tuple(
            FrozenDisk(id=f"disk{n}", pci_address=_slot(_FIRST_DISK_SLOT + n), **disk.model_dump())
            for n, disk in enumerate(definition.disk)
        ),
        nics=tuple(
            FrozenNic(
                id=f"nic{n}",
                bridge=nic.bridge,
                tap=nic.tap,
                mac=(nic.mac or mac_for(n)).lower(),
                model=nic.model,
                pci_address=_slot(_FIRST_NIC_SLOT + n),
            )
            for n, nic in enumerate(definition.nic)
        ),
        passthrough=tuple(
            FrozenPassthrough(id=f"host{n}", host=device.host, pci_address=_slot(_FIRST_PASSTHROUGH_SLOT + n))
            for n, device in enumerate(definition.passthrough)
        ),
        extra_arguments=definition.extra_arguments,
    )
    refuse_unsupported_cpu(frozen, facts)
    return frozen


def _slot(number: int) -> str:
    return f"0x{number:02x}"


def refuse_unsupported_cpu(frozen: FrozenVm, facts: QemuFacts) -> None:
    """Raise CpuUnsupported when a host with `facts` cannot give the guest its CPU model.

    Features written after the model's name are judged by QEMU itself (``enforce``) when it starts.
    """
    if frozen.cpu_name not in facts.cpu_models:
        raise CpuUnsupported(
            f"QEMU {facts.version_text} under {facts.accelerator} cannot give the guest the CPU '{frozen.cpu_name}' here."
        )


def refuse_unmigratable(frozen: FrozenVm) -> None:
    """Raise when the VM, as it was started, must not move to another host.

    :raise NotMigratable: it was defined so, or has a device or a disk that would stay behind.
    :raise UnsafeDisk: a shared disk is open through this host's page cache, whose contents the other host would not see.
    """
    if frozen.passthrough:
        raise NotMigratable(
            f"{frozen.name} has the host's device {frozen.passthrough[0].host}, which cannot move.",
        )
    if not frozen.migratable:
        raise NotMigratable(
            f"{frozen.name} was started with migratable = false.",
            remedy="Remove that from the definition, restart the VM, and migrate then.",
        )
    if frozen.uefi_vars and not frozen.uefi_vars_shared:
        raise NotMigratable(
            f"The UEFI variables of {frozen.name} ({frozen.uefi_vars}) are not on shared storage.",
            remedy="Move the file to shared storage, set uefi.shared = true, and restart the VM.",
        )
    for disk in frozen.disks:
        if not disk.shared:
            raise NotMigratable(
                f"The disk {disk.path} of {frozen.name} is not shared; moving it needs storage migration, which comes later.",
                remedy="Put the disk on storage that both hosts see under the same path, and restart the VM.",
            )
        if disk.cache not in DIRECT_CACHE_MODES and not disk.readonly:
            raise UnsafeDisk(
                f"The shared disk {disk.path} of {frozen.name} has cache = '{disk.cache}', so writes may still lie in this host's page cache.",
                remedy='Set cache = "none" or "directsync" in the definition and restart the VM.',
            )
