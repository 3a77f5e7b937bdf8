"""Exact routes to a peer's addresses: made, found, and what was there before put back as the kernel told it.

Ours carry a routing protocol number of our own, so that nobody's are ever taken for ours and ours for nobody's. What was in
their place is kept as the kernel's own message and given back to it unchanged, as ``ip route save`` and ``restore`` do.
Formats: linux/rtnetlink.h. All of it blocks; see network.netlink.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct

from livemove.network import netlink
from livemove.network.netlink import Netlink, attribute, attributes, nested
from livemove.policy.host_setup import HostRoute

#: rtm_protocol of our routes; below 128 and in no iproute2 rt_protos.
OUR_PROTOCOL = 77

_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_MAIN, _UNICAST, _SCOPE_LINK = 254, 1, 253
_DST, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _METRICS, _MULTIPATH, _CACHEINFO, _VIA, _EXPIRES = (
    1,
    4,
    5,
    6,
    7,
    8,
    9,
    12,
    18,
    23,
)
_LOCK, _MTU, _ADVMSS, _CC_ALGO = 1, 2, 8, 16
# told by the kernel, refused from us: a dead next hop, no carrier, and what it added for offloading
_FLAG_ONLINK, _FLAGS_GIVEN, _FLAG_CLONED = 0x4, 0x4 | 0x2, 0x200
# family, length of destination and source, tos, table, protocol, scope, type, flags
_MESSAGE = struct.Struct("=BBBBBBBBI")
_NEXT_HOP = struct.Struct("=HBBi")  # of struct rtnexthop, with attributes behind each

# The strongest: a route without a metric has 0 in IPv4 and 1024 in IPv6, where 0 means 1024.
_PRIORITY_OF: dict[int, int] = {socket.AF_INET: 0, socket.AF_INET6: 1}


def find_route(peer: str) -> bytes | None:
    """The route that one of ours replaces, or ours itself: exactly to `peer`, in the main table, before all others to it.

    None when there is none. Raises OSError.
    """
    family, packed = _packed(peer)
    message = _MESSAGE.pack(family, 0, 0, 0, _MAIN, 0, 0, 0, 0)
    with Netlink(netlink.ROUTE) as kernel:
        for found in kernel.dump(_GETROUTE, message):
            told_family, length, _, tos, table, _, _, _, flags = _MESSAGE.unpack_from(found)
            if (told_family, length, tos, table) != (family, len(packed) * 8, 0, _MAIN) or flags & _FLAG_CLONED:
                continue
            said = dict(attributes(found[_MESSAGE.size :]))
            priority = struct.unpack("=I", said.get(_PRIORITY, bytes(4)))[0]
            if said.get(_DST) == packed and priority == _PRIORITY_OF[family]:
                return _as_given(found)
    return None


def _as_given(route: bytes) -> bytes:
    """Without the flags that tell of a NIC's state: no carrier, dead. The kernel does not take them back."""
    *fields, flags = _MESSAGE.unpack_from(route)
    kept = [
        attribute(kind, _next_hops_as_given(value) if kind == _MULTIPATH else value)
        for kind, value in attributes(route[_MESSAGE.size :])
    ]
    return _MESSAGE.pack(*fields, flags & _FLAGS_GIVEN) + b"".join(kept)


def _next_hops_as_given(told: bytes) -> bytes:
    data, at = bytearray(told), 0
    while at + _NEXT_HOP.size <= len(data):
        length, flags, hops, index = _NEXT_HOP.unpack_from(data, at)
        _NEXT_HOP.pack_into(data, at, length, flags & _FLAGS_GIVEN, hops, index)
        at += max((length + 3) & ~3, _NEXT_HOP.size)
    return bytes(data)


def is_whole(route: bytes) -> bool:
    """Whether it can be an answer of :func:`find_route`."""
    return len(route) > _MESSAGE.size


def is_ours(route: bytes) -> bool:
    """Whether a route that was found was made by us and changed by nobody since."""
    protocol: int = _MESSAGE.unpack_from(route)[5]
    return protocol == OUR_PROTOCOL


def is_same(one: bytes, other: bytes) -> bool:
    """Whether two answers of :func:`find_route` are of the same route; its age does not count."""

    def lasting(route: bytes) -> tuple[tuple[int, ...], dict[int, bytes]]:
        said = dict(attributes(route[_MESSAGE.size :]))
        said.pop(_CACHEINFO, None)
        return _MESSAGE.unpack_from(route), said

    return lasting(one) == lasting(other)


def is_like(found: bytes, route: HostRoute) -> bool:
    """Whether a route that was found does what `route` does: through the same NIC, in packets of the same size."""
    said = dict(attributes(found[_MESSAGE.size :]))
    index, source = struct.pack("=I", _index_of(route.link)), _packed(route.source)[1]
    metrics = dict(attributes(said.get(_METRICS, b"")))
    return (said.get(_OIF), said.get(_PREFSRC), metrics) == (index, source, _metrics_of(route))


