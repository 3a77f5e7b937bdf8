"""MPTCP's path manager: events read from bytes without fear, and real subflows made and ended."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemove.network.mptcp import EventKind, Mptcp, MptcpEvent, parse_event

from .test_sockets import attribute, connected
from .two_hosts import TwoHosts


def test_an_event() -> None:
    payload = bytes([10, 1, 0, 0]) + b"".join(
        attribute(kind, value)
        for kind, value in {
            1: struct.pack("=I", 99),
            3: b"\x01",
            4: b"\x02",
            5: socket.inet_aton("10.0.0.1"),
            7: socket.inet_aton("10.0.0.2"),
            9: b"\x10\x00",
            10: b"\xc0\x00",
            12: b"\x68",
        }.items()
    )
    expected = MptcpEvent(EventKind.SUBFLOW_ESTABLISHED, 99, "10.0.0.1", 4096, "10.0.0.2", 49152, 1, 2, 104)
    assert parse_event(payload) == expected


def test_ipv6_and_mapped_addresses() -> None:
    mapped, real = bytes(10) + b"\xff\xff\x0a\x00\x00\x01", socket.inet_pton(socket.AF_INET6, "fd00::1")
    event = parse_event(bytes([2, 1, 0, 0]) + attribute(6, mapped) + attribute(8, real))
    assert event is not None and (event.local, event.remote) == ("10.0.0.1", "fd00::1")


def test_events_that_are_not_followed() -> None:
    assert parse_event(bytes([13, 1, 0, 0])) is None
    assert parse_event(b"") is None


@given(st.binary(max_size=200), st.sampled_from([1, 2, 3, 10, 11]))
def test_garbage_is_read_without_fear(data: bytes, kind: int) -> None:
    parse_event(data)
    assert parse_event(bytes([kind, 1, 0, 0]) + data) is not None


@pytest.mark.qemu
@pytest.mark.parametrize("ipv6", [False, True])
def test_a_subflow_is_made_told_and_ended(ipv6: bool) -> None:
    hosts = TwoHosts(ipv6=ipv6)
    with contextlib.ExitStack() as stack:
        stack.callback(hosts.close)
        with hosts.inside("source"):
            kernel = Mptcp()
        stack.callback(kernel.close)

        def until(kind: EventKind) -> MptcpEvent:
            for _ in range(50):
                select.select([kernel], [], [], 0.1)
                for event in kernel.events()[0]:
                    if event.kind is kind:
                        return event
            raise AssertionError(f"no event {kind}")

        ours, theirs = stack.enter_context(connected(hosts, socket.IPPROTO_MPTCP))
        # joins go to another address: the listener must take them there too
        ours.sendall(b"hello")
        begun = until(EventKind.ESTABLISHED)
        assert (begun.local, begun.remote) == (hosts.address("source", 0), hosts.address("destination", 0))
        assert (begun.local_port, begun.remote_port) == (ours.getsockname()[1], theirs.getsockname()[1])
        kernel.create_subflow(
            begun.token, begun.local, begun.remote, begun.remote_port, address_id=2, interface=_index(hosts)
        )
        joined = until(EventKind.SUBFLOW_ESTABLISHED)
        assert (joined.token, joined.remote_port, joined.local_id) == (begun.token, begun.remote_port, 2)
        kernel.destroy_subflow(begun.token, joined.local, joined.local_port, joined.remote, joined.remote_port)
        assert until(EventKind.SUBFLOW_CLOSED).local_port == joined.local_port
        ours.close()
        theirs.close()
        assert until(EventKind.CLOSED).token == begun.token
        with pytest.raises(OSError) as caught:
            kernel.create_subflow(begun.token, begun.local, begun.remote, begun.remote_port)
        assert caught.value.errno in (errno.EINVAL, errno.ENOTCONN)


def _index(hosts: TwoHosts) -> int:
    with hosts.inside("source"):
        return socket.if_nametoindex(hosts.link("source", 0))
