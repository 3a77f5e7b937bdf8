"""Digests of real memory, read from beside the process whose it is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from livemove.base.clock import SystemClock
from livemove.base.errors import MissingPrerequisite, QemuFailed, QemuGone
from livemove.base.units import KIB, MIB
from livemove.hypervisor.guest_memory import CHUNK_BYTES, Stopped
from livemove.hypervisor.process import QemuProcess
from livemove.hypervisor.ram_blocks import RamBlock

from .held import SIZE, SMALL, Held, holding


@pytest.fixture
def hold() -> Iterator[Callable[[], Held]]:
    with holding() as make:
        yield make


LENGTHS = {"ram0": SIZE, "pc.rom": SMALL}


async def test_equal_memory_has_equal_digests_whether_shared_or_private(hold: Callable[[], Held]):
    one, two = hold(), hold()
    two.private_backing = True
    first, second = one.open(), two.open()
    try:
        digests = await first.digest_blocks(LENGTHS)
        assert digests == await second.digest_blocks(LENGTHS)
        assert digests["ram0"] != digests["pc.rom"]
    finally:
        await first.close()
        await second.close()


async def test_one_flipped_bit_changes_the_digests_of_its_block_its_pieces_and_its_page_only(hold: Callable[[], Held]):
    one, two = hold(), hold()
    first, second = one.open(), two.open()
    at = 40 * MIB + 5 * 4096 + 17
    try:
        two.flip("ram0", at)
        ours, theirs = await first.digest_blocks(LENGTHS), await second.digest_blocks(LENGTHS)
        assert ours["ram0"] != theirs["ram0"] and ours["pc.rom"] == theirs["pc.rom"]
        for size in (64 * MIB, CHUNK_BYTES, 16 * KIB, 4 * KIB):
            offsets = list(range(0, SIZE, size))
            mine = await first.digest_pieces("ram0", offsets, size, SIZE)
            other = await second.digest_pieces("ram0", offsets, size, SIZE)
            differing = [start for start, a, b in zip(offsets, mine, other, strict=True) if a != b]
            assert differing == [at // size * size], size
        places = {"ram0": [0, at // 16384 * 16384], "pc.rom": [0]}
        a, b = [await memory.digest_samples(places, 16 * KIB, LENGTHS) for memory in (first, second)]
        assert a["ram0"] != b["ram0"] and a["pc.rom"] == b["pc.rom"]
    finally:
        await first.close()
        await second.close()


async def test_a_digest_is_that_of_the_chunks_digests(hold: Callable[[], Held]):
    held = hold()
    memory = held.open()
    try:
        content = await memory.read("pc.rom", 0, SMALL)
        assert content[4096:4104] == (~4096 & (1 << 63) - 1).to_bytes(8, "big")
        chunks = [blake3(content[start : start + CHUNK_BYTES]).digest() for start in range(0, SMALL, CHUNK_BYTES)]
        assert (await memory.digest_blocks({"pc.rom": SMALL}))["pc.rom"] == blake3(b"".join(chunks)).digest()
    finally:
        await memory.close()


async def test_zeros_are_zeros_whether_written_or_holes_and_reading_fills_no_hole(hold: Callable[[], Held]):
    one, two = hold(), hold()
    with two.memfd.open("r+b", buffering=0) as file:
        file.seek(8 * MIB)
        file.write(bytes(8 * MIB))
    before = one.memfd.stat().st_blocks
    assert two.memfd.stat().st_blocks > before
    first, second = one.open(), two.open()
    try:
        assert await first.digest_blocks(LENGTHS) == await second.digest_blocks(LENGTHS)
        assert one.memfd.stat().st_blocks == before
    finally:
        await first.close()
        await second.close()


async def test_the_rate_is_measured(hold: Callable[[], Held]):
    memory = hold().open()
    try:
        await memory.measure(SystemClock())
        assert 10 * MIB < memory.rate_bytes_per_s < 1 << 40
    finally:
        await memory.close()


async def test_what_cannot_be_read_is_left_out_by_name_and_reason(hold: Callable[[], Held]):
    held = hold()
    held.blocks += [RamBlock("lost", 4096, 4096, 0x1000), RamBlock("", 8192, 8192, held.blocks[1].address)]
    memory = held.open()
    try:
        assert set(memory.blocks) == {"ram0", "pc.rom"}
        assert [(left.name, left.size_bytes) for left in memory.left_out] == [
            ("lost", 4096),
            ("(without a name)", 8192),
        ]
        assert "cannot be read" in memory.left_out[0].reason and "not migrate" in memory.left_out[1].reason
    finally:
        await memory.close()


async def test_the_guests_memory_itself_is_never_left_out(hold: Callable[[], Held]):
    held = hold()
    held.private_backing = True
    held.blocks[0] = RamBlock("ram0", SIZE, SIZE, 0x1000)
    with pytest.raises(MissingPrerequisite, match="cannot be read"):
        held.open()
    held.blocks = held.blocks[1:]
    with pytest.raises((QemuGone, QemuFailed)):
        held.open()


def test_a_process_that_is_gone(hold: Callable[[], Held]):
    held = hold()
    os.kill(held.process.pid, 9)
    os.waitid(os.P_PID, held.process.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(QemuGone):
        held.open()


async def test_another_process_of_the_same_number_is_not_read(hold: Callable[[], Held]):
    held = hold()
    held.process = QemuProcess("web1", held.process.pid, held.process.start_ticks - 1)
    with pytest.raises(QemuGone):
        held.open()


async def test_stopping_ends_it_and_closing_leaves_no_descriptor_and_no_thread(hold: Callable[[], Held]):
    held = hold()
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    memory = held.open()
    digesting = asyncio.ensure_future(memory.digest_blocks(LENGTHS))
    # before its first piece: a quick machine has digested them all a moment later
    memory.stop()
    with pytest.raises(Stopped):
        await digesting
    await memory.close()
    await memory.close()
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert not [entry for entry in Path("/proc/self/task").iterdir() if "digest" in (entry / "comm").read_text()]
