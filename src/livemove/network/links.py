"""The NICs of this network namespace that have addresses, and how they change.

The kernel answers link by link and address by address, and both may go in between: what is no longer there is left out.
A bond is one link, whose speed is that of the members that carry (#35, #36); a VLAN is as fast as the NIC below it, a
bridge as its fastest NIC. What the administrator says of a NIC's speed (`nic_speeds`) counts for all of these.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from livemove.base.errors import MissingPrerequisite
from livemove.network.ethtool import driver_of, link_speed, offloads, receive_queues
from livemove.policy.paths import LinkFacts

JUMBO_MTU = 9000
_TRIES = 3

# linux/if.h, linux/if_addr.h, linux/if_arp.h
_IFF_UP, _IFF_LOOPBACK, _IFF_LOWER_UP, _IFF_DORMANT = 0x1, 0x8, 0x10000, 0x20000
_IFA_F_TEMPORARY, _IFA_F_DADFAILED, _IFA_F_DEPRECATED, _IFA_F_TENTATIVE = 0x01, 0x08, 0x20, 0x40
_IFA_F_OPTIMISTIC = 0x04
_BACKUP = 1  # IFLA_BOND_SLAVE_STATE of a member that stands by
#: RFC 2863's states in which packets flow; bridges and drivers that do not tell say UNKNOWN.
_CARRYING = ("UP", "UNKNOWN")
_SUMMED = ("bond", "team")
_VIRTUAL = ("tun", "veth", "vnet")


@dataclass(frozen=True, slots=True)
class LinkRow:
    """One link as netlink lists it.

    :param master: index of the bond, team or bridge that it belongs to; 0: none.
    :param below: index of the link that a VLAN lies on; 0: none.
    :param standby: a bond keeps it for when another member fails.
    """

    index: int
    name: str
    kind: str
    mtu: int
    max_mtu: int
    carrier: bool
    loopback: bool = False
    queues: int = 1
    master: int = 0
    below: int = 0
    standby: bool = False


async def read_links(speeds: Mapping[str, int] | None = None) -> tuple[LinkFacts, ...]:
    """Every link that has an address others can reach it by, in the order of their indexes.

    :param speeds: what NICs carry where they do not say so or say it wrong, bytes per second by name.
    :raise MissingPrerequisite: netlink does not answer.
    """
    return await asyncio.to_thread(_read, dict(speeds or {}))


def _read(speeds: Mapping[str, int]) -> tuple[LinkFacts, ...]:
    for _ in range(_TRIES):
        try:
            with IPRoute() as netlink:
                rows = [row_of(message) for message in netlink.get_links()]
                addresses = addresses_of(netlink.get_addr())
        except NetlinkError:  # a list that changed while it was read, or a NIC that went
            continue
        except OSError as error:
            raise MissingPrerequisite(f"The NICs of this host cannot be listed by netlink: {error}.") from error
        return tuple(
            facts_of(row, rows, addresses[row.index], speeds)
            for row in sorted(rows, key=lambda row: row.index)
            if row.index in addresses and not row.loopback
        )
    raise MissingPrerequisite(
        "The NICs of this host cannot be listed: they change too fast.", remedy="Try again when they are at rest."
    )


def row_of(message: Any) -> LinkRow:
    """A message of RTM_NEWLINK (pyroute2's ifinfmsg)."""
    flags, state = message["flags"], message.get_attr("IFLA_OPERSTATE") or "UNKNOWN"
    info = message.get_attr("IFLA_LINKINFO")
    kind = str(info.get_attr("IFLA_INFO_KIND") or "") if info is not None else ""
    member = info.get_attr("IFLA_INFO_SLAVE_DATA") if info is not None else None
    standby = member is not None and hasattr(member, "get_attr") and member.get_attr("IFLA_BOND_SLAVE_STATE") == _BACKUP
    return LinkRow(
        index=message["index"],
        name=str(message.get_attr("IFLA_IFNAME")),
        kind=kind or "physical",
        mtu=message.get_attr("IFLA_MTU") or 0,
        max_mtu=message.get_attr("IFLA_MAX_MTU") or 0,
        carrier=flags & (_IFF_UP | _IFF_LOWER_UP | _IFF_DORMANT) == _IFF_UP | _IFF_LOWER_UP and state in _CARRYING,
        loopback=bool(flags & _IFF_LOOPBACK),
        queues=message.get_attr("IFLA_NUM_RX_QUEUES") or 1,
        master=message.get_attr("IFLA_MASTER") or 0,
        # the number of a veth's peer is that of another namespace; only with VLANs and their like it is a link below
        below=(message.get_attr("IFLA_LINK") or 0) if kind in ("vlan", "macvlan", "ipvlan") else 0,
        standby=standby,
    )


def addresses_of(messages: Sequence[Any]) -> dict[int, tuple[str, ...]]:
    """``ADDRESS/PREFIX`` by index of the link, from messages of RTM_NEWADDR (pyroute2's ifaddrmsg).

    Without addresses that others cannot use, or that may not be there tomorrow: link-local, not yet verified or found
    twice (RFC 4862), deprecated, made for privacy (RFC 8981).
    """
    found: dict[int, tuple[str, ...]] = {}
    unfit = _IFA_F_TEMPORARY | _IFA_F_DADFAILED | _IFA_F_DEPRECATED
    for message in messages:
        text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        flags = message.get_attr("IFA_FLAGS") or message["flags"]
        if text is None:
            continue
        address = ipaddress.ip_address(text)
        tentative = flags & (_IFA_F_TENTATIVE | _IFA_F_OPTIMISTIC) == _IFA_F_TENTATIVE
        # with IPv4 the same bit as temporary says that the subnet has an earlier address on that link
        if tentative or flags & (unfit if address.version == 6 else _IFA_F_DEPRECATED):
            continue
        if address.is_link_local or address.is_loopback or address.is_multicast or address.is_unspecified:
            continue
        found[message["index"]] = (*found.get(message["index"], ()), f"{address}/{message['prefixlen']}")
    return found


def facts_of(row: LinkRow, rows: Sequence[LinkRow], addresses: Sequence[str], speeds: Mapping[str, int]) -> LinkFacts:
    """All about one link; asks its driver."""
    queues = receive_queues(row.name) or row.queues
    capabilities = (
        *(("rss",) if queues > 1 else ()),
        *(("jumbo",) if row.max_mtu >= JUMBO_MTU else ()),
        *offloads(row.name),
    )
    return LinkFacts(
        name=row.name,
        index=row.index,
        kind=row.kind,
        speed_bytes_per_s=speed_of(row, rows, speeds, link_speed),
        mtu=row.mtu,
        carrier=row.carrier,
        driver=driver_of(row.name),
        queues=queues,
        addresses=tuple(addresses),
        members=tuple(member.name for member in rows if member.master == row.index),
        capabilities=capabilities,
    )


def speed_of(
    row: LinkRow, rows: Sequence[LinkRow], told: Mapping[str, int], asked: Callable[[str], int], depth: int = 4
) -> int:
    """Bytes per second; 0 when unknown.

    :param told: what the administrator says, by name.
    :param asked: what the driver says.
    :param depth: links above one another; a bound, because the list may change while it is read.
    """
    if row.name in told:
        return told[row.name]
    if depth == 0:
        return 0
    members = [each for each in rows if each.master == row.index and each.carrier and not each.standby]
    if row.kind in _SUMMED:
        return sum(speed_of(member, rows, told, asked, depth - 1) for member in members)
    if row.kind == "bridge":
        # VMs' taps and containers' veths claim 10 Gbit/s, which says nothing of the wire; unless somebody told
        wires = [each for each in members if each.kind not in _VIRTUAL or each.name in told]
        return max((speed_of(wire, rows, told, asked, depth - 1) for wire in wires), default=asked(row.name))
    for below in rows:
        if below.index == row.below:
            return speed_of(below, rows, told, asked, depth - 1)
    return asked(row.name)
