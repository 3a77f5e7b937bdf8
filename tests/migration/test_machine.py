"""The rules of a journey at its source: named scenarios as playbooks, then every order of events that hypothesis can think of."""

from __future__ import annotations

import os
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.migration.playbook import Playbook, check_invariants

from livemove.migration import commands as do
from livemove.migration import events as on
from livemove.migration.commands import Command
from livemove.migration.events import Event
from livemove.migration.machine import TRANSITIONS, IllegalEvent, begin, step
from livemove.migration.model import Ending, GuestRun, Owner, Phase, State, Verify
from livemove.policy.convergence import Contract, Sample

MIB = 1 << 20


def sample(round_number: int, remaining: int = 0, elapsed_s: float = 1.0) -> on.ProgressSampled:
    return on.ProgressSampled(Sample(elapsed_s, round_number, remaining, 125e6))


def copying(contract: Contract | None = None, guest: GuestRun = GuestRun.RUNNING) -> Playbook:
    """A journey in its first round, armed."""
    book = Playbook(begin(contract or Contract(0.3)))
    book >> on.JourneyAccepted(guest) << do.RequestSlot()
    book >> on.SlotGranted() << do.AskPermission()
    book >> on.PermissionGiven() << do.CheckFitness()
    book >> on.FitnessConfirmed() << do.BuildSkeleton()
    book >> on.SkeletonBuilt() << do.OpenConnection()
    book >> on.ConnectionOpened() << do.StartCopy()
    book >> on.CopyStarted() << do.ArmHandOver()
    return book >> on.HandOverArmed()


def verifying(mode: Verify = Verify.FULL) -> Playbook:
    """A journey whose destination has loaded everything, and whose memory is being compared."""
    book = copying()
    book.state = replace(book.state, verify=mode)
    return book >> sample(1) >> on.SourceStopped() >> on.CopyCompleted() << do.VerifyMemory(mode)


def handing_over() -> Playbook:
    book = copying() >> sample(1) >> on.SourceStopped()
    return book >> on.CopyCompleted() << do.SendGo(resume=True)


def test_a_journey_that_arrives():
    book = copying() >> sample(1, 900 * MIB)
    book >> sample(2, 20 * MIB) << do.OpenLatch(0.26, 125e6 * 0.85, book.issued[0].reason)  # type: ignore[attr-defined]
    assert book.state.phase is Phase.CONVERGING
    book >> on.SourceStopped() >> on.CopyCompleted() << do.SendGo(resume=True)
    assert book.state.owner is Owner.UNKNOWN
    book >> on.DestinationOwned() << do.RemoveSource()
    book >> on.SourceRemoved() << do.Finish()
    book.ends(Phase.COMPLETED, Owner.DESTINATION)


def test_a_paused_guest_arrives_without_a_stop_and_is_not_resumed():
    book = copying(guest=GuestRun.PAUSED) >> on.CopyCompleted() << do.SendGo(resume=False)
    book >> on.DestinationOwned() << do.RemoveSource()


@pytest.mark.parametrize(
    ("event", "guest"),
    [
        (on.UserPaused(), GuestRun.PAUSED),
        (on.GuestDiskFailed(), GuestRun.IO_ERROR),
        (on.GuestPanicked(), GuestRun.PANICKED),
    ],
)
def test_a_guest_that_stops_running_meanwhile_arrives_as_it_is(event: Event, guest: GuestRun):
    book = copying() >> event
    assert book.state.guest is guest
    book >> on.CopyCompleted() << do.SendGo(resume=False)


def test_a_user_who_resumes_meanwhile_finds_it_running():
    book = copying(guest=GuestRun.PAUSED) >> on.UserResumed() >> on.SourceStopped()
    book >> on.CopyCompleted() << do.SendGo(resume=True)


def test_no_go_before_both_journals_are_armed():
    book = copying()
    book.state = replace(book.state, armed=False)
    book >> on.SourceStopped() >> on.CopyCompleted()
    assert book.state.phase is Phase.BLACKOUT
    book >> on.HandOverArmed() << do.SendGo(resume=True)


