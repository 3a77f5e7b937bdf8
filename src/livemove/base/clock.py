"""The only place that reads a clock. Durations come from the monotonic clock; wall time is for people to read only."""

from __future__ import annotations

import datetime
import time
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """What the runner and the agent need of time."""

    def monotonic_s(self) -> float:
        """Seconds since an arbitrary point; never jumps."""

    def wall_s(self) -> float:
        """Seconds since 1970; may jump, so nothing is ever decided by it except the expiry of certificates and grants."""


class SystemClock:
    """The machine's clocks."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()  # noqa: TID251  (this module is the one place that may)


class ManualClock:
    """A clock that moves only when told to, for tests."""

    def __init__(self, monotonic_s: float = 0.0, wall_s: float = 1_700_000_000.0) -> None:
        self._monotonic_s = monotonic_s
        self._wall_s = wall_s

    def advance(self, seconds: float) -> None:
        self._monotonic_s += seconds
        self._wall_s += seconds

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def wall_s(self) -> float:
        return self._wall_s


def boot_id() -> str:
    """The kernel's name for this boot: monotonic times of two processes compare only when it is the same; empty if unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def wall_text(wall_s: float) -> str:
    """``2026-01-31T12:00:00.123Z``."""
    moment = datetime.datetime.fromtimestamp(wall_s, tz=datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
