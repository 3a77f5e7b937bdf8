"""Subnets: as text where they are kept and shown, as networks of `ipaddress` where they are compared."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from livemove.base.errors import BadSetting

Subnet = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_subnet(text: str) -> str:
    """A subnet in its one spelling. Raises BadSetting, with the subnet that is meant if `text` is an address on it."""
    try:
        if "/" not in text:
            raise ValueError
        subnet = ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise BadSetting(
            f"'{text[:80]}' is not a network.", remedy="Write a subnet such as 10.1.0.0/24, or a name from the list."
        ) from error
    if str(ipaddress.ip_interface(text).ip) != str(subnet.network_address):
        raise BadSetting(f"'{text[:80]}' is an address on {subnet}, not a network.", remedy=f"Write {subnet}.")
    return str(subnet)


def subnet_of(address: str) -> str:
    """The subnet (CIDR) of ``ADDRESS/PREFIX``."""
    return str(ipaddress.ip_interface(address).network)


def contains(outer: Subnet, inner: Subnet) -> bool:
    """Whether `inner` is `outer` or a part of it."""
    return outer.version == inner.version and inner.subnet_of(outer)  # type: ignore[arg-type]  # versions are the same


def order_of(subnet: Subnet) -> tuple[int, int, int]:
    """A key that sorts subnets by their numbers, IPv4 first."""
    return subnet.version, int(subnet.network_address), subnet.prefixlen


def sort_subnets(subnets: Iterable[str]) -> list[str]:
    """In the order of their numbers, IPv4 first."""
    return sorted(subnets, key=lambda subnet: order_of(ipaddress.ip_network(subnet)))
