"""What a lab consists of, as data: hosts, links between them, and every name and address that follows from those.

    namespace            interfaces
    lm-<lab>-<host>      br0 (guests' bridge), link<i>-<host>, ctl-<host>, gst-<host> (port of br0)
    lm-<lab>-client      gst-client
    lm-<lab>-switch      a bridge for each network that is not a direct cable, and its ports

    network    addresses                           joined by
    link<i>    10.(80+i).0.(j+1)/24, host j        two hosts: one cable; more: a bridge in the switch
    control    10.79.0.(j+1)/24                    a bridge in the switch, unshaped
    guests     10.77.0.0/24, client the last one   a bridge in the switch, unshaped; the hosts' bridges have no address

Every interface is born inside a namespace of the lab, so removing the namespaces removes everything, and nothing is
ever added to the machine's own network. Pure: no IO.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from livemove.base.errors import BadDefinition, BadQuantity
from livemove.base.units import parse_duration, parse_rate, parse_size

CLIENT = "client"
SWITCH = "switch"
GUEST_BRIDGE = "br0"
CONTROL_NETWORK = IPv4Network("10.79.0.0/24")
GUEST_NETWORK = IPv4Network("10.77.0.0/24")
FIRST_LINK_OCTET = 80
MAX_HOSTS = 64
MAX_LINKS = 16
MAX_INTERFACE_NAME = 15  # IFNAMSIZ without its end mark

# Queue of a shaped link that does not say: a switch port's worth; much more would only add latency to every round trip.
DEFAULT_QUEUE_S = 0.020
# tbf cannot send a packet larger than its burst, and GSO packets have 64 KiB; at high rates the timer's granularity asks for more.
MIN_BURST_BYTES = 65536
BURST_S = 0.002
MAX_TBF_BYTES = (1 << 32) - 1

# No '-' in a host's name: 'lm-<lab>-<host>' then belongs to exactly one lab, though a lab's name may have one.
_HOST_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]{0,7}")
_LAB_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,18}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """How a link behaves, the same in both directions.

    :param rate_bytes_per_s: None leaves the link unshaped.
    :param queue_bytes: what waits before packets are dropped; None: 20 ms of the rate.
    :param offloads: False makes hosts send packets no larger than the MTU (tso, gso and gro off), as MTU tests need.
    """

    rate_bytes_per_s: int | None = None
    queue_bytes: int | None = None
    mtu: int = 1500
    offloads: bool = True

    def __post_init__(self) -> None:
        if not 576 <= self.mtu <= 65535:
            raise BadQuantity(f"A link's MTU is 576 to 65535 bytes, not {self.mtu}.", remedy="Write such as mtu=9000.")
        if self.rate_bytes_per_s is None:
            if self.queue_bytes is not None:
                raise BadDefinition("A link without a rate has no queue.", remedy="Give a rate too: 1Gbit,queue=5ms.")
            return
        if not 1000 <= self.rate_bytes_per_s <= 50 * 10**9:
            raise BadQuantity(
                f"A link's rate is 8kbit to 400Gbit, not {self.rate_bytes_per_s * 8} bit/s.",
                remedy="Write such as 1Gbit, or 'unshaped'.",
            )
        if self.queue_bytes is not None and self.queue_bytes < 1:
            raise BadQuantity(f"A link's queue is 1 byte at least, not {self.queue_bytes}.")
        if self.limit_bytes > MAX_TBF_BYTES:
            raise BadQuantity(f"A link's queue of {self.queue_bytes} bytes is over 4 GiB.", remedy="Use queue=20ms.")

    @property
    def burst_bytes(self) -> int:
        """What a shaped link may send at once after a pause."""
        return max(MIN_BURST_BYTES, int((self.rate_bytes_per_s or 0) * BURST_S))

    @property
    def limit_bytes(self) -> int:
        """tbf's ``limit``, which counts the burst as well as the queue."""
        queue_bytes = self.queue_bytes
        if queue_bytes is None:
            queue_bytes = int((self.rate_bytes_per_s or 0) * DEFAULT_QUEUE_S)
        return queue_bytes + self.burst_bytes


@dataclass(frozen=True, slots=True)
class End:
    """One end of a cable: an interface in a namespace, either a port of a bridge or with an address of its own."""

    member: str
    interface: str
    bridge: str | None = None
    address: IPv4Interface | None = None


@dataclass(frozen=True, slots=True)
class Cable:
    """A veth pair. `near` is a host's (or the client's) end; `far` the switch's, or the other host's if direct."""

    near: End
    far: End

    @property
    def ends(self) -> tuple[End, End]:
        return self.near, self.far


