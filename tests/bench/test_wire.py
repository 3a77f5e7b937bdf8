"""What NICs sent, and when the bulk of it went."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from livemove.base.clock import SystemClock
from livemove.base.errors import JourneyFailed
from livemove.bench.testbed import check_links
from livemove.bench.wire import WireMeter, bulk_bytes_per_s, bulk_s, carried_bytes, sent_bytes

NET_DEV = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:    5000      50    0    0    0     0          0         0     5001      50    0    0    0     0       0          0
link0-A: 1234567890  10    0    0    0     0          0         0 987654321      20    0    0    0     0       0          0
"""


def test_sent_bytes() -> None:
    assert sent_bytes(NET_DEV) == {"lo": 5001, "link0-A": 987654321}
    assert sent_bytes(Path("/proc/self/net/dev").read_text()).keys() == {name for _, name in socket.if_nameindex()}


def test_carried_bytes() -> None:
    assert carried_bytes([(1, {"a": 5, "b": 7}), (2, {"a": 6, "b": 9}), (3, {"a": 9, "b": 9})]) == {"a": 4, "b": 2}
    with pytest.raises(ValueError, match="no readings"):
        carried_bytes([])


@pytest.mark.parametrize(
    ("totals", "expected"),
    [
        # an even rate all the time
        ([(0, 0), (10, 100)], 9),
        ([(0, 1000), (5, 1050), (10, 1100)], 9),
        # nothing before and after: neither counts
        ([(0, 0), (100, 0), (110, 100), (500, 100)], 9),
        # 5 of 100 are sent at 1.0; 95 are in the middle of the last step but one
        ([(0, 0), (1, 5), (2, 45), (3, 90), (5, 100), (9, 100)], 3),
        # all between two readings
        ([(0, 0), (1, 0), (2, 7)], 0.9),
    ],
)
def test_bulk(totals: list[tuple[float, int]], expected: float) -> None:
    assert bulk_s([(at_s, {"a": total // 2, "b": total - total // 2}) for at_s, total in totals]) == pytest.approx(
        expected
    )


@pytest.mark.parametrize("totals", [[], [(0, 5)], [(0, 5), (1, 5)]])
def test_bulk_of_nothing(totals: list[tuple[float, int]]) -> None:
    with pytest.raises(ValueError, match="nothing was sent"):
        bulk_s([(at_s, {"a": total}) for at_s, total in totals])


def test_rate_of_the_bulk() -> None:
    assert bulk_bytes_per_s(1000, 450) == pytest.approx(2000)


@pytest.mark.parametrize(
    ("carried", "said"),
    [
        ({0: 5000, 1: 5000, 2: 10}, ""),
        ({0: 5000, 1: 10, 2: 0}, "went over link0, not link0, link1 of s"),
        ({0: 5000, 1: 5000, 2: 200}, "went over link0, link1, link2, not link0, link1 of s"),
        ({0: 0, 1: 0, 2: 0}, "went over no link, not"),
    ],
)
def test_links_that_carried_it(carried: dict[int, int], said: str) -> None:
    if not said:
        check_links(carried, (0, 1), "s")
        return
    with pytest.raises(JourneyFailed, match=said):
        check_links(carried, (1, 0), "s")


def test_a_meter_reads_until_it_is_left() -> None:
    async def measure() -> WireMeter:
        async with WireMeter(os.getpid(), ["lo"], SystemClock()) as wire:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"x" * 5000, ("127.0.0.1", 9))
            async with asyncio.timeout(10):
                while len(wire.readings) < 3:  # noqa: ASYNC110  (a reading has no event)
                    await asyncio.sleep(0.01)
        return wire

    wire = asyncio.run(measure())
    assert len(wire.readings) > 3 and carried_bytes(wire.readings)["lo"] >= 5000


def test_a_meter_that_is_left_by_an_error_lets_it_through() -> None:
    async def fail() -> None:
        async with WireMeter(os.getpid(), ["lo"], SystemClock()):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        asyncio.run(fail())