def test_the_latch_stays_shut_until_both_journals_are_armed():
    book = copying()
    book.state = replace(book.state, armed=False)
    book >> sample(2, 20 * MIB) >> on.HandOverArmed() >> sample(2, 20 * MIB)
    assert isinstance(book.issued[0], do.OpenLatch)


def test_arming_that_fails_in_the_blackout_brings_the_guest_back():
    book = copying()
    book.state = replace(book.state, armed=False)
    book >> on.SourceStopped() >> on.StepFailed("state-unwritable", "disk full", "")
    book << do.CancelCopy(resume=True) << do.AbandonDestination()


@pytest.mark.parametrize("mode", [Verify.FULL, Verify.SAMPLE])
def test_memory_is_compared_before_the_go_where_asked(mode: Verify):
    book = verifying(mode)
    assert (book.state.phase, book.state.owner) == (Phase.VERIFYING, Owner.SOURCE)
    book >> on.MemoryVerified() << do.SendGo(resume=True)
    assert (book.state.phase, book.state.owner) == (Phase.HANDING_OVER, Owner.UNKNOWN)


def test_a_paused_guest_is_verified_as_well_and_also_when_arming_came_last():
    book = copying(guest=GuestRun.PAUSED)
    book.state = replace(book.state, verify=Verify.FULL, armed=False)
    book >> on.CopyCompleted()
    book >> on.HandOverArmed() << do.VerifyMemory(Verify.FULL)
    book >> on.MemoryVerified() << do.SendGo(resume=False)


def test_memory_that_differs_is_never_handed_over():
    book = verifying() >> on.MemoryDiffers("one page differs") << do.CancelCopy(resume=True) << do.AbandonDestination()
    book >> on.MemoryVerified() >> on.CopyCancelled() >> on.DestinationAbandoned() << do.Finish()
    abort = book.ends(Phase.FAILED, Owner.SOURCE).abort
    assert abort is not None and (abort.code, abort.reason) == ("memory-differs", "one page differs")


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (on.StepFailed("agent-unreachable", "no answer", ""), "agent-unreachable"),
        (on.CancelRequested("ann"), "journey-cancelled"),
        (on.CopyFailed("broken"), "link-lost"),
    ],
)
def test_a_verification_that_does_not_come_to_its_end_leaves_the_vm_at_the_source(event: Event, code: str):
    book = verifying() >> event << do.CancelCopy(resume=True) << do.AbandonDestination()
    assert book.state.owner is Owner.SOURCE
    assert book.state.abort is not None and book.state.abort.code == code


def test_a_source_that_dies_while_it_is_verified_crashed_there():
    book = verifying() >> on.SourceQemuDied("segfault") << do.AbandonDestination()
    book >> on.DestinationAbandoned() << do.Finish()
    assert book.ends(Phase.FAILED, Owner.SOURCE).abort.code == "qemu-gone"  # type: ignore[union-attr]


def test_a_user_who_pauses_during_the_verification_finds_it_paused():
    book = verifying() >> on.UserPaused() >> on.MemoryVerified() << do.SendGo(resume=False)
    book >> on.DestinationOwned() << do.RemoveSource()


def test_memory_that_nobody_compared_is_not_taken_even_when_the_source_is_gone():
    book = verifying() >> on.AgentRestarted(go_impossible=False) << do.AskDestination()
    book >> on.SourceQemuDied("killed", proven=True) >> on.DestinationSilent("still") << do.AskDestination()


def test_verified_memory_is_taken_when_the_source_is_gone():
    book = verifying() >> on.MemoryVerified() << do.SendGo(resume=True)
    book >> on.SourceQemuDied("killed", proven=True)
    book >> on.DestinationSilent("no monitor") << do.SendGo(resume=True, source_gone=True)


