"""The comparison of two memories, source's and destination's part, over the questions that they ask each other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.hypervisor.held import SIZE, SMALL, Held, holding

from livemove.agent.arrival_effects import Arrival
from livemove.agent.arrival_memory import ArrivalMemory
from livemove.api.client import AgentClient
from livemove.api.incoming_models import AskDigests, AskPage, AskPieces
from livemove.base.clock import SystemClock
from livemove.base.errors import PeerViolation, QemuFailed, QemuGone
from livemove.base.units import KIB, MIB
from livemove.hypervisor.qmp import Monitor
from livemove.migration import events as on
from livemove.migration.journal import Record
from livemove.migration.model import Incoming, IncomingPhase, Verify
from livemove.migration.receiving import LoadedWatch
from livemove.migration.verifying import MemoryComparison

JOURNEY = "20260101-0000-web1"


class Listing:
    """A monitor that lists the blocks."""

    def __init__(self, held: Held) -> None:
        self._held = held

    async def execute(self, command: str, arguments: dict[str, Any]) -> str:
        assert (command, arguments) == ("human-monitor-command", {"command-line": "info ramblock"})
        return self._held.ramblock_text


class Loaded:
    """What the destination's QEMU says of having loaded everything."""

    error: QemuFailed | None = None

    async def wait(self, timeout_s: float) -> None:
        if self.error is not None:
            raise self.error


@dataclass
class Wire:
    """The source's client, which asks the destination's part without a network, and may change the answers."""

    there: ArrivalMemory
    lie: dict[str, Any] = field(default_factory=dict)

    async def open_memory(self, journey: str) -> Any:
        return await self._asked("open", self.there.open(journey, "A"))

    async def digests(self, journey: str, asked: AskDigests, *, timeout_s: float) -> Any:
        return await self._asked("digests", self.there.digests(journey, "A", asked))

    async def piece_digests(self, journey: str, asked: AskPieces) -> Any:
        return await self._asked("pieces", self.there.pieces(journey, "A", asked))

    async def page(self, journey: str, asked: AskPage) -> Any:
        return await self._asked("page", self.there.page(journey, "A", asked))

    async def _asked(self, what: str, answer: Any) -> Any:
        answer = await answer
        return self.lie[what](answer) if what in self.lie else answer


@dataclass
class Both:
    source: Held
    destination: Held
    arrival: Arrival
    wire: Wire
    comparison: MemoryComparison | None = None

    async def compare(self, mode: Verify = Verify.FULL) -> on.Event:
        monitor, client = cast(Monitor, Listing(self.source)), cast(AgentClient, self.wire)
        self.comparison = MemoryComparison(
            mode, JOURNEY, self.source.frozen, self.source.process.pid, monitor, client, SystemClock(), kvm=False
        )
        await self.comparison.open()
        self.arrival.state = Incoming(IncomingPhase.ARMED)
        return await self.comparison.compare()

    @property
    def view(self) -> Any:
        assert self.comparison is not None
        return self.comparison.view


@pytest.fixture
def processes() -> Iterator[tuple[Held, Held]]:
    with holding() as make:
        yield make(), make()


@pytest.fixture
async def both(processes: tuple[Held, Held]) -> AsyncIterator[Both]:
    source, destination = processes
    arrival = Arrival(
        Record(JOURNEY, "destination", "web1", "u", "A", "B", "ann", 0.0, {}), Incoming(IncomingPhase.LISTENING)
    )
    running = SimpleNamespace(process=destination.process, frozen=destination.frozen, monitor=Listing(destination))
    arrival.running, arrival.loaded = cast(Any, running), cast(LoadedWatch, Loaded())

    def find(journey: str, host: str) -> Arrival:
        assert (journey, host) == (JOURNEY, "A")
        return arrival

    world = Both(source, destination, arrival, Wire(ArrivalMemory(find, SystemClock())))
    yield world
    for memory in (arrival.memory, world.comparison):
        if memory is not None:
            await memory.close()


@pytest.mark.parametrize("mode", [Verify.FULL, Verify.SAMPLE])
async def test_equal_memories_are_the_same(both: Both, mode: Verify) -> None:
    assert await both.compare(mode) == on.MemoryVerified()
    assert both.view.result == "same" and not both.view.left_out
    assert both.view.blocks == {"ram0": SIZE, "pc.rom": SMALL}
    whole = SIZE + SMALL
    assert both.view.compared_bytes == whole if mode is Verify.FULL else 0 < both.view.compared_bytes < whole


@pytest.mark.parametrize("block, offset", [("ram0", 40 * MIB + 17), ("ram0", SIZE - 1), ("pc.rom", SMALL - 1)])
async def test_one_flipped_bit_is_found_and_its_page_is_named(both: Both, block: str, offset: int) -> None:
    both.destination.flip(block, offset)
    event = await both.compare()
    assert isinstance(event, on.MemoryDiffers)
    assert f"1 page differs ({block} at {offset // 4096 * 4096:#x})" in event.reason
    assert both.view.result == "different"
    assert both.view.different_pages == [f"{block} at {offset // 4096 * 4096:#x}"]