@dataclass(frozen=True, slots=True)
class Network:
    """A link, the control network or the guests' network, with its cables."""

    name: str
    subnet: IPv4Network
    spec: LinkSpec
    cables: tuple[Cable, ...]

    @property
    def direct(self) -> bool:
        """Whether the only cable joins two hosts without a switch."""
        return len(self.cables) == 1

    def end_of(self, member: str) -> End:
        """The end that the member has on this network. Raises BadDefinition when it has none."""
        for end in (end for cable in self.cables for end in cable.ends):
            if end.member == member:
                return end
        raise BadDefinition(f"'{member}' is not on network '{self.name}'.", remedy="Name a host of the lab.")

    def opposite_of(self, member: str) -> End:
        """The end that the member's cable has on the other side. Raises BadDefinition when it is not on the network."""
        for cable in self.cables:
            if cable.near.member == member:
                return cable.far
            if cable.far.member == member and self.direct:
                return cable.near
        raise BadDefinition(f"'{member}' is not on network '{self.name}'.", remedy="Name a host of the lab.")


@dataclass(frozen=True, slots=True)
class LabSpec:
    """A lab: valid once made. Raises BadDefinition with one sentence when it could not be built."""

    name: str = "lab"
    hosts: tuple[str, ...] = ("A", "B")
    links: tuple[LinkSpec, ...] = field(default=(LinkSpec(),))
    guest_network: IPv4Network = GUEST_NETWORK

    def __post_init__(self) -> None:
        check_lab_name(self.name)
        for host in self.hosts:
            if not _HOST_NAME.fullmatch(host):
                raise BadDefinition(
                    f"'{host[:64]}' is not a host's name: 1 to 8 letters and digits, the first a letter.",
                    remedy="Write such as A,B or host1,host2.",
                )
            if host in (CLIENT, SWITCH):
                raise BadDefinition(f"'{host}' is taken by the lab itself.", remedy="Choose another host name.")
        if len(set(self.hosts)) != len(self.hosts):
            raise BadDefinition(f"A host is named twice in '{','.join(self.hosts)}'.", remedy="Name each host once.")
        if not 2 <= len(self.hosts) <= MAX_HOSTS:
            raise BadDefinition(
                f"A lab has 2 to {MAX_HOSTS} hosts, not {len(self.hosts)}.", remedy="Write such as A,B."
            )
        if not 1 <= len(self.links) <= MAX_LINKS:
            raise BadDefinition(f"A lab has 1 to {MAX_LINKS} links, not {len(self.links)}.", remedy="Name one link.")
        # the client is the last address; a /30 would leave a single one for guests
        if self.guest_network.prefixlen > 29:
            raise BadDefinition(f"The guests' network {self.guest_network} has no room.", remedy="Give a /24.")
        for subnet in (CONTROL_NETWORK, *(self.link_subnet(index) for index in range(len(self.links)))):
            if subnet.overlaps(self.guest_network):
                raise BadDefinition(
                    f"The guests' network {self.guest_network} overlaps {subnet}, which the lab uses itself.",
                    remedy=f"Leave it at {GUEST_NETWORK}.",
                )

    @property
    def members(self) -> tuple[str, ...]:
        """Everything that has a namespace of its own."""
        return (*self.hosts, CLIENT, SWITCH)

    @property
    def namespaces(self) -> tuple[str, ...]:
        return tuple(self.namespace(member) for member in self.members)

    def namespace(self, member: str) -> str:
        """The network namespace of a host, the client or the switch. Raises BadDefinition for any other name."""
        if member not in self.members:
            raise BadDefinition(
                f"Lab '{self.name}' has no host '{member[:64]}'.", remedy=f"Its hosts are {', '.join(self.hosts)}."
            )
        return f"{namespace_prefix(self.name)}{member}"

    def link_subnet(self, index: int) -> IPv4Network:
        return IPv4Network(f"10.{FIRST_LINK_OCTET + index}.0.0/24")

    def link_address(self, host: str, index: int = 0) -> IPv4Address:
        """The host's address on a link. Raises BadDefinition when the lab has no such host or link."""
        if not 0 <= index < len(self.links):
            raise BadDefinition(f"Lab '{self.name}' has no link {index}.", remedy=f"It has {len(self.links)}, from 0.")
        return self._address(self.link_subnet(index), host).ip

    def control_address(self, host: str) -> IPv4Address:
        """The host's address on the control network. Raises BadDefinition when the lab has no such host."""
        return self._address(CONTROL_NETWORK, host).ip

    @property
    def client_address(self) -> IPv4Interface:
        """The client's address on the guests' network: the last one before broadcast."""
        last = self.guest_network.broadcast_address - 1
        return IPv4Interface(f"{last}/{self.guest_network.prefixlen}")

    @property
    def link_networks(self) -> tuple[Network, ...]:
        return tuple(self._link(index, spec) for index, spec in enumerate(self.links))

    @property
    def networks(self) -> tuple[Network, ...]:
        """The links in order, then the control network and the guests' network."""
        control = tuple(
            Cable(
                End(host, f"ctl-{host}", address=self._address(CONTROL_NETWORK, host)),
                End(SWITCH, f"sctl-{host}", bridge="control"),
            )
            for host in self.hosts
        )
        guests = (
            *(
                Cable(End(host, f"gst-{host}", bridge=GUEST_BRIDGE), End(SWITCH, f"sgst-{host}", bridge="guests"))
                for host in self.hosts
            ),
            Cable(
                End(CLIENT, f"gst-{CLIENT}", address=self.client_address),
                End(SWITCH, f"sgst-{CLIENT}", bridge="guests"),
            ),
        )
        return (
            *self.link_networks,
            Network("control", CONTROL_NETWORK, LinkSpec(), control),
            Network("guests", self.guest_network, LinkSpec(), guests),
        )

    def network(self, which: int | str) -> Network:
        """A network by name (``link0``, ``control``, ``guests``) or a link by number. Raises BadDefinition."""
        name = f"link{which}" if isinstance(which, int) else which
        for network in self.networks:
            if network.name == name:
                return network
        raise BadDefinition(
            f"Lab '{self.name}' has no network '{name[:64]}'.",
            remedy=f"It has {', '.join(network.name for network in self.networks)}.",
        )

    def _address(self, subnet: IPv4Network, host: str) -> IPv4Interface:
        self.namespace(host)
        if host not in self.hosts:
            raise BadDefinition(f"'{host}' is not a host of lab '{self.name}'.", remedy="Name one of its hosts.")
        return IPv4Interface(f"{subnet.network_address + self.hosts.index(host) + 1}/{subnet.prefixlen}")

    def _link(self, index: int, spec: LinkSpec) -> Network:
        subnet = self.link_subnet(index)
        name = f"link{index}"
        near = [End(host, f"{name}-{host}", address=self._address(subnet, host)) for host in self.hosts]
        if len(near) == 2:
            return Network(name, subnet, spec, (Cable(near[0], near[1]),))
        cables = tuple(Cable(end, End(SWITCH, f"s{index}-{end.member}", bridge=name)) for end in near)
        return Network(name, subnet, spec, cables)


