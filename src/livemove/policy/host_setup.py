"""What a journey needs changed in its hosts' kernels, apart from making the changes (network.host_changes).

==============  ====================================================================================================
change          why
==============  ====================================================================================================
HostRoute       the exact route to the peer's address of a path: it leaves through the planned NIC with the planned
                source address also where two NICs are in one subnet, its connections use cubic (BBR as the host's
                default stalls on a fast path), and where the network carries less than the NICs are set to, its
                packets are no larger than that
Sysctl          ARP is answered by the NIC that has the address only (two NICs in one subnet); MPTCP is on, its subflows
                are made by us alone, and a path that was cut at the start does not switch it off for an hour
MptcpLimits     the destination's kernel accepts further subflows; by default it accepts two at most
ReceiveBuffer   connections to the destination do not begin with a buffer that two paths fill before either is read
ImplicitEndpoint  what the destination's kernel makes of each of its addresses that a further subflow arrives at, and keeps
ForgottenNeighbour  what was learned of the peer's address before ARP was told apart may be the MAC of its other NIC
==============  ====================================================================================================

Every one of them belongs to the whole network namespace, so other programs on the host see them while journeys run: a
program that uses MPTCP gets no additional subflows on the source meanwhile; plain TCP is untouched but for connections to
the very addresses of the peer's NICs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from livemove.base.units import KIB
from livemove.policy.paths import LinkFacts, Path
from livemove.policy.subnets import subnet_of

#: With the kernel's default of 128 KiB a connection over two paths of 1 Gbit/s stood still for 200 ms in 10 of 12 beginnings
#: (Linux 6.18): what came while its buffer was full lies in its subflows, and nobody looks there until MPTCP sends it again.
#: With 512 KiB and more: 0 of 18.
LEAST_RECEIVE_BUFFER_BYTES = 512 * KIB
#: The most that the kernel takes (MPTCP_PM_ADDR_MAX); a path that heals needs room beside the subflow that it lost.
MOST_SUBFLOWS = 8
_IPV4_TCP_HEADERS, _IPV6_TCP_HEADERS = 40, 60


class Side(Enum):
    """Which host of the journey this is."""

    SOURCE = "source"
    DESTINATION = "destination"


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A kernel parameter of the network namespace.

    :param name: as sysctl(8) takes it: ``net.mptcp.enabled``, or with slashes where a NIC's name has a dot.
    :param fallback: set instead where the kernel has no `name`.
    :param optional: nothing is amiss where the kernel has neither.
    """

    name: str
    value: str
    fallback: Sysctl | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class MptcpLimits:
    """At least so many additional subflows, and announced addresses followed, per MPTCP connection; never lowers."""

    subflows: int
    add_addr_accepted: int = 0


@dataclass(frozen=True, slots=True)
class ReceiveBuffer:
    """At least this receive buffer for new TCP sockets, from which the kernel then goes on by itself; never lowers."""

    least_bytes: int


@dataclass(frozen=True, slots=True)
class HostRoute:
    """The route to exactly one address, in the main table, before every other one to it.

    A gateway that the route through `link` has at that moment is kept.

    :param congctl: congestion control of TCP connections over it; empty: the host's default.
    :param mtu: largest packet, whatever the kernel learns of the path; 0: the NIC's.
    :param advmss: segment size that the peer is told; 0: what follows from the MTU.
    """

    peer: str
    link: str
    source: str
    congctl: str = "cubic"
    mtu: int = 0
    advmss: int = 0


@dataclass(frozen=True, slots=True)
class ImplicitEndpoint:
    """The kernel's own endpoint for an address that subflows arrive at: made by the kernel, taken away after the journey."""

    address: str


@dataclass(frozen=True, slots=True)
class ForgottenNeighbour:
    """The peer's link-layer address on our NIC is asked for anew."""

    peer: str
    link: str


Change = Sysctl | MptcpLimits | ReceiveBuffer | ImplicitEndpoint | HostRoute | ForgottenNeighbour


def changes_for(
    paths: Sequence[Path],
    side: Side,
    *,
    clamp: Mapping[Path, int],
    multipath: bool,
    links: Sequence[LinkFacts] = (),
    astray: Collection[Path] = (),
) -> list[Change]:
    """What this side's host needs for the paths of one journey, in the order in which it is to be made.

    :param links: of this host: one that no path uses must not answer for one that a path does.
    :param clamp: the largest packet of those paths that carry less than their NICs are set to.
    :param multipath: QEMU's connections are MPTCP ones.
    :param astray: paths whose peer the kernel would send to from another address than the path's.
    """
    changes: list[Change] = []
    forgotten: list[Change] = []
    if multipath:
        changes += _for_mptcp(side)
    routed: dict[str, str] = {}
    for path in paths:
        link, own, peer = _ends(path, side)
        if multipath and side is Side.DESTINATION:
            changes.append(ImplicitEndpoint(own))
        if path.shared_subnet and ":" not in own:
            for name in (link, *_links_on(path.network, links)):
                changes += _for_shared_subnet(name)
            forgotten.append(ForgottenNeighbour(peer, link))
        if not (multipath or path in clamp or path.shared_subnet or path in astray):
            continue
        if routed.setdefault(peer, link) != link:
            # A second NIC of ours to the same address of the peer: one destination has one route. Subflows leave through
            # the NIC that they are bound to; what arrives there must not be dropped because its answer's route is the other.
            if ":" not in own:
                changes.append(Sysctl(f"net/ipv4/conf/{link}/rp_filter", "2"))
            continue
        changes.append(_route(link, own, peer, clamp.get(path, 0)))
    return list(dict.fromkeys((*changes, *forgotten)))


def _links_on(subnet: str, links: Sequence[LinkFacts]) -> list[str]:
    return [link.name for link in links if subnet in map(subnet_of, link.addresses)]


def _for_mptcp(side: Side) -> list[Change]:
    enabled = Sysctl("net/mptcp/enabled", "1")
    if side is Side.DESTINATION:
        return [enabled, MptcpLimits(MOST_SUBFLOWS), ReceiveBuffer(LEAST_RECEIVE_BUFFER_BYTES)]
    by_hand = Sysctl("net/mptcp/path_manager", "userspace", fallback=Sysctl("net/mptcp/pm_type", "1"))
    return [enabled, by_hand, Sysctl("net/mptcp/blackhole_timeout", "0", optional=True)]


def _for_shared_subnet(link: str) -> list[Change]:
    """Documentation/networking/ip-sysctl.rst: answer only for the NIC's own addresses, ask only with one of them."""
    return [Sysctl(f"net/ipv4/conf/{link}/arp_ignore", "1"), Sysctl(f"net/ipv4/conf/{link}/arp_announce", "2")]


def _route(link: str, own: str, peer: str, mtu: int) -> HostRoute:
    headers = _IPV6_TCP_HEADERS if ":" in peer else _IPV4_TCP_HEADERS
    return HostRoute(peer, link, own, mtu=mtu, advmss=mtu - headers if mtu else 0)


def _ends(path: Path, side: Side) -> tuple[str, str, str]:
    if side is Side.SOURCE:
        return path.source_link, path.source_address, path.destination_address
    return path.destination_link, path.destination_address, path.source_address
