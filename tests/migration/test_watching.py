"""QEMU's events told apart; a monitor that plays them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from livemove.hypervisor.qmp import MONITOR_CLOSED, QmpEvent
from livemove.migration import events as on
from livemove.migration.events import Event
from livemove.migration.ledger import Ledger
from livemove.migration.watching import SourceWatch


class PlayedMonitor:
    """Says what it is told to say."""

    def __init__(self, status: str = "running", error: str = "") -> None:
        self.status, self.error = status, error
        self.callback: Callable[[QmpEvent], None] = lambda event: None

    def listen(self, callback: Callable[[QmpEvent], None]) -> Callable[[], None]:
        self.callback = callback
        return lambda: None

    async def execute(self, command: str, arguments: Any = None, *, timeout_s: float = 30) -> Any:
        return {"status": self.status, "error-desc": self.error}


async def heard(monitor: PlayedMonitor, *events: QmpEvent) -> tuple[list[Event], Ledger]:
    posted: list[Event] = []
    ledger = Ledger(0.0)
    watch = SourceWatch(monitor, ledger, posted.append)  # type: ignore[arg-type]
    watch.start()
    for event in events:
        monitor.callback(event)
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    watch.close()
    return posted, ledger


@pytest.mark.parametrize(
    ("status", "event"),
    [
        ("finish-migrate", on.SourceStopped()), ("postmigrate", on.SourceStopped()), ("paused", on.UserPaused()),
        ("io-error", on.GuestDiskFailed()), ("guest-panicked", on.GuestPanicked()), ("shutdown", on.GuestPoweredOff()),
    ],
)  # fmt: skip
async def test_a_stop_is_what_the_run_state_says(status: str, event: Event):
    posted, ledger = await heard(PlayedMonitor(status), QmpEvent("STOP", received_monotonic_s=7.0))
    assert posted == [event]
    assert ledger.stopped_s == 7.0


@pytest.mark.parametrize(
    ("event", "wanted"),
    [
        (QmpEvent("SHUTDOWN", {"guest": True}), [on.GuestPoweredOff()]),
        (QmpEvent("RESET", {"guest": True}), [on.GuestReset()]),
        (QmpEvent("RESET", {"guest": False}), []),
        (QmpEvent("GUEST_PANICKED"), [on.GuestPanicked()]),
        (QmpEvent("BLOCK_IO_ERROR", {"action": "stop"}), [on.GuestDiskFailed()]),
        (QmpEvent("BLOCK_IO_ERROR", {"action": "report"}), []),
        (QmpEvent("RESUME"), [on.UserResumed()]),
        (QmpEvent(MONITOR_CLOSED), [on.SourceQemuDied("its monitor closed")]),
        (QmpEvent("RTC_CHANGE"), []),
        (QmpEvent("MIGRATION", {"status": "active"}), []),
    ],
)
async def test_what_else_is_heard(event: QmpEvent, wanted: list[Event]):
    assert (await heard(PlayedMonitor(), event))[0] == wanted


async def test_completed_and_failed():
    posted, ledger = await heard(
        PlayedMonitor(), QmpEvent("MIGRATION", {"status": "completed"}, received_monotonic_s=3.0)
    )
    assert posted == [on.CopyCompleted()] and ledger.completed_s == 3.0
    posted, _ = await heard(PlayedMonitor(error="connection reset"), QmpEvent("MIGRATION", {"status": "failed"}))
    assert posted == [on.CopyFailed("connection reset")]


async def test_a_resume_in_the_final_stage_is_not_the_users():
    posted, _ = await heard(PlayedMonitor(), QmpEvent("MIGRATION", {"status": "device"}), QmpEvent("RESUME"))
    assert posted == []
