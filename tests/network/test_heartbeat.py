"""Heartbeats between two hosts: the bookkeeping by itself, and real sockets."""

from __future__ import annotations

import contextlib
import select
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemove.network.heartbeat import Exchange, PathSocket
from livemove.network.keeper_words import KeptPath
from livemove.wire.heartbeat import Heartbeat, Role, pack

from .two_hosts import PORT, TwoHosts, run

KEY = bytes(range(16))
NOBODY: frozenset[int] = frozenset()


def exchange(role: Role = Role.SOURCE, life: int = 1) -> Exchange:
    return Exchange(role, [0, 1], life)


def test_two_sides_hear_and_answer_each_other() -> None:
    source, destination = exchange(), exchange(Role.DESTINATION, 2)
    for side in (source, destination):
        side.next_round()
    assert destination.take(0, source.beat(0, NOBODY, None), 1.0)
    assert source.take(0, destination.beat(0, frozenset({1}), 500), 2.0)
    assert (destination.heard[0].round_number, destination.heard[0].at_s) == (1, 1.0)
    assert (source.answered[0].round_number, source.answered[0].at_s) == (1, 2.0)
    assert source.answered[1].round_number == destination.answered[0].round_number == 0
    assert source.peer_dead == {1} and source.allowances == {0: 500} and source.heard_s == 2.0


def test_only_the_newest_heartbeat_speaks_for_the_other_side() -> None:
    source = exchange()
    newer = Heartbeat(Role.DESTINATION, 1, 9, 5, dead=frozenset({0}), allowance_bytes_per_s=7)
    older = Heartbeat(Role.DESTINATION, 0, 9, 4)
    assert source.take(1, newer, 1.0) and source.take(0, older, 2.0)
    assert source.peer_dead == {0} and source.allowances == {1: 7}
    assert source.heard[0].round_number == 4


def test_what_was_heard_before_is_no_news() -> None:
    source = exchange()
    beat = Heartbeat(Role.DESTINATION, 0, 9, 5)
    source.take(0, beat, 1.0)
    source.take(0, beat, 2.0)
    assert source.heard[0].at_s == 1.0


def test_own_role_and_other_paths_are_refused() -> None:
    source = exchange()
    assert not source.take(0, Heartbeat(Role.SOURCE, 0, 9, 5), 1.0)
    assert not source.take(0, Heartbeat(Role.DESTINATION, 1, 9, 5), 1.0)
    assert not source.take(7, Heartbeat(Role.DESTINATION, 7, 9, 5), 1.0)
    assert source.heard_s is None


def test_answers_to_an_earlier_life_or_to_rounds_never_sent_are_none() -> None:
    source = exchange(life=1)
    source.next_round()
    source.take(0, Heartbeat(Role.DESTINATION, 0, 9, 5, heard_life=77, heard_round=1), 1.0)
    source.take(0, Heartbeat(Role.DESTINATION, 0, 9, 6, heard_life=1, heard_round=2), 1.0)
    assert source.answered[0].round_number == 0


def test_the_other_side_starts_again() -> None:
    source = exchange()
    source.take(0, Heartbeat(Role.DESTINATION, 0, 9, 500, dead=frozenset({1})), 1.0)
    source.take(0, Heartbeat(Role.DESTINATION, 0, 10, 1), 2.0)
    assert source.heard[0].round_number == 1 and source.peer_dead == NOBODY


beats = st.builds(
    Heartbeat,
    st.sampled_from(Role),
    st.integers(0, 31),
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(0, 2),
    st.integers(0, 20),
    st.frozensets(st.integers(0, 31)),
    st.none() | st.integers(0, 1 << 62),
)


@given(st.lists(st.tuples(st.integers(0, 2), beats), max_size=30))
def test_no_heartbeat_makes_us_believe_what_we_did_not_send(arrivals: list[tuple[int, Heartbeat]]) -> None:
    source = exchange(life=1)
    source.next_round()
    for now, (path, beat) in enumerate(arrivals):
        source.take(path, beat, float(now))
    assert set(source.heard) == set(source.answered) == {0, 1}
    assert all(known.round_number <= 1 for known in source.answered.values())


@pytest.mark.qemu
@pytest.mark.parametrize("ipv6", [False, True])
def test_real_sockets(ipv6: bool) -> None:
    hosts = TwoHosts(1, ipv6=ipv6)
    with contextlib.ExitStack() as stack:
        stack.callback(hosts.close)
        sockets = {}
        for role, side in ((Role.DESTINATION, "destination"), (Role.SOURCE, "source")):
            other = "source" if side == "destination" else "destination"
            path = KeptPath(0, hosts.address(side, 0), hosts.address(other, 0), hosts.link(side, 0))
            with hosts.inside(side):
                sockets[role] = PathSocket(path, role, PORT, KEY)
            stack.callback(sockets[role].close)
        source, destination = sockets[Role.SOURCE], sockets[Role.DESTINATION]
        from_source = Heartbeat(Role.SOURCE, 0, 1, 1)
        back = Heartbeat(Role.DESTINATION, 0, 2, 1)
        destination.send(back)  # nobody is known yet: nothing happens
        assert destination.receive() == []

        with hosts.inside("source"):
            stranger = stack.enter_context(
                socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
            )
        to = (hosts.address("destination", 0), PORT)
        for datagram in (
            b"",
            bytes(64),
            bytes(2000),
            pack(from_source, KEY[::-1]),
            pack(back, KEY),
            pack(Heartbeat(Role.SOURCE, 1, 1, 1), KEY),
        ):
            stranger.sendto(datagram, to)
        source.send(from_source)
        select.select([destination], [], [], 5)
        received = []
        while select.select([destination], [], [], 0.1)[0]:
            received += destination.receive()
        assert received == [from_source]
        destination.send(back)
        select.select([source], [], [], 5)
        assert source.receive() == [back]

        # the NIC goes away and comes back
        namespace, before = hosts.namespace("source"), source.index
        run("ip", "-n", namespace, "link", "del", hosts.link("source", 0))
        source.send(from_source)
        with hosts.inside("source"):
            assert not source.open_again()
        hosts.lay(0, "")
        with hosts.inside("source"):
            assert source.open_again() and source.index not in (0, before)
        with hosts.inside("destination"):
            assert destination.open_again()
        source.send(from_source)
        select.select([destination], [], [], 5)
        assert destination.receive() == [from_source]


@pytest.mark.qemu
def test_a_port_that_is_taken_is_refused() -> None:
    hosts = TwoHosts(1)
    try:
        path = KeptPath(0, hosts.address("destination", 0), hosts.address("source", 0), hosts.link("destination", 0))
        with hosts.inside("destination"):
            first = PathSocket(path, Role.DESTINATION, PORT, KEY)
            with pytest.raises(OSError):
                PathSocket(path, Role.DESTINATION, PORT, KEY)
        first.close()
    finally:
        hosts.close()
