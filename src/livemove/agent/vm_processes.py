"""QEMUs with all that belongs to them on this host: taps, run directory, sockets, monitor."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import pwd
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from livemove.agent.file_checks import FileChecks
from livemove.base.errors import LivemoveError
from livemove.base.settings import HostSettings
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.base.threads import in_own_thread
from livemove.hypervisor import process as processes
from livemove.hypervisor.command_line import Place, command_line
from livemove.hypervisor.frozen import FrozenVm
from livemove.hypervisor.launch import Lease, launch
from livemove.hypervisor.lease import domain, lease_path
from livemove.hypervisor.memory import populate
from livemove.hypervisor.probe import QemuFacts
from livemove.hypervisor.process import QemuProcess
from livemove.hypervisor.qmp import Monitor
from livemove.network.taps import make_tap, remove_tap_patiently, tap_name


@dataclass(slots=True)
class Running:
    """A QEMU of this host with its monitor."""

    frozen: FrozenVm
    process: QemuProcess
    monitor: Monitor
    taps: tuple[str, ...]
    status: str = "running"
    watch: asyncio.Task[None] | None = None
    populating: asyncio.Task[int] | None = None
    unsubscribe: list[Callable[[], None]] = field(default_factory=list)


def lease_dir(settings: HostSettings) -> Path:
    """Where the leases of this host's VMs are."""
    return Path(settings.lease_dir) if settings.lease_dir else own_leases(settings)


def own_leases(settings: HostSettings) -> Path:
    """This host's own directory of leases; VMs that were started before `lease_dir` was set have theirs there still."""
    return settings.run_dir / "leases"


class VmProcesses:
    """Starts QEMUs and takes them away again whole; which VM may run is decided elsewhere."""

    def __init__(self, settings: Callable[[], HostSettings], facts: QemuFacts) -> None:
        self._settings = settings
        self.facts = facts
        self.files = FileChecks()

    def run_dir(self, name: str) -> Path:
        """Where the sockets and logs of a VM's QEMU are."""
        return self._settings().run_dir / "vms" / name

    async def lease_domain(self) -> str:
        """The mark of the lease directory that this host shares; empty when its leases are its own.

        Raises MissingPrerequisite.
        """
        shared = self._settings().lease_dir
        return await in_own_thread(lambda: domain(Path(shared)), name="look at lease_dir") if shared else ""

    async def launch(self, frozen: FrozenVm, *, incoming: bool) -> Running:
        """Start a QEMU with its taps; nothing is left when it fails."""
        settings = self._settings()
        owner = pwd.getpwnam(settings.qemu_user).pw_uid if settings.qemu_user else None
        run_dir = self.run_dir(frozen.name)
        taps: list[str] = []
        try:
            for index, nic in enumerate(frozen.nics):
                if nic.tap:
                    taps.append(nic.tap)
                    continue
                name = tap_name(frozen.name, frozen.uuid, index)
                await asyncio.to_thread(make_tap, name, nic.bridge, owner_uid=owner)
                taps.append(name)
            place = Place(
                run_dir, self.facts.accelerator, tuple(taps), Path("/dev/vhost-net").exists(), self.facts.has_sandbox
            )
            argv = command_line(frozen, place, qemu=self.facts.path, incoming=incoming)
            path = await in_own_thread(
                lambda: lease_path(lease_dir(settings), frozen.uuid), name=f"lease of {frozen.name}"
            )
            lease = Lease(path, hold=not incoming)
            process = await launch(frozen.name, argv, run_dir, user=settings.qemu_user, lease=lease)
            try:
                monitor = await Monitor.connect(run_dir / "qmp.sock", name=frozen.name)
            except LivemoveError:
                await processes.kill(process, grace_s=0)
                raise
        except BaseException:
            self._remove_unheld_lease(frozen.uuid)
            await self.remove_taps(frozen, taps)
            raise
        running = Running(frozen, process, monitor, tuple(taps))
        if frozen.populate:
            running.populating = spawn(populate(process, frozen), name=f"populate memory of {frozen.name}")
        return running

    async def discard(self, running: Running, *, grace_s: float = 0.0) -> None:
        """End a QEMU and take away everything that belonged to it; may be called twice."""
        for unsubscribe in running.unsubscribe:
            unsubscribe()
        await cancel_and_wait(running.populating)
        if running.watch is not asyncio.current_task():
            await cancel_and_wait(running.watch)
        await processes.kill(running.process, grace_s=grace_s)
        await running.monitor.close()
        await self.remove_taps(running.frozen, list(running.taps))
        self.remove_sockets(running.frozen.name)
        self.remove_lease(running.frozen.uuid)

    def remove_lease(self, vm_uuid: str) -> None:
        """The file of a QEMU that has ended, where it is this host's own; a shared one may be another host's by now."""
        (own_leases(self._settings()) / f"{vm_uuid}.lease").unlink(missing_ok=True)

    def _remove_unheld_lease(self, vm_uuid: str) -> None:
        """After a start that failed; it may have failed because another QEMU holds it."""
        path = own_leases(self._settings()) / f"{vm_uuid}.lease"
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()

    def remove_stale_leases(self, kept: set[str]) -> None:
        """Those of this host's own that crashes have left, at the agent's start: all but the VMs' that run here."""
        for path in own_leases(self._settings()).glob("*.lease"):
            if path.stem not in kept:
                path.unlink(missing_ok=True)

    def remove_sockets(self, name: str) -> None:
        for socket in ("qmp.sock", "console.sock"):
            (self.run_dir(name) / socket).unlink(missing_ok=True)

    async def remove_taps(self, frozen: FrozenVm, taps: list[str]) -> None:
        for nic, tap in zip(frozen.nics, taps, strict=False):
            if not nic.tap:
                await remove_tap_patiently(tap)

    def taps_of(self, frozen: FrozenVm) -> tuple[str, ...]:
        return tuple(nic.tap or tap_name(frozen.name, frozen.uuid, index) for index, nic in enumerate(frozen.nics))
