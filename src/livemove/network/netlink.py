"""Netlink as bytes: a request, its answers and its attributes, where what the kernel said must go back to it unchanged.

Formats: linux/netlink.h, linux/genetlink.h; all numbers in the machine's own order. Every call is an exchange with the
kernel alone, so it blocks for microseconds, a dump of large tables longer: not for the loop's thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Self

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
REPLACE, CREATE = 0x100, 0x400
_ERROR, _DONE, _MULTI, _INTERRUPTED = 2, 3, 0x2, 0x10
_SOL_NETLINK, _GET_STRICT_CHECK = 270, 12
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NESTED, _TYPE = 0x8000, 0x3FFF
_RECEIVE_BYTES = 1 << 18
_TIMEOUT_S = 10.0
_DUMPS = 5

ROUTE, GENERIC = 0, 16


class Netlink:
    """One netlink socket, of the network namespace of the thread that makes it. Raises OSError."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.settimeout(_TIMEOUT_S)
        self._sequence = 0
        with contextlib.suppress(OSError):
            # dumps are filtered by the kernel where it can (4.20); the callers filter again
            self._socket.setsockopt(_SOL_NETLINK, _GET_STRICT_CHECK, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """May be called twice."""
        self._socket.close()

    def change(self, message: int, payload: bytes, flags: int = 0) -> None:
        """Ask for a change. Raises OSError with the kernel's reason when it refuses."""
        self._talk(message, REQUEST | ACK | flags, payload)

    def ask(self, message: int, payload: bytes) -> list[bytes]:
        """The payloads of the answers to one question. Raises OSError."""
        return self._talk(message, REQUEST, payload)

    def dump(self, message: int, payload: bytes) -> list[bytes]:
        """The payloads of a whole table, consistent in itself. Raises OSError."""
        for _ in range(_DUMPS):
            try:
                return self._talk(message, REQUEST | DUMP, payload)
            except InterruptedError:
                continue
        raise OSError("the kernel's table changes too fast to be read")

    def _talk(self, message: int, flags: int, payload: bytes) -> list[bytes]:
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(payload), message, flags, self._sequence, 0)
        self._socket.send(header + payload)
        answers: list[bytes] = []
        interrupted = False
        while True:
            data = self._socket.recv(_RECEIVE_BYTES)
            for kind, said, sequence, content in messages(data):
                if sequence != self._sequence:
                    continue
                interrupted = interrupted or bool(said & _INTERRUPTED)
                if kind in (_ERROR, _DONE):
                    number = -struct.unpack_from("=i", content)[0] if len(content) >= 4 else 0
                    if number:
                        raise OSError(number, os.strerror(number))
                    if interrupted:
                        raise InterruptedError
                    return answers
                answers.append(content)
                if not said & _MULTI and not flags & ACK:
                    return answers


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, sequence and payload of each message; ends at the first one of impossible length."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield kind, flags, sequence, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def attribute(kind: int, value: bytes | int) -> bytes:
    """One attribute, padded; an int is a 32-bit number."""
    data = struct.pack("=I", value) if isinstance(value, int) else value
    return (_ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + data).ljust((len(data) + 7) & ~3, b"\0")


def nested(kind: int, *inner: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(inner))


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and value of each attribute; ends at the first one that is cut off."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size or at + length > len(data):
            return
        yield kind & _TYPE, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
