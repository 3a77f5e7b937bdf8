"""The rules of a journey's ten steps, as its source sees them: towards the hand-over, through it, and back from it."""

from __future__ import annotations

from dataclasses import replace

from livemove.migration import commands as do
from livemove.migration import events as on
from livemove.migration.commands import Command
from livemove.migration.events import Event
from livemove.migration.model import Abort, Ending, GuestRun, Owner, Phase, State, Verify
from livemove.migration.rules import Result, rule
from livemove.policy import convergence
from livemove.policy.convergence import Action

#: Phases in which the same rules hold.
BEFORE_COPY = (Phase.QUEUED, Phase.PERMITTING, Phase.CHECKING, Phase.PREPARING, Phase.CONNECTING)
ROUNDS = (Phase.COPYING, Phase.CONVERGING)
MOVING = (*ROUNDS, Phase.BLACKOUT, Phase.VERIFYING)
AT_SOURCE = (*BEFORE_COPY, *MOVING)
ASKING = (Phase.HANDING_OVER, Phase.UNRESOLVED)


# Steps 1 to 5: nothing of the VM has left the source ------------------------------------------------------------------


@rule(Phase.FINDING, on.JourneyAccepted, Phase.QUEUED)
def _accepted(state: State, event: Event) -> Result:
    assert isinstance(event, on.JourneyAccepted)
    return replace(state, phase=Phase.QUEUED, guest=event.guest), (do.RequestSlot(),)


@rule(Phase.QUEUED, on.SlotGranted, Phase.PERMITTING)
def _slot(state: State, event: Event) -> Result:
    # from here on the destination may remember the journey, even if its answer is lost
    return replace(state, phase=Phase.PERMITTING, destination_made=True), (do.AskPermission(),)


@rule(Phase.PERMITTING, on.PermissionGiven, Phase.CHECKING)
def _permitted(state: State, event: Event) -> Result:
    return replace(state, phase=Phase.CHECKING), (do.CheckFitness(),)


@rule(Phase.CHECKING, on.FitnessConfirmed, Phase.PREPARING)
def _fit(state: State, event: Event) -> Result:
    return replace(state, phase=Phase.PREPARING), (do.BuildSkeleton(),)


@rule(Phase.PREPARING, on.SkeletonBuilt, Phase.CONNECTING)
def _built(state: State, event: Event) -> Result:
    return replace(state, phase=Phase.CONNECTING), (do.OpenConnection(),)


@rule(Phase.CONNECTING, on.ConnectionOpened, Phase.COPYING)
def _connected(state: State, event: Event) -> Result:
    # set before the answer: a migrate command whose answer is lost may have begun all the same
    return replace(state, phase=Phase.COPYING, copy_started=True), (do.StartCopy(),)


# Steps 6 to 8: copying --------------------------------------------------------------------------------------------------


@rule(MOVING, on.CopyStarted)
def _started(state: State, event: Event) -> Result:
    # durable before the destination can own: a source that restarts and reads no such line knows that no GO was sent
    return replace(state, may_hand_over=True), (do.ArmHandOver(),)


@rule(Phase.COPYING, on.ProgressSampled, Phase.COPYING, Phase.CONVERGING, Phase.ABORTING)
@rule(Phase.CONVERGING, on.ProgressSampled, Phase.CONVERGING, Phase.ABORTING)
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
            return undo_all(state, Ending.DEADLINE, "deadline-passed", decision.reason)
        case Action.WAIT:
            said = sample.round > 1 and decision.reason != "within a round"
            return state, (do.Note(decision.reason),) if said else ()


@rule(ROUNDS, on.SourceStopped, Phase.BLACKOUT)
def _stopped(state: State, event: Event) -> Result:
    return replace(state, phase=Phase.BLACKOUT), ()


@rule(Phase.COPYING, on.CopyCompleted, Phase.COPYING, Phase.VERIFYING, Phase.HANDING_OVER)
@rule(Phase.CONVERGING, on.CopyCompleted, Phase.CONVERGING, Phase.VERIFYING, Phase.HANDING_OVER)
@rule(Phase.BLACKOUT, on.CopyCompleted, Phase.BLACKOUT, Phase.VERIFYING, Phase.HANDING_OVER)
def _completed(state: State, event: Event) -> Result:
    return _hand_over_when_ready(replace(state, copied=True))


