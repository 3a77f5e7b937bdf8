"""What a NIC and a packet filter count of the same traffic agrees without the headers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemove.policy.payload import MOST_OWED_BYTES, Traffic, header_bytes, payload, rest_of


def test_a_nic_and_a_filter_agree() -> None:
    headers = header_bytes(ipv6=False, mptcp=False)
    data, segments, merged = 45 * 1448, 45, 1
    on_the_wire = Traffic(data + segments * headers, segments)
    in_the_filter = Traffic(data + merged * (headers - 14), merged)
    assert payload(on_the_wire, headers, linked=True) == payload(in_the_filter, headers, linked=False) == data


def test_acknowledgements_are_nothing() -> None:
    assert payload(Traffic(66 * 1000, 1000), header_bytes(ipv6=False, mptcp=False), linked=True) == 0
    assert payload(Traffic(60 * 1000, 1000), header_bytes(ipv6=False, mptcp=False), linked=True) == 0


@pytest.mark.parametrize(("ipv6", "mptcp", "expected"), [(False, False, 66), (True, False, 86), (False, True, 90)])
def test_headers(ipv6: bool, mptcp: bool, expected: int) -> None:
    assert header_bytes(ipv6=ipv6, mptcp=mptcp) == expected


def test_a_counter_that_began_anew() -> None:
    assert Traffic(100, 10).since(Traffic(60, 4)) == Traffic(40, 6)
    assert Traffic(50, 1).since(Traffic(60, 4)) == Traffic(50, 1)
    assert Traffic(70, 1).since(Traffic(60, 4)) == Traffic(70, 1)


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(-(1 << 17), 1 << 17)), min_size=1, max_size=50))
def test_readings_apart_make_nobody_up(readings: list[tuple[int, int]]) -> None:
    """The filter is late by some packets at each reading, and everything is ours: together no more shows than one lag."""
    owed, shown, lag = MOST_OWED_BYTES, 0.0, 0
    for carried, new_lag in readings:
        rest, owed = rest_of(carried, carried - new_lag + lag, owed)
        shown, lag = shown + rest, new_lag
    assert shown == 0


def test_others_show_as_they_are_once_nothing_is_owed() -> None:
    assert rest_of(500.0, 200.0, 0.0) == (300.0, 0.0)
    assert rest_of(500.0, 200.0, 100.0) == (200.0, 0.0)
    assert rest_of(200.0, 500.0, 0.0) == (0.0, 300.0)
    assert rest_of(0.0, 1e9, 0.0) == (0.0, MOST_OWED_BYTES)
