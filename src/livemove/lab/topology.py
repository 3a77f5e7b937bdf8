"""What a lab consists of, as data: hosts, links between them, and every name and address that follows from those.

    namespace            interfaces
    lm-<lab>-<host>      br0 (guests' bridge), link<i>-<host>, ctl-<host>, gst-<host> (port of br0)
    lm-<lab>-client      gst-client
    lm-<lab>-switch      a bridge for each network that is not a direct cable, and its ports

    network    addresses                           joined by
    link<i>    10.(80+i).0.(j+1)/24, host j        two hosts: one cable; more, or `switched`: a bridge in the switch
    control    10.79.0.(j+1)/24                    a bridge in the switch, unshaped
    guests     10.77.0.0/24, client the last one   a bridge in the switch, unshaped; the hosts' bridges have no address

A link that is in an earlier link's subnet (``subnet=``) has its NICs on that link's bridge, with addresses 100 further for
each link: 10.80.0.101 is host A's second NIC in the subnet of link0. A `switched` link has, in the switch, an ifb device
u<i>-<host> for every host: the queue of what that host sends.

Every interface is born inside a namespace of the lab, so removing the namespaces removes everything, and nothing is
ever added to the machine's own network. Pure: no IO.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from livemove.base.errors import BadDefinition
from livemove.lab.link_spec import DEFAULT_MTU, MAX_MTU, LinkSpec, parse_link

CLIENT = "client"
SWITCH = "switch"
GUEST_BRIDGE = "br0"
CONTROL_NETWORK = IPv4Network("10.79.0.0/24")
GUEST_NETWORK = IPv4Network("10.77.0.0/24")
FIRST_LINK_OCTET = 80
MAX_HOSTS = 64
MAX_LINKS = 16
MAX_INTERFACE_NAME = 15  # IFNAMSIZ without its end mark
# From the address of a host's NIC to that of its next NIC in the same subnet.
NEXT_NIC = 100

# No '-' in a host's name: 'lm-<lab>-<host>' then belongs to exactly one lab, though a lab's name may have one.
_HOST_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]{0,7}")
_LAB_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,18}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class End:
    """One end of a cable: an interface in a namespace, either a port of a bridge or with an address of its own.

    :param metric: of its route; of several NICs of a host in one subnet the one with the lowest carries everything.
    """

    member: str
    interface: str
    bridge: str | None = None
    address: IPv4Interface | None = None
    mtu: int = DEFAULT_MTU
    metric: int = 0


@dataclass(frozen=True, slots=True)
class Cable:
    """A veth pair. `near` is a host's (or the client's) end; `far` the switch's, or the other host's if direct.

    :param uplink: the ifb device in the switch that what `near` sends passes, on a `switched` link.
    """

    near: End
    far: End
    uplink: str | None = None

    @property
    def ends(self) -> tuple[End, End]:
        return self.near, self.far

    @property
    def shaped(self) -> tuple[tuple[str, str], ...]:
        """Where the link's rate is made: member and interface."""
        if self.uplink is not None:
            return (self.far.member, self.far.interface), (self.far.member, self.uplink)
        return tuple((end.member, end.interface) for end in self.ends)


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

    @property
    def own_bridge(self) -> str | None:
        """The bridge in the switch that is this network's; None for a direct cable, or when it is another link's."""
        return None if self.spec.subnet is not None else self.cables[0].far.bridge

    @property
    def ends(self) -> tuple[End, ...]:
        return tuple(end for cable in self.cables for end in cable.ends)

    def cables_of(self, member: str | None) -> tuple[Cable, ...]:
        """The member's cable, or all for None. Raises BadDefinition when it has none."""
        if member is None:
            return self.cables
        self.opposite_of(member)
        return tuple(cable for cable in self.cables if member in (cable.near.member, cable.far.member))

    def end_of(self, member: str) -> End:
        """The end that the member has on this network. Raises BadDefinition when it has none."""
        for end in self.ends:
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
        for index, spec in enumerate(self.links):
            self._check_link(index, spec)
        # the client is the last address; a /30 would leave a single one for guests
        if self.guest_network.prefixlen > 29:
            raise BadDefinition(f"The guests' network {self.guest_network} has no room.", remedy="Give a /24.")
        for subnet in (CONTROL_NETWORK, *(self.link_subnet(index) for index in range(len(self.links)))):
            if subnet.overlaps(self.guest_network):
                raise BadDefinition(
                    f"The guests' network {self.guest_network} overlaps {subnet}, which the lab uses itself.",
                    remedy=f"Leave it at {GUEST_NETWORK}.",
                )

    def _check_link(self, index: int, spec: LinkSpec) -> None:
        if spec.host_mtus and len(spec.host_mtus) != len(self.hosts):
            raise BadDefinition(
                f"Link {index} has {len(spec.host_mtus)} MTUs for {len(self.hosts)} hosts.",
                remedy="Give one MTU, or one for each host: mtu=9000/1500.",
            )
        if spec.switch_mtu is not None and not self.has_switch(index):
            raise BadDefinition(f"Link {index} has no switch.", remedy="Write such as 1Gbit,switched,switch-mtu=1500.")
        if spec.subnet is None:
            return
        if spec.subnet >= index or self.links[spec.subnet].subnet is not None:
            raise BadDefinition(
                f"Link {index} cannot be in the subnet of link {spec.subnet}.",
                remedy="Name an earlier link that has a subnet of its own, such as subnet=0.",
            )
        if not (self.has_switch(index) and self.has_switch(spec.subnet)):
            raise BadDefinition(
                f"Links {spec.subnet} and {index} are in one subnet and so need a switch.",
                remedy="Add 'switched' to both.",
            )
        if spec.switch_mtu != self.links[spec.subnet].switch_mtu:
            raise BadDefinition(
                f"Links {spec.subnet} and {index} are on one switch, which has one MTU.",
                remedy="Give both the same switch-mtu, or none.",
            )
        if self._link_address(self.hosts[-1], index).ip >= self.link_subnet(index).broadcast_address:
            raise BadDefinition(f"The subnet of link {spec.subnet} has no room for link {index}.")

    def has_switch(self, index: int) -> bool:
        """Whether a link's hosts are joined by a switch and not by one cable."""
        return len(self.hosts) > 2 or self.links[index].switched

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
        subnet = self.links[index].subnet
        return IPv4Network(f"10.{FIRST_LINK_OCTET + (index if subnet is None else subnet)}.0.0/24")

    def link_address(self, host: str, index: int = 0) -> IPv4Address:
        """The host's address on a link. Raises BadDefinition when the lab has no such host or link."""
        if not 0 <= index < len(self.links):
            raise BadDefinition(f"Lab '{self.name}' has no link {index}.", remedy=f"It has {len(self.links)}, from 0.")
        return self._link_address(host, index).ip

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

    def _address(self, subnet: IPv4Network, host: str, before: int = 0) -> IPv4Interface:
        self.namespace(host)
        if host not in self.hosts:
            raise BadDefinition(f"'{host}' is not a host of lab '{self.name}'.", remedy="Name one of its hosts.")
        number = NEXT_NIC * before + self.hosts.index(host) + 1
        return IPv4Interface(f"{subnet.network_address + number}/{subnet.prefixlen}")

    def _link_address(self, host: str, index: int) -> IPv4Interface:
        return self._address(self.link_subnet(index), host, self.earlier_in_subnet(index))

    def earlier_in_subnet(self, index: int) -> int:
        """How many earlier links are in the subnet of this one."""
        subnet = self.links[index].subnet
        if subnet is None:
            return 0
        return 1 + sum(link.subnet == subnet for link in self.links[:index])

    def _link(self, index: int, spec: LinkSpec) -> Network:
        subnet = self.link_subnet(index)
        name = f"link{index}"
        near = [
            End(
                host,
                f"{name}-{host}",
                address=self._link_address(host, index),
                mtu=spec.mtu_of(place),
                metric=self.earlier_in_subnet(index),
            )
            for place, host in enumerate(self.hosts)
        ]
        if not self.has_switch(index):
            return Network(name, subnet, spec, (Cable(near[0], near[1]),))
        bridge = name if spec.subnet is None else f"link{spec.subnet}"
        cables = tuple(
            Cable(
                end,
                End(SWITCH, f"s{index}-{end.member}", bridge=bridge, mtu=MAX_MTU),
                uplink=f"u{index}-{end.member}" if spec.switched else None,
            )
            for end in near
        )
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
