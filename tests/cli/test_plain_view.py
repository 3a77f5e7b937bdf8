from __future__ import annotations

from livemove.base.clock import ManualClock
from livemove.base.units import MIB
from livemove.cli.plain_view import PlainShow, lines_between, progress_line

from .fake_agent import completed_journey, copying, journey_view, steps_at


def test_progress_line() -> None:
    progress = copying(0.5, 3).progress
    assert progress is not None
    progress = progress.model_copy(update={"remaining_bytes": 12 * MIB})
    assert progress_line(progress) == "round 3: 12.0 MiB remain, 940 Mbit/s, downtime forecast 120 ms"
    slowed = progress.model_copy(update={"throttle_percent": 20, "downtime_forecast_s": None})
    assert progress_line(slowed) == "round 3: 12.0 MiB remain, 940 Mbit/s, guest slowed by 20 %"


def test_each_step_is_told_once_when_it_ends() -> None:
    views = completed_journey()
    lines = [line for before, now in zip([None, *views], views, strict=False) for line in lines_between(before, now)]
    assert lines[0] == "step 1 of 10: find source and destination: done, 10 ms"
    assert [int(line.split()[1]) for line in lines] == list(range(1, 11))


def test_a_failed_step_and_the_queue() -> None:
    waiting = journey_view("queued", 1, queue_place=2)
    assert lines_between(None, waiting) == ["waiting for a slot: place 2 in the queue (setting 'simultaneous')"]
    assert lines_between(waiting, waiting) == []
    failed = journey_view("failed", 3, steps=steps_at(3, failed=True))
    assert lines_between(journey_view("checking", 3), failed) == ["step 3 of 10: memory and fitness: failed"]


def test_progress_comes_every_two_seconds_of_the_copy() -> None:
    clock, lines = ManualClock(), []
    show = PlainShow(lines.append, clock)
    for _ in range(41):
        show.update(copying(0.3))
        clock.advance(0.1)
    show.update(journey_view("blackout", 8, progress=copying(0.99).progress))
    show.close()
    assert len([line for line in lines if line.startswith("round 1: ")]) == 3
