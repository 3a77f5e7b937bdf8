"""What the kernel tells by netlink without being asked: its multicast groups, and numbers and addresses in what it says.

With netlink.py this is all that the path keeper needs. That is a process of its own for every journey and must be up in a
few hundredths of a second: importing pyroute2 alone takes 0.35 s.
"""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from livemove.network.netlink import messages

SOCK_DIAG = 4
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_OVERRUN = 4
_PIECE_BYTES = 1 << 16
# Notes of some thousand ended sockets, should the reader be stopped for a while.
_NOTES_BYTES = 1 << 20
# What is read at one go, so that a flood of notes cannot hold up the reader.
_PIECES_AT_ONCE = 64
_MAPPED = bytes(10) + b"\xff\xff"


@dataclass(frozen=True, slots=True)
class Note:
    """One message of a group, without its header."""

    kind: int
    payload: bytes


class Listener:
    """A socket that hears multicast groups of this network namespace; readable when there is something.

    :param groups: numbers of the protocol's groups, of those that anybody may hear.
    Raises OSError when the kernel lacks the protocol or a group.
    """

    def __init__(self, protocol: int, groups: Sequence[int]) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NOTES_BYTES)
            self._socket.setblocking(False)
            self._socket.bind((0, 0))
            for group in groups:
                self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """May be called twice."""
        self._socket.close()

    def heard(self) -> tuple[list[Note], bool]:
        """What was said since the last call, and whether some of it was lost for want of room. Raises OSError."""
        notes: list[Note] = []
        for _ in range(_PIECES_AT_ONCE):
            try:
                data = self._socket.recv(_PIECE_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return notes, True
                raise
            notes += [Note(kind, payload) for kind, _, _, payload in messages(data) if kind > _OVERRUN]
        return notes, False


def number(value: bytes | None) -> int:
    """An unsigned number in the machine's order; 0 when it is missing or has no number's size."""
    if value is None or len(value) not in (1, 2, 4, 8):
        return 0
    return int.from_bytes(value, sys.byteorder)


def text_address(value: bytes) -> str:
    """4 or 16 bytes as people write an address, IPv4-mapped ones as IPv4; empty for any other size."""
    if len(value) == 16 and value.startswith(_MAPPED):
        value = value[len(_MAPPED) :]
    if len(value) == 4:
        return socket.inet_ntop(socket.AF_INET, value)
    return socket.inet_ntop(socket.AF_INET6, value) if len(value) == 16 else ""
