"""Digests of a VM's memory, read from beside QEMU: what is compared before the VM is handed over.

1. open      QEMU lists its blocks; the guest's memory is read from its memfd, everything else, and private
             memory, from ``/proc/PID/mem``                                          (before the blackout)
2. digest    workers on all cores read chunk after chunk into buffers of their own   (in the blackout)
3. compare   a block's digest is that of its chunks' digests, so a difference is found from the top down

Chunks are copied before they are hashed: a page may be written while it is read, which must never do worse than give
another digest. Reading by ``pread`` leaves holes of a memfd holes; a mapping would fill them.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from blake3 import blake3

from livemove.base.clock import Clock
from livemove.base.errors import MissingPrerequisite, QemuGone
from livemove.base.units import KIB, MIB
from livemove.hypervisor.command_line import RAM_ID
from livemove.hypervisor.frozen import FrozenVm
from livemove.hypervisor.machine_facts import cpu_count
from livemove.hypervisor.memory import memfd_path
from livemove.hypervisor.process import QemuProcess, find
from livemove.hypervisor.qmp import Monitor
from livemove.hypervisor.ram_blocks import RamBlock, parse_ram_blocks

T = TypeVar("T")
R = TypeVar("R")

PAGE_BYTES = 4 * KIB
#: Fits into a core's second-level cache: 3.1 GB/s a core here, 2.4 with 1 MiB, 0.9 with single pages.
CHUNK_BYTES = 256 * KIB
#: What one worker takes at a time: enough to make the taking cheap, small enough that all end at about the same time.
STRIPE_CHUNKS = 64
#: Read once ahead of the blackout, to learn how fast this host reads and hashes.
TRIAL_BYTES = 16 * MIB
DIGEST_BYTES = 32
_ZEROS = bytes(CHUNK_BYTES)
_ZERO_CHUNK = blake3(_ZEROS).digest()
_REMEDY = "Give the agent CAP_SYS_PTRACE on both hosts, or move the VM with --verify off."


class Stopped(Exception):
    """The work was ended by :meth:`GuestMemory.stop`."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A block that is not compared, and why."""

    name: str
    size_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a block's bytes are: `offset` in the file `fd`."""

    block: RamBlock
    fd: int
    offset: int
    sparse: bool


