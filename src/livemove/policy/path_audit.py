"""Whether what carried the bytes is what was planned (#48, #50, #157, N11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: A planned path that carried less than this part of its share of the capacity is named.
FAIR_PART = 0.5
#: Below this nothing is said about shares: connections that begin and end weigh more than what they carry.
LEAST_BYTES = 16 << 20
#: The same for fast paths: what they carry together in this time. The kernel fills its first path while the others begin.
LEAST_S = 2.0


@dataclass(frozen=True, slots=True)
class Carried:
    """One pair of addresses after a journey.

    :param capacity_bytes_per_s: 0 when unknown.
    :param received_bytes: of the connections' bytes, those that the destination received on it.
    :param dead_part: of the journey's time, how much of it the path was taken for dead; 0 to 1.
    """

    name: str
    planned: bool
    capacity_bytes_per_s: int
    received_bytes: int
    dead_part: float = 0.0


def shares(paths: Sequence[Carried]) -> list[float]:
    """What part of all bytes each carried; zeros when there were none."""
    total = sum(path.received_bytes for path in paths)
    return [path.received_bytes / total if total else 0.0 for path in paths]


def expected_shares(paths: Sequence[Carried]) -> list[float]:
    """What part each was to carry at least: of all capacity, for the time that it was there; alike where one is unknown.

    A path that was dead may have come back and carried much all the same, so nobody is expected to carry its part too.
    """
    known = all(path.capacity_bytes_per_s for path in paths if path.planned)
    weights = [(path.capacity_bytes_per_s if known else 1) if path.planned else 0 for path in paths]
    total = sum(weights)
    return [
        weight * (1 - path.dead_part) / total if total else 0.0 for weight, path in zip(weights, paths, strict=True)
    ]


def audit(paths: Sequence[Carried]) -> list[str]:
    """A sentence for each way in which the journey differed from its plan; none when it did not."""
    found = [
        f"{path.received_bytes} bytes went over {path.name}, which was not planned."
        for path in paths
        if not path.planned and path.received_bytes
    ]
    at_once = sum(path.capacity_bytes_per_s for path in paths if path.planned)
    if sum(path.received_bytes for path in paths) < max(LEAST_BYTES, at_once * LEAST_S):
        return found
    for path, share, expected in zip(paths, shares(paths), expected_shares(paths), strict=True):
        if path.planned and share < expected * FAIR_PART:
            found.append(
                f"{path.name} carried {share:.0%} of the bytes; its part of the capacity is {expected:.0%}: "
                "it is slower than its NICs say, or the journey had no need of it."
            )
    return found
