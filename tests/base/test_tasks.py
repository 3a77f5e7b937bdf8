"""Background tasks are held, named, and their failures seen."""

from __future__ import annotations

import asyncio
import logging

import pytest

from livemove.base.tasks import cancel_and_wait, spawn


async def test_a_failure_nobody_awaits_is_logged_with_the_task_name(caplog: pytest.LogCaptureFixture):
    async def fail() -> None:
        raise ValueError("broken")

    with caplog.at_level(logging.ERROR):
        task = spawn(fail(), name="the failing one")
        await asyncio.wait([task])
        await asyncio.sleep(0)
    assert "the failing one" in caplog.text and "broken" in caplog.text


async def test_cancel_and_wait_twice():
    task = spawn(asyncio.sleep(60), name="long")
    await cancel_and_wait(task, None)
    assert task.cancelled()
    await cancel_and_wait(task)
