from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from livemove.base.clock import SystemClock
from livemove.base.errors import LinkLost
from livemove.lab import faults
from livemove.lab.client_probe import ClientProbe, gaps_path, main, read_gaps
from livemove.lab.gaps import Gap
from livemove.lab.lab import Lab
from livemove.lab.topology import LabSpec

ECHO = """
import socket
with socket.create_server(("0.0.0.0", 7)) as server:
    while True:
        with server.accept()[0] as peer:
            while data := peer.recv(65536):
                peer.sendall(data)
"""
# answers the first messages rightly, then with other bytes, once; and rightly from the second connection on
LIAR = """
import socket
with socket.create_server(("0.0.0.0", 7)) as server:
    with server.accept()[0] as peer:
        for _ in range(20):
            peer.sendall(peer.recv(16))
        peer.recv(16)
        peer.sendall(bytes(16))
        peer.recv(1000)
    while True:
        with server.accept()[0] as peer:
            while data := peer.recv(65536):
                peer.sendall(data)
"""
GUEST = "10.77.0.10"


async def start_guest(lab: Lab, script: str = ECHO) -> int:
    """A server on the guests' network, as if a guest of host A."""
    await lab.tools.ip(lab.spec.namespace("A"), [f"addr replace {GUEST}/24 dev br0"])
    return lab.start_process("A", [sys.executable, "-c", script], log=lab.directory("A") / "log" / "echo.log")


def test_gaps_are_read_line_by_line_and_an_unfinished_line_is_left_for_later(tmp_path: Path) -> None:
    out = tmp_path / "probe.json"
    assert read_gaps(out) == []
    gaps_path(out).write_text('{"start_s": 1.5, "end_s": 2.0, "ms": 500.0}\n{"start_s": 3.0, "end')
    assert read_gaps(out) == [Gap(0.5, 1.5)]


@pytest.mark.parametrize("interval", ["0", "100000", "x"])
def test_an_interval_that_makes_no_sense_is_refused(interval: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--address", GUEST, "--interval-ms", interval, "--out", "unused"])
    assert "interval-ms" in capsys.readouterr().err


@pytest.mark.qemu
async def test_a_server_stopped_for_300_ms_is_a_gap_of_that_length_at_that_time(lab_name: str) -> None:
    clock = SystemClock()
    async with Lab(LabSpec(lab_name)) as lab:
        server = await start_guest(lab)
        async with ClientProbe(lab, GUEST) as probe:
            await probe.answered(10, at_least=20)
            quiet_s = clock.monotonic_s()
            await asyncio.sleep(0.5)
            before_s = clock.monotonic_s()
            faults.kill(lab, server, signal.SIGSTOP)
            await asyncio.sleep(0.3)
            faults.kill(lab, server, signal.SIGCONT)
            after_s = clock.monotonic_s()
            await asyncio.sleep(0.7)
            gap = probe.longest_gap(before_s, after_s)
            assert gap is not None and gap.ended
            assert 0.25 <= gap.length_s <= 0.6
            assert before_s - 0.02 <= gap.start_s <= before_s + 0.05
            assert abs(gap.end_s - after_s) < 0.2
            disturbed = probe.longest_gap(quiet_s, before_s - 0.05)
            assert disturbed is None or disturbed.length_s < 0.2
        result = probe.result()
        assert 250 <= result.longest_gap_ms <= 600
        assert result.lost_connections == 0
        assert result.answered <= result.sent <= result.answered + 2
        # 200 messages a second, less what a busy machine leaves out
        assert 0.5 * 200 <= result.sent / (result.now_s - result.started_s) <= 1.1 * 200
        assert result.median_rtt_ms is not None and 0 < result.median_rtt_ms < 20
        assert result.p99_rtt_ms is not None and result.p99_rtt_ms >= result.median_rtt_ms
        first = result.gaps_ms[0]
        assert first["ms"] == result.longest_gap_ms
        assert first["start"].endswith("Z") and first["start"] < first["end"]
        assert first["offset_s"] == pytest.approx(first["start_s"] - result.started_s, abs=1e-5)
        assert len(result.gaps_ms) <= 10
        assert lab.processes("client") == []


@pytest.mark.qemu
async def test_a_server_that_dies_and_returns_is_a_lost_connection_and_one_gap(lab_name: str) -> None:
    async with Lab(LabSpec(lab_name)) as lab:
        server = await start_guest(lab)
        async with ClientProbe(lab, GUEST) as probe:
            await probe.answered(10, at_least=20)
            faults.kill(lab, server)
            await asyncio.sleep(0.6)
            lasting = probe.result_so_far()
            assert lasting is not None and lasting.open_gap_start_s is not None and not lasting.ended
            open_gap = probe.longest_gap(lasting.open_gap_start_s, lasting.now_s)
            assert open_gap is None or not open_gap.ended
            counted = lasting.answered
            await start_guest(lab)
            await probe.answered(10, at_least=counted + 20)
        result = probe.result()
        assert result.lost_connections == 1
        assert 550 <= result.longest_gap_ms <= 3000
        assert result.open_gap_start_s is None or result.now_s - result.open_gap_start_s < 0.5


@pytest.mark.qemu
async def test_wrong_bytes_are_a_lost_connection(lab_name: str) -> None:
    async with Lab(LabSpec(lab_name)) as lab:
        await start_guest(lab, LIAR)
        async with ClientProbe(lab, GUEST) as probe:
            await probe.answered(10, at_least=60)
        assert probe.result().lost_connections == 1


@pytest.mark.qemu
async def test_a_cut_network_is_one_gap_and_the_connection_survives(lab_name: str) -> None:
    async with Lab(LabSpec(lab_name)) as lab:
        await start_guest(lab)
        async with ClientProbe(lab, GUEST) as probe:
            await probe.answered(10, at_least=20)
            await faults.black_hole(lab, "guests", sender="client")
            await asyncio.sleep(0.5)
            await faults.heal(lab, "guests")
            await asyncio.sleep(1.5)
        result = probe.result()
        assert result.lost_connections == 0
        assert 450 <= result.longest_gap_ms <= 2000  # TCP repeats after 0.2, 0.6, 1.4 s
        assert len([gap for gap in read_gaps(probe.out) if gap.length_s > 0.4]) == 1


@pytest.mark.qemu
async def test_a_server_that_never_answers_is_told_and_counts_no_gap(lab_name: str) -> None:
    async with Lab(LabSpec(lab_name)) as lab:
        async with ClientProbe(lab, GUEST, interval_ms=10) as probe:
            with pytest.raises(LinkLost, match=r"10\.77\.0\.10 port 7"):
                await probe.answered(0.8)
        result = probe.result()
        assert (result.sent, result.answered, result.lost_connections, result.longest_gap_ms) == (0, 0, 0, 0.0)
        assert result.median_rtt_ms is None
        assert json.loads(probe.out.read_text())["ended"] is True


@pytest.mark.qemu
async def test_a_probe_that_was_killed_has_no_result(lab_name: str) -> None:
    async with Lab(LabSpec(lab_name)) as lab:
        async with ClientProbe(lab, GUEST) as probe:
            with pytest.raises(LinkLost):
                await probe.answered(0.5)
            assert probe.pid is not None
            faults.kill(lab, probe.pid)
        with pytest.raises(LinkLost, match="without a result"):
            probe.result()
