"""Carrying out the commands of a journey at its source, with the direct engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from livemove.api.client import AgentClient
from livemove.api.incoming_models import (
    AskGo,
    OwnershipAnswer,
)
from livemove.api.models import VerificationView
from livemove.base.clock import Clock
from livemove.base.errors import Bug, Conflict, LivemoveError, PeerViolation, QemuGone
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.hypervisor.qmp import QemuSilent
from livemove.migration import commands as do
from livemove.migration import events as on
from livemove.migration.commands import Command
from livemove.migration.direct import DirectSource
from livemove.migration.events import Event
from livemove.migration.incoming import QEMU_ENDED
from livemove.migration.journal import Record
from livemove.migration.ledger import Ledger
from livemove.migration.model import GuestRun, State, Verify
from livemove.migration.path_watch import Tell
from livemove.migration.preparing import Preparation, Route, SourceVm
from livemove.migration.threads import MigrationCpu
from livemove.migration.verifying import MemoryComparison
from livemove.migration.watching import STALL_S, SourceWatch

_log = logging.getLogger(__name__)

#: Rounds announce themselves and are read at once; in between these suffice, and cost the copy less CPU on a small host.
SAMPLE_INTERVAL_S, FIRST_ROUND_INTERVAL_S = 0.1, 0.25
CPU_INTERVAL_S = 0.5
KEEPALIVE_S = 5.0
#: A GO that is not answered in this time is asked about; asking again and again starts here and slows down to the last.
GO_PATIENCE_S = 8.0
ASK_INTERVALS_S = (0.2, 0.5, 1.0, 2.0, 5.0)
ABANDON_PATIENCE_S = 3.0
CANCEL_AGAIN_S = 1.0


class DirectDeparture:
    """Effects of one journey; see runner.Effects."""

    def __init__(
        self, record: Record, vm: SourceVm, client: AgentClient, route: Route, ledger: Ledger, clock: Clock,
        post: Callable[[Event], None], wait_for_slot: Callable[[], Awaitable[None]], tell: Tell,
    ) -> None:  # fmt: skip
        self.record = record
        self.engine = DirectSource(vm.monitor, clock)
        self.preparation = Preparation(record, vm, client, route, self.engine, tell)
        self.paths = self.preparation.paths
        self.findings = self.preparation.findings
        self.cpu = MigrationCpu(vm.pid)
        self.agent_cpu_start_s = time.process_time()
        self._vm = vm
        self._client = client
        self._ledger = ledger
        self._clock = clock
        self._post = post
        self._wait_for_slot = wait_for_slot
        self._watch = SourceWatch(vm.monitor, ledger, post)
        self._sampling: asyncio.Task[None] | None = None
        self._round_began = asyncio.Event()
        self._asked = 0
        #: the destination could not be told to forget the journey
        self.untold = False
        self._comparison: MemoryComparison | None = None

    @property
    def memory_bytes(self) -> int:
        """Size of the VM's memory."""
        return self._vm.frozen.memory_bytes

    def watch(self) -> None:
        """Hear QEMU's events from now on."""
        self._watch.on_round = self._round_began.set
        self._watch.start()

    async def perform(self, command: Command, state: State) -> Event | None:
        match command:
            case do.RequestSlot():
                await self._wait_for_slot()
                return on.SlotGranted()
            case do.AskPermission():
                return await self.preparation.ask_permission()
            case do.CheckFitness():
                return await self.preparation.check_fitness()
            case do.BuildSkeleton():
                return await self.preparation.build_skeleton()
            case do.OpenConnection():
                return await self.preparation.open_connection()
            case do.StartCopy():
                return await self._start_copy()
            case do.ArmHandOver():
                if state.verify is not Verify.OFF:
                    await self._open_memory(state.verify)
                await self._client.arm(self.record.id)
                return on.HandOverArmed()
            case do.OpenLatch():
                self._watch.patience_s = STALL_S + 2 * command.latch_s
                await self._adjust(self.engine.open_latch(command.latch_s, command.rate_bytes_per_s))
                return None
            case do.ThrottleGuest():
                await self._adjust(self.engine.throttle(command.percent))
                return None
            case do.VerifyMemory():
                return await self._verify()
            case do.SendGo():
                return await self._send_go(resume=command.resume, source_gone=command.source_gone)
            case do.AskDestination():
                return await self._ask_destination(state)
            case do.CancelCopy():
                return await self._cancel_copy(resume=command.resume)
            case do.AbandonDestination():
                return await self._abandon()
            case do.RemoveSource():
                return await self._remove_source()
            case do.StopSourceVm():
                await self._stop_watching()
                await self._vm.stop_powered_off()
                return None
        raise Bug(f"The direct engine does not know {type(command).__name__}.")

    # Steps 6 to 8 ---------------------------------------------------------------------------------------------------

    async def _start_copy(self) -> Event:
        agreement = self.findings.agreement
        assert agreement is not None
        address = self.paths.in_use[0].destination_address
        await self.engine.start(address, self.findings.port, mptcp=agreement.mptcp)
        self._ledger.first_byte_s = self.engine.started_monotonic_s
        self.paths.copy_begins(connections=1 + (agreement.channels if "multifd" in agreement.capabilities else 0))
        self._sampling = spawn(self._sample(), name=f"sample {self.record.id}")
        return on.CopyStarted()

    async def _sample(self) -> None:
        """Read the counters now and then and at once when a round begins; a sign of life every few seconds."""
        alive_s = cpu_s = self._clock.monotonic_s()
        while True:
            first = self.engine.counters.rounds <= 1
            try:
                async with asyncio.timeout(FIRST_ROUND_INTERVAL_S if first else SAMPLE_INTERVAL_S):
                    await self._round_began.wait()
            except TimeoutError:
                pass
            self._round_began.clear()
            try:
                sample = await self.engine.sample()
            except LivemoveError as error:
                if _is_gone(error):
                    return
                _log.warning("journey %s: counters could not be read: %s", self.record.id, error)
                continue
            if sample is not None:
                self._post(on.ProgressSampled(sample))
            now_s = self._clock.monotonic_s()
            if now_s - cpu_s > CPU_INTERVAL_S or (sample is not None and sample.round > 1):
                cpu_s = now_s
                self.cpu.read()
            if now_s - alive_s > KEEPALIVE_S:
                alive_s = now_s
                spawn(self._say_alive(), name=f"sign of life of {self.record.id}")

    async def _say_alive(self) -> None:
        with contextlib.suppress(LivemoveError):
            await self._client.facts(self.record.id)

    @staticmethod
    async def _adjust(change: Awaitable[None]) -> None:
        try:
            await change
        except LivemoveError as error:
            # the copy may just have ended; if it has not, the next round decides again
            _log.info("a migration parameter was not changed: %s", error)

    # Steps 9 and 10 -------------------------------------------------------------------------------------------------

    async def _open_memory(self, mode: Verify) -> None:
        agreement, fitness = self.findings.agreement, self.findings.fitness
        assert agreement is not None and fitness is not None
        kvm = self._vm.accelerator == fitness.offer.accelerator == "kvm"
        self._comparison = MemoryComparison(
            mode, self.record.id, self._vm.frozen, self._vm.pid, self.engine.monitor, self._client, self._clock, kvm=kvm
        )
        await self._comparison.open()

    async def _verify(self) -> Event:
        assert self._comparison is not None
        self._ledger.verify_s = self._clock.monotonic_s()
        try:
            return await self._comparison.compare()
        finally:
            self._ledger.verified_s = self._clock.monotonic_s()
            self._comparison.took((self._ledger.verified_s - self._ledger.verify_s) * 1e3)

    @property
    def verification(self) -> VerificationView | None:
        """What was compared; None where nothing was."""
        return self._comparison.view if self._comparison is not None else None

    async def _send_go(self, *, resume: bool, source_gone: bool) -> Event:
        """Pass the ownership, having looked once more that the guest does not run here.

        Without a GO the question that follows has the destination abandon, which brings the guest back.
        """
        if source_gone:
            await self._wait_before_asking()
        else:
            self._ledger.go_s = self._clock.monotonic_s()
        try:
            if not source_gone and (await self.engine.monitor.execute("query-status", timeout_s=5))["running"]:
                return on.DestinationSilent("no GO was sent, because the guest runs at the source again")
            if not source_gone:
                self.preparation.holds_lease = False
                await self._vm.give_up_lease()
            answer = await self._client.go(self.record.id, AskGo(resume=resume), timeout_s=GO_PATIENCE_S)
        except PeerViolation as error:
            if not source_gone:
                return on.DestinationSilent(error.message)
            # it was never armed and can take nothing: whose the VM is must still be known
            return await self._put_question()
        except LivemoveError as error:
            return on.DestinationSilent(error.message)
        return self._answered(answer)

    def _answered(self, answer: OwnershipAnswer) -> Event:
        self.findings.hand_over = answer
        if answer.owned:
            self._ledger.answered_s = self._clock.monotonic_s()
            return on.DestinationOwned()
        return on.DestinationDisowned(answer.reason or "it does not own the VM")

    async def _ask_destination(self, state: State) -> Event:
        await self._wait_before_asking()
        if not state.source_gone and await self._vm.has_ended():
            # the question would have the destination throw the VM away, which is all that is left of it
            self._post(on.SourceQemuDied("its process has ended", proven=True))
            return on.DestinationSilent("it was not asked, because the source's QEMU has ended")
        return await self._put_question()

    async def _put_question(self) -> Event:
        try:
            answer = await self._client.ask(self.record.id, timeout_s=GO_PATIENCE_S)
        except LivemoveError as error:
            return on.DestinationSilent(error.message)
        return self._answered(answer)

    async def _wait_before_asking(self) -> None:
        await asyncio.sleep(ASK_INTERVALS_S[min(self._asked, len(ASK_INTERVALS_S) - 1)])
        self._asked += 1

    async def _cancel_copy(self, *, resume: bool) -> Event:
        began_s = self._clock.monotonic_s()
        await self._stop_sampling()
        if self._comparison is not None:
            self._comparison.stop()
        holds, cancelled = self.preparation.holds_lease, False
        while True:
            try:
                if not cancelled:
                    await self.engine.cancel(resume=resume and holds)
                    cancelled = True
                # before a GO the lease never left, and is not waited for
                if resume and not holds and await self._has_lease():
                    await self.engine.ensure_running()
                break
            except LivemoveError as error:
                # a QEMU that hangs is not dead: its guest is to run here as soon as it can
                if _is_gone(error) or await self._vm.has_ended():
                    return on.SourceQemuDied(error.message)
                _log.error("journey %s: the copy is not undone yet: %s", self.record.id, error)
                await asyncio.sleep(CANCEL_AGAIN_S)
        undone_ms = (self._clock.monotonic_s() - began_s) * 1e3
        self.findings.notes.append(f"The copy was undone, and the VM as it was before, in {undone_ms:.0f} ms.")
        return on.CopyCancelled()

    async def _has_lease(self) -> bool:
        """The VM's lease is this host's again; False when another QEMU has it, and then nobody lets the guest run here.

        Raises what keeps us from knowing, to be tried again.
        """
        try:
            await self._vm.hold_lease()
        except Conflict as error:
            _log.error("VM %s stays paused: %s", self.record.vm, error)
            self.findings.notes.append(f"The VM stays paused at the source: {error.message}")
            return False
        self.preparation.holds_lease = True
        return True

    async def _abandon(self) -> Event:
        # a request for a slot that came in after this one would make the destination remember the journey again
        self.preparation.abandoned = True
        await self.preparation.give_up_connecting()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ABANDON_PATIENCE_S), self.preparation.asking_slot:
                pass
        try:
            answer = await self._client.abandon(self.record.id, timeout_s=ABANDON_PATIENCE_S)
            if answer.reason.startswith(QEMU_ENDED):
                return on.DestinationAbandoned(answer.reason)
        except LivemoveError as error:
            self.untold = True
            note = f"The destination could not be told to clean up ({error.message}); it does so by itself within a minute or at its next start."
            self.findings.notes.append(note)
        return on.DestinationAbandoned()

    async def _remove_source(self) -> Event:
        await self._stop_watching()
        with contextlib.suppress(LivemoveError):
            await self.engine.read()
        with contextlib.suppress(LivemoveError):
            self.findings.destination = await self._client.facts(self.record.id)
        await self._count()
        await self._vm.remove(self.record.destination)
        return on.SourceRemoved()

    async def _count(self) -> None:
        """What the paths carried; whatever goes wrong with that, the journey goes on."""
        try:
            await self.paths.count(self.findings.destination.paths if self.findings.destination is not None else [])
        except Exception:
            _log.exception("journey %s: what its paths carried is not known", self.record.id)

    async def _stop_sampling(self) -> None:
        await cancel_and_wait(self._sampling)
        self._sampling = None

    async def _stop_watching(self) -> None:
        self._watch.close()
        await self._stop_sampling()

    async def finish(self, state: State) -> None:
        await self._stop_watching()
        if self._comparison is not None:
            await self._comparison.close()
        if self.preparation.configured:
            await self.engine.forget()
        await self.preparation.give_up_connecting()
        if not self.paths.reports:
            await self._count()
        try:
            await self.paths.close()
        except Exception as error:
            # leftovers, which the next start takes away
            _log.warning("journey %s: the network is not as it was: %s", self.record.id, error)
        if state.guest is GuestRun.POWERED_OFF and not state.phase.terminal:
            _log.warning("journey %s ended with its guest powered off", self.record.id)


def _is_gone(error: LivemoveError) -> bool:
    """Whether QEMU's monitor is closed; one that only does not answer in time may go on."""
    return isinstance(error, QemuGone) and not isinstance(error, QemuSilent)
