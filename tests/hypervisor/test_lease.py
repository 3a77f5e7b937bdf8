"""Leases: real processes, real locks. A QEMU is stood in for by `sleep` where only its open file matters."""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from livemove.base.errors import Conflict, LivemoveError, MissingPrerequisite, QemuGone
from livemove.hypervisor.launch import Lease, with_lease
from livemove.hypervisor.lease import HELD, change, domain, give_up, lease_path, take
from livemove.hypervisor.process import QemuProcess, start_ticks

Sleep = Callable[[Path | None, bool], Awaitable[QemuProcess]]


@pytest.fixture
async def sleep() -> AsyncIterator[Sleep]:
    """Starts a process with a lease as QEMU is started with one."""
    async with AsyncExitStack() as stack:

        async def start(path: Path | None, hold: bool) -> QemuProcess:
            argv = with_lease(["sleep", "60"], Lease(path, hold) if path is not None else None, "")
            process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.DEVNULL)

            async def end() -> None:
                if process.returncode is None:
                    process.kill()
                await process.wait()

            stack.push_async_callback(end)
            async with asyncio.timeout(5):
                while process.returncode is None:
                    if Path(f"/proc/{process.pid}/exe").readlink().name != "sh" and _comm(process.pid) == "sleep":
                        break
                    await asyncio.sleep(0.01)
            return QemuProcess("db1", process.pid, start_ticks(process.pid) or 0)

        yield start


def _comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


async def test_what_the_kernel_refuses_is_an_error_of_ours(tmp_path: Path, sleep: Sleep) -> None:
    """A bare OSError in the middle of a hand-over would leave the VM to nobody."""
    held = await sleep(lease_path(tmp_path / "leases", "uuid-1"), False)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    for act in (take, give_up):
        for spare in (0, 1):
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, before[1]))
            try:
                with pytest.raises(LivemoveError) as caught:
                    act(held)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            assert "no file descriptor left" in caught.value.message and caught.value.remedy
    await change(take, held)
    await change(give_up, held)


async def test_one_holder_at_a_time_and_its_end_frees_it(tmp_path: Path, sleep: Sleep) -> None:
    path = lease_path(tmp_path / "leases", "uuid-1")
    first, second = await sleep(path, True), await sleep(path, False)
    take(first)
    with pytest.raises(Conflict, match="db1"):
        take(second)
    give_up(first)
    take(second)
    take(second)
    with pytest.raises(Conflict):
        take(first)
    give_up(second)
    take(first)


async def test_a_second_start_ends_before_there_is_a_guest(tmp_path: Path, sleep: Sleep) -> None:
    path = lease_path(tmp_path, "uuid-1")
    await sleep(path, True)

    async def run(hold: bool) -> tuple[int | None, str]:
        argv = with_lease(["true"], Lease(path, hold), "")
        process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE)
        _, said = await process.communicate()
        return process.returncode, said.decode().strip()

    assert await run(True) == (75, HELD)
    assert await run(False) == (0, "")


async def test_what_was_started_without_a_lease_has_none(sleep: Sleep) -> None:
    plain = await sleep(None, False)
    take(plain)
    give_up(plain)


async def test_another_file_at_the_same_number_is_never_locked(tmp_path: Path, sleep: Sleep) -> None:
    other = tmp_path / "other"
    other.touch()
    one, two = await sleep(other, False), await sleep(other, False)
    take(one)
    take(two)


def test_a_process_that_is_gone() -> None:
    with pytest.raises(QemuGone):
        take(QemuProcess("db1", 1, 1))
    with pytest.raises(QemuGone):
        give_up(QemuProcess("db1", 2**22 - 1, 1))


def test_the_domain_is_made_once(tmp_path: Path) -> None:
    first = domain(tmp_path / "shared")
    assert first and first == domain(tmp_path / "shared") != domain(tmp_path / "other")
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["livemove-lease-domain"]


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MissingPrerequisite, match="file"):
        domain(tmp_path / "file")
    with pytest.raises(MissingPrerequisite, match=r"uuid-1\.lease"):
        lease_path(tmp_path / "file", "uuid-1")
