"""Medians, how far they can be trusted, and whether two sides differ; pure, and without assumptions about distributions.

Samples of two sides come in pairs taken one right after the other, so the sides are compared within each pair: what
slowed the machine down for a while is then in both.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

# 95 % of such intervals hold the true median, if there are enough samples to say so; see Interval.confidence.
WANTED_CONFIDENCE = 0.95
# All sign patterns of so many pairs are tried; of more, this many at random.
EXACT_PAIRS, RANDOM_PATTERNS = 14, 20_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A median with the samples that enclose it.

    :param confidence: probability that `low` to `high` holds the true median; below 0.95 with fewer than six samples.
    """

    value: float
    low: float
    high: float
    confidence: float


def median(samples: Sequence[float]) -> float:
    """The middle sample, or the mean of the two middle ones. Raises ValueError when there is none."""
    if not samples:
        raise ValueError("no samples")
    ordered, half = sorted(samples), len(samples) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def median_interval(samples: Sequence[float], confidence: float = WANTED_CONFIDENCE) -> Interval:
    """The median between two order statistics: the narrowest pair that has `confidence`, else the extremes.

    The k-th smallest of n samples lies above the true median with the probability that fewer than k of n tosses of a coin
    show heads. Raises ValueError when there are no samples.
    """
    value, ordered, number = median(samples), sorted(samples), len(samples)
    for k in range((number + 1) // 2, 0, -1):
        found = 1 - 2 * _fewer_heads(k, number)
        if found >= confidence or k == 1:
            return Interval(value, ordered[k - 1], ordered[number - k], max(found, 0.0))
    raise AssertionError("k ends at 1")


def pair_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours over theirs within each pair. Raises ValueError for pairs without a partner or a divisor of 0."""
    if any(value == 0 for value in theirs):
        raise ValueError("a sample of 0 has no ratio")
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def pair_differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours minus theirs within each pair. Raises ValueError for pairs without a partner."""
    return [one - other for one, other in zip(ours, theirs, strict=True)]


def permutation_p(differences: Sequence[float], *, seed: int = 1) -> float:
    """How likely a mean difference at least this large is when it is chance which side of a pair is which.

    If the sides do not differ, each difference might as well have the other sign: all patterns of signs are tried (with
    many pairs, some at random). The smallest answer of n pairs is 2 / 2**n. Raises ValueError without a difference.
    """
    if not differences:
        raise ValueError("no samples")
    observed = abs(math.fsum(differences))
    # rounding must not tell a pattern from its mirror image
    bound = observed - 1e-9 * max(1.0, observed)
    if len(differences) <= EXACT_PAIRS:
        patterns = itertools.product((1, -1), repeat=len(differences))
        extreme = [abs(_signed_sum(differences, signs)) >= bound for signs in patterns]
        return sum(extreme) / len(extreme)
    chance = random.Random(seed)
    extreme = [
        abs(_signed_sum(differences, chance.choices((1, -1), k=len(differences)))) >= bound
        for _ in range(RANDOM_PATTERNS)
    ]
    # the observed pattern is one of those that might have been drawn
    return (sum(extreme) + 1) / (len(extreme) + 1)


def _signed_sum(values: Sequence[float], signs: Sequence[int]) -> float:
    return math.fsum(value * sign for value, sign in zip(values, signs, strict=True))


def _fewer_heads(k: int, tosses: int) -> float:
    """Probability of fewer than `k` heads."""
    return math.fsum(math.comb(tosses, heads) for heads in range(k)) / math.pow(2, tosses)
