"""Steps and their milliseconds; the downtime by our own measure."""

from __future__ import annotations

import pytest

from livemove.migration.ledger import Ledger
from livemove.migration.model import Phase


def walk(*phases: Phase) -> Ledger:
    ledger = Ledger(0.0)
    for second, phase in enumerate(phases, 1):
        ledger.enter(phase, float(second))
    return ledger


def test_a_journey_that_arrives_has_ten_steps_done():
    steps = walk(
        Phase.QUEUED, Phase.PERMITTING, Phase.CHECKING, Phase.PREPARING, Phase.CONNECTING, Phase.COPYING, Phase.CONVERGING,
        Phase.BLACKOUT, Phase.HANDING_OVER, Phase.CLEANING, Phase.COMPLETED,
    ).steps(12.0)  # fmt: skip
    assert [(step.step, step.state, step.ms) for step in steps] == [(n, "done", 1000.0) for n in range(1, 11)]


def test_the_verification_belongs_to_the_ninth_step():
    ledger = walk(
        Phase.QUEUED, Phase.PERMITTING, Phase.CHECKING, Phase.PREPARING, Phase.CONNECTING, Phase.COPYING, Phase.CONVERGING,
        Phase.BLACKOUT, Phase.VERIFYING,
    )  # fmt: skip
    assert [step.state for step in ledger.steps(10.0)] == ["done"] * 8 + ["running", "waiting"]
    ledger.enter(Phase.HANDING_OVER, 12.0)
    ledger.enter(Phase.CLEANING, 13.0)
    assert [(step.step, step.state, step.ms) for step in ledger.steps(13.5)][8] == (9, "done", 4000.0)


def test_a_verification_that_found_a_difference_failed_in_the_ninth_step():
    steps = walk(Phase.QUEUED, Phase.COPYING, Phase.BLACKOUT, Phase.VERIFYING, Phase.ABORTING, Phase.FAILED).steps(9.0)
    assert [step.state for step in steps][7:] == ["done", "failed", "skipped"]


def test_what_the_blackout_was_made_of():
    ledger = Ledger(0.0)
    ledger.stopped_s, ledger.completed_s, ledger.go_s, ledger.answered_s = 1.0, 1.1, 1.4, 1.5
    parts = {"last_pages_and_devices": 100.0, "decision": 300.0, "hand_over": 100.0}
    assert ledger.blackout_parts_ms() == pytest.approx(parts)
    ledger.verify_s, ledger.verified_s = 1.15, 1.35
    assert ledger.blackout_parts_ms() == pytest.approx({**parts, "decision": 50.0, "verification": 200.0})


def test_time_in_the_queue_belongs_to_no_step():
    ledger = Ledger(0.0)
    ledger.enter(Phase.QUEUED, 1.0)
    ledger.enter(Phase.PERMITTING, 100.0)
    steps = ledger.steps(101.0)
    assert (steps[0].ms, steps[1].ms) == (1000.0, 1000.0)
    assert steps[1].state == "running" and steps[2].state == "waiting"


def test_the_step_in_which_it_failed_and_those_after_it():
    steps = walk(Phase.QUEUED, Phase.PERMITTING, Phase.CHECKING, Phase.ABORTING, Phase.FAILED).steps(9.0)
    assert [step.state for step in steps] == ["done", "done", "failed"] + ["skipped"] * 7


def test_a_paused_guest_skips_the_blackout():
    steps = walk(
        Phase.QUEUED,
        Phase.PERMITTING,
        Phase.CHECKING,
        Phase.PREPARING,
        Phase.CONNECTING,
        Phase.COPYING,
        Phase.HANDING_OVER,
    ).steps(9.0)
    assert [step.state for step in steps][6:9] == ["skipped", "skipped", "running"]


def test_the_blackout_begins_when_the_guest_stops_not_when_it_is_heard():
    ledger = walk(
        Phase.QUEUED,
        Phase.PERMITTING,
        Phase.CHECKING,
        Phase.PREPARING,
        Phase.CONNECTING,
        Phase.COPYING,
        Phase.CONVERGING,
    )
    ledger.stopped_s = 7.25
    ledger.enter(Phase.BLACKOUT, 8.0)
    ledger.enter(Phase.HANDING_OVER, 8.5)
    assert [step.ms for step in ledger.steps(9.0)][6:9] == [250.0, 1250.0, 500.0]


def test_a_blackout_that_was_over_before_it_was_heard_of_is_still_one():
    ledger = walk(Phase.QUEUED, Phase.PERMITTING, Phase.CHECKING, Phase.PREPARING, Phase.CONNECTING, Phase.COPYING)
    ledger.stopped_s = 6.5
    ledger.enter(Phase.HANDING_OVER, 7.0)
    assert [step.ms for step in ledger.steps(9.0)][5:9] == [500.0, None, 500.0, 2000.0]


def test_the_downtime_is_an_upper_bound_made_of_its_parts():
    ledger = Ledger(0.0)
    assert ledger.downtime_ms is None
    ledger.stopped_s, ledger.completed_s, ledger.go_s, ledger.answered_s = 10.0, 10.05, 10.051, 10.06
    assert ledger.downtime_ms == pytest.approx(60)
    parts = ledger.blackout_parts_ms()
    assert sum(parts.values()) == pytest.approx(60)
    assert parts["last_pages_and_devices"] == pytest.approx(50)