@rule(Phase.COPYING, on.HandOverArmed, Phase.COPYING, Phase.VERIFYING, Phase.HANDING_OVER)
@rule(Phase.CONVERGING, on.HandOverArmed, Phase.CONVERGING, Phase.VERIFYING, Phase.HANDING_OVER)
@rule(Phase.BLACKOUT, on.HandOverArmed, Phase.BLACKOUT, Phase.VERIFYING, Phase.HANDING_OVER)
def _armed(state: State, event: Event) -> Result:
    return _hand_over_when_ready(replace(state, armed=True))


def _hand_over_when_ready(state: State) -> Result:
    if not (state.copied and state.armed):
        return state, ()
    if state.verify is Verify.OFF:
        return _hand_over(state)
    return replace(state, phase=Phase.VERIFYING), (do.VerifyMemory(state.verify),)


@rule(Phase.VERIFYING, on.MemoryVerified, Phase.HANDING_OVER)
def _verified(state: State, event: Event) -> Result:
    return _hand_over(replace(state, verify=Verify.OFF))


@rule(Phase.VERIFYING, on.MemoryDiffers, Phase.ABORTING)
def _differs(state: State, event: Event) -> Result:
    assert isinstance(event, on.MemoryDiffers)
    return undo_all(state, Ending.FAILED, "memory-differs", event.reason)


def _hand_over(state: State) -> Result:
    going = replace(state, phase=Phase.HANDING_OVER, owner=Owner.UNKNOWN)
    return going, (do.SendGo(resume=state.guest is GuestRun.RUNNING),)


# Step 9: the hand-over ------------------------------------------------------------------------------------------------


@rule(ASKING, on.DestinationOwned, Phase.CLEANING)
def _owned(state: State, event: Event) -> Result:
    return replace(state, phase=Phase.CLEANING, owner=Owner.DESTINATION), (do.RemoveSource(),)


@rule(ASKING, on.DestinationDisowned, Phase.ABORTING, Phase.FAILED)
def _disowned(state: State, event: Event) -> Result:
    assert isinstance(event, on.DestinationDisowned)
    back = replace(state, owner=Owner.SOURCE, destination_made=False)
    return undo_all(back, Ending.FAILED, "journey-failed", f"The destination did not take the VM: {event.reason}")


@rule(Phase.HANDING_OVER, on.DestinationSilent, Phase.UNRESOLVED)
def _silent(state: State, event: Event) -> Result:
    assert isinstance(event, on.DestinationSilent)
    text = f"The destination did not answer in the hand-over ({event.reason}); the VM stays paused until it does."
    return replace(state, phase=Phase.UNRESOLVED), (do.Note(text, "error"), _question(state))


@rule(Phase.UNRESOLVED, on.DestinationSilent)
def _still_silent(state: State, event: Event) -> Result:
    return state, (_question(state),)


def _question(state: State) -> Command:
    """What is asked of a silent destination: whose the VM is, or, when nothing is left here, to take what it has loaded.

    QEMU had completed before the owner became UNKNOWN and the guest has not run here since, so what is loaded there is
    the whole VM; a question would have the destination throw it away. Memory that nobody compared where that was asked for
    is thrown away.
    """
    if state.source_gone and state.verify is Verify.OFF:
        return do.SendGo(resume=state.guest is GuestRun.RUNNING, source_gone=True)
    return do.AskDestination()


@rule(ASKING, on.SourceQemuDied)
def _source_died_in_the_hand_over(state: State, event: Event) -> Result:
    assert isinstance(event, on.SourceQemuDied)
    if not event.proven:
        return state, ()
    text = f"The source's QEMU ended in the hand-over ({event.reason}); the destination shall take the VM if it has all of it."
    return replace(state, source_gone=True), (do.Note(text, "error"),)


@rule(Phase.UNRESOLVED, on.DestinationDeclaredDead, Phase.ABORTING, Phase.FAILED)
def _declared_dead(state: State, event: Event) -> Result:
    assert isinstance(event, on.DestinationDeclaredDead)
    guest = GuestRun.PAUSED if event.paused and state.guest is GuestRun.RUNNING else state.guest
    back = replace(state, owner=Owner.SOURCE, destination_made=False, guest=guest)
    text = f"{event.by} declared the destination dead, which had not answered whether it took the VM."
    state, commands = undo_all(back, Ending.FAILED, "journey-failed", text)
    return state, (do.Note(text, "warning"), *commands)


