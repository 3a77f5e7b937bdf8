"""A journey in lines, for logs and pipes: one when a step ends, one every two seconds of the copy. Pure but for the printing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from livemove.base.clock import Clock
from livemove.base.units import format_duration, format_rate, format_size

if TYPE_CHECKING:
    from livemove.api.models import JourneyView, ProgressView

PROGRESS_PERIOD_S = 2.0


class JourneyShow(Protocol):
    """What shows a journey to whoever started it."""

    def update(self, view: JourneyView) -> None:
        """The journey as it is now."""

    def note(self, text: str) -> None:
        """Something to be read beside it: a warning, an answer to Ctrl-C."""

    def close(self) -> None:
        """Nothing comes any more. May be called twice."""


class NoShow:
    """For ``--json``: nothing of the journey, and the notes where errors go."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note = note

    def update(self, view: JourneyView) -> None:
        return

    def close(self) -> None:
        return


class PlainShow:
    """Prints lines through `line`."""

    def __init__(self, line: Callable[[str], None], clock: Clock) -> None:
        self._line = line
        self._clock = clock
        self._before: JourneyView | None = None
        self._next_progress_s = 0.0

    def update(self, view: JourneyView) -> None:
        lines = lines_between(self._before, view)
        self._before = view
        now_s = self._clock.monotonic_s()
        # a copy that has just begun has no rate yet
        progress = view.progress
        if progress and progress.rate_bytes_per_s and copying(view) and now_s >= self._next_progress_s:
            lines.append(progress_line(progress))
            self._next_progress_s = now_s + PROGRESS_PERIOD_S
        for text in lines:
            self._line(text)

    def note(self, text: str) -> None:
        self._line(text)

    def close(self) -> None:
        return


def lines_between(before: JourneyView | None, now: JourneyView) -> list[str]:
    """What happened between two views: steps that ended, a place in the queue."""
    ended = {step.step for step in before.steps if _over(step.state)} if before is not None else set()
    lines = []
    if now.queue_place and (before is None or before.queue_place != now.queue_place):
        lines.append(queue_line(now))
    for step in now.steps:
        if _over(step.state) and step.step not in ended:
            took = f", {format_duration(step.ms / 1e3)}" if step.ms is not None else ""
            lines.append(f"step {step.step} of {len(now.steps)}: {step.name}: {step.state}{took}")
    return lines


def progress_line(progress: ProgressView) -> str:
    """``round 3: 12.0 MiB remain, 940 Mbit/s, downtime forecast 120 ms``."""
    parts = [f"{format_size(progress.remaining_bytes)} remain", format_rate(progress.rate_bytes_per_s)]
    if progress.downtime_forecast_s is not None:
        parts.append(f"downtime forecast {format_duration(progress.downtime_forecast_s)}")
    if progress.throttle_percent:
        parts.append(f"guest slowed by {progress.throttle_percent} %")
    return f"round {progress.round}: {', '.join(parts)}"


def queue_line(view: JourneyView) -> str:
    """Where the journey stands in the queue."""
    return f"waiting for a slot: place {view.queue_place} in the queue (setting 'simultaneous')"


def copying(view: JourneyView) -> bool:
    """Whether memory is being copied now, so that the progress means something."""
    return any(step.step in (6, 7) and step.state == "running" for step in view.steps)


def _over(state: str) -> bool:
    return state in ("done", "failed", "skipped")
