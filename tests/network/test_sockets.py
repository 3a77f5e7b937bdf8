"""TCP sockets as the kernel tells of them: read from bytes without fear, and real ones found, counted and ended."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemove.network.ledger import SocketLedger
from livemove.network.sockets import ESTABLISHED, SocketDiag, parse

from .two_hosts import TwoHosts


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(*attributes: bytes, family: int = socket.AF_INET) -> bytes:
    local, remote = (socket.inet_aton(text).ljust(16, b"\0") for text in ("10.0.0.1", "10.0.0.2"))
    identity = struct.pack("=2s2s16s16sI8s", b"\x10\x00", b"\xc0\x00", local, remote, 0, struct.pack("=Q", 77))
    return struct.pack("=BBBB48sIIIII", family, ESTABLISHED, 0, 0, identity, 0, 0, 0, 0, 0) + b"".join(attributes)


def mptcp(flags: int, token: int = 5) -> bytes:
    inner = attribute(2, struct.pack("=I", token)) + attribute(8, struct.pack("=I", flags)) + attribute(10, b"\x03")
    return attribute(19, attribute(1, b"mptcp\0") + attribute(3 | 0x8000, inner))


def test_a_subflow() -> None:
    info = bytearray(224)
    struct.pack_into("=QQ", info, 120, 1000, 2000)
    struct.pack_into("=I", info, 100, 9)
    facts = parse(message(attribute(2, bytes(info)), mptcp(0b1000 | 1 << 6)))
    assert facts is not None
    assert (facts.local, facts.local_port, facts.remote, facts.remote_port) == ("10.0.0.1", 4096, "10.0.0.2", 49152)
    assert (facts.cookie, facts.token, facts.local_id) == (77, 5, 3)
    assert (facts.bytes_acked, facts.bytes_received, facts.retransmitted_segments) == (1000, 2000, 9)
    assert facts.measured and facts.mptcp and facts.joined and facts.fully_established


def test_plain_ones() -> None:
    for plain in (message(), message(mptcp(0))):  # without the protocol, and fallen back
        facts = parse(plain)
        assert facts is not None and facts.mptcp is False and not facts.measured
    facts = parse(message(), ended=True)
    assert facts is not None and facts.mptcp is None


def test_other_sockets() -> None:
    assert parse(message(family=socket.AF_UNIX)) is None
    assert parse(message(attribute(10, bytes([socket.IPPROTO_UDP])))) is None
    assert parse(message()[:-1]) is None


@given(st.binary(max_size=400), st.booleans())
def test_garbage_is_read_without_fear(data: bytes, ended: bool) -> None:
    parse(data, ended=ended)
    parse(message() + data, ended=ended)


@given(st.integers(0, 300), st.integers(0, 255))
def test_a_damaged_message_is_read_without_fear(place: int, value: int) -> None:
    whole = bytearray(message(attribute(2, bytes(224)), mptcp(0b1000)))
    whole[place % len(whole)] = value
    parse(bytes(whole))
    parse(bytes(whole)[:place])


@contextlib.contextmanager
def connected(hosts: TwoHosts, protocol: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    family = socket.AF_INET6 if hosts.ipv6 else socket.AF_INET
    with contextlib.ExitStack() as stack:
        with hosts.inside("destination"):
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM, protocol))
        listener.bind((hosts.address("destination", 0), 0))
        listener.listen()
        with hosts.inside("source"):
            ours = stack.enter_context(socket.socket(family, socket.SOCK_STREAM, protocol))
        ours.connect(listener.getsockname()[:2])
        yield ours, stack.enter_context(listener.accept()[0])


@pytest.mark.qemu
@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("protocol", [socket.IPPROTO_TCP, socket.IPPROTO_MPTCP])
def test_real_sockets_are_found_counted_and_ended(ipv6: bool, protocol: int) -> None:
    hosts = TwoHosts(1, ipv6=ipv6)
    with contextlib.ExitStack() as stack:
        stack.callback(hosts.close)
        ours, theirs = stack.enter_context(connected(hosts, protocol))
        port = theirs.getsockname()[1]
        with hosts.inside("source"):
            source = SocketLedger(port, remotes=[hosts.address("destination", 0)])
            stack.callback(source.close)
            diag = SocketDiag()
            stack.callback(diag.close)
        with hosts.inside("destination"):
            destination = SocketLedger(port)
            stack.callback(destination.close)
        ours.sendall(bytes(300_000))
        received = 0
        while received < 300_000:
            received += len(theirs.recv(1 << 20))
        theirs.sendall(b"x")
        assert ours.recv(10) == b"x"
        [facts] = source.scan()
        assert facts.mptcp is (protocol == socket.IPPROTO_MPTCP) and bool(facts.token) is facts.mptcp
        assert (facts.local, facts.remote) == (hosts.address("source", 0), hosts.address("destination", 0))
        assert facts.local_port == ours.getsockname()[1] and facts.state == ESTABLISHED
        assert len(destination.scan()) == 1
        assert diag.dump(local_port=port) == []
        assert diag.destroy(facts) and not diag.destroy(facts)
        ours.close()
        theirs.close()
        for ledger, pair in (
            (source, (facts.local, facts.remote)),
            (destination, (facts.remote, facts.local)),
        ):
            ledger.settle(2.0)
            [(where, total)] = ledger.totals().items()
            assert where == pair and (total.subflows, total.open_subflows) == (1, 0)
            sent, got = total.bytes_acked, total.bytes_received
            assert max(sent, got) - 300_000 in (0, 1, 2) and min(sent, got) - 1 in (0, 1, 2)


@pytest.mark.qemu
def test_settling_ends_although_a_socket_stays_open() -> None:
    hosts = TwoHosts(1)
    with contextlib.ExitStack() as stack:
        stack.callback(hosts.close)
        ours, theirs = stack.enter_context(connected(hosts, socket.IPPROTO_TCP))
        with hosts.inside("source"):
            ledger = SocketLedger(theirs.getsockname()[1], remotes=[hosts.address("destination", 0)])
        stack.callback(ledger.close)
        ledger.scan()
        begun = time.monotonic()
        ledger.settle(20.0)
        assert time.monotonic() - begun < 10
        [total] = ledger.totals().values()
        assert total.open_subflows == 1 and ours.fileno() >= 0
