"""What MPTCP connections of a host have received in order, every 10 ms: a program and the reading of what it says.

    python -m tests.failover_matrix.arriving NETNS PORT-RANGE-START

Bytes are counted at the connection, not at the packet: what a subflow brought ahead of a hole that a dead path left is
not there yet for QEMU, so it does not count. The program runs before everything else that wants a processor; when it was
late all the same, the times of its lines say so.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.inside import enter

from livemove.network.netlink import Netlink, attribute, attributes
from livemove.network.netlink_notes import SOCK_DIAG

PERIOD_S = 0.010
_BY_FAMILY = 20
# linux/inet_diag.h: request, INET_DIAG_REQ_PROTOCOL, message, INET_DIAG_INFO
_REQUEST, _REQUEST_PROTOCOL = struct.Struct("=BBBBI48s"), 3
_MESSAGE, _INFO = struct.Struct("=BBBB48sIIIII"), 2
_ALL_STATES = 0xFFF & ~(1 << 10)
# struct mptcp_info (linux/mptcp.h): token, bytes_received
_TOKEN, _BYTES_RECEIVED = 12, 64
_QUESTION = _REQUEST.pack(socket.AF_INET, 0, 1 << (_INFO - 1), 0, _ALL_STATES, bytes(48)) + attribute(
    _REQUEST_PROTOCOL, socket.IPPROTO_MPTCP
)


def received_bytes(netlink: Netlink) -> dict[int, int]:
    """By token of each MPTCP connection of IPv4."""
    found = {}
    for payload in netlink.dump(_BY_FAMILY, _QUESTION):
        info = dict(attributes(payload[_MESSAGE.size :])).get(_INFO, b"")
        if len(info) >= _BYTES_RECEIVED + 8:
            (token,) = struct.unpack_from("=I", info, _TOKEN)
            (found[token],) = struct.unpack_from("=Q", info, _BYTES_RECEIVED)
    return found


@dataclass(frozen=True, slots=True)
class Reading:
    """What had arrived, in bytes since the program began, at a monotonic time."""

    at_s: float
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Stall:
    """A time in which next to nothing arrived."""

    start_s: float
    length_s: float


def longest_stall(readings: list[Reading], until_s: float, step_bytes: int) -> Stall:
    """The longest time in which fewer than `step_bytes` arrived, from the first such step to `until_s`.

    A trickle is no progress: whatever arrives counts once there are `step_bytes` more of it.
    """
    longest, mark = Stall(until_s, 0.0), None
    for reading in readings:
        if reading.at_s > until_s:
            break
        if mark is None:
            if reading.total_bytes - readings[0].total_bytes >= step_bytes:
                mark = reading
            continue
        if reading.at_s - mark.at_s > longest.length_s:
            longest = Stall(mark.at_s, reading.at_s - mark.at_s)
        if reading.total_bytes - mark.total_bytes >= step_bytes:
            mark = reading
    return longest


class Arriving:
    """The program beside a journey, for the length of ``with``; :attr:`readings` grow meanwhile."""

    def __init__(self, namespace: Path) -> None:
        self.readings: list[Reading] = []
        self._grown = threading.Condition()
        self._program = subprocess.Popen(
            [sys.executable, "-m", "tests.failover_matrix.arriving", str(namespace)], stdout=subprocess.PIPE, text=True
        )
        self._thread = threading.Thread(target=self._read, name="what arrives", daemon=True)

    def __enter__(self) -> Arriving:
        self._thread.start()
        self.wait_for(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._program.terminate()
        self._program.wait()
        self._thread.join()
        assert self._program.stdout is not None
        self._program.stdout.close()

    def _read(self) -> None:
        assert self._program.stdout is not None
        for line in self._program.stdout:
            at_s, total = line.split()
            with self._grown:
                self.readings.append(Reading(float(at_s), int(total)))
                self._grown.notify_all()

    def wait_for(
        self, total_bytes: int, *, timeout_s: float = 30.0, given_up: Callable[[], bool] = lambda: False
    ) -> bool:
        """Return when so much has arrived; False when `given_up` says so first. AssertionError after `timeout_s`."""
        until_s = time.monotonic() + timeout_s
        with self._grown:
            while not self.readings or self.readings[-1].total_bytes < total_bytes:
                if given_up():
                    return False
                assert time.monotonic() < until_s, f"{total_bytes} bytes have not arrived within {timeout_s:g} s"
                self._grown.wait(0.1)
        return True


def main() -> None:
    enter(Path(sys.argv[1]))
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(2))
    netlink, last, total = Netlink(SOCK_DIAG), dict[int, int](), 0
    while True:
        now = received_bytes(netlink)
        total += sum(count - last.get(token, 0) for token, count in now.items())
        last = now
        print(f"{time.monotonic():.6f} {total}", flush=True)
        time.sleep(PERIOD_S)


if __name__ == "__main__":
    with suppress(BrokenPipeError, KeyboardInterrupt):
        main()