def test_restarted_while_it_verified():
    book = verifying() >> on.AgentRestarted(go_impossible=False) << do.AskDestination()
    book >> on.DestinationDisowned("abandoned") << do.CancelCopy(resume=True)


def test_a_destination_that_says_no_gives_the_vm_back():
    book = handing_over() >> on.DestinationDisowned("it died") << do.CancelCopy(resume=True)
    assert book.state.owner is Owner.SOURCE
    book >> on.CopyCancelled() << do.Finish()
    assert "it died" in book.ends(Phase.FAILED, Owner.SOURCE).abort.reason  # type: ignore[union-attr]


def test_silence_leads_to_a_question_and_never_to_a_guess():
    book = handing_over() >> on.DestinationSilent("timed out") << do.AskDestination()
    for _ in range(3):
        book >> on.DestinationSilent("still") << do.AskDestination()
        assert (book.state.phase, book.state.owner) == (Phase.UNRESOLVED, Owner.UNKNOWN)
    book >> on.SourceQemuDied("oom") >> on.CancelRequested("me")
    assert any("Too late" in note for note in book.notes)
    book >> on.DestinationOwned() << do.RemoveSource()


def test_a_source_that_dies_in_the_hand_over_leaves_the_vm_to_the_destination_that_has_loaded_it():
    book = handing_over() >> on.SourceQemuDied("killed", proven=True)
    book >> on.DestinationSilent("no monitor") << do.SendGo(resume=True, source_gone=True)
    book >> on.DestinationSilent("still") << do.SendGo(resume=True, source_gone=True)
    book >> on.DestinationOwned() << do.RemoveSource()
    book >> on.SourceRemoved() << do.Finish()
    book.ends(Phase.COMPLETED, Owner.DESTINATION)


def test_a_source_that_dies_while_the_destination_is_asked():
    book = handing_over() >> on.DestinationSilent("timed out") << do.AskDestination()
    book >> on.SourceQemuDied("killed", proven=True) >> on.DestinationSilent("still")
    book << do.SendGo(resume=True, source_gone=True)
    book >> on.DestinationDisowned("it asked first") << do.CancelCopy(resume=True)
    book >> on.SourceQemuDied("killed", proven=True) << do.Finish()
    abort = book.ends(Phase.FAILED, Owner.SOURCE).abort
    assert abort is not None and abort.ending is Ending.SOURCE_CRASHED


def test_a_monitor_that_closes_in_the_hand_over_proves_nothing():
    book = handing_over() >> on.SourceQemuDied("its monitor closed") >> on.DestinationSilent("timed out")
    book << do.AskDestination()


def test_it_may_be_handed_over_before_the_destination_is_asked_to_arm():
    book = Playbook(replace(copying().state, may_hand_over=False, armed=False)) >> on.CopyStarted()
    assert book.state.may_hand_over and not book.state.armed
    book << do.ArmHandOver()


def test_a_link_that_breaks_in_the_copy():
    book = copying() >> on.CopyFailed("connection reset") << do.CancelCopy(resume=True) << do.AbandonDestination()
    book >> on.CopyCancelled()
    assert book.state.phase is Phase.ABORTING
    book >> on.DestinationAbandoned() << do.Finish()
    state = book.ends(Phase.FAILED, Owner.SOURCE)
    assert state.abort is not None and state.abort.code == "link-lost"


def test_what_the_destination_saw_explains_the_broken_pipe():
    book = copying() >> on.CopyFailed("broken pipe") << do.CancelCopy(resume=True) << do.AbandonDestination()
    book >> on.DestinationAbandoned("its QEMU ended: killed") >> on.CopyCancelled() << do.Finish()
    abort = book.ends(Phase.FAILED, Owner.SOURCE).abort
    assert abort is not None and abort.code == "qemu-gone"
    assert "its QEMU ended: killed" in abort.reason and "broken pipe" in abort.reason


