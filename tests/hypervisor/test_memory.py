"""The guest's memory from outside: found, populated, described."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from livemove.base.errors import QemuGone
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.base.units import MIB
from livemove.hypervisor.memory import describe_backing, describe_smaps, memfd_path, populate
from livemove.hypervisor.process import QemuProcess, kill

from .conftest import Start, frozen_from

SMAPS = """\
7f0000000000-7f0004000000 rw-s 00000000 00:01 1034                       /memfd:memory-backend-memfd (deleted)
Size:              65536 kB
Rss:               40960 kB
AnonHugePages:         0 kB
ShmemPmdMapped:    {shmem_huge} kB
Shared_Hugetlb:    {hugetlb} kB
VmFlags: rd wr sh mr mw me ms
7f0010000000-7f0014000000 rw-p 00000000 00:00 0{end}
Size:              65536 kB
Rss:                8192 kB
AnonHugePages:      4096 kB
7f0020000000-7f0020001000 r--p 00000000 fe:00 12 /usr/lib/x
Rss:                   4 kB
"""


@pytest.mark.parametrize(
    ("memory", "shmem_huge", "hugetlb", "allocated", "sentence"),
    [
        ("", 0, 0, 48 * MIB, "64.0 MiB of shared memory, 48.0 MiB of it present, 0 B in huge pages (/sys/kernel/mm/transparent_hugepage/shmem_enabled is 'never')."),
        ("", 2048, 0, None, "64.0 MiB of shared memory, 40.0 MiB of it present, 2.0 MiB in huge pages."),
        ('backing = "private"', 0, 0, None, "64.0 MiB of private memory, 8.0 MiB of it present, 4.0 MiB in huge pages."),
        ('backing = "hugetlb"', 0, 6144, 0, "64.0 MiB of reserved huge pages of 2.0 MiB each, 6.0 MiB of them in use."),
    ],
)  # fmt: skip
def test_what_the_pages_are(memory: str, shmem_huge: int, hugetlb: int, allocated: int | None, sentence: str) -> None:
    frozen = frozen_from(f'[memory]\nsize = "64MiB"\n{memory}')
    smaps = SMAPS.format(shmem_huge=shmem_huge, hugetlb=hugetlb, end=" ")
    said = describe_smaps(smaps, frozen, allocated_bytes=allocated, shmem_enabled="never", thp_enabled="madvise")
    assert said == sentence


@pytest.mark.qemu
async def test_populate_allocates_the_memory_beside_qemu(start: Start) -> None:
    frozen = frozen_from('[memory]\nsize = "128MiB"')
    process = await start(frozen, incoming=True)
    path = memfd_path(process, frozen)
    assert path is not None
    before = path.stat().st_blocks * 512
    assert before < 16 * MIB
    seen: list[tuple[int, int]] = []
    assert await populate(process, frozen, progress=lambda *step: seen.append(step)) == 128 * MIB
    assert path.stat().st_blocks * 512 == 128 * MIB
    await asyncio.sleep(0)
    assert seen == [(64 * MIB, 128 * MIB), (128 * MIB, 128 * MIB)]
    assert "128.0 MiB of it present" in describe_backing(process, frozen)
    await kill(process, grace_s=0)
    assert process.cgroup is None or not Path(process.cgroup).exists()
    assert memfd_path(process, frozen) is None
    with pytest.raises(QemuGone):
        await populate(process, frozen)
    with pytest.raises(QemuGone):
        describe_backing(process, frozen)


@pytest.mark.qemu
async def test_populate_can_be_cancelled(start: Start) -> None:
    frozen = frozen_from('[memory]\nsize = "512MiB"')
    process = await start(frozen, incoming=True)
    begun = asyncio.Event()
    work = spawn(populate(process, frozen, progress=lambda *_: begun.set(), chunk_bytes=MIB), name="test")
    await begun.wait()
    await cancel_and_wait(work)
    assert work.cancelled()
    await asyncio.sleep(0.1)
    path = memfd_path(process, frozen)
    assert path is not None
    allocated = path.stat().st_blocks
    assert MIB <= allocated * 512 < 512 * MIB
    await asyncio.sleep(0.1)
    assert path.stat().st_blocks == allocated


async def test_it_takes_none_of_the_threads_that_everybody_shares() -> None:
    """A few VMs that are populated for minutes would otherwise hold up every journey's leases and files."""
    frozen = frozen_from('[memory]\nsize = "8MiB"')
    memory, gate = os.memfd_create("memory-backend-memfd"), threading.Event()
    os.ftruncate(memory, frozen.memory_bytes)
    shared = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(shared)
    busy = asyncio.ensure_future(asyncio.to_thread(gate.wait, 10))
    await asyncio.sleep(0)
    try:
        async with asyncio.timeout(5):
            assert await populate(QemuProcess("web1", os.getpid(), 0), frozen) == frozen.memory_bytes
        assert os.fstat(memory).st_blocks * 512 == frozen.memory_bytes
    finally:
        gate.set()
        await busy
        shared.shutdown()
        os.close(memory)


async def test_private_memory_is_left_to_qemu() -> None:
    frozen = frozen_from('[memory]\nbacking = "private"')
    nobody = QemuProcess("web1", 1, 0)
    assert memfd_path(nobody, frozen) is None
    assert await populate(nobody, frozen) == 0


async def test_a_process_without_such_memory() -> None:
    with pytest.raises(QemuGone):
        await populate(QemuProcess("web1", int(Path("/proc/self").readlink().name), 0), frozen_from())
