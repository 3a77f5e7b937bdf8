"""QEMU's events at the source, told apart: what the migration does, what the guest does, what its user does.

QEMU sends the same STOP for the blackout, a user's pause, a disk error, a panic and a power-off; its run state right after
tells which it was.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from livemove.base.errors import HypervisorError
from livemove.base.tasks import spawn
from livemove.hypervisor.qmp import MONITOR_CLOSED, Monitor, QemuSilent, QmpEvent
from livemove.migration import events as on
from livemove.migration.events import Event
from livemove.migration.ledger import Ledger

#: Longer than the breaks that networks heal by themselves (a spanning tree, a switch that fails over), TCP's pause included.
STALL_S = 15.0
STALL_LOOK_S = 0.5

_BY_STATUS: dict[str, type[Event]] = {
    "finish-migrate": on.SourceStopped,
    "postmigrate": on.SourceStopped,
    "paused": on.UserPaused,
    "io-error": on.GuestDiskFailed,
    "guest-panicked": on.GuestPanicked,
    "shutdown": on.GuestPoweredOff,
}


class SourceWatch:
    """Turns one QEMU's events into the machine's, from :meth:`start` to :meth:`close`."""

    def __init__(self, monitor: Monitor, ledger: Ledger, post: Callable[[Event], None]) -> None:
        self._monitor = monitor
        self._ledger = ledger
        self._post = post
        self._unsubscribe: Callable[[], None] | None = None
        self._in_finish = False
        self._blackout: asyncio.Task[None] | None = None
        #: how long a blackout may be without any sign of progress; a longer latch allows more
        self.patience_s = STALL_S
        #: called at the start of every round, for a reading without delay
        self.on_round: Callable[[], None] = lambda: None

    def start(self) -> None:
        self._unsubscribe = self._monitor.listen(self._heard)

    def close(self) -> None:
        """Hear nothing more; may be called twice."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        if self._blackout is not None:
            self._blackout.cancel()

    def _heard(self, event: QmpEvent) -> None:
        match event.name:
            case "MIGRATION":
                self._migration(str(event.data.get("status", "")), event)
            case "MIGRATION_PASS":
                self.on_round()
            case "STOP":
                self._ledger.stopped_s = event.received_monotonic_s
                spawn(self._why_stopped(), name="why did the guest stop")
            case "RESUME":
                if not self._in_finish:
                    self._post(on.UserResumed())
            case "SHUTDOWN":
                self._post(on.GuestPoweredOff())
            case "RESET":
                if event.data.get("guest"):
                    self._post(on.GuestReset())
            case "GUEST_PANICKED":
                self._post(on.GuestPanicked())
            case "BLOCK_IO_ERROR":
                if event.data.get("action") == "stop":
                    self._post(on.GuestDiskFailed())
            case name if name == MONITOR_CLOSED:
                self._post(on.SourceQemuDied("its monitor closed"))
            case _:
                pass

    def _migration(self, status: str, event: QmpEvent) -> None:
        if status == "completed":
            self._in_finish = True
            self._ledger.completed_s = event.received_monotonic_s
            self._post(on.CopyCompleted())
        elif status == "device":
            self._in_finish = True
        elif status == "failed":
            spawn(self._why_failed(), name="why did the copy fail")

    async def _why_stopped(self) -> None:
        with contextlib.suppress(HypervisorError):
            status = str((await self._monitor.execute("query-status", timeout_s=60))["status"])
            kind = _BY_STATUS.get(status)
            if kind is not None:
                self._post(kind())
            if status == "finish-migrate" and self._blackout is None:
                self._blackout = spawn(self._watch_blackout(), name="watch the blackout")
                self._blackout.add_done_callback(self._blackout_is_over)

    def _blackout_is_over(self, task: asyncio.Task[None]) -> None:
        self._blackout = None

    async def _watch_blackout(self) -> None:
        """The guest stands still: a path that is dead must not keep it so until TCP gives up, a quarter of an hour later.

        While QEMU sends the last pages its main loop may wait for the thread that does, so no answer is no progress either.
        """
        seen: object = None
        left_s = self.patience_s
        while left_s > 0:
            await asyncio.sleep(STALL_LOOK_S)
            try:
                answer = await self._monitor.execute("query-migrate", timeout_s=left_s)
            except QemuSilent:
                break
            except HypervisorError:
                return
            if answer.get("status") in ("none", "completed", "failed", "cancelled"):
                return
            sent = answer.get("ram", {}).get("transferred"), answer.get("status")
            left_s = self.patience_s if sent != seen else left_s - STALL_LOOK_S
            seen = sent
        self._post(on.CopyFailed(f"nothing was sent for {self.patience_s:.0f} s while the guest stood still"))

    async def _why_failed(self) -> None:
        reason = "QEMU does not say why"
        with contextlib.suppress(HypervisorError):
            answer = await self._monitor.execute("query-migrate")
            reason = str(answer.get("error-desc", reason))
        self._post(on.CopyFailed(reason))
