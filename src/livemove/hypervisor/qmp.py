"""Speaking QMP: commands with time limits, events as they arrive, every fault a livemove error.

:class:`Monitor` is composed over ``qemu.qmp``. Two ways to hear of events:

* :meth:`Monitor.events`: a queue of one's own, read with ``async for``. It misses nothing from its creation on; its last
  event is :data:`MONITOR_CLOSED`, then the iteration ends. A reader that falls behind by :data:`MAX_WAITING_EVENTS` gets
  an error, never a gap.
* :meth:`Monitor.listen`: a plain function, called in the loop at the moment when the event is read; for the blackout,
  where each task switch counts. It must not block.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from qemu.qmp import ConnectError, EventListener, ExecInterruptedError, ExecuteError, QMPClient, QMPError, Runstate

from livemove.base.clock import Clock, SystemClock
from livemove.base.errors import Bug, QemuFailed, QemuGone
from livemove.base.tasks import cancel_and_wait, spawn

# The largest answer is the schema, 300 KiB in QEMU 10; what is longer is no answer of QEMU.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
# QEMU sends a handful of events a second at most; a reader this far behind has stopped reading.
MAX_WAITING_EVENTS = 1024
# Name of the event that ends every subscription; `data` has the `reason`.
MONITOR_CLOSED = "LIVEMOVE_MONITOR_CLOSED"

_log = logging.getLogger(__name__)


class QemuSilent(QemuGone):
    """QEMU has not answered a command in time; whether it carried it out, or still will, is not known."""


@dataclass(frozen=True, slots=True)
class QmpEvent:
    """What QEMU said unasked.

    :param seconds: QEMU's wall clock, seconds since 1970; 0 when it gave none.
    :param received_monotonic_s: our monotonic clock when it was read from the socket.
    """

    name: str
    data: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    received_monotonic_s: float = 0.0


class Subscription:
    """The events of one reader, in order; an iterator, and a context manager that ends it."""

    def __init__(self, monitor: Monitor, names: frozenset[str]) -> None:
        self._monitor = monitor
        self._names = names
        self._waiting: deque[QmpEvent] = deque()
        self._arrived = asyncio.Event()
        self._ended = False
        self._fell_behind = False

    async def get(self) -> QmpEvent | None:
        """The next event; None when the subscription has ended. Raises QemuFailed when this reader fell behind."""
        while not self._waiting:
            if self._fell_behind:
                raise QemuFailed(
                    f"A reader of the events of {self._monitor.name} fell {MAX_WAITING_EVENTS} events behind."
                )
            if self._ended:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    async def __aiter__(self) -> AsyncIterator[QmpEvent]:
        while (event := await self.get()) is not None:
            yield event

    def close(self) -> None:
        """Hear no further events; those that wait can still be read. May be called twice."""
        self._ended = True
        self._arrived.set()
        self._monitor._subscriptions.discard(self)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _offer(self, event: QmpEvent) -> None:
        if event.name != MONITOR_CLOSED and self._names and event.name not in self._names:
            return
        if len(self._waiting) >= MAX_WAITING_EVENTS:
            self._fell_behind = True
            self.close()
            return
        self._waiting.append(event)
        self._arrived.set()


class _Tap(EventListener):
    """Hands each event on at once and keeps none: qemu.qmp's own listeners have queues and histories without a bound."""

    def __init__(self, hand_on: Callable[[Mapping[str, Any]], None]) -> None:
        super().__init__()
        self._hand_on = hand_on

    def accept(self, event: Mapping[str, Any]) -> bool:
        self._hand_on(event)
        return False


