"""Processes told apart, waited for and ended; tried on small programs, which end as QEMU does."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from livemove.base.errors import Bug
from livemove.hypervisor.process import QemuProcess, find, kill, remove_cgroup, start_ticks, wait_gone


@pytest.fixture
def stubborn() -> Iterator[tuple[subprocess.Popen[bytes], QemuProcess]]:
    """A program that ignores SIGTERM, under a name that would confuse a careless reader of /proc/PID/stat."""
    child = subprocess.Popen(["sh", "-c", "trap '' TERM; echo; while :; do sleep 0.05; done"], stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        ticks = start_ticks(child.pid)
        assert ticks
        yield child, QemuProcess("web1", child.pid, ticks)
        child.kill()


async def test_a_reused_number_is_another_process(stubborn: tuple[subprocess.Popen[bytes], QemuProcess]) -> None:
    child, process = stubborn
    other = replace(process, start_ticks=process.start_ticks - 1)
    assert find(process) and not find(other)
    await asyncio.wait_for(wait_gone(other), 1)
    await kill(other, grace_s=0)
    assert child.poll() is None


async def test_kill_insists_after_the_grace(stubborn: tuple[subprocess.Popen[bytes], QemuProcess]) -> None:
    child, process = stubborn
    ending = asyncio.ensure_future(kill(process, grace_s=0.1))
    await asyncio.sleep(0.05)
    assert find(process)
    await ending
    assert not find(process)
    assert child.wait() == -9


def test_a_zombie_has_ended() -> None:
    with subprocess.Popen(["true"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.read()
        while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            pass
        assert start_ticks(child.pid) is None


FIRST_THREAD_ENDS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(30,)).start()
print(flush=True)
ctypes.CDLL(None).syscall(60, 0)  # exit(2) ends the calling thread only
"""


async def test_a_process_has_ended_when_its_last_thread_has() -> None:
    command = [sys.executable, "-c", FIRST_THREAD_ENDS]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:  # noqa: ASYNC220  (asyncio would collect it)
        assert child.stdout is not None
        child.stdout.readline()
        while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            pass
        ticks = start_ticks(child.pid)
        assert ticks is not None
        process = QemuProcess("web1", child.pid, ticks)
        gone = asyncio.ensure_future(wait_gone(process))
        await asyncio.sleep(0.05)
        assert find(process) and not gone.done()
        await kill(process, grace_s=0)
        await asyncio.wait_for(gone, 5)
        assert not find(process)


def test_json_round_trip() -> None:
    process = QemuProcess("web1", 4711, 123, "/sys/fs/cgroup/livemove/vm-web1", None)
    assert QemuProcess.from_json(process.to_json()) == process
    with pytest.raises(Bug):
        QemuProcess.from_json({"name": "web1"})


async def test_removing_a_cgroup(tmp_path: Path) -> None:
    cgroup = tmp_path / "livemove" / "vm-web1"
    cgroup.mkdir(parents=True)
    other = tmp_path / "livemove" / "vm-other"
    other.mkdir()
    await remove_cgroup(str(cgroup))
    assert not cgroup.exists() and other.exists()
    await remove_cgroup(str(cgroup))
    await remove_cgroup(None)
    await remove_cgroup(str(other))
    assert not (tmp_path / "livemove").exists()
