from __future__ import annotations

import asyncio
import os
import signal
import socket

import pytest

from livemove.base.errors import Conflict
from livemove.lab import faults, processes
from livemove.lab.lab import Lab
from livemove.lab.topology import LabSpec


def test_start_ticks_tell_a_process_from_none() -> None:
    own = processes.start_ticks(os.getpid())
    assert own is not None and own > 0
    assert processes.start_ticks(1 << 30) is None


def test_a_zombie_has_ended() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], os.environ)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        assert processes.start_ticks(pid) is None
    finally:
        os.waitpid(pid, 0)


def test_listening_is_seen_without_connecting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert processes.listens(os.getpid(), port)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not processes.listens(os.getpid(), port)


def test_what_is_not_the_labs_gets_no_signal() -> None:
    with pytest.raises(Conflict, match="not of lab 'x'"):
        processes.send(os.getppid(), signal.SIGCONT, lab="x", namespaces=set())


async def test_ending_nothing_or_what_has_ended_is_no_error() -> None:
    await processes.end([], lab="x", namespaces=set())
    await processes.end([1 << 21], lab="x", namespaces=set())


@pytest.mark.qemu
async def test_kill_stops_and_ends_a_process_of_the_lab_only(lab_name: str) -> None:
    async with Lab(LabSpec(lab_name)) as lab:
        pid = lab.start_process("A", ["sleep", "600"], log=lab.directory("A") / "log" / "sleep.log")
        faults.kill(lab, pid)
        async with asyncio.timeout(5):
            while lab.processes():  # noqa: ASYNC110  (nothing tells)
                await asyncio.sleep(0.01)
        with pytest.raises(Conflict, match=r"ended|not of lab"):
            faults.kill(lab, pid)
        with pytest.raises(Conflict, match="not of lab"):
            faults.kill(lab, os.getppid(), signal.SIGCONT)