class Monitor:
    """A QMP connection to one QEMU. Made by :meth:`connect`; ends by :meth:`close` or when QEMU goes.

    :ivar name: whose QEMU it is, for messages.
    :ivar closed: set when the connection has ended, whoever ended it.
    """

    def __init__(self, client: QMPClient, *, name: str, clock: Clock) -> None:
        self.name = name
        self.closed = asyncio.Event()
        self._client = client
        self._clock = clock
        self._close_asked = asyncio.Event()
        self._reason = ""
        self._subscriptions: set[Subscription] = set()
        self._callbacks: list[Callable[[QmpEvent], None]] = []
        self._watcher: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, path: Path, *, name: str, timeout_s: float = 10, clock: Clock | None = None) -> Monitor:
        """Connect to the QMP socket at `path`.

        :raise QemuGone: nobody listens there, or the connection ended during the greeting.
        :raise QemuSilent: no greeting within `timeout_s`.
        :raise QemuFailed: what answers does not speak QMP.
        """
        client = QMPClient(name, readbuflen=MAX_MESSAGE_BYTES)
        client.events.event_filter = lambda _event: False
        monitor = cls(client, name=name, clock=clock or SystemClock())
        client.register_listener(_Tap(monitor._heard))
        try:
            async with asyncio.timeout(timeout_s):
                await client.connect(str(path))
        except TimeoutError as error:
            raise QemuSilent(f"QEMU of {name} did not greet within {timeout_s:g} s at {path}.") from error
        except ConnectError as error:
            if isinstance(error.exc, OSError | EOFError):
                reason = str(error.exc) or "the connection was closed"
                raise QemuGone(f"No QEMU of {name} answers at {path}: {reason}.") from error
            raise QemuFailed(f"What answers at {path} does not speak QMP: {_first_line(error.exc)}.") from error
        except Exception as error:
            # qemu.qmp asserts that the connection still stands after the greeting, and leaves it open when it does not
            if client.runstate != Runstate.IDLE:
                with contextlib.suppress(Exception):
                    await client.disconnect()
            raise QemuGone(f"QEMU of {name} went away just after it greeted at {path}.") from error
        monitor._watcher = spawn(monitor._watch(), name=f"qmp {name}")
        return monitor

    async def execute(
        self, command: str, arguments: dict[str, Any] | None = None, *, timeout_s: float = 30, oob: bool = False
    ) -> Any:
        """What QEMU returns for `command`.

        :param oob: out of band: carried out even while QEMU's main loop is blocked; few commands allow it.

        :raise QemuFailed: QEMU refused it; ``details`` has ``class``, ``description`` and ``command``.
        :raise QemuGone: there is no connection, or it ended before the answer; it may or may not have been carried out.
        :raise QemuSilent: no answer within `timeout_s`; a late one is dropped.
        """
        try:
            json.dumps(arguments)
        except (TypeError, ValueError) as error:
            raise Bug(f"The arguments of '{command}' for {self.name} are no JSON: {error}.") from error
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._client.execute(command, arguments, oob=oob)
        except TimeoutError as error:
            raise QemuSilent(
                f"QEMU of {self.name} did not answer '{command}' within {timeout_s:g} s; whether it was carried out is not known."
            ) from error
        except ExecuteError as error:
            kind, description = str(error.error_class)[:200], str(error.error.error.desc)[:2000]
            raise QemuFailed(
                f"QEMU of {self.name} refused '{command}': {description}" + ("" if description.endswith(".") else "."),
                details={"class": kind, "description": description, "command": command},
            ) from error
        except ExecInterruptedError as error:
            raise QemuGone(f"QEMU of {self.name} went away before it answered '{command}'.") from error
        except QMPError as error:
            if self._client.runstate != Runstate.RUNNING:
                raise QemuGone(f"There is no connection to QEMU of {self.name} for '{command}'.") from error
            raise QemuFailed(f"QEMU of {self.name} gave no valid answer to '{command}'.") from error
        if not is_answer(command, answer):
            raise QemuFailed(f"QEMU of {self.name} gave an answer to '{command}' that is none: {answer!r:.200}")
        return answer

    def events(self, *names: str) -> Subscription:
        """The events from now on; all of them, or those named, and :data:`MONITOR_CLOSED` in any case."""
        subscription = Subscription(self, frozenset(names))
        if self.closed.is_set():
            subscription._offer(self._closing_event())
            subscription.close()
        else:
            self._subscriptions.add(subscription)
        return subscription

    def listen(self, callback: Callable[[QmpEvent], None]) -> Callable[[], None]:
        """Call `callback` with every event when it is read, :data:`MONITOR_CLOSED` last; returns what ends that.

        An exception of the callback is logged and goes no further.
        """
        self._callbacks.append(callback)

        def unsubscribe() -> None:
            with contextlib.suppress(ValueError):
                self._callbacks.remove(callback)

        return unsubscribe

    async def close(self) -> None:
        """End the connection; QEMU runs on. May be called twice, and after QEMU has gone."""
        self._close_asked.set()
        await self.closed.wait()

    async def _watch(self) -> None:
        """The only place that disconnects, so that QEMU's end and our own :meth:`close` may come at once."""
        lost = spawn(self._until_lost(), name=f"qmp {self.name} lost")
        asked = spawn(self._close_asked.wait(), name=f"qmp {self.name} close")
        try:
            await asyncio.wait({lost, asked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._reason = "closed by livemove" if self._close_asked.is_set() else "QEMU went away"
            await cancel_and_wait(lost, asked)
            try:
                await self._client.disconnect()
            except EOFError:
                pass
            except Exception as error:  # whatever the peer's garbage caused inside qemu.qmp: it ends the connection
                self._reason = f"the connection broke: {_first_line(error)}"
            self.closed.set()
            self._hand_out(self._closing_event())
            for subscription in tuple(self._subscriptions):
                subscription.close()

    async def _until_lost(self) -> None:
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()

    def _closing_event(self) -> QmpEvent:
        return QmpEvent(MONITOR_CLOSED, {"reason": self._reason}, 0.0, self._clock.monotonic_s())

    def _heard(self, message: Mapping[str, Any]) -> None:
        received_s = self._clock.monotonic_s()
        name, data, stamp = message.get("event"), message.get("data", {}), message.get("timestamp", {})
        if not isinstance(name, str) or not isinstance(data, dict) or name == MONITOR_CLOSED:
            _log.warning("QEMU of %s sent an event that is none: %.200s", self.name, message)
            return
        self._hand_out(QmpEvent(name, data, _stamp_s(stamp), received_s))

    def _hand_out(self, event: QmpEvent) -> None:
        for callback in tuple(self._callbacks):
            try:
                callback(event)
            except Exception:
                _log.exception("a listener to the events of %s failed at %s", self.name, event.name)
        for subscription in tuple(self._subscriptions):
            subscription._offer(event)


_COUNTERS = ("total", "remaining", "transferred", "normal", "duplicate", "dirty-sync-count")


def is_answer(command: str, answer: object) -> bool:
    """Whether it has what livemove reads of the answers that decide about a VM; other commands' answers always have."""
    match command, answer:
        case "query-status", {"status": str(), "running": bool()}:
            return True
        case "query-migrate", dict():
            ram, reasons = answer.get("ram", {}), answer.get("blocked-reasons", [])
            numbers = [
                answer.get(name) for name in ("setup-time", "downtime", "cpu-throttle-percentage") if name in answer
            ]
            if isinstance(ram, dict) and ram:
                numbers += [ram.get(name) for name in _COUNTERS] + [ram.get("dirty-pages-rate", 0)]
            return isinstance(ram, dict) and isinstance(reasons, list) and all(map(_is_number, numbers))
        case "query-migrate-capabilities", list():
            return all(isinstance(item, dict) and isinstance(item.get("capability"), str) for item in answer)
        case (("query-status" | "query-migrate" | "query-migrate-capabilities"), _):
            return False
    return True


def _is_number(value: object) -> bool:
    # JSON of Python knows NaN and endless integers, and QEMU has neither
    return isinstance(value, int | float) and not isinstance(value, bool) and -(2.0**64) < value < 2.0**64


def _stamp_s(stamp: object) -> float:
    if isinstance(stamp, dict):
        seconds, microseconds = stamp.get("seconds"), stamp.get("microseconds")
        # QEMU writes -1 for both when its clock cannot be read; numbers of other sizes come from no clock
        if isinstance(seconds, int) and isinstance(microseconds, int) and 0 <= seconds < 1 << 40:
            return seconds + min(max(microseconds, 0), 999_999) / 1e6
    return 0.0


def _first_line(error: object) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0][:200].rstrip(".")
