"""What this host knows of its VMs, and what therefore must not be done with them now."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from livemove.agent.vm_processes import Running, VmProcesses
from livemove.agent.vm_records import VmRecord, VmRecords
from livemove.base.errors import AlreadyMoving, Conflict, NotEnoughMemory, NotRunning, OutcomeUnknown
from livemove.base.settings import HostSettings
from livemove.base.units import format_size, parse_size
from livemove.hypervisor.frozen import FrozenVm
from livemove.hypervisor.machine_facts import memory_available_bytes
from livemove.hypervisor.memory import memfd_path
from livemove.hypervisor.probe import QemuFacts


class VmTable(VmProcesses):
    """The VMs of this host by name: those on record, those that run, and those that something else decides about."""

    def __init__(self, settings: Callable[[], HostSettings], facts: QemuFacts, records: VmRecords) -> None:
        super().__init__(settings, facts)
        self.records = records
        self._running: dict[str, Running] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        #: VM name -> journey id, for VMs that are leaving or whose ownership is not known; set by the journeys
        self.journeys: dict[str, str] = {}
        #: names whose hand-over is unresolved: nobody may start them
        self.unresolved: set[str] = set()
        #: names of VMs that are arriving; set by the incoming side
        self.arriving: set[str] = set()
        #: memory promised to VMs that arrive, by journey; set by the incoming side
        self.reserved_bytes: dict[str, int] = {}
        #: VMs whose QEMU is there and has not answered since this agent's start, or would not end, with what looks for it
        self.mute: dict[str, asyncio.Task[None]] = {}

    def lock(self, name: str) -> asyncio.Lock:
        """Held by whoever changes the VM `name`."""
        return self._locks.setdefault(name, asyncio.Lock())

    def running(self, name: str) -> Running:
        """The QEMU of `name`. Raises UnknownVm, NotRunning."""
        record = self.records.get(name)
        found = self._running.get(name)
        if found is None:
            where = f"; it moved to {record.moved_to}" if record.moved_to else ""
            raise NotRunning(f"VM '{name}' is not running on this host{where}.")
        return found

    def find_running(self, name: str) -> Running | None:
        return self._running.get(name)

    # Refusals -------------------------------------------------------------------------------------------------------

    def _refuse_moving(self, name: str) -> None:
        if name in self.journeys:
            raise AlreadyMoving(f"VM '{name}' is being moved by journey {self.journeys[name]}.")

    def _does_not_answer(self, record: VmRecord) -> Conflict:
        return Conflict(
            f"The QEMU of VM '{record.name}' (pid {record.process and record.process.pid}) does not answer.",
            remedy="It is looked for until it answers or ends; qemu.log in its run directory may tell more. If it hangs, let "
            f"it go on (kill -CONT) or end it with 'livemove vm stop --force {record.name}'.",
        )

    def _refuse_unresolved(self, name: str) -> None:
        if name in self.unresolved:
            raise OutcomeUnknown(
                f"The hand-over of VM '{name}' is under way or not resolved; nobody may run or end it."
            )

    # Memory ---------------------------------------------------------------------------------------------------------

    def check_memory(self, frozen: FrozenVm) -> None:
        """Raises NotEnoughMemory when this host cannot hold the VM beside what it promised."""
        if frozen.backing == "hugetlb":
            return  # counted by the kernel apart from MemAvailable; QEMU refuses by itself when too few are free
        reserve = parse_size(self._settings().memory_reserve)
        free = memory_available_bytes() - reserve - self.promised_bytes()
        if frozen.memory_bytes > free:
            host = self._settings().name
            raise NotEnoughMemory(
                f"VM '{frozen.name}' needs {format_size(frozen.memory_bytes)}, and {host} has {format_size(max(free, 0))} "
                f"beyond its promises and the reserve of {format_size(reserve)}.",
                where=host,
            )

    def promised_bytes(self) -> int:
        """Memory that running VMs may still take and that arriving VMs were promised."""
        promised = sum(self.reserved_bytes.values())
        for running in self._running.values():
            resident = 0
            path = memfd_path(running.process, running.frozen)
            with contextlib.suppress(OSError):
                resident = path.stat().st_blocks * 512 if path is not None else running.frozen.memory_bytes
            promised += max(0, running.frozen.memory_bytes - resident)
        return promised