# Step 10 --------------------------------------------------------------------------------------------------------------


@rule(Phase.CLEANING, on.SourceRemoved, Phase.COMPLETED)
def _removed(state: State, event: Event) -> Result:
    return replace(state, phase=Phase.COMPLETED), (do.Finish(),)


@rule(Phase.CLEANING, on.StepFailed, Phase.COMPLETED)
def _not_removed(state: State, event: Event) -> Result:
    assert isinstance(event, on.StepFailed)
    text = f"The VM is at the destination, but something of it is left at the source: {event.reason}"
    return replace(state, phase=Phase.COMPLETED), (do.Note(text, "error"), do.Finish())


@rule((*ASKING, Phase.CLEANING), on.CancelRequested)
def _too_late(state: State, event: Event) -> Result:
    return state, (do.Note("Too late to cancel: the hand-over has begun.", "warning"),)


# What ends a journey before the hand-over -----------------------------------------------------------------------------


@rule(AT_SOURCE, on.StepFailed, Phase.ABORTING, Phase.FAILED)
def _step_failed(state: State, event: Event) -> Result:
    assert isinstance(event, on.StepFailed)
    return undo_all(state, Ending.FAILED, event.code, event.reason, event.remedy)


@rule((Phase.FINDING, *AT_SOURCE), on.CancelRequested, Phase.ABORTING, Phase.CANCELLED)
def _cancelled(state: State, event: Event) -> Result:
    assert isinstance(event, on.CancelRequested)
    return undo_all(state, Ending.CANCELLED, "journey-cancelled", f"Cancelled by {event.by}.")


@rule(MOVING, on.CopyFailed, Phase.ABORTING, Phase.FAILED)
def _copy_failed(state: State, event: Event) -> Result:
    assert isinstance(event, on.CopyFailed)
    return undo_all(state, Ending.FAILED, "link-lost", f"The copy failed: {event.reason}")


@rule(AT_SOURCE, on.SourceQemuDied, Phase.ABORTING, Phase.FAILED)
def _source_died(state: State, event: Event) -> Result:
    assert isinstance(event, on.SourceQemuDied)
    dead = replace(state, copy_started=False)
    return undo_all(dead, Ending.SOURCE_CRASHED, "qemu-gone", f"The VM crashed on the source: {event.reason}")


@rule(AT_SOURCE, on.GuestPoweredOff, Phase.ABORTING, Phase.ENDED)
def _powered_off(state: State, event: Event) -> Result:
    off = replace(state, guest=GuestRun.POWERED_OFF)
    return undo_all(off, Ending.GUEST_ENDED, "guest-ended", "The guest powered itself off while it was being moved.")


def undo_all(state: State, ending: Ending, code: str, reason: str, remedy: str = "") -> Result:
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


ENDS = (Phase.ABORTING, Phase.FAILED, Phase.CANCELLED, Phase.ENDED)


@rule(Phase.ABORTING, on.CopyCancelled, *ENDS)
@rule(Phase.ABORTING, on.SourceQemuDied, *ENDS)
def _copy_is_over(state: State, event: Event) -> Result:
    assert state.abort is not None
    abort = replace(state.abort, copy_stopped=True)
    if isinstance(event, on.SourceQemuDied) and abort.ending is not Ending.SOURCE_CRASHED:
        text = f"The VM crashed on the source: {event.reason} (noticed first: {abort.reason})"
        abort = replace(abort, ending=Ending.SOURCE_CRASHED, code="qemu-gone", reason=text)
    return _finish_abort(replace(state, abort=abort, copy_started=False))


@rule(Phase.ABORTING, on.DestinationAbandoned, *ENDS)
def _destination_is_gone(state: State, event: Event) -> Result:
    assert isinstance(event, on.DestinationAbandoned) and state.abort is not None
    abort = replace(state.abort, destination_gone=True)
    if event.cause and abort.ending is Ending.FAILED:
        # what the destination saw is nearer to the fault than the broken pipe it left at the source
        abort = replace(abort, code="qemu-gone", reason=f"The destination gave up: {event.cause} ({abort.reason})")
    return _finish_abort(replace(state, abort=abort, destination_made=False))
