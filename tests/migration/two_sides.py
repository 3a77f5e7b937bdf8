"""Both hosts of a journey as a model: rules, journals, QEMUs and messages, without a clock or a socket.

The rules are those of the agents (machine and incoming); what the agents do around them (restart, recovery, which line of a
journal is durable) is played as they do it. Who plays chooses what happens next, among :meth:`TwoSides.possible`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.migration.playbook import check_invariants

from livemove.migration import commands as do
from livemove.migration import events as on
from livemove.migration import incoming
from livemove.migration.commands import Command
from livemove.migration.events import Event
from livemove.migration.incoming import Effect, RefusedRequest, Request
from livemove.migration.machine import IllegalEvent, begin, step
from livemove.migration.model import GuestRun, Incoming, IncomingPhase, Owner, Phase, State, Verify
from livemove.migration.runner import is_durable, is_journaled
from livemove.policy.convergence import Contract, Sample

ASKS = (do.SendGo, do.AskDestination)
DURABLE_THERE = (IncomingPhase.RESERVED, IncomingPhase.ARMED, IncomingPhase.OWNED, IncomingPhase.ABANDONED)


@dataclass(frozen=True)
class Message:
    """A request under way, or (with an answer) its way back. `life` is that of the agent which sent it."""

    command: Command | None
    request: str
    life: int
    resume: bool = False
    answer: Event | None = None


class TwoSides:
    """A VM that runs at the source, and a journey that has been accepted."""

    def __init__(self, verify: Verify) -> None:
        state = begin(Contract(0.3, deadline_s=100), verify)
        self.source: State | None = state
        self.source_disk = self.source_durable = state
        self.source_qemu, self.copy, self.life = "running", "none", 0
        self.recovering = False
        self.outstanding: list[Command] = []
        self.events: list[Event] = [on.JourneyAccepted(GuestRun.RUNNING)]
        self.flying: list[Message] = []
        self.there: Incoming | None = None
        self.there_disk: Incoming | None = None
        self.there_durable: Incoming | None = None
        self.there_qemu, self.there_up = "none", True
        #: what was done to the VM that explains why it does not run in the end
        self.excuses: set[str] = set()
        self.stale = self.ran_there = self.paused = False

    # What may happen next -------------------------------------------------------------------------------------------

    def possible(self, *, faults: bool) -> list[tuple[str, Callable[[], None]]]:
        """Names and deeds; without `faults` only what brings the journey nearer to its end."""
        deeds: list[tuple[str, Callable[[], None]]] = []
        if self.source is None and not self.recovering and not self.source_disk.phase.terminal:
            deeds.append(("restart source", self._restart_source))
        if not self.there_up:
            deeds.append(("restart there", self._restart_there))
        if self.source is not None and self.events:
            deeds.append(("event", self._next_event))
        if self.source is not None or self.recovering:
            deeds += [(f"perform {type(c).__name__}", lambda c=c: self._perform(c)) for c in self.outstanding]
        deeds += [(f"deliver {m.request}", lambda m=m: self._deliver(m)) for m in self.flying]
        if self.copy == "active" and self.source_qemu != "dead" and self.there_qemu == "listening":
            deeds.append(("complete", self._complete))
        if self.recovering and not self.flying:
            deeds.append(("ask again", self._recover))
        if self.there_up and self.there is not None:
            if self.there.phase is IncomingPhase.OWNED and (self.there.continued or not self.there.resume):
                deeds.append(("settle", self._settle))
            if self.there_qemu == "dead" and self.there.phase is IncomingPhase.OWNED:
                deeds.append(("its crash there is seen", self._crash_there))
            if (
                self.there_qemu == "dead"
                and not self.there.phase.owns
                and self.there.phase is not IncomingPhase.ABANDONED
            ):
                deeds.append(("death there is seen", lambda: self._request_there(Request.QEMU_DIED)))
        return deeds + (self._faults() if faults else [])

    def _faults(self) -> list[tuple[str, Callable[[], None]]]:
        deeds: list[tuple[str, Callable[[], None]]] = [
            (f"lose {m.request}", lambda m=m: self._lose(m)) for m in self.flying
        ]
        deeds += [(f"give up {m.request}", lambda m=m: self._give_up(m)) for m in self.flying if m.answer is None]
        if self.source_qemu != "dead":
            deeds.append(("kill source QEMU", self._kill_source_qemu))
        if self.there_qemu not in ("none", "dead"):
            deeds.append(("kill QEMU there", self._kill_qemu_there))
        if self.source is not None:
            deeds.append(("kill source agent", self._kill_source_agent))
            deeds.append(("cancel", lambda: self.events.append(on.CancelRequested("ann"))))
            if self.source.owner is Owner.SOURCE and not self.source.phase.terminal and self.source_qemu != "dead":
                deeds.append(("user pauses", self._user_pauses))
            if self.copy == "active":
                deeds.append(("copy fails", self._copy_fails))
                deeds.append(("sample", lambda: self.events.append(on.ProgressSampled(Sample(1.0, 2, 1 << 30, 1e6)))))
        deeds.append(("power cut at the source", lambda: self._power_cut_source(lost=True)))
        deeds.append(("reset of the source's host", lambda: self._power_cut_source(lost=False)))
        if self.there_up:
            deeds.append(("kill agent there", self._kill_agent_there))
            deeds += [
                (f"deliver {m.request} to an agent that dies in it", lambda m=m, n=n: self._deliver(m, dies_after=n))
                for m in self.flying if m.answer is None for n in (0, 1, 2)
            ]  # fmt: skip
        deeds.append(("power cut there", lambda: self._power_cut_there(lost=True)))
        deeds.append(("reset of the host there", lambda: self._power_cut_there(lost=False)))
        return deeds

    # The source -----------------------------------------------------------------------------------------------------

    def _next_event(self) -> None:
        self._source_step(self.events.pop(0))

    def _source_step(self, event: Event) -> None:
        before = self.source
        assert before is not None
        try:
            state, commands = step(before, event)
        except IllegalEvent:
            return
        check_invariants(state)
        assert not before.phase.terminal or (state == before and not commands), "terminal stays terminal"
        if is_journaled(before, state):
            self.source_disk = state
            if is_durable(before, state):
                self.source_durable = state
        self.source = state
        self.outstanding += [command for command in commands if not isinstance(command, do.Note | do.Finish)]

    def _perform(self, command: Command) -> None:
        self.outstanding.remove(command)
        post = self.events.append
        assert self.source is not None
        match command:
            case do.RequestSlot():
                post(on.SlotGranted())
            case do.StartCopy():
                if self.source_qemu == "dead" or self.there_qemu != "listening":
                    post(on.StepFailed("link-lost", "no QEMU", ""))
                else:
                    self.copy = "active"
                    post(on.CopyStarted())
            case do.VerifyMemory():
                post(
                    on.MemoryVerified()
                    if self.source_qemu != "dead" and self.there_qemu == "loaded"
                    else on.StepFailed("x", "x", "")
                )
            case do.SendGo(source_gone=False) if self.source_qemu != "paused":
                post(on.DestinationSilent("the guest runs, or QEMU is gone"))
            case do.AskDestination() if self.source_qemu == "dead" and not self.source.source_gone:
                post(on.SourceQemuDied("its process has ended", proven=True))
                post(on.DestinationSilent("not asked"))
            case do.CancelCopy():
                if self.source_qemu == "dead":
                    post(on.SourceQemuDied("gone"))
                else:
                    self.copy = "none"
                    if command.resume:
                        self._source_runs()
                    post(on.CopyCancelled())
            case do.RemoveSource():
                self.source_qemu = "dead"
                post(on.SourceRemoved())
            case do.StopSourceVm():
                self.source_qemu = "dead"
            case do.OpenLatch() | do.ThrottleGuest():
                pass
            case _:
                resume = isinstance(command, do.SendGo) and command.resume
                self.flying.append(Message(command, type(command).__name__, self.life, resume))

    def _source_runs(self) -> None:
        assert not self.ran_there, "never two: it ran at the destination already"
        self.source_qemu = "running"
        self.stale = self.stale or self.there_qemu == "loaded"

    def _complete(self) -> None:
        """QEMU has stopped the guest and the destination has loaded it."""
        if self.source_qemu == "running":
            self.source_qemu = "paused"
            self.events.append(on.SourceStopped())
        self.copy, self.there_qemu, self.stale = "completed", "loaded", False
        self.events.append(on.CopyCompleted())

    def _copy_fails(self) -> None:
        self.copy = "none"
        if self.source is not None:
            self.events.append(on.CopyFailed("connection reset"))

    def _user_pauses(self) -> None:
        # a VM that is being moved is paused by its user, but not resumed: agent/vms.py refuses that
        if self.source_qemu == "running":
            self.source_qemu, self.paused = "paused", True
            self.events.append(on.UserPaused())

    def _kill_source_qemu(self) -> None:
        self.source_qemu = "dead"
        self.excuses.add("source QEMU")
        self.copy = "none" if self.copy == "active" else self.copy
        if self.source is not None:
            self.events.append(on.SourceQemuDied("its monitor closed"))
            self.events.append(on.SourceQemuDied("its process ended", proven=True))

    def _kill_source_agent(self) -> None:
        self.life += 1
        self.source, self.recovering = None, False
        self.outstanding.clear()
        self.events.clear()

    def _power_cut_source(self, *, lost: bool) -> None:
        self._kill_source_agent()
        if self.source_qemu != "dead":
            self.excuses.add("source QEMU")
        self.source_qemu = "dead"
        self.copy = "none" if self.copy == "active" else self.copy
        if lost:
            self.source_disk = self.source_durable

    def _restart_source(self) -> None:
        if self.source_qemu != "dead":
            self.source = self.source_disk
            self.events.append(on.AgentRestarted(go_impossible=self.copy != "completed"))
        elif self.source_disk.owner is Owner.DESTINATION:
            self._recovered(owned=True)
        elif not self.source_disk.may_hand_over:
            self.flying.append(Message(None, "AbandonDestination", -1))
            self._recovered(owned=False)
        else:
            self.recovering = True

    def _recover(self) -> None:
        state = self.source_disk
        go = state.owner is Owner.UNKNOWN and state.verify is Verify.OFF
        self.flying.append(
            Message(None, "SendGo" if go else "AskDestination", self.life, state.guest is GuestRun.RUNNING)
        )

    def _recovered(self, *, owned: bool) -> None:
        self.recovering = False
        end = Phase.COMPLETED if owned else Phase.FAILED
        owner = Owner.DESTINATION if owned else Owner.SOURCE
        self.source_disk = self.source_durable = replace(self.source_disk, phase=end, owner=owner)

    # Messages -------------------------------------------------------------------------------------------------------

    def _deliver(self, message: Message, *, dies_after: int | None = None) -> None:
        self.flying.remove(message)
        if message.answer is not None:
            self._answered(message, message.answer)
            return
        answer = self._requested(message, dies_after) if self.there_up else None
        if answer is not None:
            self.flying.append(replace(message, request=f"answer to {message.request}", answer=answer))
        else:
            self._answered(message, _nothing_heard(message.command))

    def _lose(self, message: Message) -> None:
        self.flying.remove(message)
        self._answered(message, _nothing_heard(message.command))

    def _give_up(self, message: Message) -> None:
        """The source waits no longer, and the request is still on its way."""
        self.flying.remove(message)
        self._answered(message, _nothing_heard(message.command))
        self.flying.append(replace(message, life=-1, request=f"late {message.request.removeprefix('late ')}"))

    def _answered(self, message: Message, answer: Event) -> None:
        if message.life != self.life:
            return
        if self.recovering:
            if isinstance(answer, on.DestinationOwned | on.DestinationDisowned):
                self._recovered(owned=isinstance(answer, on.DestinationOwned))
        elif self.source is not None:
            self.events.append(answer)

    # The destination ------------------------------------------------------------------------------------------------

    def _requested(self, message: Message, dies_after: int | None) -> Event | None:
        match message.request.removeprefix("late "):
            case "AskPermission":
                if self.there is None and self.there_disk is None:
                    self.there = self.there_disk = self.there_durable = Incoming(IncomingPhase.RESERVED)
                return on.PermissionGiven()
            case "CheckFitness":
                return on.FitnessConfirmed() if self.there is not None else on.StepFailed("x", "unknown", "")
            case "BuildSkeleton":
                done = self._request_there(Request.BUILD, dies_after=dies_after) and self._request_there(Request.BUILT)
                return self._or_refused(done, on.SkeletonBuilt())
            case "OpenConnection":
                return self._or_refused(
                    self._request_there(Request.LISTEN, dies_after=dies_after), on.ConnectionOpened()
                )
            case "ArmHandOver":
                return self._or_refused(self._request_there(Request.ARM, dies_after=dies_after), on.HandOverArmed())
            case "SendGo":
                taken = self._request_there(Request.GO, resume=message.resume, dies_after=dies_after)
                gone = isinstance(message.command, do.SendGo) and message.command.source_gone
                if gone and not taken and self.there_up:
                    # refused by one that was never armed: the question follows at once
                    self._request_there(Request.ABANDON)
                    return self._whose()
                return self._whose(asked_go=True)
            case "AskDestination":
                self._request_there(Request.ABANDON, dies_after=dies_after)
                return self._whose()
            case "AbandonDestination":
                self._request_there(Request.ABANDON, dies_after=dies_after)
                return on.DestinationAbandoned() if self.there_up else None
        raise AssertionError(message)

    def _or_refused(self, done: bool, answer: Event) -> Event | None:
        if not self.there_up:
            return None
        return answer if done else on.StepFailed("peer-violation", "refused", "")

    def _whose(self, *, asked_go: bool = False) -> Event | None:
        if not self.there_up:
            return None
        state = self.there or self.there_disk
        if state is None:
            return on.DestinationDisowned("never heard of it")
        if asked_go and not state.phase.owns and state.phase is not IncomingPhase.ABANDONED:
            return on.DestinationSilent("the GO was refused")
        return on.DestinationOwned() if state.phase.owns else on.DestinationDisowned("no")

    def _request_there(self, request: Request, *, resume: bool = False, dies_after: int | None = None) -> bool:
        if self.there is None:
            return False
        try:
            answer = incoming.step(self.there, request, resume=resume)
        except RefusedRequest:
            return False
        for number, effect in enumerate(answer.effects):
            if number == dies_after:
                self._kill_agent_there()
                return False
            self._effect(answer.state, effect)
            if self.there is not None and effect is Effect.RESUME_GUEST:
                return True
        self.there = answer.state
        if dies_after is not None and dies_after >= len(answer.effects):
            self._kill_agent_there()
            return False
        return True

    def _effect(self, state: Incoming, effect: Effect) -> None:
        match effect:
            case Effect.JOURNAL:
                self._journal_there(state)
            case Effect.START_QEMU:
                self.there_qemu = "waiting"
            case Effect.LISTEN:
                self.there_qemu = "listening" if self.there_qemu == "waiting" else self.there_qemu
            case Effect.KILL_QEMU:
                self.there_qemu = "none"
                if self.copy == "active":
                    self._copy_fails()
            case Effect.RESUME_GUEST:
                self.there = state
                if self.there_qemu == "dead":
                    self._request_there(Request.QEMU_DIED)
                elif state.resume and not state.continued:
                    self._runs_there()
                    self.there = replace(state, continued=True)
            case Effect.RELEASE:
                pass

    def _journal_there(self, state: Incoming) -> None:
        self.there_disk = state
        if state.phase in DURABLE_THERE:
            self.there_durable = state

    def _runs_there(self) -> None:
        assert self.there_qemu in ("loaded", "running"), f"it runs with what it has loaded, not {self.there_qemu}"
        assert not self.stale, "exactly its memory: the source's guest ran after the copy"
        assert self.source_qemu != "running", "never two"
        self.there_qemu, self.ran_there = "running", True

    def _settle(self) -> None:
        assert self.there is not None
        self.there = incoming.step(self.there, Request.CONTINUED).state
        self._journal_there(self.there)

    def _crash_there(self) -> None:
        self._request_there(Request.CRASHED)

    def _kill_qemu_there(self) -> None:
        self.there_qemu = "dead"
        self.excuses.add("QEMU there")
        if self.copy == "active":
            self._copy_fails()

    def _kill_agent_there(self) -> None:
        self.there, self.there_up = None, False

    def _power_cut_there(self, *, lost: bool) -> None:
        if self.there_qemu not in ("none", "dead"):
            self._kill_qemu_there()
        self._kill_agent_there()
        if lost:
            self.there_disk = self.there_durable

    def _restart_there(self) -> None:
        self.there_up = True
        state = self.there_disk
        if state is None or state.phase in (IncomingPhase.SETTLED, IncomingPhase.ABANDONED):
            return
        if not state.phase.owns:
            self.there = state
            self._request_there(Request.RESTARTED)
            return
        if self.there_qemu not in ("none", "dead") and state.resume and self.there_qemu != "running":
            self._runs_there()
        self._journal_there(Incoming(IncomingPhase.SETTLED, state.resume, state.resume))

    # What must hold -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """At every moment."""
        assert not (self.source_qemu == "running" and self.there_qemu == "running"), "never two"

    def check_end(self) -> None:
        """When nothing is under way any more: the journey has ended, the hosts agree, and the VM runs on one of them."""
        state = self.source or self.source_disk
        assert state.phase.terminal, f"the journey is still {state.phase.value}"
        owns = self.there_disk is not None and self.there_disk.phase.owns
        assert owns is (state.owner is Owner.DESTINATION), (state.owner, self.there_disk)
        runs = (self.source_qemu == "running") + (self.there_qemu == "running")
        if not self.paused and not self.excuses:
            assert runs == 1, f"never none: {self.source_qemu} and {self.there_qemu}"
        assert runs <= 1, "never two"
        if state.owner is Owner.DESTINATION:
            assert self.source_qemu == "dead", "nothing is left at the source"


def _nothing_heard(command: Command | None) -> Event:
    if command is None or isinstance(command, ASKS):
        return on.DestinationSilent("no answer")
    if isinstance(command, do.AbandonDestination):
        return on.DestinationAbandoned()
    return on.StepFailed("agent-unreachable", "no answer", "")