@pytest.mark.parametrize("steps_done", range(6))
def test_cancel_before_the_copy_undoes_only_what_was_done(steps_done: int):
    book = Playbook()
    steps = [
        on.JourneyAccepted(GuestRun.RUNNING), on.SlotGranted(), on.PermissionGiven(), on.FitnessConfirmed(), on.SkeletonBuilt(),
    ]  # fmt: skip
    for event in steps[:steps_done]:
        book >> event
        book.issued = ()
    book >> on.CancelRequested("ann")
    if steps_done >= 2:
        book << do.AbandonDestination()
        book >> on.DestinationAbandoned()
    book << do.Finish()
    book.ends(Phase.CANCELLED, Owner.SOURCE)


def test_an_answer_that_comes_after_the_cancel_changes_nothing():
    book = copying() >> on.CancelRequested("ann") << do.CancelCopy(resume=True) << do.AbandonDestination()
    book >> on.HandOverArmed() >> on.CopyCompleted() >> sample(3) >> on.SourceStopped()
    assert book.state.phase is Phase.ABORTING
    book >> on.CopyCancelled() >> on.DestinationAbandoned() << do.Finish()


def test_power_off_ends_the_journey_in_order():
    book = copying() >> on.GuestPoweredOff() << do.CancelCopy(resume=False) << do.AbandonDestination()
    book >> on.CopyCancelled() >> on.DestinationAbandoned() << do.StopSourceVm() << do.Finish()
    book.ends(Phase.ENDED, Owner.SOURCE)


def test_a_source_that_crashes_is_reported_as_a_crash():
    book = copying() >> on.SourceQemuDied("segfault") << do.AbandonDestination()
    book >> on.DestinationAbandoned() << do.Finish()
    abort = book.ends(Phase.FAILED, Owner.SOURCE).abort
    assert abort is not None and abort.ending is Ending.SOURCE_CRASHED


def test_a_source_that_crashes_while_it_is_cancelled():
    book = copying() >> on.CancelRequested("ann") << do.CancelCopy(resume=True) << do.AbandonDestination()
    book >> on.SourceQemuDied("segfault") >> on.DestinationAbandoned() << do.Finish()
    abort = book.ends(Phase.FAILED, Owner.SOURCE).abort
    assert abort is not None and abort.ending is Ending.SOURCE_CRASHED
    assert "crashed on the source: segfault" in abort.reason and "Cancelled by ann" in abort.reason


def test_the_deadline_brings_the_guest_back():
    book = copying(Contract(0.3, deadline_s=10)) >> sample(2, 500 * MIB, elapsed_s=11)
    book << do.CancelCopy(resume=True) << do.AbandonDestination()
    book >> on.CopyCancelled() >> on.DestinationAbandoned() << do.Finish()
    abort = book.ends(Phase.FAILED, Owner.SOURCE).abort
    assert abort is not None and abort.code == "deadline-passed"


def test_a_reset_goes_on():
    book = copying() >> on.GuestReset()
    assert (book.state.phase, book.state.guest) == (Phase.COPYING, GuestRun.RUNNING)


def test_remains_that_stay_at_the_source_do_not_undo_the_journey():
    book = handing_over() >> on.DestinationOwned() << do.RemoveSource()
    book >> on.StepFailed("network-missing", "the tap is in use", "") << do.Finish()
    book.ends(Phase.COMPLETED, Owner.DESTINATION)
    assert any("the tap is in use" in note for note in book.notes)


# A restarted agent ----------------------------------------------------------------------------------------------------


def test_restarted_before_the_copy():
    book = Playbook() >> on.JourneyAccepted(GuestRun.RUNNING) << do.RequestSlot()
    book >> on.SlotGranted() << do.AskPermission()
    book >> on.AgentRestarted(go_impossible=True) << do.AbandonDestination()
    book >> on.DestinationAbandoned() << do.Finish()


def test_restarted_in_the_copy_when_no_go_can_have_been_sent():
    book = copying() >> on.AgentRestarted(go_impossible=True) << do.CancelCopy(resume=True) << do.AbandonDestination()
    assert book.state.owner is Owner.SOURCE


