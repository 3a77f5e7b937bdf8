"""What a journey's bytes say about its plan."""

from __future__ import annotations

import pytest

from livemove.policy.path_audit import LEAST_BYTES, LEAST_S, Carried, audit, expected_shares, shares

MANY = LEAST_BYTES * 10


def carried(name: str, part: float, *, planned: bool = True, capacity: int = 100, dead: float = 0.0) -> Carried:
    return Carried(name, planned, capacity, round(MANY * part), dead)


def test_bytes_as_planned_say_nothing() -> None:
    assert audit([carried("one", 0.8, capacity=400), carried("two", 0.2, capacity=100)]) == []


def test_bytes_on_a_network_that_was_not_planned_are_told_however_few() -> None:
    (said,) = audit([carried("one", 1.0), Carried("ctl", False, 100, 1)])
    assert said == "1 bytes went over ctl, which was not planned."
    assert audit([carried("one", 1.0), Carried("ctl", False, 100, 0)]) == []


def test_a_path_under_half_of_its_share_is_named() -> None:
    (said,) = audit([carried("one", 0.9, capacity=100), carried("two", 0.1, capacity=100)])
    assert said.startswith("two carried 10% of the bytes; its part of the capacity is 50%")
    assert audit([carried("one", 0.74), carried("two", 0.26)]) == []


def test_a_path_that_was_dead_for_a_while_is_not_blamed_for_that() -> None:
    assert audit([carried("one", 0.85), carried("two", 0.15, dead=0.8)]) == []


def test_nobody_is_blamed_for_what_a_path_that_came_back_carried() -> None:
    assert audit([carried("one", 0.43), carried("two", 0.57, dead=1.0)]) == []
    (said,) = audit([carried("one", 0.2), carried("two", 0.8, dead=1.0)])
    assert said.startswith("one carried 20% of the bytes; its part of the capacity is 50%")


def test_few_bytes_say_nothing_about_shares() -> None:
    assert audit([Carried("one", True, 100, LEAST_BYTES - 2), Carried("two", True, 100, 1)]) == []
    fast = LEAST_BYTES
    most = round(2 * fast * LEAST_S)
    assert audit([Carried("one", True, fast, most - 2), Carried("two", True, fast, 1)]) == []
    assert audit([Carried("one", True, fast, most - 1), Carried("two", True, fast, 1)]) != []


@pytest.mark.parametrize(("capacities", "expected"), [((100, 300), [0.25, 0.75]), ((0, 300), [0.5, 0.5])])
def test_where_a_capacity_is_unknown_paths_count_alike(capacities: tuple[int, int], expected: list[float]) -> None:
    paths = [carried("one", 0.5, capacity=capacities[0]), carried("two", 0.5, capacity=capacities[1])]
    assert expected_shares(paths) == expected


def test_no_bytes_at_all() -> None:
    assert shares([Carried("one", True, 1, 0)]) == [0.0]
    assert expected_shares([Carried("one", False, 1, 0)]) == [0.0]
