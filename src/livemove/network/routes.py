"""Which NIC leads to an address, and how fast it says it is."""

from __future__ import annotations

import asyncio
import socket

from pyroute2 import IPRoute

from livemove.network.ethtool import link_speed


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
