"""Which networks a journey uses, and in which order (#39-#50, #157, N11).

The words: a *link* is a NIC of one host, a *network* a subnet, a *path* a pair of addresses on one network, one of each
host. A path may be used only if both hosts and the cluster allow it; what is allowed counts in both directions alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from livemove.base.errors import BadSetting

#: A journey cannot ask for more networks than that.
MAX_LISTED = 32
MAX_METRIC = 1 << 20


class UsePaths(Enum):
    """How many paths a journey uses."""

    ONE = "one"
    ALL = "all"
    LISTED = "listed"


@dataclass(frozen=True, slots=True)
class LinkFacts:
    """One NIC that has an address, as its host sees it.

    :param kind: ``physical``, ``bond``, ``team``, ``bridge``, ``vlan`` or what the kernel calls it (``veth``, ...).
    :param speed_bytes_per_s: 0 when unknown; for a bond the sum of its members that carry.
    :param queues: receive queues (RSS).
    :param addresses: ``ADDRESS/PREFIX`` each, without link-local ones.
    :param members: NICs of a bond, team or bridge.
    :param capabilities: of ``rss``, ``jumbo`` (takes an MTU of 9000), ``tso`` and ``gro``, those that it has and uses.
    """

    name: str
    index: int
    kind: str
    speed_bytes_per_s: int
    mtu: int
    carrier: bool
    driver: str
    queues: int
    addresses: tuple[str, ...]
    members: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HostNetworks:
    """What one host offers.

    :param incoming: addresses that this host lets migrations use, in either direction; empty: any.
    :param preferred: the address that comes first where the cluster does not say; empty: none.
    """

    host: str
    links: tuple[LinkFacts, ...]
    incoming: tuple[str, ...] = ()
    preferred: str = ""


@dataclass(frozen=True, slots=True)
class NetworkRule:
    """The cluster's word on one network; the lowest metric is taken first.

    :param subnet: CIDR.
    :param name: what people call it; empty: none.
    """

    subnet: str
    metric: int
    allowed: bool = True
    name: str = ""


@dataclass(frozen=True, slots=True)
class PathWish:
    """What the journey's user asked for.

    :param listed: with LISTED, subnets or names of networks, in order.
    """

    use: UsePaths = UsePaths.ONE
    listed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Path:
    """A pair of addresses on one network.

    :param capacity_bytes_per_s: of the slower of both links; 0 when either is unknown.
    :param mtu: of the smaller of both links.
    :param shared_subnet: one of the hosts has another link in the same subnet, so that its routes alone do not tell
        which link carries what: routes of the journey's own are needed.
    """

    source_address: str
    destination_address: str
    network: str
    name: str
    source_link: str
    destination_link: str
    source_index: int
    capacity_bytes_per_s: int
    mtu: int
    shared_subnet: bool = False


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A pair of addresses, or an address, that is not used, and why."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class PathPlan:
    """What carries the bytes.

    :param paths: in order of preference; the first carries the first connection.
    :param spares: allowed, not used; taken in order only if all of `paths` turn out to be unavailable at the start (#13).
    """

    paths: tuple[Path, ...]
    spares: tuple[Path, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


def parse_wish(text: str) -> PathWish:
    """``one``, ``all``, or subnets and names of networks with commas between them. Raises BadSetting."""
    words = tuple(word.strip() for word in text.split(","))
    if words in (("one",), ("all",)):
        return PathWish(UsePaths(words[0]))
    if why := _fault_of(words):
        raise BadSetting(
            f"'{text[:80]}' does not say which paths to use: {why}.",
            remedy=f"Write one, all, or at most {MAX_LISTED} networks, such as 10.1.0.0/24,fast.",
        )
    return PathWish(UsePaths.LISTED, words)


def _fault_of(words: tuple[str, ...]) -> str:
    if len(words) > MAX_LISTED:
        return f"it has {len(words)} entries"
    for number, word in enumerate(words):
        if not word:
            return "an entry is empty"
        if word in ("one", "all"):
            return f"'{word}' stands alone"
        if word in words[:number]:
            return f"'{word[:80]}' is in it twice"
    return ""
