"""Carrying out the destination's rules: a QEMU started and ended, ownership journaled, the guest resumed.

The rules are in migration.incoming; whoever calls :meth:`ArrivalEffects.request` holds the arrival's lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from livemove.agent.arrival_connection import ArrivalConnection
from livemove.agent.vm_processes import Running
from livemove.agent.vm_records import VmRecord
from livemove.agent.vms import Vms
from livemove.base.clock import Clock
from livemove.base.database import until_written
from livemove.base.errors import HypervisorError, LivemoveError, QemuGone, StateUnwritable
from livemove.base.fault_points import around
from livemove.base.settings import HostSettings
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.fleet.admission import AdmissionQueue
from livemove.hypervisor import lease
from livemove.hypervisor import process as processes
from livemove.hypervisor.frozen import FrozenVm
from livemove.hypervisor.guest_memory import GuestMemory
from livemove.hypervisor.launch import log_tail
from livemove.hypervisor.memory import describe_backing
from livemove.migration.direct import forget_credentials, remove_keys
from livemove.migration.incoming import QEMU_ENDED, Answer, Effect, RefusedRequest, Request, step
from livemove.migration.journal import Journal, Record
from livemove.migration.model import Incoming, IncomingPhase
from livemove.migration.receiving import LoadedWatch
from livemove.migration.threads import process_cpu_seconds

_log = logging.getLogger(__name__)

#: A source that is silent for this long before it has sent everything is given up; it asks every few seconds.
SILENCE_S = 60.0
LOAD_PATIENCE_S = 10.0
#: The source hears of our QEMU's death by its broken connection, which may be a moment before we do.
DYING_S = 0.05
SOURCE_ENDED = "the source ended the journey"


@dataclass(slots=True)
class Arrival:
    """One journey to this host."""

    record: Record
    state: Incoming
    frozen: FrozenVm | None = None
    definition: str = ""
    grant_role: str = "operator"
    running: Running | None = None
    connection: ArrivalConnection | None = None
    loaded: LoadedWatch | None = None
    cpu_start_s: float = 0.0
    cpu_seconds: float | None = None
    agent_cpu_start_s: float = 0.0
    #: its QEMU was ended by us, and the journal may not say so yet
    ended: bool = False
    last_contact_s: float = 0.0
    watch: asyncio.Task[None] | None = None
    memory: GuestMemory | None = None
    lengths: dict[str, int] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class ArrivalEffects:
    """What the destination does to the machine it runs on, for all its arrivals."""

    def __init__(
        self, settings: Callable[[], HostSettings], vms: Vms, journal: Journal, clock: Clock, queue: AdmissionQueue,
        forget: Callable[[str], object],
    ) -> None:  # fmt: skip
        self._settings = settings
        self._vms = vms
        self._journal = journal
        self._clock = clock
        self._queue = queue
        self._forget = forget

    def key_dir(self, journey: str) -> Path:
        return self._settings().run_dir / "keys" / journey

    def last_words(self, arrival: Arrival) -> str:
        tail = log_tail(self._vms.run_dir(arrival.record.vm), lines=2)
        return f"{QEMU_ENDED}: {tail or 'without a word'}"

    async def request(
        self, arrival: Arrival, request: Request, *, resume: bool = False, reason: str = ""
    ) -> dict[Effect, float]:
        """Ask the rules and carry out their effects; milliseconds by effect. The caller holds the lock."""
        answer = step(arrival.state, request, resume=resume, reason=reason)
        timings: dict[Effect, float] = {}
        for effect in answer.effects:
            started_s = self._clock.monotonic_s()
            if effect is Effect.RESUME_GUEST:
                arrival.state = answer.state
                with around("destination", effect.value):
                    await self._resume(arrival)
            else:
                await self._perform(arrival, answer, effect, request)
            timings[effect] = timings.get(effect, 0.0) + (self._clock.monotonic_s() - started_s) * 1e3
        if Effect.RESUME_GUEST not in answer.effects:
            arrival.state = answer.state
        return timings

    async def _perform(self, arrival: Arrival, answer: Answer, effect: Effect, request: Request) -> None:
        journal = effect is Effect.JOURNAL
        with (
            around("destination.journal", answer.state.phase.value) if journal else around("destination", effect.value)
        ):
            await self._carry_out(arrival, answer, effect, request)

    async def _carry_out(self, arrival: Arrival, answer: Answer, effect: Effect, request: Request) -> None:
        record = arrival.record
        match effect:
            case Effect.JOURNAL:
                phase = answer.state.phase
                durable = phase in (IncomingPhase.ARMED, IncomingPhase.OWNED, IncomingPhase.ABANDONED)
                if phase is IncomingPhase.OWNED:
                    await self._journal_owned(arrival, answer.state, request)
                elif phase is IncomingPhase.ABANDONED and self._own_record(arrival) is not None:
                    await self._journal_given_back(arrival, answer.state, request)
                else:
                    closed = phase in (IncomingPhase.ABANDONED, IncomingPhase.SETTLED)
                    await self._journal.save(record, answer.state, request.value, durable=durable, closed=closed)
            case Effect.START_QEMU:
                arrival.state = answer.state
                assert arrival.frozen is not None
                arrival.running = await self._vms.launch(arrival.frozen, incoming=True)
                arrival.cpu_start_s = process_cpu_seconds(arrival.running.process.pid)
                arrival.agent_cpu_start_s = time.process_time()
                arrival.running.watch = spawn(self._watch_qemu(arrival), name=f"watch arriving {record.vm}")
            case Effect.KILL_QEMU:
                await self._kill(arrival)
            case Effect.RELEASE:
                self._release(arrival)
                spawn(self._tell_abandoned(arrival, answer.state.reason), name=f"event of {record.id}")
            case Effect.LISTEN | Effect.RESUME_GUEST:
                pass  # listening is carried out by listen() before the rules are asked

    async def _journal_owned(self, arrival: Arrival, state: Incoming, request: Request) -> None:
        """OWNED and the VM's own record reach the disk in one transaction."""
        assert arrival.running is not None and arrival.frozen is not None
        vm = VmRecord(
            arrival.record.vm, arrival.record.vm_uuid, arrival.definition, arrival.frozen, arrival.running.process,
            self._vms.facts.accelerator, arrived_in=arrival.record.id,
        )  # fmt: skip
        records = self._vms.records

        def work(db: sqlite3.Connection) -> None:
            records.put_within(db, vm)
            self._journal.save_within(db, arrival.record, state, request.value)

        await self._journal.transaction(work, durable=True)
        records.remember(vm)

    async def _journal_given_back(self, arrival: Arrival, state: Incoming, request: Request) -> None:
        """ABANDONED after OWNED: the VM is not one of ours, in the same transaction, or it could be started here."""
        records, name = self._vms.records, arrival.record.vm

        def work(db: sqlite3.Connection) -> None:
            records.remove_within(db, name)
            self._journal.save_within(db, arrival.record, state, request.value, closed=True)

        await self._journal.transaction(work, durable=True)
        records.forget(name)

    async def _resume(self, arrival: Arrival) -> None:
        """Let the guest run, if it ran at the source; when it never can, the ownership goes back."""
        running = arrival.running
        assert running is not None
        told = False
        try:
            if arrival.loaded is not None:
                await arrival.loaded.wait(LOAD_PATIENCE_S)
            # until now no guest ran in this process: all of its time went into receiving
            arrival.cpu_seconds = process_cpu_seconds(running.process.pid) - arrival.cpu_start_s
            # the source gave it up before its GO; who cannot have it never runs the guest
            await lease.change(lease.take, running.process)
            if arrival.state.resume and not arrival.state.continued:
                if not processes.find(running.process):
                    raise QemuGone(self.last_words(arrival))
                told = True
                await running.monitor.execute("cont")
                arrival.state = Incoming(arrival.state.phase, resume=True, continued=True)
        except Exception as error:
            # whatever it is: a guest that nobody runs here must not count as handed over
            surprise = not isinstance(error, LivemoveError)
            _log.error("VM %s cannot run here: %s", arrival.record.vm, error, exc_info=error if surprise else None)
            if told and (surprise or isinstance(error, QemuGone)):
                # cont may have been carried out before QEMU died: the guest may have written, so it stays here, crashed
                arrival.state = Incoming(arrival.state.phase, resume=True, continued=True)
            reason = error.message if isinstance(error, LivemoveError) else repr(error)
            try:
                await self._disown(arrival, reason)
            except LivemoveError:
                spawn(self._disown_later(arrival, arrival.state, reason), name=f"give up {arrival.record.id}")
                raise
            return
        spawn(self._settle(arrival), name=f"settle {arrival.record.id}")

    async def _disown(self, arrival: Arrival, reason: str, request: Request = Request.QEMU_DIED) -> None:
        answer = step(arrival.state, request, reason=reason)
        for effect in answer.effects:
            await self._perform(arrival, answer, effect, request)
        arrival.state = answer.state
        found = self._own_record(arrival)
        if found is None or not answer.state.phase.owns:
            return
        vm, running = found
        # it crashed here, or its monitor is what broke; nobody starts it before that is on record
        try:
            if processes.find(running.process):
                self._vms.adopt(running)
            else:
                await self._vms.note_ended(vm)
        finally:
            self._release(arrival)

    async def _disown_later(self, arrival: Arrival, state: Incoming, reason: str) -> None:
        """What could not be put on record is, as soon as it can be, if it is still so."""

        async def again() -> None:
            async with arrival.lock:
                if arrival.state == state:
                    await self._disown(arrival, reason)

        await until_written(again, f"The end of the arrival of VM {arrival.record.vm}")

    def _own_record(self, arrival: Arrival) -> tuple[VmRecord, Running] | None:
        """The VM's record, if it is of the QEMU that this journey made, and that QEMU."""
        vm, running = self._vms.records.find(arrival.record.vm), arrival.running
        return (vm, running) if vm is not None and running is not None and vm.process == running.process else None

    async def put_end_on_record(self, arrival: Arrival) -> None:
        """A QEMU that we ended takes no VM any more, also when the journal could not be written then.

        Raises StateUnwritable while it cannot be written still: the source then gets no answer, and asks again.
        """
        if not arrival.ended or arrival.state.phase in (IncomingPhase.ABANDONED, IncomingPhase.SETTLED):
            return
        await self._disown(arrival, arrival.state.reason or "its QEMU was ended before the VM was handed over")

    async def find_owned(self, arrival: Arrival) -> None:
        """After a restart of the agent: a VM that was taken over runs, or has ended."""
        record, state = arrival.record, arrival.state
        running = arrival.running = self._vms.find_running(record.vm)
        if running is None:
            settled = Incoming(IncomingPhase.SETTLED, state.resume, state.continued, "its QEMU ended")
            cause = "the VM ended while the agent was away"
        else:
            try:
                await lease.change(lease.take, running.process)
                if state.resume and running.status == "paused":
                    await running.monitor.execute("cont")
            except LivemoveError as error:
                text = f"VM {record.vm} is here and paused, because it could not be run: {error.message}"
                await self._journal.add_event(record, text, level="error")
            settled = Incoming(IncomingPhase.SETTLED, state.resume, state.resume)
            cause = "settled after a restart"
        await self._journal.save(record, settled, cause, durable=True, closed=True)

    async def _settle(self, arrival: Arrival) -> None:
        """After the answer: the VM is one of ours, its NICs are announced, the slot is free."""
        await until_written(lambda: self._settle_once(arrival), f"The arrival of VM {arrival.record.vm}")

    async def _settle_once(self, arrival: Arrival) -> None:
        running = arrival.running
        assert running is not None
        async with arrival.lock:
            if arrival.state.phase is not IncomingPhase.OWNED:
                return
            if self._vms.find_running(arrival.record.vm) is not running:
                await cancel_and_wait(running.watch)
                running.status = "running" if arrival.state.continued else "paused"
                if not arrival.state.continued:
                    with contextlib.suppress(HypervisorError):
                        running.status = str((await running.monitor.execute("query-status"))["status"])
                self._vms.adopt(running)
            # it may have died already, which whoever watches it now puts on record
            with contextlib.suppress(QemuGone):
                backing = describe_backing(running.process, running.frozen)
                vm = self._vms.records.get(arrival.record.vm)
                if vm.process == running.process:
                    await self._vms.records.put(replace(vm, backing=backing))
            with contextlib.suppress(LivemoveError):
                if arrival.state.continued:
                    # QEMU announces by itself when it arrives; a second series covers switches that were slow to learn
                    await running.monitor.execute(
                        "announce-self", {"initial": 50, "max": 550, "rounds": 5, "step": 100}
                    )
                await forget_credentials(running.monitor)
            answer = step(arrival.state, Request.CONTINUED)
            with around("destination.journal", answer.state.phase.value):
                await self._journal.save(arrival.record, answer.state, "settled", durable=False, closed=True)
            arrival.state = answer.state
        self._release(arrival)
        # the guest may have powered off before anybody listened
        with contextlib.suppress(LivemoveError):
            await self._vms.refresh(arrival.record.vm)
        await self._vms.stop_powered_off()
        text = f"VM {arrival.record.vm} arrived from {arrival.record.source} and is {running.status}."
        with contextlib.suppress(StateUnwritable):
            await self._journal.add_event(arrival.record, text)

    def _release(self, arrival: Arrival) -> None:
        journey = arrival.record.id
        self._queue.release(journey)
        self._vms.reserved_bytes.pop(journey, None)
        self._vms.arriving.discard(arrival.record.vm)
        remove_keys(self.key_dir(journey))
        if arrival.loaded is not None:
            arrival.loaded.close()
        if arrival.memory is not None:
            spawn(arrival.memory.close(), name=f"let go of the memory of {journey}")
        if arrival.watch is not asyncio.current_task():
            spawn(cancel_and_wait(arrival.watch), name=f"end watch of {journey}")
        spawn(self._forget_network(arrival), name=f"forget network of {journey}")

    async def _forget_network(self, arrival: Arrival) -> None:
        if arrival.connection is not None:
            await arrival.connection.close()
        # answers about it are asked again for a while; afterwards the database gives them
        await asyncio.sleep(60)
        self._forget(arrival.record.id)

    async def _kill(self, arrival: Arrival) -> None:
        arrival.ended = True
        if arrival.running is not None:
            if arrival.running.watch is asyncio.current_task():
                arrival.running.watch = None
            await self._vms.discard(arrival.running)
        else:
            await self._vms.discard_orphan(arrival.record.vm, arrival.record.vm_uuid)

    async def _tell_abandoned(self, arrival: Arrival, reason: str) -> None:
        level, number = ("info", None) if reason == SOURCE_ENDED else ("error", 22040)
        await self._journal.add_event(
            arrival.record,
            f"The arrival of VM {arrival.record.vm} was abandoned: {reason}.",
            level=level,
            event_id=number,
        )

    async def _watch_qemu(self, arrival: Arrival) -> None:
        """A QEMU that ends while it waits for its VM abandons the journey."""
        assert arrival.running is not None
        process = arrival.running.process
        await processes.wait_gone(process)
        async with arrival.lock:
            if (
                arrival.running is None
                or arrival.running.process != process
                or arrival.state.phase is IncomingPhase.SETTLED
            ):
                return
            arrival.running.watch = None
            with contextlib.suppress(RefusedRequest):
                if arrival.state.phase is IncomingPhase.OWNED and not arrival.ended:
                    # the GO has been carried out, and the source was told so
                    await self._disown(arrival, self.last_words(arrival), Request.CRASHED)
                else:
                    await self.request(arrival, Request.QEMU_DIED, reason=self.last_words(arrival))

    async def watch_source(self, arrival: Arrival) -> None:
        """Give a silent source up, unless everything has arrived and it may have lost only its voice."""
        while arrival.state.phase is not IncomingPhase.ABANDONED and not arrival.state.phase.owns:
            await asyncio.sleep(2)
            silent_s = self._clock.monotonic_s() - arrival.last_contact_s
            # only an armed journey can still be handed over
            armed = arrival.state.phase is IncomingPhase.ARMED
            loaded = armed and arrival.loaded is not None and arrival.loaded.status == "completed"
            try:
                async with arrival.lock:
                    await self.put_end_on_record(arrival)
                    if silent_s > SILENCE_S and not loaded:
                        reason = f"the source was silent for {silent_s:.0f} s"
                        await self.request(arrival, Request.ABANDON, reason=reason)
            except RefusedRequest:
                pass
            except LivemoveError as error:
                _log.error("journey %s cannot be abandoned yet: %s", arrival.record.id, error)
