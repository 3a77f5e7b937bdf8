"""What the NICs of this network namespace have carried, and whether they live; cheap enough for ten times a second."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

# of the namespace that the reading thread is in; /sys shows that of whoever mounted it
_COUNTERS = Path("/proc/thread-self/net/dev")
_SIOCGIFFLAGS, _SIOCETHTOOL, _ETHTOOL_GLINK = 0x8913, 0x8946, 0xA  # linux/sockios.h, linux/ethtool.h
_UP, _RUNNING = 0x1, 0x40


@dataclass(frozen=True, slots=True)
class NicCount:
    """Since the NIC came, with the headers of its own layer."""

    received_bytes: int
    received_packets: int
    sent_bytes: int
    sent_packets: int


def read_counts() -> dict[str, NicCount]:
    """By NIC; see :func:`parse_counts`."""
    return parse_counts(_COUNTERS.read_text())


def parse_counts(text: str) -> dict[str, NicCount]:
    """The table of /proc/net/dev (proc(5)): two lines of headers, then ``NAME: 8 columns received, 8 sent``."""
    counts = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.rpartition(":")
        columns = rest.split()
        counts[name.strip()] = NicCount(int(columns[0]), int(columns[1]), int(columns[8]), int(columns[9]))
    return counts


def is_living(name: str) -> bool:
    """Whether the NIC is there, up, and has a carrier.

    The carrier is asked of the driver (ethtool's ETHTOOL_GLINK): the flag IFF_RUNNING may be a second late.
    """
    encoded = name.encode()[:15]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            flags = struct.unpack("16xH14x", fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16sH14x", encoded, 0)))[0]
        except OSError:
            return False
        answer = array.array("B", struct.pack("II", _ETHTOOL_GLINK, 0))
        try:
            fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP8x", encoded, answer.buffer_info()[0]))
        except OSError:
            carrier = bool(flags & _RUNNING)  # a driver that does not tell
        else:
            carrier = bool(struct.unpack_from("I", answer, 4)[0])
    return bool(flags & _UP) and carrier
