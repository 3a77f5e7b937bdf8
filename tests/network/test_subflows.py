"""Which subflows a journey's connections have and lack, by events and dumps."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemove.network.mptcp import EventKind, MptcpEvent
from livemove.network.sockets import ESTABLISHED, SYN_SENT, SocketFacts
from livemove.network.subflows import Connections

PORT = 49000
PAIRS = {(f"10.0.{number}.1", f"10.0.{number}.2"): number for number in range(3)}


def source() -> Connections:
    return Connections(PAIRS, PORT, listening=False)


def event(kind: EventKind, token: int, path: int = 0, port: int = PORT, local_port: int = 4000) -> MptcpEvent:
    return MptcpEvent(kind, token, f"10.0.{path}.1", local_port, f"10.0.{path}.2", port)


def facts(token: int, path: int, state: int = ESTABLISHED, mptcp: bool = True) -> SocketFacts:
    local, remote = f"10.0.{path}.1", f"10.0.{path}.2"
    return SocketFacts(2, state, b"", path + 100 * token, local, 4000, remote, PORT, mptcp=mptcp, token=token)


def test_a_connection_gets_a_subflow_on_each_living_path_once() -> None:
    connections = source()
    connections.note(event(EventKind.ESTABLISHED, 7))
    assert connections.lacking((0, 2), 0.0) == [(7, 2)]
    assert connections.lacking((0, 2), 0.1) == []
    connections.note(event(EventKind.SUBFLOW_ESTABLISHED, 7, 2))
    assert connections.lacking((0, 2), 9.0) == []
    assert (connections.without(1), connections.without(2)) == (1, 0)


def test_what_is_not_confirmed_is_tried_again_less_and_less_often() -> None:
    connections = source()
    connections.note(event(EventKind.ESTABLISHED, 7))
    tries = [tick / 20 for tick in range(200) if connections.lacking((0, 1), tick / 20)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert gaps == pytest.approx([0.15, 0.3, 0.6, 1.2, 2.0, 2.0, 2.0], abs=0.06)


def test_a_join_that_nobody_answers_is_asked_for_again() -> None:
    connections = source()
    connections.note(event(EventKind.ESTABLISHED, 7))
    assert connections.lacking((0, 1), 0.0) == [(7, 1)]
    assert not connections.tried(7, 1) and not connections.tried(7, 2) and not connections.tried(8, 1)
    connections.adopt([facts(7, 0), facts(7, 1, SYN_SENT)])
    assert connections.lacking((0, 1), 0.1) == []
    assert connections.lacking((0, 1), 0.2) == [(7, 1)] and connections.tried(7, 1)
    connections.adopt([facts(7, 0), facts(7, 1)])
    assert connections.lacking((0, 1), 0.9) == [] and not connections.tried(7, 1)


def test_a_closed_subflow_is_lacking_at_once() -> None:
    connections = source()
    connections.note(event(EventKind.ESTABLISHED, 7))
    connections.note(event(EventKind.SUBFLOW_ESTABLISHED, 7, 1))
    assert connections.lacking((0, 1), 0.0) == []
    connections.note(event(EventKind.SUBFLOW_CLOSED, 7, 1))
    assert connections.lacking((0, 1), 0.1) == [(7, 1)]


def test_a_path_that_died_is_made_again_without_waiting() -> None:
    connections = source()
    connections.note(event(EventKind.ESTABLISHED, 7))
    assert connections.lacking((0, 1), 0.0) == [(7, 1)]
    connections.path_died(1)
    connections.path_died(0)
    assert connections.without(0) == 1
    assert connections.lacking((0, 1), 0.1) == [(7, 0), (7, 1)]


def test_other_programs_connections_are_none_of_ours() -> None:
    connections = source()
    connections.note(event(EventKind.ESTABLISHED, 1, port=PORT + 1))
    connections.note(event(EventKind.ESTABLISHED, 2, path=9))
    connections.note(event(EventKind.CREATED, 3))
    connections.note(event(EventKind.SUBFLOW_CLOSED, 4))
    connections.note(MptcpEvent(EventKind.CLOSED, 5))
    assert len(connections) == 0
    listening = Connections({(remote, local): path for (local, remote), path in PAIRS.items()}, PORT, listening=True)
    listening.note(MptcpEvent(EventKind.ESTABLISHED, 1, "10.0.0.2", PORT, "10.0.0.1", 4000))
    listening.note(MptcpEvent(EventKind.ESTABLISHED, 2, "10.0.0.2", PORT + 1, "10.0.0.1", 4000))
    assert [connection.token for connection in listening] == [1]


def test_closed_connections_are_gone() -> None:
    connections = source()
    for token in (1, 2):
        connections.note(event(EventKind.ESTABLISHED, token))
    connections.note(MptcpEvent(EventKind.CLOSED, 1))
    assert len(connections) == 1
    connections.clear()
    assert len(connections) == 0 and connections.lacking((0, 1), 0.0) == []


def test_a_dump_is_the_truth_about_subflows_but_no_connection_ends_by_it() -> None:
    connections = source()
    connections.note(event(EventKind.ESTABLISHED, 1))
    connections.note(event(EventKind.SUBFLOW_ESTABLISHED, 1, 1))
    connections.adopt([facts(1, 0), facts(1, 1, SYN_SENT), facts(2, 2), facts(3, 0, mptcp=False), facts(0, 0)])
    assert {connection.token: connection.paths for connection in connections} == {1: {0}, 2: {2}}
    # that of 1 on path 1 is under way, whoever asked for it
    assert connections.lacking((0, 1, 2), 0.0) == [(1, 2), (2, 0), (2, 1)]
    assert (1, 1) in connections.lacking((0, 1, 2), 0.2)
    connections.adopt([])
    assert len(connections) == 2 and connections.without(0) == 2


def test_subflows_between_unplanned_addresses_belong_to_no_path() -> None:
    connections = source()
    connections.note(event(EventKind.ESTABLISHED, 1))
    connections.note(MptcpEvent(EventKind.SUBFLOW_ESTABLISHED, 1, "10.9.9.9", 1, "10.0.0.2", PORT))
    [connection] = connections
    assert connection.paths == {0} and len(connection.subflows) == 2


def test_their_number_is_bounded() -> None:
    connections = source()
    for token in range(1, 3000):
        connections.note(event(EventKind.ESTABLISHED, token))
    assert len(connections) == 1024


events = st.builds(
    event, st.sampled_from(EventKind), st.integers(1, 3), st.integers(0, 2), local_port=st.integers(1, 3)
)


@given(st.lists(events | st.integers(0, 2), max_size=60))
def test_no_order_of_events_asks_for_what_is_there(steps: list[MptcpEvent | int]) -> None:
    connections = source()
    for number, step in enumerate(steps):
        if isinstance(step, int):
            connections.path_died(step)
        else:
            connections.note(step)
        have = {connection.token: connection.paths for connection in connections}
        for token, path in connections.lacking((0, 1, 2), number / 10):
            assert path not in have[token]