def command_for(route: HostRoute) -> str:
    """The command that makes such a route by hand."""
    metric = _PRIORITY_OF[_packed(route.peer)[0]]
    words = [f"ip route replace {route.peer} dev {route.link} src {route.source}"]
    words += [f"metric {metric}"] if metric else []
    words += [f"congctl {route.congctl}"] if route.congctl else []
    words += [f"mtu lock {route.mtu}"] if route.mtu else []
    words += [f"advmss {route.advmss}"] if route.advmss else []
    return " ".join(words)


def put_route(route: HostRoute) -> None:
    """Make the route, or make the one that is there like it. Raises OSError: no such NIC, no right, not our address."""
    family, packed = _packed(route.peer)
    index = _index_of(route.link)
    metrics = [attribute(kind, value) for kind, value in _metrics_of(route).items()]
    with Netlink(netlink.ROUTE) as kernel:
        way, flags = _way(kernel, family, packed, index)
        scope = 0 if way or family == socket.AF_INET6 else _SCOPE_LINK
        payload = b"".join((
            _MESSAGE.pack(family, len(packed) * 8, 0, 0, _MAIN, OUR_PROTOCOL, scope, _UNICAST, flags),
            attribute(_DST, packed), attribute(_OIF, index), way, attribute(_PREFSRC, _packed(route.source)[1]),
            attribute(_PRIORITY, _PRIORITY_OF[family]), nested(_METRICS, *metrics) if metrics else b"",
        ))  # fmt: skip
        kernel.change(_NEWROUTE, payload, netlink.CREATE | netlink.REPLACE)


def _metrics_of(route: HostRoute) -> dict[int, bytes]:
    """Kinds and values of RTA_METRICS."""
    metrics = {_CC_ALGO: route.congctl.encode() + b"\0"} if route.congctl else {}
    if route.mtu:
        metrics |= {_LOCK: struct.pack("=I", 1 << _MTU), _MTU: struct.pack("=I", route.mtu)}
    if route.advmss:
        metrics[_ADVMSS] = struct.pack("=I", route.advmss)
    return metrics


def _index_of(link: str) -> int:
    try:
        return socket.if_nametoindex(link)
    except OSError as error:
        raise OSError(errno.ENODEV, f"there is no NIC '{link}'") from error


def _way(kernel: Netlink, family: int, packed: bytes, index: int) -> tuple[bytes, int]:
    """The gateway through the NIC to the address, as an attribute (empty: none), and the flag that belongs to it."""
    question = _MESSAGE.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
    for answer in kernel.ask(_GETROUTE, question + attribute(_DST, packed) + attribute(_OIF, index)):
        flags = _MESSAGE.unpack_from(answer)[8]
        for kind, value in attributes(answer[_MESSAGE.size :]):
            if kind in (_GATEWAY, _VIA):
                return attribute(kind, value), flags & _FLAG_ONLINK
    return b"", 0


def put_back_route(route: bytes) -> None:
    """Put a route that :func:`find_route` found back in the place of ours. Raises OSError."""
    said = dict(attributes(route[_MESSAGE.size :]))
    # what is left of a route's life is told in ticks of a hundredth (struct rta_cacheinfo), and given in seconds
    left_ticks = struct.unpack_from("=8xi", said.pop(_CACHEINFO, bytes(12)))[0]
    if left_ticks > 0:
        said[_EXPIRES] = struct.pack("=I", max(1, left_ticks // 100))
    kept = b"".join(attribute(kind, value) for kind, value in said.items())
    with Netlink(netlink.ROUTE) as kernel:
        kernel.change(_NEWROUTE, route[: _MESSAGE.size] + kept, netlink.CREATE | netlink.REPLACE)


def remove_route(peer: str) -> None:
    """Remove our route to `peer`; none there is no fault. Raises OSError."""
    family, packed = _packed(peer)
    payload = b"".join((
        _MESSAGE.pack(family, len(packed) * 8, 0, 0, _MAIN, OUR_PROTOCOL, 0xFF if family == socket.AF_INET else 0, 0, 0),
        attribute(_DST, packed), attribute(_PRIORITY, _PRIORITY_OF[family]),
    ))  # fmt: skip
    with Netlink(netlink.ROUTE) as kernel:
        try:
            kernel.change(_DELROUTE, payload)
        except ProcessLookupError:  # ESRCH: no such route
            return


def _packed(address: str) -> tuple[int, bytes]:
    parsed = ipaddress.ip_address(address)
    return (socket.AF_INET6 if parsed.version == 6 else socket.AF_INET), parsed.packed
