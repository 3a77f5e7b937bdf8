"""The numbers that the kernel gives to addresses of its own for MPTCP: its *endpoints* (linux/mptcp_pm.h).

A subflow that arrives at an address without an endpoint makes the kernel invent one, marked *implicit*, and keep it for good,
beyond the connection; eight of them, and subflows to further addresses are refused. Removing one ends all subflows that come
from its address.
"""

from __future__ import annotations

import struct

from livemove.network.mptcp import find_family
from livemove.network.netlink import GENERIC, Netlink, attribute, attributes, nested
from livemove.network.netlink_notes import number, text_address
from livemove.network.sockets import ESTABLISHED, SocketDiag

_REMOVE, _GET, _VERSION = 2, 3, 1
_ADDRESS = 1
_ID, _ADDRESS4, _ADDRESS6, _FLAGS = 2, 3, 4, 6
_IMPLICIT = 1 << 4


def find_endpoint(address: str) -> tuple[int, bool] | None:
    """Number of the endpoint with that address, and whether it is implicit; None when there is none. Raises OSError."""
    with Netlink(GENERIC) as kernel:
        for payload in kernel.dump(find_family(kernel)[0], struct.pack("=BBH", _GET, _VERSION, 0)):
            found = dict(attributes(dict(attributes(payload[4:])).get(_ADDRESS, b"")))
            if text_address(found.get(_ADDRESS4) or found.get(_ADDRESS6, b"")) == address:
                return number(found.get(_ID)), bool(number(found.get(_FLAGS)) & _IMPLICIT)
    return None


def remove_implicit_endpoint(address: str) -> None:
    """Remove the endpoint of that address if it is implicit and no subflow that anybody has would end. Raises OSError."""
    found = find_endpoint(address)
    if found is None or not found[1] or _is_in_use(address):
        return
    with Netlink(GENERIC) as kernel:
        named = nested(_ADDRESS, attribute(_ID, bytes([found[0]])))
        kernel.change(find_family(kernel)[0], struct.pack("=BBH", _REMOVE, _VERSION, 0) + named)


def _is_in_use(address: str) -> bool:
    diag = SocketDiag()
    try:
        return any(each.mptcp and each.local == address and each.state == ESTABLISHED for each in diag.dump())
    finally:
        diag.close()
