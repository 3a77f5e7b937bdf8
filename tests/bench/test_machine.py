"""The machine's name, and how busy it was."""

from __future__ import annotations

import os
import time

import pytest

from livemove.base.clock import SystemClock
from livemove.bench.machine import Busyness, cpu_model, cpu_seconds_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nmodel name\t: A  CPU @ 2 GHz\n\nprocessor\t: 1\nmodel name\t: Another\n", "A CPU @ 2 GHz"),
        ("processor : 0\n", ""),
        ("", ""),
        ("model name", ""),
    ],
)
def test_cpu_model(text: str, expected: str) -> None:
    assert cpu_model(text) == expected


def burn(seconds: float) -> None:
    end_s = time.process_time() + seconds
    while time.process_time() < end_s:
        pass


def test_own_work_is_told_from_that_of_others() -> None:
    own = Busyness(lambda: cpu_seconds_of([os.getpid()]), SystemClock())
    foreign = Busyness(lambda: 0.0, SystemClock())
    burn(0.4)
    mine, theirs = own.cores(), foreign.cores()
    assert mine["busy_cores"] > 0.4 and theirs["others_cores"] == pytest.approx(theirs["busy_cores"])
    assert mine["others_cores"] < theirs["others_cores"] - 0.3
    assert set(mine) == {"busy_cores", "others_cores", "stolen_cores"}


def test_children_that_have_ended_are_counted() -> None:
    before_s = cpu_seconds_of([os.getpid()])
    child = os.fork()
    if child == 0:
        burn(0.3)
        os._exit(0)
    os.waitpid(child, 0)
    assert cpu_seconds_of([os.getpid(), child]) - before_s > 0.25
