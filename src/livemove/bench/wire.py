"""What crosses each link while a guest moves, by the counters of the source's NICs.

They tell two things without asking livemove or QEMU: which links carried the bytes, and how fast the bulk of them went.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from livemove.base.clock import Clock
from livemove.base.tasks import cancel_and_wait, spawn

# Readings are interpolated, so 3 s of bulk are timed to about a thousandth.
POLL_S = 0.05
# Of all bytes, the bulk: without the connections' slow start, and without the end, where little is left to send.
BULK_FROM, BULK_TO = 0.05, 0.95

#: When, and how many bytes each interface had sent by then.
Reading = tuple[float, Mapping[str, int]]


class WireMeter:
    """Reads what NICs have sent, from entering ``async with`` to leaving it.

    :param pid: of any process in the NICs' network namespace; it lives on meanwhile.
    """

    def __init__(self, pid: int, interfaces: Sequence[str], clock: Clock) -> None:
        self._path, self._interfaces, self._clock = Path(f"/proc/{pid}/net/dev"), interfaces, clock
        self._task: asyncio.Task[None] | None = None
        self.readings: list[Reading] = []

    async def __aenter__(self) -> Self:
        self._read()
        self._task = spawn(self._poll(), name="wire meter")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await cancel_and_wait(self._task)
        if error is None:
            self._read()

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            self._read()

    def _read(self) -> None:
        sent = sent_bytes(self._path.read_text())
        self.readings.append((self._clock.monotonic_s(), {name: sent[name] for name in self._interfaces}))


def sent_bytes(text: str) -> dict[str, int]:
    """What each interface has sent, from the text of ``/proc/net/dev``: two lines of headings, then the ninth number."""
    lines = (line.partition(":") for line in text.splitlines()[2:])
    return {name.strip(): int(numbers.split()[8]) for name, _, numbers in lines}


def carried_bytes(readings: Sequence[Reading]) -> dict[str, int]:
    """What each interface sent between the first reading and the last. Raises ValueError without a reading."""
    if not readings:
        raise ValueError("no readings")
    (_, first), (_, last) = readings[0], readings[-1]
    return {name: last[name] - first[name] for name in first}


def bulk_s(readings: Sequence[Reading]) -> float:
    """How long the bulk of all bytes took to be sent: the time between :data:`BULK_FROM` and :data:`BULK_TO` of them.

    Raises ValueError when nothing was sent.
    """
    totals = [(at_s, sum(sent.values())) for at_s, sent in readings]
    if not totals or totals[0][1] == totals[-1][1]:
        raise ValueError("nothing was sent")
    return _when(totals, BULK_TO) - _when(totals, BULK_FROM)


def bulk_bytes_per_s(stream_bytes: int, bulk_ms: float) -> float:
    """The rate of a stream, of which the NICs sent the bulk in that time."""
    return stream_bytes * (BULK_TO - BULK_FROM) / (bulk_ms / 1e3)


def _when(totals: Sequence[tuple[float, int]], part: float) -> float:
    """When that part of all bytes had been sent, at an even rate from one reading to the next."""
    wanted = totals[0][1] + part * (totals[-1][1] - totals[0][1])
    place = next(index for index, (_, total) in enumerate(totals) if total >= wanted)
    (before_s, before), (after_s, after) = totals[place - 1], totals[place]
    return before_s + (after_s - before_s) * (wanted - before) / (after - before)