def check_lab_name(name: str) -> str:
    """The name itself. Raises BadDefinition unless it has 1 to 20 lower-case letters, digits and inner '-'."""
    if not _LAB_NAME.fullmatch(name):
        raise BadDefinition(
            f"'{name[:64]}' is not a lab's name: 1 to 20 lower-case letters, digits and '-' between them.",
            remedy="Write such as lab or test-2.",
        )
    return name


def namespace_prefix(lab: str) -> str:
    return f"lm-{lab}-"


def is_namespace_of(lab: str, namespace: str) -> bool:
    """Whether a namespace's name is one that a lab of that name could have made."""
    prefix = namespace_prefix(lab)
    return namespace.startswith(prefix) and _HOST_NAME.fullmatch(namespace[len(prefix) :]) is not None


def parse_hosts(text: str) -> tuple[str, ...]:
    """Host names from ``A,B,C``; :class:`LabSpec` checks them."""
    return tuple(part.strip() for part in text.split(","))


def parse_link(text: str) -> LinkSpec:
    """A link from ``1Gbit``, ``1Gbit,mtu=9000``, ``250Mbit,queue=5ms``, ``unshaped,offloads=off``.

    A queue is a duration at the link's rate or a size. Raises BadDefinition for words it does not know, BadQuantity
    for numbers out of range or without a unit.
    """
    remedy = "Write RATE[,mtu=BYTES][,queue=5ms|queue=512KiB][,offloads=on|off], RATE such as 1Gbit or 'unshaped'."
    first, *options = [part.strip() for part in text[:200].split(",")]
    if "=" in first or not first:
        raise BadDefinition(f"The link '{text[:64]}' does not begin with a rate.", remedy=remedy)
    rate = None if first == "unshaped" else parse_rate(first)
    if rate == 0:
        raise BadQuantity(f"The link '{text[:64]}' has no rate.", remedy=remedy)
    given: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or key not in ("mtu", "queue", "offloads") or key in given:
            raise BadDefinition(f"'{option}' means nothing in the link '{text[:64]}'.", remedy=remedy)
        given[key] = value
    mtu = given.get("mtu", "1500")
    if not re.fullmatch(r"[0-9]{1,6}", mtu):
        raise BadQuantity(f"'{mtu}' is not an MTU.", remedy=remedy)
    offloads = given.get("offloads", "on")
    if offloads not in ("on", "off"):
        raise BadDefinition(f"'offloads' is on or off, not '{offloads}'.", remedy=remedy)
    queue_bytes = _parse_queue(given["queue"], rate) if "queue" in given else None
    return LinkSpec(rate, queue_bytes, int(mtu), offloads == "on")


def _parse_queue(text: str, rate_bytes_per_s: int | None) -> int:
    if text[-1:] in ("B", "b"):
        return parse_size(text)
    return max(1, int(parse_duration(text) * (rate_bytes_per_s or 0)))


def parse_lab(
    name: str = "lab", hosts: str = "A,B", links: Sequence[str] = ("unshaped",), guest_network: str = ""
) -> LabSpec:
    """A lab from the texts of a command line. Raises BadDefinition or BadQuantity."""
    network = GUEST_NETWORK
    if guest_network:
        try:
            network = ipaddress.IPv4Network(guest_network)
        except ValueError as error:
            raise BadDefinition(
                f"'{guest_network[:64]}' is not an IPv4 network.", remedy="Write such as 10.77.0.0/24."
            ) from error
    return LabSpec(name, parse_hosts(hosts), tuple(parse_link(link) for link in links), network)
