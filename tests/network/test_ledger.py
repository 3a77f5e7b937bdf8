"""Adding up what sockets carried, from dumps and notes in any order."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from livemove.network.ledger import PairTotals, Tally
from livemove.network.sockets import SocketFacts

HERE, THERE = "10.0.0.1", "10.0.0.2"


def facts(cookie: int, acked: int = 0, received: int = 0, **more: object) -> SocketFacts:
    seen = SocketFacts(2, 1, b"", cookie, HERE, 1000 + cookie, THERE, 49000, True, acked, received, acked, mptcp=True)
    return replace(seen, **more)  # type: ignore[arg-type]


def test_an_empty_tally() -> None:
    assert Tally().totals() == {} and not Tally().unsettled()


def test_open_and_ended_sockets_are_summed_by_pair() -> None:
    tally = Tally()
    tally.seen([facts(1, 10, 5), facts(2, 100), facts(3, 7, local="10.0.1.1", mptcp=False)])
    tally.ended(facts(1, 20, 6))
    totals = tally.totals()
    assert totals[HERE, THERE] == PairTotals(120, 6, 120, subflows=2, open_subflows=1)
    assert totals["10.0.1.1", THERE] == PairTotals(7, 0, 7, subflows=1, plain=1, open_subflows=1)


def test_a_disconnected_socket_counts_where_it_was_and_with_what_it_had() -> None:
    """The kernel clears addresses, ports and counters of a first subflow that is destroyed before its connection."""
    tally = Tally()
    tally.seen([facts(1, 50, 5)])
    assert tally.knows(1)
    tally.ended(facts(1, 0, 0, local="0.0.0.0", remote_port=0, mptcp=None))
    assert tally.totals() == {(HERE, THERE): PairTotals(50, 5, 50, subflows=1)}
    assert not tally.knows(1)


def test_a_socket_known_by_its_end_only_is_not_called_plain() -> None:
    tally = Tally()
    tally.ended(facts(1, 5, mptcp=None))
    assert tally.totals()[HERE, THERE] == PairTotals(5, 0, 5, subflows=1)


def test_the_latest_word_on_mptcp_counts() -> None:
    tally = Tally()
    tally.seen([facts(1)])  # still connecting
    tally.seen([facts(1, mptcp=False)])  # fell back
    tally.ended(facts(1, mptcp=None))
    assert tally.totals()[HERE, THERE].plain == 1


def test_sockets_without_counters_are_left_for_later() -> None:
    tally = Tally()
    tally.seen([facts(1, measured=False)])
    assert tally.totals() == {}


def test_what_vanished_without_a_note_is_unsettled_and_still_counted_but_not_open() -> None:
    tally = Tally()
    tally.seen([facts(1, 5)])
    assert not tally.unsettled() and tally.totals()[HERE, THERE].open_subflows == 1
    tally.seen([facts(2)])
    assert tally.unsettled() and tally.totals()[HERE, THERE] == PairTotals(5, 0, 5, subflows=2, open_subflows=1)
    tally.ended(facts(1, 9))
    assert not tally.unsettled() and tally.totals()[HERE, THERE].bytes_acked == 9


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 10), st.booleans()), max_size=60))
def test_whatever_the_order_every_socket_counts_once_with_its_highest(steps: list[tuple[int, int, bool]]) -> None:
    tally = Tally()
    highest: dict[int, int] = {}
    ended: set[int] = set()
    for cookie, more, end in steps:
        if cookie not in ended:
            highest[cookie] = highest.get(cookie, 0) + more
        now = facts(cookie, highest[cookie])
        if end:
            tally.ended(now)
            ended.add(cookie)
        else:
            tally.seen([now])  # of an ended one: a dump that the note has overtaken
    tally.seen([facts(cookie, count) for cookie, count in highest.items()])
    total = tally.totals().get((HERE, THERE), PairTotals())
    assert total.bytes_acked == sum(highest.values())
    assert (total.subflows, total.open_subflows) == (len(highest), len(highest.keys() - ended))