class GuestMemory:
    """The memory of one QEMU, open for reading until :meth:`close`."""

    def __init__(self, places: Mapping[str, _Place], left_out: Sequence[LeftOut], fds: Iterable[int]) -> None:
        self.left_out = tuple(left_out)
        self.rate_bytes_per_s = 0.0
        self._places = dict(places)
        self._fds = tuple(fds)
        self._chunks: dict[str, bytes] = {}
        self._cores = cpu_count()
        self._workers = ThreadPoolExecutor(self._cores, thread_name_prefix="digest")
        self._own = threading.local()
        self._stopped = threading.Event()

    @property
    def blocks(self) -> dict[str, RamBlock]:
        """The blocks that can be read, by name."""
        return {name: place.block for name, place in self._places.items()}

    # 1. Open ----------------------------------------------------------------------------------------------------------

    @classmethod
    async def open(cls, process: QemuProcess, frozen: FrozenVm, monitor: Monitor, clock: Clock) -> GuestMemory:
        """Ask QEMU for its blocks, open them, and try how fast they are read.

        :raise QemuGone: the process is gone.
        :raise QemuFailed: QEMU does not list its blocks in a form that is known.
        :raise MissingPrerequisite: the guest's memory cannot be read by this agent.
        """
        text = str(await monitor.execute("human-monitor-command", {"command-line": "info ramblock"}))
        memory = open_blocks(process, frozen, parse_ram_blocks(text))
        try:
            await memory.measure(clock)
        except BaseException:
            await memory.close()
            raise
        return memory

    async def measure(self, clock: Clock) -> None:
        """How many bytes a second this host reads and hashes, with all its cores and with what else it does now."""
        place = self._places[RAM_ID]
        length = min(TRIAL_BYTES, place.block.used_bytes)
        started_s = clock.monotonic_s()
        # zero chunks cost less: hash as if there were none, so that the rate errs on the safe side
        await self._each(
            range(0, length, CHUNK_BYTES),
            lambda offset: blake3(self._read(place, offset, min(CHUNK_BYTES, length - offset))).digest(),
        )
        self.rate_bytes_per_s = length / max(clock.monotonic_s() - started_s, 1e-6)

    # 2. Digest --------------------------------------------------------------------------------------------------------

    async def digest_blocks(self, lengths: Mapping[str, int]) -> dict[str, bytes]:
        """The digest of the first bytes of each block named. Raises Stopped, and OSError when the memory went away."""
        stripes = [
            (name, first) for name, length in lengths.items() for first in range(0, _chunk_count(length), STRIPE_CHUNKS)
        ]
        parts = await self._each(stripes, lambda stripe: self._stripe(*stripe, lengths[stripe[0]]))
        found: dict[str, list[bytes]] = {name: [] for name in lengths}
        for (name, _), digests in zip(stripes, parts, strict=True):
            found[name].append(digests)
        self._chunks = {name: b"".join(digests) for name, digests in found.items()}
        return {name: blake3(digests).digest() for name, digests in self._chunks.items()}

    def _stripe(self, name: str, first: int, length: int) -> bytes:
        """The digests of a stripe's chunks, one after the other."""
        place = self._places[name]
        digests = bytearray()
        data_from = 0
        for offset in range(first * CHUNK_BYTES, min((first + STRIPE_CHUNKS) * CHUNK_BYTES, length), CHUNK_BYTES):
            size = min(CHUNK_BYTES, length - offset)
            if place.sparse and data_from <= offset:
                data_from = _next_data(place.fd, offset, length)
            if size == CHUNK_BYTES and offset + size <= data_from:
                digests += _ZERO_CHUNK
                continue
            content = self._read(place, offset, size)
            digests += _ZERO_CHUNK if content == _ZEROS else blake3(content).digest()
        return bytes(digests)

    async def digest_pieces(self, name: str, offsets: Sequence[int], piece_bytes: int, length: int) -> list[bytes]:
        """The digests of pieces of a block's first `length` bytes, in the order of `offsets`, which are inside of it.

        Those of pieces larger than a chunk come from what :meth:`digest_blocks` found.

        :raise KeyError: there is no such block, or pieces are large and it was not digested as a whole.
        :raise Stopped: the work was ended.
        :raise OSError: the memory went away.
        """
        place = self._places[name]
        if piece_bytes > CHUNK_BYTES:
            chunks, width = self._chunks[name], piece_bytes // CHUNK_BYTES * DIGEST_BYTES
            starts = [offset // CHUNK_BYTES * DIGEST_BYTES for offset in offsets]
            return [blake3(chunks[start : start + width]).digest() for start in starts]
        return await self._each(
            offsets, lambda offset: blake3(self._read(place, offset, min(piece_bytes, length - offset))).digest()
        )

    async def digest_samples(
        self, offsets: Mapping[str, Sequence[int]], piece_bytes: int, lengths: Mapping[str, int]
    ) -> dict[str, bytes]:
        """One digest a block, of small pieces of it, all blocks in one go. Raises as :meth:`digest_pieces`."""
        places = [(name, offset) for name, found in offsets.items() for offset in found]

        def digest(place: tuple[str, int]) -> bytes:
            name, offset = place
            return blake3(self._read(self._places[name], offset, min(piece_bytes, lengths[name] - offset))).digest()

        found: dict[str, list[bytes]] = {name: [] for name in offsets}
        for (name, _), one in zip(places, await self._each(places, digest), strict=True):
            found[name].append(one)
        return {name: blake3(b"".join(digests)).digest() for name, digests in found.items()}

    async def read(self, name: str, offset: int, length: int) -> bytes:
        """Bytes of a block. Raises KeyError, and OSError when the memory went away."""
        return bytes((await self._each([offset], lambda at: bytes(self._read(self._places[name], at, length))))[0])

    def _read(self, place: _Place, offset: int, length: int) -> bytearray:
        """Bytes of a block, in this worker's buffer, which the next call uses again."""
        if self._stopped.is_set():
            raise Stopped
        buffer: bytearray | None = getattr(self._own, "buffer", None)
        if buffer is None or len(buffer) != length:
            buffer = self._own.buffer = bytearray(length)
        view = memoryview(buffer)
        done = 0
        while done < length:
            count = os.preadv(place.fd, [view[done:]], place.offset + offset + done)
            if count == 0:
                raise OSError(f"the block '{place.block.name}' ends at byte {offset + done}")
            done += count
        return buffer

    async def _each(self, items: Sequence[T], work: Callable[[T], R]) -> list[R]:
        """`work` of every item, by all workers, each taking the next one; the results in the order of the items."""
        turn = itertools.count()
        results: dict[int, R] = {}

        def take() -> None:
            while (index := next(turn)) < len(items):
                results[index] = work(items[index])

        loop = asyncio.get_running_loop()
        takers = [loop.run_in_executor(self._workers, take) for _ in range(min(self._cores, len(items)))]
        await asyncio.gather(*takers)
        return [results[index] for index in range(len(items))]

    # 3. End -----------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Let what is being digested end soon, with Stopped. May be called twice."""
        self._stopped.set()

    async def close(self) -> None:
        """Let go of the memory, so that it goes with its QEMU. May be called twice."""
        self.stop()
        await asyncio.to_thread(self._workers.shutdown, cancel_futures=True)
        fds, self._fds = self._fds, ()
        for fd in fds:
            os.close(fd)


def open_blocks(process: QemuProcess, frozen: FrozenVm, blocks: Sequence[RamBlock]) -> GuestMemory:
    """:class:`GuestMemory` of the blocks that QEMU listed. Raises QemuGone, MissingPrerequisite."""
    fds: list[int] = []
    try:
        places, left_out = _open_places(process, frozen, blocks, fds)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return GuestMemory(places, left_out, fds)


def _open_places(
    process: QemuProcess, frozen: FrozenVm, blocks: Sequence[RamBlock], fds: list[int]
) -> tuple[dict[str, _Place], list[LeftOut]]:
    gone = f"QEMU of {frozen.name} (process {process.pid}) has no memory to read."
    try:
        fds.append(os.open(f"/proc/{process.pid}/mem", os.O_RDONLY | os.O_CLOEXEC))
        memfd = memfd_path(process, frozen)
        if memfd is not None:
            fds.append(os.open(memfd, os.O_RDONLY | os.O_CLOEXEC))
    except PermissionError as error:
        raise MissingPrerequisite(
            f"The agent may not read the memory of QEMU of {frozen.name}: {error.strerror}.", remedy=_REMEDY
        ) from error
    except OSError as error:
        raise QemuGone(gone) from error
    if not find(process) or (memfd is None and frozen.backing != "private"):
        raise QemuGone(gone)
    places, left_out = {}, []
    for block in blocks:
        if not block.name:
            left_out.append(LeftOut("(without a name)", block.used_bytes, "QEMU does not migrate it"))
            continue
        shared = memfd is not None and block.name == RAM_ID
        place = _Place(block, fds[1], 0, True) if shared else _Place(block, fds[0], block.address, False)
        reason = _unreadable(place)
        if reason and block.name == RAM_ID:
            raise MissingPrerequisite(f"The memory of {frozen.name} cannot be read: {reason}.", remedy=_REMEDY)
        if reason:
            left_out.append(LeftOut(block.name, block.used_bytes, f"it cannot be read: {reason}"))
        else:
            places[block.name] = place
    if RAM_ID not in places:
        raise QemuGone(gone)
    return places, left_out


def _unreadable(place: _Place) -> str:
    """Why the first and last page of a block cannot be read; empty when they can."""
    for offset in (0, max(0, place.block.used_bytes - PAGE_BYTES)):
        try:
            if not os.pread(place.fd, PAGE_BYTES, place.offset + offset):
                return "it is shorter than QEMU says"
        except OSError as error:
            return error.strerror or str(error)
    return ""


def _next_data(fd: int, offset: int, end: int) -> int:
    """Where the next bytes of a sparse file begin that are not a hole; `offset` itself when the kernel cannot tell."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        return end if error.errno == errno.ENXIO else offset


def _chunk_count(length: int) -> int:
    return -(-length // CHUNK_BYTES)
