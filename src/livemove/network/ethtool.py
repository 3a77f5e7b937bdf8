"""What a NIC says of itself, asked by ethtool's ioctl (linux/ethtool.h).

/sys has most of it too, but shows the NICs of the network namespace that it was mounted in, which need not be ours. Not
knowing is an answer here, not a fault: virtual NICs and old drivers leave questions open, and a NIC may go at any moment.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct

SIOCETHTOOL = 0x8946
_ETHTOOL_GDRVINFO, _ETHTOOL_GTSO, _ETHTOOL_GGRO = 0x03, 0x1E, 0x2B
_ETHTOOL_GCHANNELS, _ETHTOOL_GLINKSETTINGS = 0x3C, 0x4C
_UNKNOWN_SPEED = 0xFFFFFFFF
#: Larger than each of the structures asked for; the largest, ethtool_link_settings, ends in masks of up to 3 * 127 words.
_ROOM_BYTES = 2048


def link_speed(name: str) -> int:
    """Bytes per second that the NIC `name` of this network namespace says it carries; 0 when unknown."""
    settings = _ask(name, struct.pack("I", _ETHTOOL_GLINKSETTINGS))
    if settings is None:
        return 0
    # the first call answers only with the size of the masks that follow, negated (struct ethtool_link_settings)
    words = -struct.unpack_from("b", settings, 15)[0]
    if words > 0:
        settings = _ask(name, struct.pack("II7Bb", _ETHTOOL_GLINKSETTINGS, 0, *[0] * 7, words))
    mbit_per_s = struct.unpack_from("I", settings, 4)[0] if settings is not None else 0
    return 0 if mbit_per_s in (0, _UNKNOWN_SPEED) else mbit_per_s * 125_000


def driver_of(name: str) -> str:
    """The kernel's driver of the NIC; empty when unknown."""
    found = _ask(name, struct.pack("I", _ETHTOOL_GDRVINFO))
    return "" if found is None else bytes(found[4:36]).split(b"\0")[0].decode(errors="replace")


def receive_queues(name: str) -> int:
    """Receive queues that are in use, over which RSS spreads connections; 0 when unknown."""
    found = _ask(name, struct.pack("I", _ETHTOOL_GCHANNELS))
    if found is None:
        return 0
    # struct ethtool_channels: four maxima, then rx, tx, other, combined
    receive, _, _, combined = struct.unpack_from("4I", found, 20)
    return int(receive + combined)


def offloads(name: str) -> tuple[str, ...]:
    """Which of ``tso`` and ``gro`` are on."""
    on = []
    for offload, command in (("tso", _ETHTOOL_GTSO), ("gro", _ETHTOOL_GGRO)):
        found = _ask(name, struct.pack("I", command))
        if found is not None and struct.unpack_from("I", found, 4)[0]:
            on.append(offload)
    return tuple(on)


def _ask(name: str, question: bytes) -> array.array[int] | None:
    """The answer in the place of the question; None when the NIC or its driver has none."""
    answer = array.array("B", question.ljust(_ROOM_BYTES, b"\0"))
    request = struct.pack("16sP", name.encode()[:15], answer.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        try:
            fcntl.ioctl(handle, SIOCETHTOOL, request)
        except OSError:
            return None
    return answer
