"""Work that blocks, beside the loop and beside everybody else's threads."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from livemove.base.threads import in_own_thread


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Closed; opened at the end, so that no thread stays."""
    event = threading.Event()
    yield event
    event.set()


async def test_what_it_returns_and_raises() -> None:
    told = contextvars.ContextVar("told", default="")
    told.set("here")
    assert await in_own_thread(told.get, name="test") == "here"
    with pytest.raises(ValueError, match="invalid literal"):
        await in_own_thread(lambda: int("x"), name="test")


async def test_cancelled_it_lets_go_of_a_thread_that_hangs(gate: threading.Event) -> None:
    ended = threading.Event()

    def work() -> None:
        gate.wait(10)
        ended.set()

    future = in_own_thread(work, name="test")
    await asyncio.sleep(0.05)
    future.cancel()
    with pytest.raises(asyncio.CancelledError):
        await future
    gate.set()
    assert await asyncio.to_thread(ended.wait, 5)


def test_a_process_ends_though_one_hangs() -> None:
    code = """
import asyncio, time
from livemove.base.threads import in_own_thread
async def main():
    in_own_thread(lambda: time.sleep(60), name="hangs")
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)
