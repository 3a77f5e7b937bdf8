"""Rates from a running total that was read now and then: between two moments, in every window, in the worst one.

Between two readings the bytes count as evenly spread. The rate of a window that slides is then a line between moments at
which an end of the window meets a reading, so the worst window begins or ends at one: nothing is missed between samples.
Pure: no clock, no IO.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from livemove.base.errors import BadQuantity


@dataclass(frozen=True, slots=True)
class Sample:
    """So many bytes in all had arrived at a monotonic time."""

    at_s: float
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time and the rate in it."""

    start_s: float
    end_s: float
    rate_bytes_per_s: float


def total_at(samples: Sequence[Sample], at_s: float) -> float:
    """The running total at a moment. Raises BadQuantity for one before the first reading or after the last."""
    place = bisect_left(samples, at_s, key=lambda sample: sample.at_s)
    if place < len(samples) and samples[place].at_s == at_s:
        return samples[place].total_bytes
    if not 0 < place < len(samples):
        raise BadQuantity(f"Nothing was recorded at {at_s:.3f} s.", remedy="Ask for a time in which the flow ran.")
    before, after = samples[place - 1], samples[place]
    part = (at_s - before.at_s) / (after.at_s - before.at_s)
    return before.total_bytes + part * (after.total_bytes - before.total_bytes)


def mean(samples: Sequence[Sample], start_s: float, end_s: float) -> Window:
    """The rate between two moments. Raises BadQuantity unless both were recorded, one after the other."""
    if end_s <= start_s:
        raise BadQuantity(f"No time passes from {start_s:.3f} s to {end_s:.3f} s.")
    carried = total_at(samples, end_s) - total_at(samples, start_s)
    return Window(start_s, end_s, carried / (end_s - start_s))


def windows(samples: Sequence[Sample], window_s: float, start_s: float, end_s: float) -> list[Window]:
    """Every window of that length between two moments that begins or ends at a reading, and the first and last; in order.

    Raises BadQuantity when none fits, or the moments were not recorded.
    """
    last_s = end_s - window_s
    if window_s <= 0 or last_s < start_s:
        raise BadQuantity(f"A window of {window_s:g} s does not fit between {start_s:.3f} s and {end_s:.3f} s.")
    begins = {start_s, last_s}
    for sample in samples:
        begins |= {begin for begin in (sample.at_s, sample.at_s - window_s) if start_s < begin < last_s}
    return [mean(samples, begin, min(begin + window_s, end_s)) for begin in sorted(begins)]


def worst(samples: Sequence[Sample], window_s: float, start_s: float, end_s: float) -> Window:
    """The window with the lowest rate; see :func:`windows`."""
    return min(windows(samples, window_s, start_s, end_s), key=lambda window: window.rate_bytes_per_s)
