"""Progress of a path's subflows, and whether connections became what was planned."""

from __future__ import annotations

import pytest

from livemove.network.keeper_words import FellBack, SubflowsMissing, SubflowsVerified
from livemove.network.mptcp import EventKind, MptcpEvent
from livemove.network.progress import Progress, Verification
from livemove.network.sockets import SocketFacts
from livemove.network.subflows import Connections

PAIRS = {("10.0.0.1", "10.0.0.2"): 0, ("10.0.1.1", "10.0.1.2"): 1}


def facts(cookie: int, acked: int, *, received: int = 0, path: int = 0, unacked: int = 0) -> SocketFacts:
    local, remote = f"10.0.{path}.1", f"10.0.{path}.2"
    return SocketFacts(
        2, 1, b"", cookie, local, 1, remote, 2, True, acked, received, unacked_segments=unacked, mptcp=True
    )


def test_a_path_stands_still_as_long_as_all_its_subflows_do() -> None:
    progress = Progress(PAIRS, 0.3)
    assert progress.unmoved_s(0) is None
    progress.note([facts(1, 5), facts(2, 5)], 10.0)
    assert progress.unmoved_s(0) == 0
    progress.note([facts(1, 5), facts(2, 5)], 10.2)
    progress.note([facts(1, 5), facts(2, 5)], 10.4)
    assert progress.unmoved_s(0) == pytest.approx(0.4) and progress.unmoved_s(1) is None
    progress.note([facts(1, 5), facts(2, 6)], 10.5)
    assert progress.unmoved_s(0) == 0
    progress.note([facts(1, 5), facts(2, 6, received=1)], 10.6)
    assert progress.unmoved_s(0) == 0


def test_a_long_time_between_two_dumps_proves_nothing() -> None:
    progress = Progress(PAIRS, 0.3)
    progress.note([facts(1, 5)], 10.0)
    progress.note([facts(1, 5)], 10.5)
    assert progress.unmoved_s(0) == 0


def test_a_path_without_measured_subflows_has_none() -> None:
    progress = Progress(PAIRS, 0.3)
    progress.note([facts(1, 5)], 10.0)
    progress.note([], 10.1)
    assert progress.unmoved_s(0) is None


def test_stuck_are_those_that_wait_for_an_acknowledgement() -> None:
    progress = Progress(PAIRS, 0.3)
    for tick in range(5):
        now = [facts(1, 5, unacked=3), facts(2, 5), facts(3, tick, unacked=3), facts(4, 5, path=1, unacked=1)]
        progress.note(now, tick / 10)
    assert progress.stuck(0, 0.35) == {1} and progress.stuck(1, 0.35) == {4} and progress.stuck(0, 0.5) == set()


# Section: verification


class Journey:
    """Connections on two paths, verified ten times a second."""

    def __init__(self) -> None:
        self.connections = Connections(PAIRS, 49000, listening=False)
        self._verification = Verification(patience_s=1.0)
        self.plain = 0
        self.now_s = 0.0

    def joined(self, token: int, *paths: int) -> None:
        for path in paths:
            kind = EventKind.SUBFLOW_ESTABLISHED if path else EventKind.ESTABLISHED
            self.connections.note(MptcpEvent(kind, token, f"10.0.{path}.1", 1, f"10.0.{path}.2", 49000))

    def told(self, seconds: float = 3.0, expected: int = 2, living: tuple[int, ...] = (0, 1)) -> list[object]:
        reports: list[object] = []
        for _ in range(round(seconds * 10)):
            self.now_s += 0.1
            reports += self._verification.check(self.connections, self.plain, expected, living, self.now_s)
        return reports


def test_what_is_complete_is_told_once() -> None:
    journey = Journey()
    assert journey.told() == []
    journey.joined(1, 0, 1)
    assert journey.told(0.5) == []
    journey.joined(2, 0, 1)
    assert journey.told() == [SubflowsVerified(2, (0, 1))]


def test_nothing_is_told_as_long_as_the_number_is_not_known() -> None:
    journey = Journey()
    journey.joined(1, 0)
    assert journey.told(expected=0) == []


def test_a_missing_subflow_is_told_after_a_while_and_its_coming_too() -> None:
    journey = Journey()
    journey.joined(1, 0, 1)
    journey.joined(2, 0)
    assert journey.told(0.8) == []
    assert journey.told() == [SubflowsMissing(1, 1, 2, "")]
    journey.joined(2, 1)
    assert journey.told() == [SubflowsVerified(2, (0, 1))]
    journey.connections.path_died(1)
    assert journey.told() == [SubflowsMissing(1, 2, 2, "")]
    assert journey.told(living=(0,)) == [SubflowsVerified(2, (0,))]


def test_plain_connections_are_told() -> None:
    journey = Journey()
    journey.joined(1, 0, 1)
    journey.plain = 1
    assert journey.told() == [FellBack(1, 2, "")]


def test_connections_that_were_never_opened_are_told_but_not_those_that_ended() -> None:
    journey = Journey()
    journey.joined(1, 0, 1)
    [report] = journey.told(expected=3)
    assert isinstance(report, SubflowsMissing) and (report.path, report.missing) == (-1, 2)
    journey.joined(2, 0, 1)
    journey.joined(3, 0, 1)
    assert journey.told(expected=3) == [SubflowsVerified(3, (0, 1))]
    journey.connections.note(MptcpEvent(EventKind.CLOSED, 3))
    assert journey.told(expected=3) == []
