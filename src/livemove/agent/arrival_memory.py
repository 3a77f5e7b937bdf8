"""The destination's part of the verification: the memory of a QEMU that waits here, opened, digested, compared at the source.

Only the journey's own source may ask, and only for what it has sent itself: the QEMU has loaded everything and the
journey is armed, but not handed over. Digesting takes as long as the memory is large, so it does not hold the journey's
lock: the journey may be abandoned meanwhile, and the digesting then ends.
"""

from __future__ import annotations

from collections.abc import Callable

from livemove.agent.arrival_effects import LOAD_PATIENCE_S, Arrival
from livemove.api.incoming_models import (
    AskDigests,
    AskPage,
    AskPieces,
    BlockLeftOut,
    DigestsAnswer,
    MemoryOpened,
    PageAnswer,
    PiecesAnswer,
)
from livemove.base.clock import Clock
from livemove.base.errors import PeerViolation, QemuGone
from livemove.hypervisor.guest_memory import GuestMemory, Stopped
from livemove.migration.model import IncomingPhase
from livemove.migration.verification import LADDER, PAGE_BYTES, SAMPLE_PIECE_BYTES, sample_offsets
from livemove.migration.verifying import digests


class ArrivalMemory:
    """Answers the source's questions about what an arrival has loaded."""

    def __init__(self, find: Callable[[str, str], Arrival], clock: Clock) -> None:
        self._find = find
        self._clock = clock

    async def open(self, journey: str, source: str) -> MemoryOpened:
        """Open the memory ahead of the blackout. Raises PeerViolation when nothing is being received."""
        arrival = self._find(journey, source)
        async with arrival.lock:
            running = arrival.running
            if running is None or arrival.state.phase not in (IncomingPhase.LISTENING, IncomingPhase.ARMED):
                raise PeerViolation(f"Journey {journey} is {arrival.state.phase.value} and receives no memory.")
            if arrival.memory is None:
                arrival.memory = await GuestMemory.open(running.process, running.frozen, running.monitor, self._clock)
        memory = arrival.memory
        return MemoryOpened(
            blocks={name: block.total_bytes for name, block in memory.blocks.items()},
            left_out=tuple(
                BlockLeftOut(name=left.name, size_bytes=left.size_bytes, reason=left.reason) for left in memory.left_out
            ),
            rate_bytes_per_s=memory.rate_bytes_per_s,
        )

    async def digests(self, journey: str, source: str, asked: AskDigests) -> DigestsAnswer:
        """Digests of what was loaded. Raises PeerViolation, QemuFailed (it was not loaded), QemuGone."""
        arrival, memory = self._loaded(journey, source)
        assert arrival.loaded is not None
        await arrival.loaded.wait(LOAD_PATIENCE_S)
        blocks = memory.blocks
        for name, length in asked.blocks.items():
            if name not in blocks or not 0 < length <= blocks[name].total_bytes:
                raise PeerViolation(f"The destination's QEMU has no {length} bytes of a RAM block '{name}'.")
        arrival.lengths = asked.blocks
        seed = bytes.fromhex(asked.seed_hex)
        offsets = sample_offsets(seed, asked.blocks, asked.sample) if asked.sample else {}
        try:
            found = await digests(memory, asked.blocks, offsets)
        except (Stopped, OSError) as error:
            raise QemuGone(f"The destination's memory could not be read to its end: {error}.") from error
        return DigestsAnswer(digests={name: digest.hex() for name, digest in found.items()})

    async def pieces(self, journey: str, source: str, asked: AskPieces) -> PiecesAnswer:
        """Digests of pieces of a block that was digested. Raises PeerViolation, QemuGone."""
        arrival, memory = self._loaded(journey, source)
        length = arrival.lengths.get(asked.block, 0)
        if asked.piece_bytes not in (*LADDER, SAMPLE_PIECE_BYTES):
            raise PeerViolation(f"Pieces of {asked.piece_bytes} bytes are not compared.")
        if any(offset >= length or offset % asked.piece_bytes for offset in asked.offsets):
            raise PeerViolation(f"A piece is outside of the {length} bytes of '{asked.block}' that were digested.")
        try:
            found = await memory.digest_pieces(asked.block, asked.offsets, asked.piece_bytes, length)
        except KeyError as error:
            raise PeerViolation(f"The whole of '{asked.block}' was not digested.") from error
        except (Stopped, OSError) as error:
            raise QemuGone(f"The destination's memory could not be read to its end: {error}.") from error
        return PiecesAnswer(digests=[digest.hex() for digest in found])

    async def page(self, journey: str, source: str, asked: AskPage) -> PageAnswer:
        """A page of a block that was digested. Raises PeerViolation, QemuGone."""
        arrival, memory = self._loaded(journey, source)
        if asked.offset % PAGE_BYTES or asked.offset + PAGE_BYTES > arrival.lengths.get(asked.block, 0):
            raise PeerViolation(f"There is no page at {asked.offset} of '{asked.block}' that was digested.")
        try:
            content = await memory.read(asked.block, asked.offset, PAGE_BYTES)
        except (Stopped, OSError) as error:
            raise QemuGone(f"The destination's memory could not be read: {error}.") from error
        return PageAnswer(hex=content.hex())

    def _loaded(self, journey: str, source: str) -> tuple[Arrival, GuestMemory]:
        arrival = self._find(journey, source)
        if arrival.memory is None or arrival.loaded is None or arrival.state.phase is not IncomingPhase.ARMED:
            raise PeerViolation(
                f"Journey {journey} is {arrival.state.phase.value}; its memory is not to be compared now."
            )
        return arrival, arrival.memory
