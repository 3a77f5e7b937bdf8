"""The convergence policy by simulation: a guest that writes, a link that carries, QEMU that switches over by the latch."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livemove.policy.convergence import (
    HOPELESS_ROUNDS,
    LOW_LATCH_S,
    Action,
    Contract,
    Decision,
    Memory,
    Sample,
    allowed_latch_s,
    decide,
    predicted_downtime_s,
)

MIB = 1 << 20
GBIT = 125_000_000.0


@dataclass
class World:
    """A guest of `memory` bytes that dirties `dirty_rate` bytes/s of a working set, over a link of `rate` bytes/s.

    QEMU switches over when what remains fits into latch x rate, as migration_iteration_run does.
    """

    dirty_rate: float
    working_set: int = 64 * MIB
    memory: int = 1024 * MIB
    rate: float = GBIT
    throttle_effect: float = 0.2
    decisions: list[Decision] = field(default_factory=list)

    def run(self, contract: Contract, *, most_rounds: int = 500) -> tuple[str, float, float]:
        """(outcome, seconds, downtime seconds by the link alone)."""
        state, now, remaining, latch, dirty = Memory(), 0.0, self.memory, LOW_LATCH_S, self.dirty_rate
        for round_number in range(1, most_rounds):
            state, decision = decide(state, Sample(now, round_number, remaining, self.rate), contract)
            self.decisions.append(decision)
            if decision.action is Action.GIVE_UP:
                return "given up", now, 0.0
            if decision.action is Action.OPEN_LATCH:
                latch = decision.latch_s * decision.rate_bytes_per_s / self.rate
            if decision.action is Action.THROTTLE:
                dirty = self.dirty_rate * self.throttle_effect
            if round_number > 1 and remaining <= latch * self.rate:
                return "switched over", now, remaining / self.rate
            seconds = remaining / self.rate
            now += seconds
            remaining = int(min(self.working_set, dirty * seconds))
            if remaining <= latch * self.rate:
                return "switched over", now, remaining / self.rate
        return "endless", now, 0.0


def test_an_idle_guest_completes_by_the_low_latch_alone():
    world = World(dirty_rate=1000.0)
    outcome, seconds, downtime = world.run(Contract(0.3))
    assert outcome == "switched over"
    assert downtime <= 0.002
    assert seconds < 1024 * MIB / GBIT * 1.01


def test_a_first_dirty_set_that_fits_is_switched_over_without_further_rounds():
    # 20 MiB remain after the first round: 168 ms, within 300 ms; one more round would cost more than it is worth
    outcome, seconds, downtime = World(dirty_rate=5e6, working_set=20 * MIB).run(Contract(0.3))
    assert outcome == "switched over"
    assert downtime < 0.3
    assert seconds < 1024 * MIB / GBIT * 1.03


def test_a_small_dirty_set_gets_one_more_round_for_a_shorter_blackout():
    world = World(dirty_rate=1e6, working_set=8 * MIB)
    outcome, _, downtime = world.run(Contract(0.3))
    assert outcome == "switched over"
    assert downtime < 0.01
    assert any("one more round" in decision.reason for decision in world.decisions)


def test_rounds_that_shrink_are_waited_for():
    world = World(dirty_rate=GBIT * 0.5, working_set=512 * MIB)
    outcome, _, downtime = world.run(Contract(0.3))
    assert outcome == "switched over"
    assert downtime <= 0.3
    assert any("rounds are shrinking" in decision.reason for decision in world.decisions)


def test_a_guest_that_writes_faster_than_the_link_ends_at_the_deadline():
    world = World(dirty_rate=GBIT * 2, working_set=256 * MIB)
    outcome, seconds, _ = world.run(Contract(0.3, deadline_s=60))
    assert outcome == "given up"
    assert 60 <= seconds < 64
    assert "deadline of 60.0 s" in world.decisions[-1].reason


def test_the_same_guest_is_moved_when_its_downtime_is_allowed():
    outcome, _, downtime = World(dirty_rate=GBIT * 2, working_set=256 * MIB).run(Contract(3.0, deadline_s=60))
    assert outcome == "switched over"
    assert downtime <= 3.0


def test_throttling_comes_last_and_only_when_allowed():
    world = World(dirty_rate=GBIT * 2, working_set=256 * MIB)
    outcome, _, downtime = world.run(Contract(0.3, max_throttle=80))
    actions = [decision.action for decision in world.decisions if decision.action is not Action.WAIT]
    assert actions[:4] == [Action.OPEN_LATCH] * 3 + [Action.THROTTLE]
    assert (outcome, downtime <= 0.3) == ("switched over", True)

    never = World(dirty_rate=GBIT * 2, working_set=256 * MIB)
    never.run(Contract(0.3, deadline_s=60))
    assert Action.THROTTLE not in {decision.action for decision in never.decisions}


def test_without_a_deadline_a_hopeless_copy_ends():
    outcome, seconds, _ = World(dirty_rate=GBIT * 2, working_set=512 * MIB).run(Contract(0.1))
    assert outcome == "given up"
    assert seconds >= 120


def test_the_latch_opens_stepwise():
    world = World(dirty_rate=GBIT * 2, working_set=256 * MIB)
    world.run(Contract(0.3, deadline_s=30))
    opened = [decision.latch_s for decision in world.decisions if decision.action is Action.OPEN_LATCH]
    assert opened == sorted(opened)
    assert len(opened) >= 3
    assert opened[-1] == pytest.approx(allowed_latch_s(Contract(0.3)))


def test_near_the_deadline_any_moment_that_fits_will_do():
    memory = Memory(round=4, round_start_bytes=(1024 * MIB, 300 * MIB, 250 * MIB, 200 * MIB))
    _, decision = decide(memory, Sample(90.0, 5, 100 * MIB, GBIT), Contract(0.3, deadline_s=100.0))
    assert decision.action is Action.OPEN_LATCH
    assert "deadline is near" in decision.reason


@pytest.mark.parametrize(
    ("limit_s", "latch_s"), [(0.3, 0.26), (1.0, 0.96), (0.05, 0.025), (0.001, LOW_LATCH_S), (10.0, 9.96)]
)
def test_a_part_of_the_allowed_downtime_is_kept_for_the_hand_over(limit_s: float, latch_s: float):
    assert allowed_latch_s(Contract(limit_s)) == pytest.approx(latch_s)


def test_an_unknown_rate_predicts_no_downtime_that_fits():
    assert predicted_downtime_s(1, 0.0) == float("inf")


@given(
    dirty=st.floats(0, 1e9), working_set=st.integers(1, 900), limit=st.floats(0.01, 5), rate=st.floats(1e6, 5e9),
    deadline=st.floats(1, 500),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_every_journey_with_a_deadline_ends_within_its_contract(
    dirty: float, working_set: int, limit: float, rate: float, deadline: float
):
    """Whatever the guest does, the policy ends: switched over within the allowed downtime, or given up at the deadline."""
    world = World(dirty_rate=dirty, working_set=working_set * MIB, rate=rate)
    outcome, seconds, downtime = world.run(Contract(limit, deadline_s=deadline), most_rounds=100_000)
    assert outcome in ("switched over", "given up")
    if outcome == "switched over":
        assert downtime <= limit
    else:
        assert seconds >= deadline
    latches = [d.latch_s for d in world.decisions if d.action is Action.OPEN_LATCH]
    assert all(LOW_LATCH_S <= latch <= max(limit, LOW_LATCH_S) for latch in latches)


def test_an_open_latch_is_set_anew_only_when_the_rate_has_risen():
    contract = Contract(0.3)
    memory, first = decide(Memory(round=1, round_start_bytes=(1024 * MIB,)), Sample(9.0, 2, 25 * MIB, GBIT), contract)
    memory, second = decide(memory, Sample(9.1, 3, 24 * MIB, GBIT), contract)
    memory, third = decide(memory, Sample(9.2, 4, 24 * MIB, GBIT * 1.2), contract)
    assert [first.action, second.action, third.action] == [Action.OPEN_LATCH, Action.WAIT, Action.OPEN_LATCH]
    assert "switching over" in second.reason
    assert third.rate_bytes_per_s > first.rate_bytes_per_s


def test_a_round_that_can_win_next_to_nothing_is_not_waited_for():
    _, decision = decide(
        Memory(round=1, round_start_bytes=(1024 * MIB,)), Sample(9.0, 2, MIB // 4, GBIT), Contract(0.3)
    )
    assert decision.action is Action.OPEN_LATCH


def test_hopelessness_needs_many_rounds():
    assert HOPELESS_ROUNDS >= 20
