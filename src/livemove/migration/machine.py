"""The rules of a journey, as its source sees it.

Two laws. Everything that changes the state of a journey is in this file, in :func:`step`. And ownership passes through one
narrow place: :class:`SendGo` is issued only when QEMU has completed and both journals are armed; from then on the owner is
UNKNOWN until the destination has answered; the source's guest is resumed only while the owner is SOURCE.

The table below is the program: each rule is registered for a phase and an event and declares where it may lead. The
diagram in docs/states.md is drawn from it. An answer that nobody waits for is an error; observations (a guest that resets,
a reading of counters) may come at any time, and where no rule wants them they change nothing.

The counterpart at the destination is incoming.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from livemove.migration import commands as do
from livemove.migration import events as on
from livemove.migration.commands import Command
from livemove.migration.events import Event
from livemove.migration.model import Abort, Ending, GuestRun, Owner, Phase, State
from livemove.policy import convergence
from livemove.policy.convergence import Action, Contract

Result = tuple[State, tuple[Command, ...]]
Rule = Callable[[State, Event], Result]


class IllegalEvent(Exception):
    """An event that cannot happen in this phase: a mistake in livemove, never in the peer or the user."""


def begin(contract: Contract) -> State:
    """A journey before its first event."""
    return State(Phase.FINDING, Owner.SOURCE, contract)


def step(state: State, event: Event) -> Result:
    """The next state, and what to do now. Pure.

    Raises IllegalEvent for an answer that nobody waits for.
    """
    rule = _TABLE.get((state.phase, type(event)))
    if rule is None:
        late = state.phase.terminal or state.phase in (Phase.ABORTING, Phase.UNRESOLVED)
        if late or isinstance(event, _OBSERVATIONS):
            return state, ()
        raise IllegalEvent(f"{type(event).__name__} cannot happen while {state.phase.name}")
    following, commands = rule(state, event)
    if following.phase not in TRANSITIONS[state.phase, type(event)]:
        raise IllegalEvent(
            f"{type(event).__name__} led from {state.phase.name} to {following.phase.name}, which is not declared"
        )
    return following, commands


# The table ------------------------------------------------------------------------------------------------------------

#: (phase, event) -> phases it may lead to; the source of the diagram.
TRANSITIONS: dict[tuple[Phase, type[Event]], frozenset[Phase]] = {}
_TABLE: dict[tuple[Phase, type[Event]], Rule] = {}

_BEFORE_COPY = (Phase.QUEUED, Phase.PERMITTING, Phase.CHECKING, Phase.PREPARING, Phase.CONNECTING)
_ROUNDS = (Phase.COPYING, Phase.CONVERGING)
_MOVING = (*_ROUNDS, Phase.BLACKOUT)
_AT_SOURCE = (*_BEFORE_COPY, *_MOVING)
_ASKING = (Phase.HANDING_OVER, Phase.UNRESOLVED)

_OBSERVATIONS = (
    on.ProgressSampled, on.GuestReset, on.GuestPanicked, on.GuestDiskFailed, on.GuestPoweredOff, on.UserPaused, on.UserResumed,
    on.SourceStopped, on.SourceQemuDied, on.CopyFailed,
)  # fmt: skip


def _rule(phases: Phase | Iterable[Phase], event: type[Event], *to: Phase) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        for phase in (phases,) if isinstance(phases, Phase) else phases:
            _TABLE[phase, event] = rule
            TRANSITIONS[phase, event] = frozenset(to) or frozenset({phase})
        return rule

    return register


# Steps 1 to 5: nothing of the VM has left the source ------------------------------------------------------------------


@_rule(Phase.FINDING, on.JourneyAccepted, Phase.QUEUED)
def _accepted(state: State, event: Event) -> Result:
    assert isinstance(event, on.JourneyAccepted)
    return replace(state, phase=Phase.QUEUED, guest=event.guest), (do.RequestSlot(),)


@_rule(Phase.QUEUED, on.SlotGranted, Phase.PERMITTING)
def _slot(state: State, event: Event) -> Result:
    # from here on the destination may remember the journey, even if its answer is lost
    return replace(state, phase=Phase.PERMITTING, destination_made=True), (do.AskPermission(),)


@_rule(Phase.PERMITTING, on.PermissionGiven, Phase.CHECKING)
def _permitted(state: State, event: Event) -> Result:
    return replace(state, phase=Phase.CHECKING), (do.CheckFitness(),)


@_rule(Phase.CHECKING, on.FitnessConfirmed, Phase.PREPARING)
def _fit(state: State, event: Event) -> Result:
    return replace(state, phase=Phase.PREPARING), (do.BuildSkeleton(),)


@_rule(Phase.PREPARING, on.SkeletonBuilt, Phase.CONNECTING)
def _built(state: State, event: Event) -> Result:
    return replace(state, phase=Phase.CONNECTING), (do.OpenConnection(),)


@_rule(Phase.CONNECTING, on.ConnectionOpened, Phase.COPYING)
def _connected(state: State, event: Event) -> Result:
    # set before the answer: a migrate command whose answer is lost may have begun all the same
    return replace(state, phase=Phase.COPYING, copy_started=True), (do.StartCopy(),)


# Steps 6 to 8: copying --------------------------------------------------------------------------------------------------


@_rule(_MOVING, on.CopyStarted)
def _started(state: State, event: Event) -> Result:
    return state, (do.ArmHandOver(),)


@_rule(Phase.COPYING, on.ProgressSampled, Phase.COPYING, Phase.CONVERGING, Phase.ABORTING)
@_rule(Phase.CONVERGING, on.ProgressSampled, Phase.CONVERGING, Phase.ABORTING)
def _progress(state: State, event: Event) -> Result:
    assert isinstance(event, on.ProgressSampled)
    sample = event.sample
    if sample.round > 1:
        state = replace(state, phase=Phase.CONVERGING)
    deadline = state.contract.deadline_s
    if not state.armed and (deadline is None or sample.elapsed_s < deadline):
        return state, ()  # a latch opened before both journals are armed would lengthen the blackout
    memory, decision = convergence.decide(state.convergence, sample, state.contract)
    state = replace(state, convergence=memory)
    match decision.action:
        case Action.OPEN_LATCH:
            return state, (do.OpenLatch(decision.latch_s, decision.rate_bytes_per_s, decision.reason),)
        case Action.THROTTLE:
            return state, (do.ThrottleGuest(decision.throttle_percent, decision.reason),)
        case Action.GIVE_UP:
            return _abort(state, Ending.DEADLINE, "deadline-passed", decision.reason)
        case Action.WAIT:
            said = sample.round > 1 and decision.reason != "within a round"
            return state, (do.Note(decision.reason),) if said else ()


@_rule(_ROUNDS, on.SourceStopped, Phase.BLACKOUT)
def _stopped(state: State, event: Event) -> Result:
    return replace(state, phase=Phase.BLACKOUT), ()


@_rule(Phase.COPYING, on.CopyCompleted, Phase.COPYING, Phase.HANDING_OVER)
@_rule(Phase.CONVERGING, on.CopyCompleted, Phase.CONVERGING, Phase.HANDING_OVER)
@_rule(Phase.BLACKOUT, on.CopyCompleted, Phase.BLACKOUT, Phase.HANDING_OVER)
def _completed(state: State, event: Event) -> Result:
    return _hand_over_when_ready(replace(state, copied=True))


@_rule(Phase.COPYING, on.HandOverArmed, Phase.COPYING, Phase.HANDING_OVER)
@_rule(Phase.CONVERGING, on.HandOverArmed, Phase.CONVERGING, Phase.HANDING_OVER)
@_rule(Phase.BLACKOUT, on.HandOverArmed, Phase.BLACKOUT, Phase.HANDING_OVER)
def _armed(state: State, event: Event) -> Result:
    return _hand_over_when_ready(replace(state, armed=True))


def _hand_over_when_ready(state: State) -> Result:
    if not (state.copied and state.armed):
        return state, ()
    going = replace(state, phase=Phase.HANDING_OVER, owner=Owner.UNKNOWN)
    return going, (do.SendGo(resume=state.guest is GuestRun.RUNNING),)


# Step 9: the hand-over ------------------------------------------------------------------------------------------------


@_rule(_ASKING, on.DestinationOwned, Phase.CLEANING)
def _owned(state: State, event: Event) -> Result:
    return replace(state, phase=Phase.CLEANING, owner=Owner.DESTINATION), (do.RemoveSource(),)


@_rule(_ASKING, on.DestinationDisowned, Phase.ABORTING, Phase.FAILED)
def _disowned(state: State, event: Event) -> Result:
    assert isinstance(event, on.DestinationDisowned)
    back = replace(state, owner=Owner.SOURCE, destination_made=False)
    return _abort(back, Ending.FAILED, "journey-failed", f"The destination did not take the VM: {event.reason}")


@_rule(Phase.HANDING_OVER, on.DestinationSilent, Phase.UNRESOLVED)
def _silent(state: State, event: Event) -> Result:
    assert isinstance(event, on.DestinationSilent)
    text = f"The destination did not answer in the hand-over ({event.reason}); the VM stays paused until it does."
    return replace(state, phase=Phase.UNRESOLVED), (do.Note(text, "error"), do.AskDestination())


@_rule(Phase.UNRESOLVED, on.DestinationSilent)
def _still_silent(state: State, event: Event) -> Result:
    return state, (do.AskDestination(),)


# Step 10 --------------------------------------------------------------------------------------------------------------


@_rule(Phase.CLEANING, on.SourceRemoved, Phase.COMPLETED)
def _removed(state: State, event: Event) -> Result:
    return replace(state, phase=Phase.COMPLETED), (do.Finish(),)


@_rule(Phase.CLEANING, on.StepFailed, Phase.COMPLETED)
def _not_removed(state: State, event: Event) -> Result:
    assert isinstance(event, on.StepFailed)
    text = f"The VM is at the destination, but something of it is left at the source: {event.reason}"
    return replace(state, phase=Phase.COMPLETED), (do.Note(text, "error"), do.Finish())


@_rule((*_ASKING, Phase.CLEANING), on.CancelRequested)
def _too_late(state: State, event: Event) -> Result:
    return state, (do.Note("Too late to cancel: the hand-over has begun.", "warning"),)


# What ends a journey before the hand-over -----------------------------------------------------------------------------


@_rule(_AT_SOURCE, on.StepFailed, Phase.ABORTING, Phase.FAILED)
def _step_failed(state: State, event: Event) -> Result:
    assert isinstance(event, on.StepFailed)
    return _abort(state, Ending.FAILED, event.code, event.reason, event.remedy)


@_rule((Phase.FINDING, *_AT_SOURCE), on.CancelRequested, Phase.ABORTING, Phase.CANCELLED)
def _cancelled(state: State, event: Event) -> Result:
    assert isinstance(event, on.CancelRequested)
    return _abort(state, Ending.CANCELLED, "journey-cancelled", f"Cancelled by {event.by}.")


@_rule(_MOVING, on.CopyFailed, Phase.ABORTING, Phase.FAILED)
def _copy_failed(state: State, event: Event) -> Result:
    assert isinstance(event, on.CopyFailed)
    return _abort(state, Ending.FAILED, "link-lost", f"The copy failed: {event.reason}")


@_rule(_AT_SOURCE, on.SourceQemuDied, Phase.ABORTING, Phase.FAILED)
def _source_died(state: State, event: Event) -> Result:
    assert isinstance(event, on.SourceQemuDied)
    dead = replace(state, copy_started=False)
    return _abort(dead, Ending.SOURCE_CRASHED, "qemu-gone", f"The VM crashed on the source: {event.reason}")


@_rule(_AT_SOURCE, on.GuestPoweredOff, Phase.ABORTING, Phase.ENDED)
def _powered_off(state: State, event: Event) -> Result:
    off = replace(state, guest=GuestRun.POWERED_OFF)
    return _abort(off, Ending.GUEST_ENDED, "guest-ended", "The guest powered itself off while it was being moved.")


def _abort(state: State, ending: Ending, code: str, reason: str, remedy: str = "") -> Result:
    """Undo what was done; the guest gets its run state back at the source whether or not the destination answers.

    Never called once the GO is out, except after the destination's binding no.
    """
    assert state.owner is Owner.SOURCE
    abort = Abort(
        ending, code, reason, remedy, copy_stopped=not state.copy_started, destination_gone=not state.destination_made
    )
    undo: list[Command] = []
    if not abort.copy_stopped:
        undo.append(do.CancelCopy(resume=state.guest is GuestRun.RUNNING))
    if not abort.destination_gone:
        undo.append(do.AbandonDestination())
    return _finish_abort(replace(state, phase=Phase.ABORTING, abort=abort), tuple(undo))


def _finish_abort(state: State, undo: tuple[Command, ...] = ()) -> Result:
    abort = state.abort
    assert abort is not None
    if not (abort.copy_stopped and abort.destination_gone):
        return state, undo
    match abort.ending:
        case Ending.CANCELLED:
            return replace(state, phase=Phase.CANCELLED), (do.Finish(),)
        case Ending.GUEST_ENDED:
            return replace(state, phase=Phase.ENDED), (do.StopSourceVm(), do.Finish())
        case Ending.FAILED | Ending.DEADLINE | Ending.SOURCE_CRASHED:
            return replace(state, phase=Phase.FAILED), (do.Finish(),)


_ENDS = (Phase.ABORTING, Phase.FAILED, Phase.CANCELLED, Phase.ENDED)


@_rule(Phase.ABORTING, on.CopyCancelled, *_ENDS)
@_rule(Phase.ABORTING, on.SourceQemuDied, *_ENDS)
def _copy_is_over(state: State, event: Event) -> Result:
    assert state.abort is not None
    abort = replace(state.abort, copy_stopped=True)
    if isinstance(event, on.SourceQemuDied) and abort.ending is not Ending.SOURCE_CRASHED:
        text = f"{abort.reason} Then the source's QEMU ended: {event.reason}"
        abort = replace(abort, ending=Ending.SOURCE_CRASHED, code="qemu-gone", reason=text)
    return _finish_abort(replace(state, abort=abort, copy_started=False))


@_rule(Phase.ABORTING, on.DestinationAbandoned, *_ENDS)
def _destination_is_gone(state: State, event: Event) -> Result:
    assert isinstance(event, on.DestinationAbandoned) and state.abort is not None
    abort = replace(state.abort, destination_gone=True)
    if event.cause and abort.ending is Ending.FAILED:
        # what the destination saw is nearer to the fault than the broken pipe it left at the source
        abort = replace(abort, code="qemu-gone", reason=f"The destination gave up: {event.cause} ({abort.reason})")
    return _finish_abort(replace(state, abort=abort, destination_made=False))


# The guest and its user do things meanwhile ---------------------------------------------------------------------------


@_rule(_AT_SOURCE, on.UserPaused)
def _paused(state: State, event: Event) -> Result:
    return replace(state, guest=GuestRun.PAUSED), (do.Note("The VM was paused; it will arrive paused."),)


@_rule(_AT_SOURCE, on.UserResumed)
def _resumed(state: State, event: Event) -> Result:
    return replace(state, guest=GuestRun.RUNNING), (do.Note("The VM was resumed; it will arrive running."),)


@_rule(_AT_SOURCE, on.GuestDiskFailed)
def _disk_failed(state: State, event: Event) -> Result:
    return replace(state, guest=GuestRun.IO_ERROR), (
        do.Note("A disk error stopped the VM; it will arrive stopped.", "warning"),
    )


@_rule(_AT_SOURCE, on.GuestPanicked)
def _panicked(state: State, event: Event) -> Result:
    return replace(state, guest=GuestRun.PANICKED), (
        do.Note("The guest panicked; it will arrive as it is.", "warning"),
    )


@_rule(_AT_SOURCE, on.GuestReset)
def _reset(state: State, event: Event) -> Result:
    return state, (do.Note("The guest was reset; the copy goes on."),)


# A restarted agent ----------------------------------------------------------------------------------------------------


@_rule((Phase.FINDING, *_BEFORE_COPY), on.AgentRestarted, Phase.ABORTING, Phase.FAILED)
def _restarted_early(state: State, event: Event) -> Result:
    return _abort(state, Ending.FAILED, "journey-failed", "The source's agent was restarted before the copy began.")


@_rule(_MOVING, on.AgentRestarted, Phase.ABORTING, Phase.UNRESOLVED)
def _restarted_copying(state: State, event: Event) -> Result:
    assert isinstance(event, on.AgentRestarted)
    if event.go_impossible:
        return _abort(state, Ending.FAILED, "journey-failed", "The source's agent was restarted during the copy.")
    # the journal may be older than the GO, so only the destination knows
    unknown = replace(state, phase=Phase.UNRESOLVED, owner=Owner.UNKNOWN)
    return unknown, (
        do.Note("The source's agent was restarted near the hand-over: asking the destination.", "warning"),
        do.AskDestination(),
    )


@_rule(_ASKING, on.AgentRestarted, Phase.UNRESOLVED)
def _restarted_unresolved(state: State, event: Event) -> Result:
    return replace(state, phase=Phase.UNRESOLVED), (do.AskDestination(),)


@_rule(Phase.CLEANING, on.AgentRestarted)
def _restarted_cleaning(state: State, event: Event) -> Result:
    return state, (do.RemoveSource(),)


@_rule(Phase.ABORTING, on.AgentRestarted, *_ENDS)
def _restarted_aborting(state: State, event: Event) -> Result:
    abort = state.abort
    assert abort is not None
    return _abort(state, abort.ending, abort.code, abort.reason, abort.remedy)
