"""Comparing the memory of both QEMUs, from the source.

1. open      both hosts open their QEMU's memory and try how fast they read it        (with the arming, during the copy)
2. digest    both hosts at once; the guest stands still                               (between pause and GO)
3. compare   here; where digests differ, smaller and smaller pieces are asked for, until pages are named

Whatever goes wrong ends in an error, and so the journey before its hand-over: what was asked for is never skipped.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from livemove.api.client import AgentClient
from livemove.api.incoming_models import AskDigests, AskPage, AskPieces, DigestsAnswer, MemoryOpened
from livemove.api.models import LeftOutView, VerificationView
from livemove.base.clock import Clock
from livemove.base.errors import PeerViolation, QemuGone
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.hypervisor.frozen import FrozenVm
from livemove.hypervisor.guest_memory import GuestMemory, Stopped
from livemove.hypervisor.process import QemuProcess, start_ticks
from livemove.hypervisor.qmp import Monitor
from livemove.migration import events as on
from livemove.migration.events import Event
from livemove.migration.model import Verify
from livemove.migration.verification import (
    LADDER,
    MOST_PAGES,
    MOST_PIECES,
    PAGE_BYTES,
    SAMPLE_PIECE_BYTES,
    describe,
    explain_wall_clock,
    first_level,
    piece_offsets,
    sample_count,
    sample_offsets,
    sampled_bytes,
)

#: The destination may be slower than it was when it tried; this much and this many times its time is waited for.
PATIENCE_S, PATIENCE_FACTOR = 10.0, 5.0
#: Pieces of a level that are looked into; more would only make the list of differing pages longer.
MOST_LOOKED_INTO = 4


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is compared: the bytes of each block, and of a sample the places in them."""

    lengths: dict[str, int]
    sample: int
    seed: bytes
    offsets: dict[str, list[int]]

    @property
    def compared_bytes(self) -> int:
        return sampled_bytes(self.lengths, self.offsets) if self.sample else sum(self.lengths.values())


