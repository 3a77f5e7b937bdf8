"""How long each of the ten steps took (#64, N12), and what the blackout was made of."""

from __future__ import annotations

from typing import Literal

from livemove.api.models import StepView
from livemove.migration.model import STEP_NAMES, Phase

StepState = Literal["waiting", "running", "done", "skipped", "failed"]


class Ledger:
    """Fed with every phase and the monotonic time at which it began."""

    def __init__(self, started_monotonic_s: float) -> None:
        self._entered: list[tuple[Phase, float]] = [(Phase.FINDING, started_monotonic_s)]
        self.started_s = started_monotonic_s
        #: monotonic times of the blackout, as they come to be known
        self.stopped_s: float | None = None
        self.completed_s: float | None = None
        self.verify_s: float | None = None
        self.verified_s: float | None = None
        self.go_s: float | None = None
        self.answered_s: float | None = None
        self.first_byte_s: float | None = None

    def enter(self, phase: Phase, at_s: float) -> None:
        """The journey entered `phase`; the blackout began when the guest stopped, which is heard of a moment later."""
        last, last_s = self._entered[-1]
        if last is phase:
            return
        if (
            phase in (Phase.VERIFYING, Phase.HANDING_OVER)
            and last not in (Phase.BLACKOUT, Phase.VERIFYING)
            and self.stopped_s is not None
        ):
            self._entered.append((Phase.BLACKOUT, max(last_s, self.stopped_s)))
        if phase is Phase.BLACKOUT and self.stopped_s is not None:
            at_s = max(last_s, self.stopped_s)
        self._entered.append((phase, at_s))

    def seconds_in(self, phase: Phase, now_s: float) -> float | None:
        """Seconds spent in `phase` so far; None when it was never entered."""
        total = None
        for index, (entered, at_s) in enumerate(self._entered):
            if entered is phase:
                until_s = self._entered[index + 1][1] if index + 1 < len(self._entered) else now_s
                total = (total or 0.0) + until_s - at_s
        return total

    def steps(self, now_s: float) -> list[StepView]:
        """All ten steps; time in the queue belongs to none of them."""
        current = self._entered[-1][0]
        failed_in = next((p.step for p, _ in reversed(self._entered) if p.step is not None), Phase.FINDING.step)
        ended_badly = current in (Phase.ABORTING, Phase.FAILED, Phase.CANCELLED, Phase.ENDED)
        views = []
        for step, name in STEP_NAMES.items():
            spent = [self.seconds_in(phase, now_s) for phase in Phase if phase.step == step]
            seconds = None if all(part is None for part in spent) else sum(part or 0.0 for part in spent)
            state: StepState
            if seconds is None:
                passed = any(p.step is not None and p.step > step for p, _ in self._entered)
                state = "skipped" if passed or current.terminal or ended_badly else "waiting"
            elif ended_badly and step == failed_in:
                state = "failed"
            elif step == current.step:
                state = "running"
            else:
                state = "done"
            ms = None if seconds is None else round(seconds * 1e3, 2)
            views.append(StepView(step=step, name=name, state=state, ms=ms))
        return views

    @property
    def downtime_ms(self) -> float | None:
        """The source's time from STOP to the destination's answer that it runs: an upper bound, no clocks compared."""
        if self.stopped_s is None or self.answered_s is None:
            return None
        return (self.answered_s - self.stopped_s) * 1e3

    def blackout_parts_ms(self) -> dict[str, float]:
        """Last pages and device state; our own reaction; the verification; the hand-over's round trip with its fsync."""
        parts = {}
        marks = [
            ("last_pages_and_devices", self.stopped_s, self.completed_s),
            ("decision", self.completed_s, self.verify_s or self.go_s),
            ("verification", self.verify_s, self.verified_s),
            ("hand_over", self.go_s, self.answered_s),
        ]
        for name, start_s, end_s in marks:
            if start_s is not None and end_s is not None:
                parts[name] = round((end_s - start_s) * 1e3, 3)
        return parts
