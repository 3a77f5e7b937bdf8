"""The VMs of this host: started, watched, found again after a restart of the agent.

A QEMU outlives the agent. The guest's own power-off pauses QEMU (``-action shutdown=pause``) instead of ending it, so that
the agent, and not chance, decides what follows: outside a journey the VM is then stopped in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import uuid as uuids
from collections.abc import Callable
from dataclasses import replace

from livemove.agent.orphans import qemu_in
from livemove.agent.vm_processes import Running
from livemove.agent.vm_records import VmRecord, VmRecords, stopped
from livemove.agent.vm_table import VmTable
from livemove.base.errors import (
    Conflict,
    HypervisorError,
    LivemoveError,
    OutcomeUnknown,
    StateUnwritable,
)
from livemove.base.settings import HostSettings
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.hypervisor import lease
from livemove.hypervisor import process as processes
from livemove.hypervisor.definition import Definition, parse_definition
from livemove.hypervisor.frozen import FrozenVm, definition_digest, freeze
from livemove.hypervisor.launch import cgroup_of
from livemove.hypervisor.memory import describe_backing
from livemove.hypervisor.probe import QemuFacts
from livemove.hypervisor.qmp import Monitor, QmpEvent
from livemove.network.taps import remove_tap_patiently, taps_of

_log = logging.getLogger(__name__)

STOP_PATIENCE_S = 30.0
SEARCH_INTERVAL_S = 1.0
REMOVAL_INTERVAL_S = 5.0


class Vms(VmTable):
    """Owner of this host's QEMUs, except those that are still arriving."""

    def __init__(self, settings: Callable[[], HostSettings], facts: QemuFacts, records: VmRecords) -> None:
        super().__init__(settings, facts, records)
        #: called with (vm name, reason) when a QEMU ends unexpectedly
        self.on_death: list[Callable[[str, str], None]] = []

    # Start and stop -------------------------------------------------------------------------------------------------

    async def define(self, text: str) -> VmRecord:
        """Store a definition; a running VM keeps its frozen one until its next start. Raises BadDefinition."""
        definition = parse_definition(text)
        async with self.lock(definition.name):
            if definition.name in self.arriving:
                raise Conflict(f"VM '{definition.name}' is arriving here; define it anew when it has arrived.")
            old = self.records.find(definition.name)
            if old is not None and old.moved_to:
                raise Conflict(
                    f"VM '{definition.name}' moved to {old.moved_to}.",
                    remedy=f"Define it there, or forget this host's record with 'livemove vm remove {definition.name}'.",
                )
            record = replace(old, definition=text) if old else VmRecord(definition.name, str(uuids.uuid4()), text)
            await self.records.put(record)
            return record

    async def start(self, name: str) -> VmRecord:
        """Freeze the definition and run it; a VM that runs stays as it is."""
        async with self.lock(name):
            record = self.records.get(name)
            if name in self.unresolved:
                raise OutcomeUnknown(
                    f"The hand-over of VM '{name}' is not resolved; starting it could make it run twice."
                )
            if name in self.arriving:
                raise Conflict(f"VM '{name}' is arriving here; it runs when it has arrived.")
            if name in self.mute:
                raise self._does_not_answer(record)
            if record.moved_to:
                raise Conflict(f"VM '{name}' moved to {record.moved_to}.", remedy="Start it there.")
            if name in self._running:
                return record
            definition = parse_definition(record.definition)
            frozen = self._freeze(definition, record)
            self.check_memory(frozen)
            # on record before there is a QEMU, so that an agent that is killed in between knows it for a VM of its own
            record = replace(record, frozen=frozen, accelerator=self.facts.accelerator, arrived_in="")
            await self.records.put(record)
            try:
                running = await self.launch(frozen, incoming=False)
                record = replace(record, process=running.process, backing=describe_backing(running.process, frozen))
                try:
                    await self.records.put(record)
                except LivemoveError:
                    await self.discard(running)
                    raise
            except BaseException:
                with contextlib.suppress(StateUnwritable):
                    await self.records.put(stopped(record))
                raise
            self.adopt(running)
            _log.info("VM %s started, pid %d, %s", name, running.process.pid, self.facts.accelerator)
            return record

    def _freeze(self, definition: Definition, record: VmRecord) -> FrozenVm:
        def mac_for(index: int) -> str:
            # stable across starts, local bit set; QEMU's own prefix stays readable in captures
            digest = hashlib.sha256(f"{record.uuid}/{index}".encode()).digest()
            return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])

        return freeze(
            definition, self.facts, uuid=record.uuid, mac_for=mac_for, digest=definition_digest(record.definition)
        )

    async def discard(self, running: Running, *, grace_s: float = 0.0) -> None:
        await super().discard(running, grace_s=grace_s)
        if self._running.get(running.frozen.name) is running:
            del self._running[running.frozen.name]

    async def discard_orphan(self, name: str, uuid: str) -> None:
        """End a QEMU that only a journey knew, when the agent was killed in between; a VM of ours is never touched."""
        if self._is_ours(name):
            return  # not to wait for a start, which takes a while
        async with self.lock(name):
            if self._is_ours(name):
                return
            found, cgroup = qemu_in(self.run_dir(name), name), cgroup_of(name, self.run_dir(name))
            if found is not None:
                await processes.kill(found, grace_s=0)
            # one that ended while nobody looked has left its cgroup
            await processes.remove_cgroup(str(cgroup) if cgroup is not None else None)
            for tap in taps_of(name, uuid):
                await remove_tap_patiently(tap)
            self.remove_sockets(name)

    def _is_ours(self, name: str) -> bool:
        """Whether a VM of this host runs or starts under that name."""
        record = self.records.find(name)
        started = record is not None and (record.process is not None or record.frozen is not None)
        return started or name in self._running

    def adopt(self, running: Running) -> None:
        """Watch a QEMU from now on as one of this host's VMs."""
        self._running[running.frozen.name] = running
        running.unsubscribe.append(running.monitor.listen(lambda event: self._heard(running, event)))
        running.watch = spawn(self._watch(running), name=f"watch VM {running.frozen.name}")

    def _heard(self, running: Running, event: QmpEvent) -> None:
        name = running.frozen.name
        if event.name == "RESUME":
            running.status = "running"
        elif event.name in ("STOP", "GUEST_PANICKED", "BLOCK_IO_ERROR"):
            spawn(self._read_status(running), name=f"status of VM {name}")
        elif event.name == "SHUTDOWN" and name not in self.journeys:
            running.status = "shutdown"
            spawn(self._stop_powered_off(name), name=f"stop VM {name}, which powered off")

    async def _read_status(self, running: Running) -> None:
        with contextlib.suppress(HypervisorError):
            running.status = str((await running.monitor.execute("query-status"))["status"])

    async def _stop_powered_off(self, name: str) -> None:
        async with self.lock(name):
            if name in self._running and name not in self.journeys:
                _log.info("VM %s powered itself off", name)
                await self.stopped_in_order(name)

    async def _watch(self, running: Running) -> None:
        await processes.wait_gone(running.process)
        name = running.frozen.name
        if self._running.get(name) is not running:
            return
        _log.error("QEMU of VM %s (pid %d) ended unexpectedly", name, running.process.pid)
        try:
            await self.discard(running)
        except LivemoveError as error:
            _log.error("something of VM %s is left: %s", name, error)
            self._running.pop(name, None)
        record = self.records.find(name)
        if record is not None and record.process == running.process and name not in self.unresolved:
            await self.records.put(stopped(record))
        for told in self.on_death:
            told(name, f"its QEMU (pid {running.process.pid}) ended unexpectedly")

    async def stopped_in_order(self, name: str, *, moved_to: str = "", grace_s: float = 5.0) -> None:
        """End the QEMU of `name` and note that it is stopped (or moved); the caller holds the lock.

        That it moved is on record before its QEMU is ended, so that nobody starts it here if that fails. When that raises,
        it is tried again until it is done.
        """
        running = self._running.get(name)
        if moved_to:
            if running is not None:
                # its end surprises nobody any more
                await cancel_and_wait(running.watch)
            await self.records.put(replace(self.records.get(name), moved_to=moved_to))
        if running is not None:
            self._running.pop(name, None)
            try:
                await self.discard(running, grace_s=grace_s)
            except LivemoveError:
                self._look_for(self.records.get(name))
                raise
        await self.records.put(stopped(self.records.get(name), moved_to=moved_to))

    async def stop(self, name: str, *, force: bool) -> VmRecord:
        """Power the guest off, with `force` at once. Raises Conflict when the guest does not react in 30 s, or QEMU is mute."""
        async with self.lock(name):
            record = self.records.get(name)
            search = self.mute.get(name)
            if search is not None:
                await self._end_mute(record, search, force=force)
            running = self._running.get(name)
            if running is None and search is None:
                return record
            self._refuse_moving(name)
            if running is not None and not force and running.status == "running":
                with running.monitor.events("SHUTDOWN") as heard:
                    await running.monitor.execute("system_powerdown")
                    try:
                        async with asyncio.timeout(STOP_PATIENCE_S):
                            await heard.get()
                    except TimeoutError as error:
                        raise Conflict(
                            f"The guest of VM '{name}' has not powered off within {STOP_PATIENCE_S:.0f} s.",
                            remedy=f"Use 'livemove vm stop --force {name}'.",
                        ) from error
            if running is not None:
                await self.stopped_in_order(name)
            await self.records.put(replace(self.records.get(name), arrived_in=""))
            return self.records.get(name)

    async def _end_mute(self, record: VmRecord, search: asyncio.Task[None], *, force: bool) -> None:
        self._refuse_moving(record.name)
        self._refuse_unresolved(record.name)
        if not force:
            raise self._does_not_answer(record)
        if record.process is not None:
            await processes.kill(record.process, grace_s=0)
        # who looks for it puts on record that it has ended, or has just found it
        await asyncio.wait([search], timeout=STOP_PATIENCE_S)

    async def command(self, name: str, command: str) -> None:
        """``stop``, ``cont`` or ``system_reset``; refused while nobody may run the VM.

        A VM that is being moved is not resumed by hand: the order could reach QEMU just after the last page left.
        """
        running = self.running(name)
        if command == "cont":
            self._refuse_moving(name)
        self._refuse_unresolved(name)
        if command == "cont":
            await lease.change(lease.take, running.process)
        await running.monitor.execute(command)

    async def refresh(self, name: str) -> None:
        """Read the run state now instead of waiting for QEMU's event."""
        await self._read_status(self.running(name))

    async def remove(self, name: str) -> None:
        """Forget a stopped or moved VM. Raises Conflict when it runs or may run."""
        async with self.lock(name):
            record = self.records.get(name)
            if name in self._running:
                raise Conflict(f"VM '{name}' is running.", remedy=f"Stop it first with 'livemove vm stop {name}'.")
            self._refuse_moving(name)
            if name in self.unresolved:
                raise Conflict(
                    f"The hand-over of VM '{name}' is not resolved.",
                    remedy=f"'livemove resolve {name}' shows what is known and what can be done.",
                )
            if name in self.arriving:
                raise Conflict(
                    f"VM '{name}' is arriving here.",
                    remedy=f"Wait until it has, or end its journey with 'livemove cancel {name}'.",
                )
            if name in self.mute or (record.process is not None and processes.find(record.process)):
                raise self._does_not_answer(record)
            await self.records.remove(name)

    # Restarts -------------------------------------------------------------------------------------------------------

    async def find_again(self) -> None:
        """After a restart of the agent: adopt the QEMUs that still run, note those that ended meanwhile."""
        for known in self.records.all():
            if known.frozen is None:
                continue
            record = (
                known
                if known.process is not None
                else replace(known, process=qemu_in(self.run_dir(known.name), known.name))
            )
            if record.process is None:
                await self.records.put(stopped(record))
                continue
            if record is not known:
                await self.records.put(record)
            if not processes.find(record.process):
                _log.warning("VM %s ended while the agent was away", record.name)
                try:
                    await self.note_ended(record)
                except LivemoveError as error:
                    _log.error("what the QEMU of VM %s left is not gone yet: %s", record.name, error)
                    self._look_for(record)
            elif record.moved_to or not await self._find(record):
                self._look_for(record)
        self.remove_stale_leases({record.uuid for record in self.records.all() if record.process is not None})

    async def _find(self, record: VmRecord) -> bool:
        assert record.process is not None and record.frozen is not None
        try:
            monitor = await Monitor.connect(self.run_dir(record.name) / "qmp.sock", name=record.name)
        except LivemoveError as error:
            _log.error("QEMU of VM %s runs but does not answer: %s", record.name, error)
            return False
        running = Running(record.frozen, record.process, monitor, self.taps_of(record.frozen))
        await self._read_status(running)
        self.adopt(running)
        _log.info("VM %s found again, pid %d, %s", record.name, record.process.pid, running.status)
        return True

    def _look_for(self, record: VmRecord) -> None:
        """A QEMU that hangs is neither dead nor ours to use: look until it answers or has ended."""
        self.mute[record.name] = spawn(self._search(record), name=f"search QEMU of {record.name}")

    async def _search(self, record: VmRecord) -> None:
        assert record.process is not None
        while processes.find(record.process):
            if record.moved_to:
                with contextlib.suppress(LivemoveError):
                    await processes.kill(record.process, grace_s=0)
                continue
            await asyncio.sleep(SEARCH_INTERVAL_S)
            if processes.find(record.process) and await self._find(record):
                break
        else:
            _log.warning("QEMU of VM %s (pid %d) has ended", record.name, record.process.pid)
            while True:
                try:
                    await self.note_ended(record)
                    break
                except LivemoveError as error:
                    _log.error("what the QEMU of VM %s left is not gone yet: %s", record.name, error)
                    await asyncio.sleep(REMOVAL_INTERVAL_S)
        del self.mute[record.name]

    async def note_ended(self, record: VmRecord) -> None:
        """Take away what a QEMU that ended unseen left behind."""
        assert record.frozen is not None and record.process is not None
        await processes.remove_cgroup(record.process.cgroup)
        await self.remove_taps(record.frozen, list(self.taps_of(record.frozen)))
        self.remove_sockets(record.name)
        self.remove_lease(record.uuid)
        known = self.records.find(record.name)
        if known is not None and known.process == record.process:
            await self.records.put(stopped(known))

    async def stop_powered_off(self) -> None:
        """Stop VMs whose guest powered off while the agent was away; called once journeys are known."""
        for name in [n for n, r in self._running.items() if r.status == "shutdown" and n not in self.journeys]:
            try:
                await self._stop_powered_off(name)
            except LivemoveError as error:
                _log.error("VM %s, which powered off, is not stopped yet: %s", name, error)

    async def close(self) -> None:
        """Let go of the QEMUs, which run on."""
        await cancel_and_wait(*self.mute.values())
        for running in list(self._running.values()):
            for unsubscribe in running.unsubscribe:
                unsubscribe()
            await cancel_and_wait(running.watch, running.populating)
            await running.monitor.close()
        self._running.clear()