class MemoryComparison:
    """The verification of one journey; :attr:`view` is what its report says of it."""

    def __init__(
        self, mode: Verify, journey: str, frozen: FrozenVm, pid: int, monitor: Monitor, client: AgentClient, clock: Clock,
        *, kvm: bool,
    ) -> None:  # fmt: skip
        self.view: VerificationView | None = None
        self._mode = mode
        self._journey = journey
        self._frozen = frozen
        self._pid = pid
        self._monitor = monitor
        self._client = client
        self._clock = clock
        self._kvm = kvm
        self._memory: GuestMemory | None = None
        self._opened: MemoryOpened | None = None

    # 1. Open ----------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Have both hosts ready to read. Raises what GuestMemory.open raises, and what the destination answers."""
        theirs = spawn(self._client.open_memory(self._journey), name=f"memory of {self._journey} at the destination")
        try:
            process = QemuProcess(self._frozen.name, self._pid, start_ticks(self._pid) or 0)
            self._memory = await GuestMemory.open(process, self._frozen, self._monitor, self._clock)
            self._opened = await theirs
        finally:
            await cancel_and_wait(theirs)

    def _planned(self, memory: GuestMemory, opened: MemoryOpened) -> _Plan:
        lengths = {
            name: block.used_bytes
            for name, block in memory.blocks.items()
            if 0 < block.used_bytes <= opened.blocks.get(name, 0)
        }
        if self._mode is Verify.FULL:
            return _Plan(lengths, 0, b"", {})
        seed, count = secrets.token_bytes(16), sample_count(min(memory.rate_bytes_per_s, opened.rate_bytes_per_s))
        return _Plan(lengths, count, seed, sample_offsets(seed, lengths, count))

    def _left_out(self, memory: GuestMemory, opened: MemoryOpened, plan: _Plan) -> list[LeftOutView]:
        found = {
            left.name: LeftOutView(name=left.name, size_bytes=left.size_bytes, reason=left.reason)
            for left in memory.left_out
        }
        for left in opened.left_out:
            reason = f"at the destination {left.reason}"
            found.setdefault(left.name, LeftOutView(name=left.name, size_bytes=left.size_bytes, reason=reason))
        for name, block in memory.blocks.items():
            if name not in plan.lengths and name not in found:
                reason = "the destination has no block of that name and size" if block.used_bytes else "it is empty"
                found[name] = LeftOutView(name=name, size_bytes=block.used_bytes, reason=reason)
        return list(found.values())

    # 2. Digest --------------------------------------------------------------------------------------------------------

    async def compare(self) -> Event:
        """MemoryVerified or MemoryDiffers.

        :raise PeerViolation: the destination answered for other blocks.
        :raise QemuGone: the source's memory went away.
        """
        memory, opened = self._memory, self._opened
        if memory is None or opened is None:
            raise QemuGone("The memory was not opened for the verification.")
        plan = self._planned(memory, opened)
        self.view = VerificationView(
            mode="full" if self._mode is Verify.FULL else "sample", result="not finished", blocks=plan.lengths,
            compared_bytes=plan.compared_bytes, left_out=self._left_out(memory, opened, plan),
        )  # fmt: skip
        try:
            ours, answer = await self._digest(memory, opened, plan)
            differing = [name for name in plan.lengths if ours[name].hex() != answer.digests[name]]
            if not differing:
                self._result("same")
                return on.MemoryVerified()
            return await self._differ(memory, plan, differing)
        except (Stopped, OSError) as error:
            raise QemuGone(f"The memory of {self._frozen.name} could not be read to its end: {error}.") from error

    async def _digest(
        self, memory: GuestMemory, opened: MemoryOpened, plan: _Plan
    ) -> tuple[dict[str, bytes], DigestsAnswer]:
        asked = AskDigests(blocks=plan.lengths, sample=plan.sample, seed_hex=plan.seed.hex())
        slowest = min(memory.rate_bytes_per_s, opened.rate_bytes_per_s)
        timeout_s = PATIENCE_S + PATIENCE_FACTOR * plan.compared_bytes / slowest
        question = self._client.digests(self._journey, asked, timeout_s=timeout_s)
        theirs = spawn(question, name=f"digests of {self._journey} at the destination")
        # an answer that cannot come any more must not be waited for by hashing on
        theirs.add_done_callback(lambda task: memory.stop() if task.cancelled() or task.exception() else None)
        try:
            try:
                ours = await digests(memory, plan.lengths, plan.offsets)
            except Stopped:
                await theirs  # its error is the reason, if there is one
                raise
            answer = await theirs
        finally:
            await cancel_and_wait(theirs)
        if answer.digests.keys() != plan.lengths.keys():
            raise PeerViolation("The destination answered with the digests of other blocks than it was asked for.")
        return ours, answer

    # 3. Compare -------------------------------------------------------------------------------------------------------

    async def _differ(self, memory: GuestMemory, plan: _Plan, differing: list[str]) -> Event:
        pages: list[tuple[str, int]] = []
        more = False
        for name in differing:
            if len(pages) >= MOST_PAGES:
                more = True
                break
            found, left = await self._differing_pages(memory, plan, name)
            pages += [(name, offset) for offset in found]
            more = more or left
        more = more or len(pages) > MOST_PAGES
        pages = pages[:MOST_PAGES]
        if self._kvm and len(pages) == 1 and not more and await self._is_wall_clock(memory, *pages[0]):
            block, offset = pages[0]
            self._result(
                "same", explained=[f"{block} at {offset:#x}: KVM's wall clock, which it computes anew on arrival"]
            )
            return on.MemoryVerified()
        self._result("different", pages=pages)
        return on.MemoryDiffers(describe(self._frozen.name, pages, more=more))

    async def _differing_pages(self, memory: GuestMemory, plan: _Plan, name: str) -> tuple[list[int], bool]:
        """Offsets of pages of a block that differ, and whether there may be more."""
        length = plan.lengths[name]
        more = False
        if plan.sample:
            sizes, starts = [SAMPLE_PIECE_BYTES, PAGE_BYTES], plan.offsets[name]
        else:
            sizes = list(reversed(LADDER[: first_level(length) + 1]))
            starts = piece_offsets(0, length, sizes[0])
        for index, size in enumerate(sizes):
            differing = await self._differing_pieces(memory, name, starts, size, length)
            if size == PAGE_BYTES:
                return differing, more
            more = more or len(differing) > MOST_LOOKED_INTO
            starts = [
                offset
                for piece in differing[:MOST_LOOKED_INTO]
                for offset in piece_offsets(piece, min(piece + size, length), sizes[index + 1])
            ]
        return [], more

    async def _differing_pieces(
        self, memory: GuestMemory, name: str, offsets: list[int], size: int, length: int
    ) -> list[int]:
        found: list[int] = []
        for start in range(0, len(offsets), MOST_PIECES):
            asked = offsets[start : start + MOST_PIECES]
            ours = await memory.digest_pieces(name, asked, size, length)
            theirs = await self._client.piece_digests(
                self._journey, AskPieces(block=name, piece_bytes=size, offsets=asked)
            )
            if len(theirs.digests) != len(asked):
                raise PeerViolation("The destination answered with another number of digests than it was asked for.")
            found += [
                offset for offset, mine, other in zip(asked, ours, theirs.digests, strict=True) if mine.hex() != other
            ]
        return found

    async def _is_wall_clock(self, memory: GuestMemory, block: str, offset: int) -> bool:
        ours = await memory.read(block, offset, PAGE_BYTES)
        theirs = bytes.fromhex((await self._client.page(self._journey, AskPage(block=block, offset=offset))).hex)
        return explain_wall_clock(ours, theirs, cpus=self._frozen.cpus)

    def _result(
        self, result: str, *, pages: list[tuple[str, int]] | None = None, explained: list[str] | None = None
    ) -> None:
        assert self.view is not None
        self.view = self.view.model_copy(
            update={
                "result": result,
                "different_pages": [f"{block} at {offset:#x}" for block, offset in pages or []],
                "explained": explained or [],
            }
        )

    def took(self, ms: float) -> None:
        """What it added to the downtime."""
        if self.view is not None:
            self.view = self.view.model_copy(update={"ms": round(ms, 3)})

    # End --------------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """The journey ends: let what is being hashed go. May be called twice."""
        if self._memory is not None:
            self._memory.stop()

    async def close(self) -> None:
        """Let go of the source's memory. May be called twice."""
        if self._memory is not None:
            await self._memory.close()


async def digests(memory: GuestMemory, lengths: dict[str, int], offsets: dict[str, list[int]]) -> dict[str, bytes]:
    """The digest of each block, or of a sample of it. Raises Stopped, OSError."""
    if not offsets:
        return await memory.digest_blocks(lengths)
    return await memory.digest_samples(offsets, SAMPLE_PIECE_BYTES, lengths)
