"""The probe against a real echo service that falls silent when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from livemove.base.clock import SystemClock
from livemove.base.errors import BadSetting, LinkLost
from livemove.cli import echo_probe, follow
from livemove.cli.echo_probe import EchoProbe, parse_peer

from .conftest import Cli
from .fake_agent import FakeCluster, completed_journey, report_view

CLOCK = SystemClock()


class Echo:
    """Answers what it gets, except while :attr:`awake` is clear."""

    def __init__(self) -> None:
        self.awake = asyncio.Event()
        self.awake.set()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while data := await reader.read(4096):
                await self.awake.wait()
                writer.write(data)
        writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    service = Echo()
    server = await asyncio.start_server(service.serve, "127.0.0.1", 0)
    service.port = server.sockets[0].getsockname()[1]
    async with server:
        yield service
    await asyncio.sleep(0.05)  # the connection's handler ends by itself


async def test_a_gap_is_measured_in_full_and_only_in_its_time(echo: Echo) -> None:
    async with EchoProbe(f"127.0.0.1:{echo.port}", CLOCK) as probe:
        before_s = CLOCK.monotonic_s()
        await asyncio.sleep(0.1)
        start_s = CLOCK.monotonic_s()
        echo.awake.clear()
        await asyncio.sleep(0.4)
        echo.awake.set()
        await asyncio.sleep(0.1)
        end_s = CLOCK.monotonic_s()
        gap_ms = await probe.longest_gap_ms(start_s, end_s)
        assert 390 <= gap_ms < 1500
        assert await probe.longest_gap_ms(before_s - 10, before_s) < gap_ms


async def test_a_gap_that_lasts_at_the_end_is_waited_for(echo: Echo) -> None:
    async with EchoProbe(f"127.0.0.1:{echo.port}", CLOCK) as probe:
        start_s = CLOCK.monotonic_s()
        echo.awake.clear()
        await asyncio.sleep(0.2)
        end_s = CLOCK.monotonic_s()
        asyncio.get_running_loop().call_later(1.0, echo.awake.set)
        assert await probe.longest_gap_ms(start_s, end_s) >= 1150


async def test_a_guest_that_does_not_come_back(echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(echo_probe, "LAST_ANSWER_S", 0.8)
    async with EchoProbe(f"127.0.0.1:{echo.port}", CLOCK) as probe:
        start_s = CLOCK.monotonic_s()
        echo.awake.clear()
        await asyncio.sleep(0.3)
        gap_ms = await probe.longest_gap_ms(start_s, CLOCK.monotonic_s())
        echo.awake.set()
    assert gap_ms >= 300


async def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(echo_probe, "FIRST_ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        peer = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(LinkLost, match=f"does not answer the probe at {peer}"):
            async with EchoProbe(peer, CLOCK):
                pass
    with pytest.raises(BadSetting, match="is not known"):
        async with EchoProbe("no-such-host.invalid:7", CLOCK):
            pass


def test_no_process_and_no_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    async def run() -> int:
        async with await asyncio.start_server(Echo().serve, "127.0.0.1", 0) as server:
            probe = EchoProbe(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", CLOCK)
            async with probe:
                assert probe._process is not None
                pid = probe._process.pid
                assert Path(f"/proc/{pid}").exists()
            await probe.stop()
            await asyncio.sleep(0.05)
            return pid

    pid = asyncio.run(run())
    assert not Path(f"/proc/{pid}").exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["10.0.0.1", ":7", "10.0.0.1:0", "10.0.0.1:99999", "a:b", "[2001:db8::1]:7", ""])
def test_peers_that_cannot_be(text: str) -> None:
    with pytest.raises(BadSetting):
        parse_peer(text)
    assert parse_peer("10.77.0.10:7") == ("10.77.0.10", 7)


def test_migrate_posts_what_the_probe_saw(cli: Cli, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "POLL_S", 0.05)
    cluster["A"].script = completed_journey()
    cluster["A"].reports = [report_view()]
    with echo_in_thread() as port:
        ended = cli("migrate", "db1", "--to", "B", "--probe", f"127.0.0.1:{port}", "--json")
    assert ended.code == 0, ended.err
    (body,) = cluster["A"].asked("POST /journeys/j-0001/client-blackout")
    assert body["longest_gap_ms"] == ended.json["downtime_client_ms"]
    assert 0 <= body["longest_gap_ms"] < 1000


@contextlib.contextmanager
def echo_in_thread():  # type: ignore[no-untyped-def]
    """The port of an echo service in another thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                while data := connection.recv(4096):
                    connection.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(timeout=10)
