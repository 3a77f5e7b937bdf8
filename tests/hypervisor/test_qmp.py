"""The monitor against servers that answer, refuse, keep silent, talk rubbish or go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from livemove.base.clock import ManualClock
from livemove.base.errors import Bug, LivemoveError, QemuFailed, QemuGone
from livemove.hypervisor.qmp import MAX_MESSAGE_BYTES, MAX_WAITING_EVENTS, MONITOR_CLOSED, Monitor, QemuSilent, QmpEvent

GREETING = (
    b'{"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": ""}, "capabilities": []}}\r\n'
)
Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def line(**message: object) -> bytes:
    return json.dumps(message).encode() + b"\r\n"


async def hear(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The next command; None at the end. A client ends no command with a newline, but with its last bracket."""
    text = b""
    while True:
        byte = await reader.read(1)
        if not byte:
            return None
        text += byte
        if byte == b"}":
            with suppress(ValueError):
                return dict(json.loads(text))


@asynccontextmanager
async def server(path: Path, speak: Speak) -> AsyncIterator[None]:
    """A server that greets, agrees to capabilities, and then does what `speak` does."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(GREETING)
            await hear(reader)
            writer.write(line(**{"return": {}}))
            await speak(reader, writer)
        except (ConnectionError, ValueError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_unix_server(serve, str(path), limit=1 << 20):
        yield


@asynccontextmanager
async def monitored(run_dir: Path, speak: Speak, clock: ManualClock | None = None) -> AsyncIterator[Monitor]:
    run_dir.mkdir(exist_ok=True)
    async with server(run_dir / "qmp.sock", speak):
        monitor = await Monitor.connect(run_dir / "qmp.sock", name="web1", clock=clock)
        try:
            yield monitor
        finally:
            await monitor.close()


async def obey(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """`ok` returns its arguments, `refuse` is refused, `emit` sends that many events, `mute` is not answered, `die` hangs up."""
    while asked := await hear(reader):
        command, given_arguments = asked["execute"], asked.get("arguments") or {}
        if command == "die":
            return
        if command == "mute":
            continue
        for number in range(given_arguments.get("count", 0)):
            stamp = {"seconds": 1_700_000_000, "microseconds": 250_000}
            writer.write(line(event=given_arguments.get("name", "STOP"), data={"number": number}, timestamp=stamp))
        if command == "refuse":
            writer.write(line(error={"class": "GenericError", "desc": "no such thing"}, id=asked["id"]))
        else:
            writer.write(line(**{"return": given_arguments, "id": asked["id"]}))
        await writer.drain()


async def test_a_command_and_its_answer(run_dir: Path) -> None:
    async with monitored(run_dir, obey) as monitor:
        assert await monitor.execute("ok", {"a": [1, None]}) == {"a": [1, None]}
        assert await monitor.execute("ok") == {}


async def test_a_refusal_carries_qemus_words(run_dir: Path) -> None:
    async with monitored(run_dir, obey) as monitor:
        with pytest.raises(QemuFailed) as caught:
            await monitor.execute("refuse")
        assert caught.value.message == "QEMU of web1 refused 'refuse': no such thing."
        assert caught.value.details == {"class": "GenericError", "description": "no such thing", "command": "refuse"}
        assert await monitor.execute("ok") == {}


async def test_silence_is_not_an_answer_and_later_commands_work(run_dir: Path) -> None:
    async with monitored(run_dir, obey) as monitor:
        with pytest.raises(QemuSilent) as caught:
            await monitor.execute("mute", timeout_s=0.05)
        assert "not known" in caught.value.message
        assert await monitor.execute("ok") == {}


async def test_arguments_that_are_no_json_do_not_end_the_connection(run_dir: Path) -> None:
    async with monitored(run_dir, obey) as monitor:
        with pytest.raises(Bug):
            await monitor.execute("ok", {"path": Path("/x")})
        assert await monitor.execute("ok") == {}


async def test_every_subscriber_sees_every_event_in_order(run_dir: Path) -> None:
    clock = ManualClock(monotonic_s=5.0)
    async with monitored(run_dir, obey, clock) as monitor:
        everything, stops = monitor.events(), monitor.events("STOP")
        called: list[QmpEvent] = []
        unsubscribe = monitor.listen(called.append)
        await monitor.execute("emit", {"count": 3, "name": "STOP"})
        await monitor.execute("emit", {"count": 2, "name": "RESUME"})
        assert [event.name for event in called] == ["STOP"] * 3 + ["RESUME"] * 2
        assert called[0] == QmpEvent("STOP", {"number": 0}, 1_700_000_000.25, 5.0)
        unsubscribe()
        unsubscribe()
        await monitor.close()
        assert [event.name async for event in everything] == ["STOP"] * 3 + ["RESUME"] * 2 + [MONITOR_CLOSED]
        assert [event.name async for event in stops] == ["STOP"] * 3 + [MONITOR_CLOSED]
        assert len(called) == 5


async def test_a_failing_listener_harms_nobody(run_dir: Path) -> None:
    async with monitored(run_dir, obey) as monitor:

        def fail(event: QmpEvent) -> None:
            raise RuntimeError(event.name)

        monitor.listen(fail)
        with monitor.events() as subscription:
            await monitor.execute("emit", {"count": 1})
            event = await subscription.get()
        assert event is not None and event.name == "STOP"
        assert await subscription.get() is None


async def test_a_reader_that_falls_behind_is_told_and_others_go_on(run_dir: Path) -> None:
    async with monitored(run_dir, obey) as monitor:
        slow, quick = monitor.events(), monitor.events()
        seen: list[QmpEvent] = []

        async def read() -> None:
            async for event in quick:
                seen.append(event)

        reading = asyncio.ensure_future(read())
        await monitor.execute("emit", {"count": MAX_WAITING_EVENTS // 2})
        await monitor.execute("emit", {"count": MAX_WAITING_EVENTS // 2})
        await monitor.execute("emit", {"count": 1})
        with pytest.raises(QemuFailed, match="events behind"):
            async for _ in slow:
                pass
        await monitor.close()
        await reading
        assert len(seen) == MAX_WAITING_EVENTS + 2


async def test_the_other_end_hangs_up(run_dir: Path) -> None:
    async with monitored(run_dir, obey) as monitor:
        subscription = monitor.events("STOP")
        with pytest.raises(QemuGone, match="before it answered 'die'"):
            await monitor.execute("die")
        await asyncio.wait_for(monitor.closed.wait(), 5)
        last = [event async for event in subscription]
        assert [event.name for event in last] == [MONITOR_CLOSED]
        assert last[0].data == {"reason": "QEMU went away"}
        with pytest.raises(QemuGone, match="no connection"):
            await monitor.execute("ok")
        assert [event.name async for event in monitor.events()] == [MONITOR_CLOSED]


async def test_close_twice_and_while_a_command_waits(run_dir: Path) -> None:
    async with monitored(run_dir, obey) as monitor:
        waiting = asyncio.ensure_future(monitor.execute("mute"))
        await monitor.execute("ok")
        await asyncio.gather(monitor.close(), monitor.close())
        await monitor.close()
        with pytest.raises(QemuGone):
            await waiting


async def test_nobody_there(run_dir: Path) -> None:
    with pytest.raises(QemuGone, match="No QEMU of web1 answers"):
        await Monitor.connect(run_dir / "qmp.sock", name="web1")


async def test_no_greeting(run_dir: Path) -> None:
    run_dir.mkdir()
    stop = asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stop.wait()
        writer.close()

    async with await asyncio.start_unix_server(mute, str(run_dir / "s")):
        with pytest.raises(QemuSilent, match=r"did not greet within 0\.05 s"):
            await Monitor.connect(run_dir / "s", name="web1", timeout_s=0.05)
        stop.set()
        await asyncio.sleep(0)


async def test_an_answer_without_end_is_cut_off(run_dir: Path) -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hear(reader)
        for _ in range(2 + MAX_MESSAGE_BYTES // (1 << 20)):
            writer.write(b" " * (1 << 20))
            await writer.drain()
        await reader.read()

    async with monitored(run_dir, flood) as monitor:
        with pytest.raises(QemuGone):
            await monitor.execute("ok", timeout_s=20)


_RUBBISH = st.one_of(
    st.binary(max_size=200),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["event", "data", "timestamp", "id", "return", "error", "class", "desc", "seconds", "QMP"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode() + b"\n"),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(greets=st.booleans(), rubbish=st.lists(_RUBBISH, max_size=4), hangs_up=st.booleans())
@example(True, [b'{"event": "STOP", "data": 3}\n', b'{"event": []}\n', b'{"id": [], "return": 1}\n'], False)
@example(True, [b'{"event": "LIVEMOVE_MONITOR_CLOSED"}\n', b'{"event": "X", "timestamp": {"seconds": 1e999}}\n'], False)
@example(True, [b'{"error": {"class": 1}, "id": "__qmp#00000"}\n'], True)
@example(True, [b"[" * 20000 + b"\n"], False)
@example(False, [b'{"QMP": 3}\n'], False)
def test_rubbish_raises_only_our_errors(run_dir: Path, greets: bool, rubbish: list[bytes], hangs_up: bool) -> None:
    run_dir.mkdir(exist_ok=True)

    async def spout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if greets:
                writer.write(GREETING)
                await hear(reader)
                writer.write(line(**{"return": {}}))
            writer.writelines(rubbish)
            if not hangs_up:
                await asyncio.sleep(0.05)
        except (ConnectionError, ValueError):
            pass
        finally:
            writer.close()

    async def try_it() -> None:
        (run_dir / "s").unlink(missing_ok=True)
        async with await asyncio.start_unix_server(spout, str(run_dir / "s")):
            try:
                monitor = await Monitor.connect(run_dir / "s", name="web1", timeout_s=0.2)
                subscription = monitor.events()
                try:
                    await monitor.execute("query-status", timeout_s=0.2)
                finally:
                    await monitor.close()
                    assert [event.name async for event in subscription][-1] == MONITOR_CLOSED
            except LivemoveError:
                pass

    asyncio.run(try_it())
