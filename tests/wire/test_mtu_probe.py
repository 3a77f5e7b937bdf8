"""Probes are read as they were written, and anything else is nobody's."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.fuzz.profile import altered, fuzz

from livemove.base.errors import PeerViolation
from livemove.wire.mtu_probe import (
    HEADER_BYTES,
    LARGEST_PACKET,
    Kind,
    Packet,
    decode,
    encode,
    overhead_bytes,
    smallest_packet,
)

NONCE = bytes(range(16))
ADDRESSES = {28: "10.0.0.1", 48: "fd00::1"}


@pytest.mark.parametrize(("overhead", "address"), ADDRESSES.items())
def test_sizes_are_those_of_whole_packets(overhead: int, address: str) -> None:
    assert (overhead_bytes(address), smallest_packet(address)) == (overhead, overhead + 32)
    for kind, length in (
        (Kind.PROBE, 1500),
        (Kind.PADDED, 1500),
        (Kind.REQUEST, None),
        (Kind.ACK, None),
        (Kind.TOO_LARGE, None),
    ):
        data = encode(Packet(kind, 7, 1500), NONCE, overhead)
        assert len(data) + overhead == (length or overhead + HEADER_BYTES)


def test_the_layout_of_the_table() -> None:
    data = encode(Packet(Kind.REQUEST, 0x01020304, 9000), NONCE, 28)
    assert data == b"lmMP\x01\x02\x00\x00" + NONCE + b"\x01\x02\x03\x04" + (9000).to_bytes(4, "big")


packets = st.builds(Packet, st.sampled_from(Kind), st.integers(0, (1 << 32) - 1), st.integers(80, LARGEST_PACKET))


@given(packets, st.sampled_from([28, 48]))
def test_what_is_written_is_read(packet: Packet, overhead: int) -> None:
    assert decode(encode(packet, NONCE, overhead), NONCE, overhead) == packet


@fuzz
@given(st.binary(max_size=200) | packets.flatmap(lambda packet: altered(encode(packet, NONCE, 28))))
@example(b"")
@example(encode(Packet(Kind.PROBE, 1, 60), bytes(16), 28))
@example(encode(Packet(Kind.ACK, 1, 59), NONCE, 28))
@example(encode(Packet(Kind.ACK, 1, LARGEST_PACKET + 1), NONCE, 28))
@example(encode(Packet(Kind.PROBE, 1, 100), NONCE, 28)[:-1])
@example(encode(Packet(Kind.PROBE, 1, 100), NONCE, 28).replace(b"lmMP\x01\x01", b"lmMP\x01\x00"))
@example(encode(Packet(Kind.PROBE, 1, 100), NONCE, 28).replace(b"lmMP\x01", b"lmMP\x02"))
def test_anything_else_is_a_violation_and_what_is_read_says_its_own_size(data: bytes) -> None:
    try:
        packet = decode(data, NONCE, 28)
    except PeerViolation:
        return
    assert 60 <= packet.size <= LARGEST_PACKET
    if packet.kind in (Kind.PROBE, Kind.PADDED):
        assert len(data) + 28 == packet.size
    else:
        assert data == encode(packet, NONCE, 28)
