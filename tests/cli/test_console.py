from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
from typing import Any

import pytest

from livemove.base.clock import SystemClock
from livemove.base.errors import UnknownVm
from livemove.cli import console_line

from .conftest import Cli
from .fake_agent import FakeCluster, vm_view

LOG = "".join(f"line {number}\n" for number in range(40))


def test_the_whole_log_in_parts(cli: Cli, cluster: FakeCluster) -> None:
    cluster["A"].console = LOG
    assert cli("vm", "console", "db1").out == LOG
    found = cli("vm", "console", "db1", "--json").json
    assert (found["text"], found["next_offset"], found["host"]) == (LOG, len(LOG), "A")


def test_unknown_vm(cli: Cli, cluster: FakeCluster) -> None:
    assert cli("vm", "console", "nix").code == UnknownVm.exit_code


def test_following_goes_after_the_vm(cli: Cli, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_line, "POLL_S", 0.01)
    monkeypatch.setattr(console_line, "MOVED_CHECK_S", 0.03)
    source, destination = cluster["A"], cluster["B"]
    source.console = "on A\n"
    asked = {"A": 0, "B": 0}

    async def from_source(*request: Any) -> Any:
        asked["A"] += 1
        if asked["A"] == 4:
            source.console += "last words\n"
        if asked["A"] == 6:
            source.vms["db1"] = vm_view("db1", "A", state="moved", moved_to="B")
            destination.vms["db1"] = vm_view("db1", "B")
            destination.console = "on B\n"
        return await source_answer(*request)

    async def from_destination(*request: Any) -> Any:
        if request[1] == "/vms/db1/console" or request[1] == "vms/db1/console":
            asked["B"] += 1
            if asked["B"] == 3:
                os.kill(os.getpid(), signal.SIGINT)
        return await destination_answer(*request)

    source_answer, destination_answer = source.answer, destination.answer
    monkeypatch.setattr(source, "answer", from_source)
    monkeypatch.setattr(destination, "answer", from_destination)
    ended = cli("vm", "console", "db1", "--follow")
    assert ended.code == 130
    assert ended.out == "on A\nlast words\non B\n"


def test_on_a_terminal_keys_go_to_the_guest_until_the_leave_key(cluster: FakeCluster) -> None:
    cluster["A"].console = "login: "
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "livemove", "vm", "console", "db1"],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=environment,
            start_new_session=True,
        ) as process:
            read_until(leader, b"login: ")
            os.write(leader, b"root\x03")
            read_until(leader, b"<root\x03>")
            os.write(leader, console_line.LEAVE_KEY)
            assert process.wait(timeout=10) == 0
    finally:
        os.close(leader)
        os.close(follower)
    assert "".join(body["text"] for body in cluster["A"].asked("POST /vms/db1/console")) == "root\x03"


def read_until(descriptor: int, wanted: bytes) -> None:
    clock = SystemClock()
    seen, until_s = b"", clock.monotonic_s() + 10
    while wanted not in seen:
        left_s = until_s - clock.monotonic_s()
        assert left_s > 0 and select.select([descriptor], [], [], left_s)[0], f"{wanted!r} did not come, only {seen!r}"
        seen += os.read(descriptor, 4096)