def test_restarted_when_a_go_may_have_been_sent():
    book = copying() >> on.AgentRestarted(go_impossible=False) << do.AskDestination()
    assert (book.state.phase, book.state.owner) == (Phase.UNRESOLVED, Owner.UNKNOWN)
    book >> on.DestinationDisowned("never heard of it") << do.CancelCopy(resume=True)


def test_restarted_while_handing_over_cleaning_or_aborting():
    book = handing_over() >> on.AgentRestarted(go_impossible=False) << do.AskDestination()
    book >> on.DestinationOwned() << do.RemoveSource()
    book >> on.AgentRestarted(go_impossible=False) << do.RemoveSource()

    book = copying() >> on.CancelRequested("ann") << do.CancelCopy(resume=True) << do.AbandonDestination()
    book >> on.AgentRestarted(go_impossible=True) << do.CancelCopy(resume=True) << do.AbandonDestination()


# Any order ------------------------------------------------------------------------------------------------------------


def test_an_answer_nobody_waits_for_is_an_error_that_names_state_and_event():
    with pytest.raises(IllegalEvent, match="SkeletonBuilt cannot happen while FINDING"):
        step(begin(Contract(0.3)), on.SkeletonBuilt())


def test_terminal_phases_have_no_way_out():
    assert not [phase for phase, _ in TRANSITIONS if phase.terminal]


def _example(kind: type[Event]) -> st.SearchStrategy[Event]:
    values: dict[str, st.SearchStrategy[object]] = {
        "guest": st.sampled_from(GuestRun), "go_impossible": st.booleans(), "proven": st.booleans(),
        "sample": st.builds(
            Sample, st.floats(0, 1000), st.integers(1, 60), st.integers(0, 1 << 31), st.floats(0, 1e10), st.integers(0, 99)
        ),
    }  # fmt: skip
    return st.builds(kind, **{field.name: values.get(field.name, st.just("x")) for field in fields(kind)})


ALL_EVENTS = st.one_of([_example(kind) for kind in on.Event.__subclasses__()])
#: Which answers a command may have; a real world gives an answer only to what was asked.
ANSWERS: dict[type[Command], tuple[type[Event], ...]] = {
    do.RequestSlot: (on.SlotGranted,),
    do.AskPermission: (on.PermissionGiven, on.StepFailed),
    do.CheckFitness: (on.FitnessConfirmed, on.StepFailed),
    do.BuildSkeleton: (on.SkeletonBuilt, on.StepFailed),
    do.OpenConnection: (on.ConnectionOpened, on.StepFailed),
    do.StartCopy: (on.CopyStarted, on.StepFailed),
    do.ArmHandOver: (on.HandOverArmed, on.StepFailed),
    do.VerifyMemory: (on.MemoryVerified, on.MemoryDiffers, on.StepFailed),
    do.SendGo: (on.DestinationOwned, on.DestinationDisowned, on.DestinationSilent),
    do.AskDestination: (on.DestinationOwned, on.DestinationDisowned, on.DestinationSilent),
    do.CancelCopy: (on.CopyCancelled, on.SourceQemuDied),
    do.AbandonDestination: (on.DestinationAbandoned,),
    do.RemoveSource: (on.SourceRemoved, on.StepFailed),
}
UNASKED = (
    on.ProgressSampled, on.SourceStopped, on.CopyCompleted, on.CopyFailed, on.CancelRequested, on.GuestPoweredOff,
    on.GuestReset, on.GuestPanicked, on.GuestDiskFailed, on.UserPaused, on.UserResumed, on.SourceQemuDied,
    on.AgentRestarted,
)  # fmt: skip
EXAMPLES = int(os.environ.get("LIVEMOVE_MACHINE_EXAMPLES", "500"))


