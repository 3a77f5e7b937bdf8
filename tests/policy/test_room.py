"""Room for others: given at once, taken back slowly, never more than promised."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemove.policy.room import GROWING, HOLD_S, KEPT, QUIET, SHRINK, STEP, USABLE, Room, step_room

CAPACITY, PROMISED, TICK_S = 1000.0, 440.0, 0.1


def step(room: Room, others: float, promised: float = PROMISED) -> Room:
    return step_room(
        room,
        others_bytes_per_s=others,
        promised_bytes_per_s=promised,
        capacity_bytes_per_s=CAPACITY,
        elapsed_s=TICK_S,
    )


@pytest.mark.parametrize(
    ("kept", "others", "after"),
    [
        (0, 0, 0),
        (0, QUIET * CAPACITY, 0),
        (0, 15, STEP * CAPACITY),
        (0, 50, 250),
        (0, 90, PROMISED),
        (250, 200, PROMISED),
        (PROMISED, PROMISED, PROMISED),
        (PROMISED, 900, PROMISED),
        (250, GROWING * 250, 250),
    ],
)
def test_who_grows_is_given_room_at_once(kept: float, others: float, after: float) -> None:
    assert step(Room(kept), others).kept_bytes_per_s == after


def test_nothing_promised_is_nothing_kept() -> None:
    assert step(Room(), 900, promised=0) == Room(0)
    assert step(Room(300), 200, promised=100) == Room(100)


def test_what_is_not_wanted_is_kept_a_while_and_then_less() -> None:
    room, kept = Room(PROMISED), []
    for _ in range(20):
        room = step(room, 100)
        kept.append(room.kept_bytes_per_s)
    assert kept[:5] == [PROMISED] * 5, f"for {HOLD_S} s nothing is taken back"
    assert kept[6] == pytest.approx(kept[5] * SHRINK)
    assert kept[-1] == pytest.approx(KEPT * 100)
    assert KEPT * GROWING > 1, "or it would grow again at once"


def test_after_the_last_of_them_nothing_is_kept() -> None:
    room = Room(PROMISED)
    for _ in range(20):
        room = step(room, 0)
    assert room.kept_bytes_per_s == 0


@given(st.lists(st.floats(0, 2000), max_size=60), st.floats(0, CAPACITY))
def test_never_more_than_promised(others: list[float], promised: float) -> None:
    room = Room()
    for rate in others:
        room = step(room, rate, promised)
        assert 0 <= room.kept_bytes_per_s <= promised


def compete(
    wants: Callable[[float], float], promised: float, *, seconds: float = 10.0, eagerness: float = 4.0
) -> list[tuple[float, float]]:
    """Rates of migration and of a competitor, a tick each, behind one queue.

    The competitor is as TCP: it multiplies its rate by `eagerness` in a tick while there is room, gets what migration
    leaves and at least 3 % of a full queue, and starts from 2 %. What is decided counts a tick later.
    """
    room, allowed, rates, rate = Room(), CAPACITY * USABLE, [], 0.0
    for tick in range(round(seconds / TICK_S)):
        left = max(0.03 * CAPACITY, CAPACITY - allowed)
        rate = min(wants(tick * TICK_S), left, max(0.02 * CAPACITY, rate * eagerness))
        rates.append((min(allowed, CAPACITY - rate), rate))
        room = step(room, rate, promised)
        allowed = USABLE * CAPACITY - room.kept_bytes_per_s
    return rates


@pytest.mark.parametrize("promised", [100.0, 440.0, 880.0])
@pytest.mark.parametrize("eagerness", [2.0, 4.0, 50.0])
def test_a_greedy_flow_has_its_minimum_soon_and_keeps_it(promised: float, eagerness: float) -> None:
    rates = compete(lambda at_s: 0 if at_s < 2 else 1e9, promised, eagerness=eagerness)
    assert all(migration == pytest.approx(USABLE * CAPACITY) for migration, _ in rates[:20])
    settled = 20 + (4 if eagerness > 2 else 6)
    assert min(competitor for _, competitor in rates[settled:]) >= promised / 1.1


def test_a_flow_under_its_minimum_is_served_and_leaves_the_rest_to_migration() -> None:
    rates = compete(lambda _: 100.0, PROMISED)
    assert min(competitor for _, competitor in rates[5:]) == 100
    assert rates[-1][0] == pytest.approx(CAPACITY * USABLE - KEPT * 100)


def test_a_flow_that_comes_and_goes_finds_its_minimum_each_time() -> None:
    """Two seconds on, one off: what is kept for it lasts long enough to be there in the tick after it came again."""
    rates = compete(lambda at_s: 1e9 if at_s % 3 < 2 else 0.0, PROMISED, seconds=12)
    for start in (30, 60, 90):
        assert rates[start + 3][1] >= PROMISED / 1.1
    assert max(migration for migration, _ in rates[50:60]) > CAPACITY - PROMISED


def test_alone_migration_has_the_whole_again_after_the_last_flow() -> None:
    rates = compete(lambda at_s: 1e9 if at_s < 3 else 0.0, PROMISED)
    assert rates[-1][0] == pytest.approx(USABLE * CAPACITY) and USABLE >= 0.95
    back = next(tick for tick, (migration, _) in enumerate(rates) if tick > 30 and migration >= 0.95 * CAPACITY)
    assert back <= 30 + 15
