"""What the kernel has learned of a peer's link-layer address (``ip neigh``), forgotten so that it asks anew.

Formats: linux/neighbour.h, linux/rtnetlink.h. All of it blocks; see network.netlink.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct

from livemove.network.netlink import ROUTE, Netlink, attribute, attributes

_REMOVE, _GET = 29, 30
_DST = 1
#: NUD_PERMANENT and NUD_NOARP: an administrator's, or not learned at all.
_NOT_LEARNED = 0x80 | 0x40
# family, padding, interface index, state, flags, type
_MESSAGE = struct.Struct("=BBHiHBB")


def forget_neighbour(address: str, link: str) -> None:
    """Forget what was learned of `address` on our NIC `link`. Raises OSError: ENODEV when there is no such NIC."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = ipaddress.ip_address(address).packed
    index = socket.if_nametoindex(link)
    with Netlink(ROUTE) as kernel:
        for found in kernel.dump(_GET, _MESSAGE.pack(family, 0, 0, 0, 0, 0, 0)):
            _, _, _, at, state, _, _ = _MESSAGE.unpack_from(found)
            said = dict(attributes(found[_MESSAGE.size :]))
            if at == index and said.get(_DST) == packed and not state & _NOT_LEARNED:
                _remove(kernel, _MESSAGE.pack(family, 0, 0, index, 0, 0, 0) + attribute(_DST, packed))


def _remove(kernel: Netlink, message: bytes) -> None:
    try:
        kernel.change(_REMOVE, message)
    except OSError as error:
        if error.errno != errno.ENOENT:  # it went by itself
            raise