@given(st.sampled_from(Verify), st.lists(ALL_EVENTS, max_size=40))
@settings(max_examples=EXAMPLES, deadline=None)
def test_whatever_comes_the_invariants_hold(verify: Verify, story: list[Event]):
    """Even events that cannot happen leave a state that keeps the laws, or are refused."""
    state = begin(Contract(0.3, deadline_s=500, max_throttle=50), verify)
    for event in story:
        try:
            following, commands = step(state, event)
        except IllegalEvent:
            continue
        check_invariants(following)
        if state.phase.terminal:
            assert following == state and commands == ()
        for command in commands:
            if isinstance(command, do.CancelCopy):
                assert following.owner is Owner.SOURCE, "a guest is resumed only by its owner"
            if isinstance(command, do.RemoveSource):
                assert following.owner is Owner.DESTINATION, "remains are removed only when the destination owns"
            if isinstance(command, do.SendGo):
                assert following.armed and following.copied and following.owner is Owner.UNKNOWN
                assert state.owner is Owner.SOURCE or (command.source_gone and following.source_gone)
                assert following.verify is Verify.OFF, "no GO before what was asked"
        state = following


@given(st.data())
@settings(max_examples=EXAMPLES, deadline=None)
def test_every_journey_in_a_possible_world_ends_or_is_unresolved(data: st.DataObject):
    """Answers come only to commands, in any order, mixed with whatever guest, user and link do.

    After a pause by the migration (SourceStopped) the VM is resumed on one side, or the journey is UNRESOLVED.
    """
    verify = data.draw(st.sampled_from(Verify))
    state = begin(Contract(0.3, deadline_s=100), verify)
    outstanding: list[Command] = []
    stopped = False
    go_sent = 0
    dead = verified = False
    state, commands = step(state, on.JourneyAccepted(GuestRun.RUNNING))
    outstanding.extend(commands)
    resumed_by: set[str] = set()
    for _ in range(60):
        if state.phase.terminal:
            break
        kinds: list[type[Event]] = [kind for command in outstanding for kind in ANSWERS.get(type(command), ())]
        if data.draw(st.integers(0, 3)) == 0 or not kinds:
            kinds = list(UNASKED)
            if not state.copy_started:
                kinds = [on.CancelRequested, on.GuestPoweredOff, on.UserPaused, on.GuestReset, on.SourceQemuDied]
        kind = data.draw(st.sampled_from(kinds))
        event = data.draw(_example(kind))
        if isinstance(event, on.AgentRestarted):
            outstanding.clear()
            event = on.AgentRestarted(go_impossible=go_sent == 0 and not state.copied)
        for command in outstanding:
            if kind in ANSWERS.get(type(command), ()):
                outstanding.remove(command)
                break
        stopped = stopped or isinstance(event, on.SourceStopped)
        dead = dead or (isinstance(event, on.SourceQemuDied) and event.proven)
        state, commands = step(state, event)
        check_invariants(state)
        go_sent += sum(isinstance(command, do.SendGo) and not command.source_gone for command in commands)
        assert go_sent <= 1, "the ownership is passed once"
        for command in commands:
            if isinstance(command, do.SendGo) and command.source_gone:
                assert dead, "a destination takes the VM unasked only when nothing of it is left at the source"
            if isinstance(command, do.SendGo):
                verified = verified or isinstance(event, on.MemoryVerified)
                assert verify is Verify.OFF or verified, "no GO before what was asked"
        for command in commands:
            if isinstance(command, do.CancelCopy):
                resumed_by.add("source")
            if isinstance(command, do.RemoveSource):
                resumed_by.add("destination")
        assert len(resumed_by) <= 1, "never two"
        outstanding.extend(command for command in commands if type(command) in ANSWERS)
    if state.phase.terminal and stopped:
        crashed = state.abort is not None and state.abort.ending is Ending.SOURCE_CRASHED
        assert resumed_by or crashed or not state.copy_started, "never none"


def test_a_state_is_small_enough_to_journal():
    assert isinstance(copying().state, State)
