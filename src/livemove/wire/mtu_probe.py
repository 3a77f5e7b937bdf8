"""The datagrams that find out how large a packet a path carries, each direction by itself.

The source speaks, the destination answers; answers to what must be large are small and the other way round, so that a
missing answer tells the direction::

    source                                   destination
      PROBE, as large as `size` says   -->
                                       <--   ACK, small
      REQUEST of `size`, small         -->
                                       <--   PADDED, as large as `size` says
                                       <--   or TOO_LARGE, small: its own NIC does not send that

======  =====  ===========================================================================
offset  bytes  field (big-endian)
======  =====  ===========================================================================
0       4      ``lmMP``
4       1      version, 1
5       1      kind: 1 PROBE, 2 REQUEST, 3 ACK, 4 PADDED, 5 TOO_LARGE
6       2      zero
8       16     the journey's nonce; who does not know it gets no answer
24      4      sequence: an answer has its question's
28      4      size: of the whole IP packet in bytes, headers included; an ACK has what arrived
32      ...    zeros, in PROBE and PADDED
======  =====  ===========================================================================

Only packets with every field right are read; the rest is nobody's. One version exists; another one is not answered.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from livemove.base.errors import PeerViolation

# Specification constants.
MAGIC, VERSION = b"lmMP", 1
NONCE_BYTES = 16
LARGEST_PACKET = 65535
_HEADER = struct.Struct(">4sBBH16sII")
HEADER_BYTES = _HEADER.size
_IPV4_UDP_BYTES, _IPV6_UDP_BYTES = 28, 48


class Kind(IntEnum):
    """Zero is never one."""

    PROBE = 1
    REQUEST = 2
    ACK = 3
    PADDED = 4
    TOO_LARGE = 5


_LARGE = (Kind.PROBE, Kind.PADDED)


@dataclass(frozen=True, slots=True)
class Packet:
    """One datagram.

    :param size: bytes of an IP packet; for PROBE and PADDED its own.
    """

    kind: Kind
    sequence: int
    size: int


def overhead_bytes(address: str) -> int:
    """IP and UDP headers of a packet to that address."""
    return _IPV6_UDP_BYTES if ":" in address else _IPV4_UDP_BYTES


def smallest_packet(address: str) -> int:
    """Size of a packet without padding."""
    return overhead_bytes(address) + HEADER_BYTES


def encode(packet: Packet, nonce: bytes, overhead: int) -> bytes:
    """The datagram, padded where its kind says so.

    :param overhead: of :func:`overhead_bytes`.
    """
    header = _HEADER.pack(MAGIC, VERSION, packet.kind, 0, nonce, packet.sequence, packet.size)
    return header.ljust(packet.size - overhead, b"\0") if packet.kind in _LARGE else header


def decode(data: bytes, nonce: bytes, overhead: int) -> Packet:
    """What a datagram says.

    :raise PeerViolation: it is cut off, nobody's, of another journey, or its length is not what it says.
    """
    if len(data) < HEADER_BYTES:
        raise PeerViolation(f"A datagram of {len(data)} bytes is no probe.")
    magic, version, kind, zero, told, sequence, size = _HEADER.unpack_from(data)
    if (magic, version, zero, told) != (MAGIC, VERSION, 0, nonce):
        raise PeerViolation("A datagram is not of this journey.")
    try:
        packet = Packet(Kind(kind), sequence, size)
    except ValueError as error:
        raise PeerViolation(f"There is no probe of kind {kind}.") from error
    length = size - overhead if packet.kind in _LARGE else HEADER_BYTES
    if len(data) != length or not HEADER_BYTES + overhead <= size <= LARGEST_PACKET:
        raise PeerViolation(f"A probe of {len(data)} bytes says that it is of {size}.")
    return packet
