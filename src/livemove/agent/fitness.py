"""Whether this host can take a VM: room, its own policy, memory, CPU, machine type, disks, bridges (step 3)."""

from __future__ import annotations

import socket
from fnmatch import fnmatch
from pathlib import Path

from pydantic import ValidationError

from livemove.agent.file_checks import Look
from livemove.agent.paths import check_paths
from livemove.agent.room import check_room
from livemove.agent.vms import Vms
from livemove.base.errors import (
    Conflict,
    CpuUnsupported,
    DiskUnreachable,
    HugePagesMissing,
    MigrationBlocked,
    NetworkMissing,
    PeerViolation,
    PolicyRefused,
    QemuTooOld,
)
from livemove.base.settings import HostSettings, describe_validation
from livemove.hypervisor.frozen import FROZEN_VERSION, FrozenVm, refuse_unmigratable, refuse_unsupported_cpu
from livemove.hypervisor.machine_facts import free_hugepages


def read_frozen(text: str) -> FrozenVm:
    """The frozen definition that a source sent. Raises PeerViolation."""
    try:
        frozen = FrozenVm.model_validate_json(text)
    except ValidationError as error:
        raise PeerViolation(f"The frozen definition is not one: {describe_validation(error)}") from error
    if frozen.version != FROZEN_VERSION:
        raise PeerViolation(f"The frozen definition has version {frozen.version}; this host knows {FROZEN_VERSION}.")
    return frozen


async def check_files(frozen: FrozenVm, vms: Vms, settings: HostSettings) -> None:
    """Raises PolicyRefused or DiskUnreachable naming a file that the VM may not use here, or that is not here."""
    await vms.files.look(lambda look: _check_files(frozen, settings, look), settings.name)


def check_fitness(frozen: FrozenVm, source_accelerator: str, vms: Vms, settings: HostSettings) -> list[str]:
    """Everything but the files. Raises an OperatorError or Conflict naming what is missing here.

    Returns remarks for the plan.
    """
    host = settings.name
    check_room(settings)
    _check_name(frozen, vms, host)
    _check_policy(frozen, settings)
    facts = vms.facts
    if source_accelerator != facts.accelerator:
        raise MigrationBlocked(
            f"VM '{frozen.name}' runs under {source_accelerator.upper()} and {host} offers {facts.accelerator.upper()}: "
            f"{facts.accelerator_reason}",
            remedy="Set the same 'accelerator' on both hosts and restart the VM.", where=host,
        )  # fmt: skip
    if frozen.machine not in facts.machine_types:
        raise QemuTooOld(
            f"QEMU {facts.version_text} on {host} has no machine type {frozen.machine}, with which the VM was started.",
            remedy=f"Update QEMU on {host}, or restart the VM with a machine type that both hosts have.", where=host,
        )  # fmt: skip
    try:
        refuse_unsupported_cpu(frozen, facts)
    except CpuUnsupported as error:
        text = f"{host} cannot run VM '{frozen.name}': {error.message}"
        raise CpuUnsupported(text, remedy=error.remedy, where=host) from error
    refuse_unmigratable(frozen)
    for nic in frozen.nics:
        if nic.bridge:
            try:
                socket.if_nametoindex(nic.bridge)
            except OSError as error:
                raise NetworkMissing(f"{host} has no bridge '{nic.bridge}'.", where=host) from error
    if frozen.backing == "hugetlb":
        free = free_hugepages(frozen.hugepage_bytes) * frozen.hugepage_bytes
        if free < frozen.memory_bytes:
            raise HugePagesMissing(
                f"{host} has {free >> 20} MiB in free huge pages of {frozen.hugepage_bytes >> 10} KiB, and the VM needs "
                f"{frozen.memory_bytes >> 20} MiB.",
                where=host,
            )
    vms.check_memory(frozen)
    return list(facts.warnings)


def _check_name(frozen: FrozenVm, vms: Vms, host: str) -> None:
    record = vms.records.find(frozen.name)
    if record is None:
        return
    if record.moved_to:
        # it left, or another one did whose name the newcomer takes
        if record.process is None:
            return
        raise Conflict(
            f"The QEMU of VM '{record.name}', which moved from {host} to {record.moved_to}, has not ended there yet.",
            remedy=f"Wait until it has; if it never does, look at 'cat /proc/{record.process.pid}/stack' on {host}.",
            where=host,
        )
    raise Conflict(
        f"{host} has a VM '{frozen.name}' of its own{' and it runs' if vms.find_running(frozen.name) else ''}.",
        remedy=f"Remove it there with 'livemove vm remove {frozen.name} --host {host}', or rename one of them.", where=host,
    )  # fmt: skip


def _check_policy(frozen: FrozenVm, settings: HostSettings) -> None:
    host = settings.name
    for nic in frozen.nics:
        if nic.bridge and not any(fnmatch(nic.bridge, pattern) for pattern in settings.allowed_bridges):
            raise PolicyRefused(f"Bridge '{nic.bridge}' is not among 'allowed_bridges' of {host}.", where=host)
    if frozen.extra_arguments and not settings.allow_extra_arguments:
        raise PolicyRefused(f"{host} admits no extra QEMU arguments ('allow_extra_arguments').", where=host)


def _check_files(frozen: FrozenVm, settings: HostSettings, look: Look) -> None:
    """Whether this host allows them, then whether they can be opened; blocks for as long as their storage does."""
    host = settings.name
    images = [disk.path for disk in frozen.disks if disk.format == "qcow2"]
    check_paths(look.each(frozen.files), look.each(images), look.each(settings.allowed_disk_dirs), host)
    for path in look.each(frozen.files):
        try:
            with Path(path).open("rb"):
                pass
        except OSError as error:
            raise DiskUnreachable(f"{path} cannot be opened on {host}: {error.strerror}.", where=host) from error