async def test_of_many_differing_pages_some_are_named(both: Both) -> None:
    for page in range(40):
        both.destination.flip("ram0", page * 4096 * 3)
    event = await both.compare()
    assert isinstance(event, on.MemoryDiffers)
    assert "at least 16 pages differ" in event.reason and len(both.view.different_pages) == 16


async def test_a_block_that_the_destination_has_not_is_said_to_be_left_out(both: Both) -> None:
    both.destination.blocks.pop()
    assert await both.compare() == on.MemoryVerified()
    assert [(left.name, left.size_bytes) for left in both.view.left_out] == [("pc.rom", SMALL)]
    assert "no block of that name" in both.view.left_out[0].reason
    assert both.view.blocks == {"ram0": SIZE}


@pytest.mark.parametrize(
    "what, lie, said",
    [
        ("digests", lambda a: a.model_copy(update={"digests": {}}), "other blocks"),
        ("digests", lambda a: a.model_copy(update={"digests": {**a.digests, "x": "00"}}), "other blocks"),
        ("pieces", lambda a: a.model_copy(update={"digests": a.digests[:-1]}), "another number of digests"),
    ],
)
async def test_an_answer_to_another_question_ends_the_journey(both: Both, what: str, lie: Any, said: str) -> None:
    both.destination.flip("ram0", 0)
    both.wire.lie[what] = lie
    with pytest.raises(PeerViolation, match=said):
        await both.compare()
    assert both.view is None or both.view.result == "not finished"


async def test_a_lying_destination_cannot_make_different_memories_the_same(both: Both) -> None:
    """Once the digests differ nothing that it says about the pieces makes them equal."""
    both.destination.flip("ram0", 0)
    kept = both.source.open()
    try:
        (truth,) = await kept.digest_pieces("ram0", [0], 256 * KIB, SIZE)
    finally:
        await kept.close()
    both.wire.lie["pieces"] = lambda answer: answer.model_copy(update={"digests": [truth.hex(), *answer.digests[1:]]})
    event = await both.compare()
    assert isinstance(event, on.MemoryDiffers) and "differs" in event.reason
    assert both.view.result == "different" and both.view.different_pages == []


async def test_memory_that_was_not_opened_is_not_taken_for_compared(both: Both) -> None:
    monitor, client = cast(Monitor, Listing(both.source)), cast(AgentClient, both.wire)
    comparison = MemoryComparison(
        Verify.FULL, JOURNEY, both.source.frozen, both.source.process.pid, monitor, client, SystemClock(), kvm=False
    )
    with pytest.raises(QemuGone, match="not opened"):
        await comparison.compare()


async def test_a_destination_that_failed_to_load_is_not_compared(both: Both) -> None:
    assert both.arrival.loaded is not None
    both.arrival.loaded.error = QemuFailed("The destination's QEMU failed to load the VM.")  # type: ignore[attr-defined]
    with pytest.raises(QemuFailed, match="failed to load"):
        await both.compare()


async def test_a_destination_that_stops_reading_ends_the_comparison(both: Both) -> None:
    await both.compare()
    assert both.arrival.memory is not None
    both.arrival.memory.stop()
    with pytest.raises(QemuGone, match="could not be read to its end"):
        await both.wire.there.digests(JOURNEY, "A", AskDigests(blocks={"ram0": SIZE}))


async def test_the_destination_answers_only_for_what_it_has_loaded(both: Both) -> None:
    there = both.wire.there
    with pytest.raises(PeerViolation, match="not to be compared now"):
        await there.digests(JOURNEY, "A", AskDigests(blocks={"ram0": SIZE}))
    await both.compare()
    for blocks in ({"ram0": SIZE + 1}, {"ram0": 0}, {"vga.vram": 4096}):
        with pytest.raises(PeerViolation, match="has no"):
            await there.digests(JOURNEY, "A", AskDigests(blocks=blocks))
    await there.digests(JOURNEY, "A", AskDigests(blocks={"ram0": MIB}))
    for block, size, offset in (("ram0", 4096, MIB), ("ram0", 4096, 17), ("pc.rom", 4096, 0), ("ram0", 8192, 0)):
        with pytest.raises(PeerViolation):
            await there.pieces(JOURNEY, "A", AskPieces(block=block, piece_bytes=size, offsets=[offset]))
    for block, offset in (("ram0", MIB), ("ram0", 17), ("pc.rom", 0), ("vga.vram", 0)):
        with pytest.raises(PeerViolation, match="no page"):
            await there.page(JOURNEY, "A", AskPage(block=block, offset=offset))
    assert len((await there.page(JOURNEY, "A", AskPage(block="ram0", offset=4096))).hex) == 8192
    for phase in (IncomingPhase.OWNED, IncomingPhase.ABANDONED):
        both.arrival.state = Incoming(phase)
        with pytest.raises(PeerViolation, match="not to be compared now"):
            await there.page(JOURNEY, "A", AskPage(block="ram0", offset=0))


@pytest.mark.parametrize("phase", [IncomingPhase.RESERVED, IncomingPhase.BUILT, IncomingPhase.OWNED])
async def test_memory_is_opened_only_while_it_is_being_received(both: Both, phase: IncomingPhase) -> None:
    both.arrival.state = Incoming(phase)
    with pytest.raises(PeerViolation, match="receives no memory"):
        await both.wire.there.open(JOURNEY, "A")
    assert both.arrival.memory is None
