"""What a client sees of a VM: when its answers stopped and came again. Pure; times are arguments in seconds.

A message is due an answer from the moment it is sent. A *gap* is a stretch in which an answer was due and none arrived: it
begins with the last arrival, or with the oldest unanswered message if nothing was due before it, and ends with the next
arrival. Nothing is subtracted, so in quiet times gaps are as long as the round trip. A lost connection ends no gap.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field

# Below this a gap is not kept one by one: scheduling on a busy machine makes such gaps all the time.
NOTED_GAP_S = 0.020
LONGEST_KEPT = 10


@dataclass(frozen=True, slots=True, order=True)
class Gap:
    """`length_s` first, so that gaps sort by it. `ended` is false for one that lasts still."""

    length_s: float
    start_s: float
    ended: bool = True

    @property
    def end_s(self) -> float:
        return self.start_s + self.length_s


class OutOfOrder(ValueError):
    """An answer that is not the one to the oldest unanswered message."""


class RoundTrips:
    """Counts durations in classes 2 % wide, from 1 microsecond up, so that hours of them take a few kilobytes."""

    WIDTH = math.log(1.02)
    FLOOR_S = 1e-6

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._total = 0

    def add(self, duration_s: float) -> None:
        index = int(math.log(max(duration_s, self.FLOOR_S) / self.FLOOR_S) / self.WIDTH)
        self._counts[index] = self._counts.get(index, 0) + 1
        self._total += 1

    def quantile_s(self, share: float) -> float | None:
        """The duration that `share` (0 to 1) of them do not exceed, within 2 %; None when there are none."""
        if not self._total:
            return None
        wanted, seen = max(1, math.ceil(share * self._total)), 0
        for index in sorted(self._counts):
            seen += self._counts[index]
            if seen >= wanted:
                return self.FLOOR_S * math.exp((index + 0.5) * self.WIDTH)
        raise AssertionError("the classes hold fewer than the total")


@dataclass(slots=True)
class GapLedger:
    """Books every message and answer of one client."""

    sent: int = 0
    answered: int = 0
    lost_connections: int = 0
    round_trips: RoundTrips = field(default_factory=RoundTrips)
    _unanswered: deque[tuple[int, float]] = field(default_factory=deque)
    _due_since_s: float | None = None
    _longest: list[Gap] = field(default_factory=list)

    def message_sent(self, number: int, now_s: float) -> None:
        self.sent += 1
        self._unanswered.append((number, now_s))
        if self._due_since_s is None:
            self._due_since_s = now_s

    def answer_arrived(self, number: int, now_s: float) -> Gap | None:
        """Book an answer; returns the gap that it ended when that is long enough to be noted.

        Raises OutOfOrder, with nothing booked, when it answers anything but the oldest unanswered message.
        """
        if not self._unanswered or self._unanswered[0][0] != number:
            due = self._unanswered[0][0] if self._unanswered else "none"
            raise OutOfOrder(f"answer {number} arrived where {due} was due")
        assert self._due_since_s is not None
        _, sent_s = self._unanswered.popleft()
        self.answered += 1
        self.round_trips.add(now_s - sent_s)
        gap = Gap(now_s - self._due_since_s, self._due_since_s)
        self._due_since_s = now_s if self._unanswered else None
        heapq.heappush(self._longest, gap)
        if len(self._longest) > LONGEST_KEPT:
            heapq.heappop(self._longest)
        return gap if gap.length_s >= NOTED_GAP_S else None

    def connection_lost(self, now_s: float) -> None:
        """The unanswered messages are lost with it; from now at the latest an answer is due."""
        self.lost_connections += 1
        self._unanswered.clear()
        if self._due_since_s is None:
            self._due_since_s = now_s

    @property
    def unanswered(self) -> int:
        return len(self._unanswered)

    def open_gap(self, now_s: float) -> Gap | None:
        """The gap that lasts now, if an answer is due."""
        return None if self._due_since_s is None else Gap(now_s - self._due_since_s, self._due_since_s, ended=False)

    def longest(self, now_s: float) -> list[Gap]:
        """The longest gaps, longest first, the one that lasts now included."""
        lasting = self.open_gap(now_s)
        return sorted([*self._longest, *([lasting] if lasting else [])], reverse=True)[:LONGEST_KEPT]


def longest_between(gaps: list[Gap], start_s: float, end_s: float) -> Gap | None:
    """The longest of the gaps that touch the stretch of time, in its full length; None when none does."""
    return max((gap for gap in gaps if gap.start_s <= end_s and gap.end_s >= start_s), default=None)
