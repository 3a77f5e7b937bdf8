from __future__ import annotations

import io

from rich.console import Console

from livemove.api.models import JourneyView
from livemove.cli.live import LiveShow, render

from .fake_agent import completed_journey, copying, journey_view, steps_at


def drawn(view: JourneyView, *, ascii_only: bool = False, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(render(view, ascii_only=ascii_only))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_the_copy_is_shown_with_all_its_numbers() -> None:
    text = "\n".join(drawn(copying(0.4)))
    for part in ("db1  A to B  copying", "round 1", "40 %", "614.4 MiB of 1.0 GiB remain", "940 Mbit/s", "101 Mbit/s"):
        assert part in text
    assert "5.40 s" in text  # ETA
    assert "120 ms (switches over at 300 ms)" in text
    assert "waiting: the forecast is above the allowed downtime" in text


def test_ten_steps_with_state_and_time() -> None:
    lines = drawn(copying(0.4))
    assert lines[1].startswith("✓  1 find source and destination") and lines[1].endswith("10 ms")
    assert lines[6] == "▶  6 first round"
    assert lines[7] == "·  7 further rounds"
    assert lines[10].startswith("· 10 clean-up")


def test_it_fits_a_terminal_of_80_by_24() -> None:
    lines = drawn(copying(0.4, 12))
    assert len(lines) <= 22
    assert all(len(line) <= 80 for line in lines)


def test_failure_queue_and_ascii() -> None:
    failed = drawn(journey_view("failed", 3, steps=steps_at(3, failed=True)), ascii_only=True)
    assert failed[3].startswith("!  3 memory and fitness")
    assert "".join(failed).isascii()
    assert "place 2 in the queue" in "\n".join(drawn(journey_view("queued", 1, queue_place=2)))


def test_notes_of_others_cannot_move_the_cursor() -> None:
    assert "\x1b" not in "".join(drawn(journey_view("checking", 3, last_note="evil\x1b[2J")))


def test_the_last_picture_and_the_newest_notes_stay() -> None:
    out = io.StringIO()
    show = LiveShow(Console(file=out, force_terminal=True, width=80, color_system=None))
    for view in completed_journey():
        show.update(view)
    for number in range(5):
        show.note(f"note {number}")
    show.close()
    show.close()
    last = out.getvalue().rpartition("db1")[2]
    assert "completed" in last
    assert "note 4" in last and "note 1" not in last
