"""The destination's rules: what its journal says before it answers, and that a no is binding."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livemove.migration.incoming import TRANSITIONS, Effect, RefusedRequest, Request, step
from livemove.migration.model import Incoming, IncomingPhase

P, R, E = IncomingPhase, Request, Effect


def walk(*requests: Request, resume: bool = True) -> tuple[Incoming, list[tuple[Effect, ...]]]:
    state, effects = Incoming(P.RESERVED), []
    for request in requests:
        answer = step(state, request, resume=resume)
        state = answer.state
        effects.append(answer.effects)
    return state, effects


ARMED = (R.BUILD, R.BUILT, R.LISTEN, R.ARM)


def test_a_journey_that_arrives_is_journaled_before_it_runs():
    state, effects = walk(*ARMED, R.GO)
    assert state.phase is P.OWNED and state.resume
    assert effects[-1] == (E.JOURNAL, E.RESUME_GUEST)
    assert step(state, R.CONTINUED).state.phase is P.SETTLED


@pytest.mark.parametrize("after", range(len(ARMED) + 1))
def test_asked_before_the_go_the_answer_is_a_binding_no(after: int):
    state, effects = walk(*ARMED[:after], R.ABANDON)
    assert not state.phase.owns
    assert effects[-1] == (E.KILL_QEMU, E.JOURNAL, E.RELEASE), "QEMU is dead before the journal promises it"
    with pytest.raises(RefusedRequest):
        step(state, R.GO)


@pytest.mark.parametrize("after", range(len(ARMED)))
def test_no_go_without_arming(after: int):
    state, _ = walk(*ARMED[:after])
    with pytest.raises(RefusedRequest):
        step(state, R.GO)


def test_asked_after_the_go_the_answer_is_yes():
    state, effects = walk(*ARMED, R.GO, R.ABANDON)
    assert state.phase.owns and effects[-1] == (E.RESUME_GUEST,), "and it runs before the source hears it"
    assert step(Incoming(P.OWNED, resume=True, continued=True), R.ABANDON).effects == ()
    state, effects = walk(*ARMED, R.GO, R.ABANDON, resume=False)
    assert state.phase.owns and effects[-1] == ()
    state, effects = walk(*ARMED, R.GO, R.CONTINUED, R.ABANDON)
    assert state.phase.owns and effects[-1] == ()


def test_a_repeated_go_resumes_again_when_the_first_did_not_get_that_far():
    _, effects = walk(*ARMED, R.GO, R.GO)
    assert effects[-1] == (E.RESUME_GUEST,)
    _, effects = walk(*ARMED, R.GO, R.CONTINUED, R.GO)
    assert effects[-1] == ()


def test_an_owned_guest_that_never_ran_is_given_back():
    state, effects = walk(*ARMED, R.GO, R.QEMU_DIED)
    assert state.phase is P.ABANDONED and effects[-1][0] is E.KILL_QEMU


def test_an_owned_guest_that_may_have_run_stays_as_a_crash():
    answer = step(Incoming(P.OWNED, resume=True, continued=True), R.QEMU_DIED, reason="oom")
    assert answer.state.phase is P.SETTLED and answer.state.phase.owns


@pytest.mark.parametrize("resume", [True, False])
def test_a_guest_that_the_source_knows_to_be_here_crashed_here(resume: bool):
    """Also one that was not to run: the source has removed its own."""
    state, _ = walk(*ARMED, R.GO, resume=resume)
    answer = step(state, R.CRASHED, reason="oom")
    assert answer.state.phase is P.SETTLED and answer.state.reason == "oom" and answer.effects == (E.JOURNAL,)


@pytest.mark.parametrize("phase", [P.RESERVED, P.BUILDING, P.BUILT, P.LISTENING, P.ARMED])
def test_a_restarted_agent_abandons_what_it_does_not_own(phase: IncomingPhase):
    assert step(Incoming(phase), R.RESTARTED).state.phase is P.ABANDONED


def test_a_restarted_agent_runs_what_it_owns():
    answer = step(Incoming(P.OWNED, resume=True), R.RESTARTED)
    assert answer.state.phase is P.OWNED and answer.effects == (E.RESUME_GUEST,)


@given(st.lists(st.sampled_from(Request), max_size=30), st.booleans())
@settings(max_examples=500, deadline=None)
def test_whatever_comes_ownership_is_never_taken_back_or_given_twice(requests: list[Request], resume: bool):
    state = Incoming(P.RESERVED)
    said_no = False
    for request in requests:
        try:
            answer = step(state, request, resume=resume)
        except RefusedRequest:
            continue
        if said_no:
            assert not answer.state.phase.owns, "a no is binding"
        if E.RESUME_GUEST in answer.effects:
            assert answer.state.phase is P.OWNED
        if answer.state.phase is P.OWNED and not state.phase.owns:
            assert request in (R.GO, R.TAKE) and state.phase is P.ARMED
            assert answer.effects.index(E.JOURNAL) < answer.effects.index(E.RESUME_GUEST)
        if request is R.ABANDON and not answer.state.phase.owns:
            said_no = True
        state = answer.state


def test_the_table_names_every_phase():
    assert {phase for phase, _ in TRANSITIONS} == set(IncomingPhase)
