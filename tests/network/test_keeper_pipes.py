"""The keeper's pipes to an agent that does not read, stops or goes."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from livemove.network.keeper_pipes import Inbox, Outbox
from livemove.network.keeper_words import Counters, KeeperTrouble, PathCounters, PathHealed, Ready, line_of, report_of

COUNTERS = Counters(tuple(PathCounters(path, "10.0.0.1", "10.0.0.2") for path in range(8)))


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = list(os.pipe())
    yield ends[0], ends[1]
    for end in ends:
        try:
            os.close(end)
        except OSError:
            assert end == ends[0]  # the test closed it


def all_said(reading: int) -> list[object]:
    os.set_blocking(reading, False)
    data = b""
    while True:
        try:
            data += os.read(reading, 1 << 20)
        except BlockingIOError:
            return [report_of(line) for line in data.splitlines()]


def test_reports_arrive_as_they_are_said(pipe: tuple[int, int]) -> None:
    outbox = Outbox(pipe[1])
    outbox.say(Ready(7))
    outbox.say(PathHealed(1, 2.0))
    assert all_said(pipe[0]) == [Ready(7), PathHealed(1, 2.0)]


def test_an_agent_that_does_not_read_misses_counters_only_and_blocks_nobody(pipe: tuple[int, int]) -> None:
    outbox = Outbox(pipe[1])
    for number in range(2000):
        outbox.say(COUNTERS)
        outbox.say(KeeperTrouble(str(number)))
    said: list[object] = []
    while now := all_said_so_far(pipe[0]):
        said.append(now)
        outbox.flush()
    reports = [report_of(line) for line in b"".join(now for now in said if isinstance(now, bytes)).splitlines()]
    assert [report.text for report in reports if isinstance(report, KeeperTrouble)] == [str(n) for n in range(2000)]
    assert 0 < sum(report == COUNTERS for report in reports) < 2000


def all_said_so_far(reading: int) -> bytes:
    os.set_blocking(reading, False)
    try:
        return os.read(reading, 1 << 20)
    except BlockingIOError:
        return b""


def test_an_agent_that_is_gone(pipe: tuple[int, int]) -> None:
    outbox = Outbox(pipe[1])
    os.close(pipe[0])
    outbox.say(Ready(7))
    outbox.drain()


def test_lines_in_pieces_and_several_at_once(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    inbox = Inbox(reading)
    os.write(writing, b"one\ntwo\nthr")
    assert inbox.first() == b"one"
    assert inbox.lines(readable=False) == [b"two"]
    os.write(writing, b"ee\nfour")
    assert inbox.lines() == [b"three"] and not inbox.ended


@pytest.mark.parametrize("said", [b"", b"half a line"])
def test_no_first_line(pipe: tuple[int, int], said: bytes) -> None:
    reading, writing = pipe
    os.write(writing, said)
    second = os.dup(reading)
    os.dup2(os.open(os.devnull, os.O_WRONLY), writing)
    inbox = Inbox(second)
    assert inbox.first() == b"" and inbox.ended
    os.close(second)


def test_a_line_is_whole(pipe: tuple[int, int]) -> None:
    assert line_of(Ready(1)).endswith(b"\n")
