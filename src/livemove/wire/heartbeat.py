"""The heartbeat of a path: one UDP datagram of 64 bytes, every 50 ms, in each direction.

All numbers are big-endian.

    offset size  field
         0    4  magic "LMhb"
         4    1  version, 1
         5    1  role of the sender: 1 source, 2 destination
         6    1  path: its number in the journey's plan, 0 to 31
         7    1  zero
         8    4  life of the sender: a random number, new when its keeper starts again
        12    4  round: counts up, one number for all paths
        16    4  life of the receiver, as last heard; 0: nobody was heard yet
        20    4  the receiver's last round that was heard on this path; 0: none
        24    4  verdicts: bit N is set when path N is dead by the sender's own evidence
        28    4  zero
        32    8  allowance: bytes per second that the sender wants to get at most; all ones: no limit
        40    8  zero
        48   16  BLAKE2s of the 48 bytes before, keyed with the journey's key

The tag makes a heartbeat of one journey worthless to another one and to strangers; role and path are under it, so nothing
can be sent back or sent along elsewhere. A version that adds fields uses the bytes that are zero now.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from enum import Enum

from livemove.base.errors import PeerViolation

SIZE = 64
MOST_PATHS = 32
KEY_BYTES = 16
_MAGIC, _VERSION = b"LMhb", 1
_FIELDS = struct.Struct(">4sBBBxIIIII4xQ8x")
_NO_LIMIT = (1 << 64) - 1


class Role(Enum):
    """Which end of the journey speaks."""

    SOURCE = 1
    DESTINATION = 2

    @property
    def other(self) -> Role:
        return Role.DESTINATION if self is Role.SOURCE else Role.SOURCE


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One heartbeat; see the module's table for the fields.

    :param dead: numbers of paths.
    :param allowance_bytes_per_s: None: no limit.
    """

    role: Role
    path: int
    life: int
    round_number: int
    heard_life: int = 0
    heard_round: int = 0
    dead: frozenset[int] = frozenset()
    allowance_bytes_per_s: int | None = None


def pack(beat: Heartbeat, key: bytes) -> bytes:
    """The datagram."""
    mask = 0
    for path in beat.dead:
        mask |= 1 << path
    allowance = _NO_LIMIT if beat.allowance_bytes_per_s is None else min(beat.allowance_bytes_per_s, _NO_LIMIT - 1)
    fields = _FIELDS.pack(
        _MAGIC,
        _VERSION,
        beat.role.value,
        beat.path,
        beat.life,
        beat.round_number,
        beat.heard_life,
        beat.heard_round,
        mask,
        allowance,
    )
    return fields + _tag(fields, key)


def unpack(data: bytes, key: bytes) -> Heartbeat:
    """The heartbeat in a datagram. Raises PeerViolation for anything that :func:`pack` did not make with that key."""
    if len(data) != SIZE:
        raise PeerViolation(f"A heartbeat has {SIZE} bytes, not {len(data)}.")
    if not hmac.compare_digest(data[_FIELDS.size :], _tag(data[: _FIELDS.size], key)):
        raise PeerViolation("The heartbeat is not of this journey.")
    magic, version, role, path, life, round_number, heard_life, heard_round, mask, allowance = _FIELDS.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        raise PeerViolation(f"The heartbeat is of version {version}, not {_VERSION}.")
    if role not in (Role.SOURCE.value, Role.DESTINATION.value) or path >= MOST_PATHS or not life or not round_number:
        raise PeerViolation("The heartbeat has a role, path, life or round that cannot be.")
    return Heartbeat(
        Role(role),
        path,
        life,
        round_number,
        heard_life,
        heard_round,
        frozenset(number for number in range(MOST_PATHS) if mask >> number & 1),
        None if allowance == _NO_LIMIT else allowance,
    )


def _tag(fields: bytes, key: bytes) -> bytes:
    return hashlib.blake2s(fields, key=key, digest_size=SIZE - _FIELDS.size).digest()
