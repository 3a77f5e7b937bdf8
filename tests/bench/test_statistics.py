"""Medians, intervals, pairs and permutations, by tables worked out by hand."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemove.bench.statistics import (
    EXACT_PAIRS,
    Interval,
    median,
    median_interval,
    pair_differences,
    pair_ratios,
    permutation_p,
)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [([4], 4), ([1, 2], 1.5), ([3, 1, 2], 2), ([9, 1, 1, 1], 1), ([1, 2, 3, 10], 2.5), ([-1, 0, 1], 0)],
)
def test_median(samples: list[float], expected: float) -> None:
    assert median(samples) == expected


@pytest.mark.parametrize(
    ("samples", "low", "high", "confidence"),
    [
        # the extremes while there are too few: 1 - 2 / 2**n
        ([7], 7, 7, 0),
        ([1, 2], 1, 2, 0.5),
        ([5, 1, 4, 2, 3], 1, 5, 0.9375),
        ([1, 2, 3, 4, 5, 6], 1, 6, 0.96875),
        # nine: the second and the eighth, 1 - 2 * (1 + 9) / 512; the third and seventh have 0.82 only
        ([9, 8, 7, 6, 5, 4, 3, 2, 1], 2, 8, 1 - 20 / 512),
    ],
)
def test_interval_of_a_median(samples: list[float], low: float, high: float, confidence: float) -> None:
    assert median_interval(samples) == Interval(median(samples), low, high, pytest.approx(confidence))


def test_a_lower_confidence_gives_a_narrower_interval() -> None:
    # 1 - 2 * (1 + 9 + 36) / 512
    assert median_interval(list(range(1, 10)), 0.8) == Interval(5, 3, 7, pytest.approx(0.8203125))
    # one sample encloses nothing, and says so
    assert median_interval([3.0], 0.5).confidence == 0


def test_interval_holds_the_true_median_as_often_as_it_says() -> None:
    chance = random.Random(7)
    held = 0
    for _ in range(2000):
        found = median_interval([chance.expovariate(1) for _ in range(9)])
        held += found.low <= math.log(2) <= found.high
    assert held / 2000 == pytest.approx(found.confidence, abs=0.015)


def test_pairs() -> None:
    assert pair_ratios([3, 2], [2, 4]) == [1.5, 0.5]
    assert pair_differences([3, 2], [2, 4]) == [1, -2]
    for function in (pair_ratios, pair_differences):
        with pytest.raises(ValueError, match="shorter"):
            function([1, 2], [1])
    with pytest.raises(ValueError, match="no ratio"):
        pair_ratios([1], [0])


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([1], 1),
        ([1, 1, 1, 1, 1], 2 / 32),
        ([-1, -2, -3], 2 / 8),
        ([1, -1], 1),
        ([0, 0, 0], 1),
        # sums of at least 4 in size: all plus, all minus, and those with only the 1 turned round
        ([1, 2, 3], 2 / 8),
        ([-1, 2, 3], 4 / 8),
    ],
)
def test_permutations_of_few_pairs_are_counted_out(differences: list[float], expected: float) -> None:
    assert permutation_p(differences) == pytest.approx(expected)


def test_permutations_of_many_pairs_are_drawn() -> None:
    many = EXACT_PAIRS + 6
    assert permutation_p([1.0] * many) < 0.001
    assert permutation_p([1.0, -1.0] * (many // 2)) == 1
    chance = random.Random(3)
    values = [chance.gauss(0.3, 1) for _ in range(EXACT_PAIRS)]
    exact = permutation_p(values)
    # one pair more that says nothing leaves the answer as it was, within the error of drawing
    assert permutation_p([*values, 0.0]) == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("function", [median, median_interval, permutation_p])
def test_no_samples(function: object) -> None:
    with pytest.raises(ValueError, match="no samples"):
        function([])  # type: ignore[operator]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8))
def test_invariants(samples: list[float]) -> None:
    found = median_interval(samples)
    assert min(samples) <= found.low <= found.value <= found.high <= max(samples)
    p = permutation_p(samples)
    assert 2 / 2 ** len(samples) <= p + 1e-12 and p <= 1
    assert permutation_p([-sample for sample in samples]) == p
