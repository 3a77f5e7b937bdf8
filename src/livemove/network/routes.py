"""Which NIC leads to an address, and how fast it says it is."""

from __future__ import annotations

import array
import asyncio
import fcntl
import socket
import struct

from pyroute2 import IPRoute

SIOCETHTOOL = 0x8946
_ETHTOOL_GLINKSETTINGS = 0x4C  # linux/ethtool.h
_UNKNOWN_SPEED = 0xFFFFFFFF


async def link_speed_towards(address: str) -> int:
    """Bytes per second of the NIC that the kernel would use for `address`; 0 when it does not say."""
    return await asyncio.to_thread(_speed_towards, address)


async def source_address_towards(address: str) -> str:
    """The local address that the kernel would use for `address`; empty when there is no route."""
    return await asyncio.to_thread(_source_towards, address)


def _speed_towards(address: str) -> int:
    try:
        with IPRoute() as netlink:
            routes = netlink.route("get", dst=address)
            index = routes[0].get_attr("RTA_OIF") if routes else None
            if index is None:
                return 0
            name = netlink.get_links(index)[0].get_attr("IFLA_IFNAME")
    except Exception:  # pyroute2 raises many kinds; not knowing the speed is an answer, not a fault
        return 0
    return link_speed(str(name))


def _source_towards(address: str) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # a datagram socket sends nothing on connect
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def link_speed(name: str) -> int:
    """Bytes per second that the NIC `name` of this network namespace says it carries; 0 when unknown.

    Asked by ethtool's ioctl (struct ethtool_link_settings, linux/ethtool.h): /sys shows the NICs of the namespace it was
    mounted in, which need not be ours.
    """
    settings = array.array("B", struct.pack("II", _ETHTOOL_GLINKSETTINGS, 0) + bytes(512))
    request = struct.pack("16sP", name.encode(), settings.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        try:
            fcntl.ioctl(handle, SIOCETHTOOL, request)
            # the first call answers only with the size of the masks that follow, negated
            words = -struct.unpack_from("b", settings, 15)[0]
            if words > 0:
                struct.pack_into("II7Bb", settings, 0, _ETHTOOL_GLINKSETTINGS, 0, *[0] * 7, words)
                fcntl.ioctl(handle, SIOCETHTOOL, request)
        except OSError:
            return 0
    mbit_per_s = struct.unpack_from("I", settings, 4)[0]
    return 0 if mbit_per_s in (0, _UNKNOWN_SPEED) else mbit_per_s * 125_000
