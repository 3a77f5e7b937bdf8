"""Storage that does not answer: a FIFO that nobody writes to blocks whoever opens it, as a dead NFS server does."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.hypervisor.conftest import FACTS, UUID

from livemove.agent.file_checks import FileChecks
from livemove.agent.fitness import check_files
from livemove.base.clock import SystemClock
from livemove.base.errors import DiskUnreachable, PolicyRefused
from livemove.base.settings import HostSettings
from livemove.hypervisor.definition import parse_definition
from livemove.hypervisor.frozen import FrozenVm, freeze


@pytest.fixture
def dead(tmp_path: Path) -> Iterator[Path]:
    """A path whose opening does not return until the end of the test."""
    path = tmp_path / "dead.raw"
    os.mkfifo(path)
    yield path
    _wake(path)


def _wake(path: Path) -> None:
    """Whoever opens it now goes on."""
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))


def frozen_on(*paths: Path) -> FrozenVm:
    disks = "".join(f'[[disk]]\npath = "{path}"\ncache = "none"\n' for path in paths)
    return freeze(parse_definition(f'name = "web1"\n{disks}'), FACTS, uuid=UUID, mac_for=lambda _: "")


def host_with(files: FileChecks, tmp_path: Path, *allowed: str) -> tuple[Any, HostSettings]:
    settings = HostSettings(
        name="B", state_dir=tmp_path / "s", run_dir=tmp_path / "r", allowed_disk_dirs=list(allowed or ["/"])
    )
    return SimpleNamespace(files=files), settings


async def longest_pause_s(work: asyncio.Task[Any]) -> float:
    """The longest time for which the loop did nothing else while `work` went on."""
    clock, longest_s = SystemClock(), 0.0
    while not work.done():
        before_s = clock.monotonic_s()
        await asyncio.sleep(0.01)
        longest_s = max(longest_s, clock.monotonic_s() - before_s)
    return longest_s


async def test_the_loop_goes_on_while_storage_hangs_and_the_vm_is_refused(dead: Path, tmp_path: Path) -> None:
    here = tmp_path / "here.raw"
    here.write_bytes(b"x")
    vms, settings = host_with(FileChecks(patience_s=0.6), tmp_path)
    work = asyncio.ensure_future(check_files(frozen_on(here, dead), vms, settings))
    assert await longest_pause_s(work) < 0.4
    with pytest.raises(DiskUnreachable, match="does not answer on B") as caught:
        work.result()
    assert str(dead) in caught.value.message and caught.value.where == "B" and "umount" in caught.value.remedy
    # another VM on other storage is not held up by it
    await check_files(frozen_on(here), vms, settings)


async def test_the_few_threads_are_counted_until_they_end(dead: Path, tmp_path: Path) -> None:
    here = tmp_path / "here.raw"
    here.write_bytes(b"x")
    vms, settings = host_with(FileChecks(patience_s=0.2, most=2), tmp_path)
    for _ in range(2):
        with pytest.raises(DiskUnreachable):
            await check_files(frozen_on(dead), vms, settings)
    with pytest.raises(DiskUnreachable, match=r"dead\.raw does not answer"):
        await check_files(frozen_on(here), vms, settings)
    # the storage is back
    _wake(dead)
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(DiskUnreachable):
                await check_files(frozen_on(here), vms, settings)
                break


async def test_many_at_once_wait_for_each_other(tmp_path: Path) -> None:
    here = tmp_path / "here.raw"
    here.write_bytes(b"x")
    vms, settings = host_with(FileChecks(most=2), tmp_path)
    await asyncio.gather(*(check_files(frozen_on(here), vms, settings) for _ in range(40)))


async def test_what_is_wrong_with_a_file_is_told_as_before(tmp_path: Path) -> None:
    gone = tmp_path / "gone.raw"
    vms, settings = host_with(FileChecks(), tmp_path)
    with pytest.raises(DiskUnreachable, match=r"gone\.raw cannot be opened on B: No such file"):
        await check_files(frozen_on(gone), vms, settings)
    vms, settings = host_with(FileChecks(), tmp_path, "/srv")
    with pytest.raises(PolicyRefused, match="outside the directories"):
        await check_files(frozen_on(gone), vms, settings)
