"""What agents say to each other and to people about links, networks and paths; see models.py for what holds of all bodies."""

from __future__ import annotations

import ipaddress
from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from livemove.api.model_base import Id, Model, Name, Text, Word
from livemove.policy.network_rules import MAX_RULES
from livemove.policy.paths import MAX_METRIC, HostNetworks, LinkFacts, NetworkRule


def _an_address(text: str) -> str:
    address = ipaddress.ip_address(text)
    if "%" in text:
        raise ValueError("an address without a zone")
    return str(address)


def _an_address_or_nothing(text: str) -> str:
    return _an_address(text) if text else ""


def _an_interface(text: str) -> str:
    if "%" in text or "/" not in text:
        raise ValueError("ADDRESS/PREFIX, without a zone")
    return str(ipaddress.ip_interface(text))


def _a_subnet(text: str) -> str:
    return str(ipaddress.ip_network(text))


Address = Annotated[str, Field(min_length=2, max_length=64), AfterValidator(_an_address)]
InterfaceAddress = Annotated[str, Field(min_length=2, max_length=64), AfterValidator(_an_interface)]
Subnet = Annotated[str, Field(min_length=2, max_length=64), AfterValidator(_a_subnet)]
Number = Annotated[int, Field(ge=0, lt=1 << 31)]
Bytes = Annotated[int, Field(ge=0, lt=1 << 62)]
Interface = Annotated[str, Field(min_length=1, max_length=64)]


class LinkBody(Model):
    """policy.paths.LinkFacts on the wire."""

    name: Interface
    index: Number
    kind: Word
    speed_bytes_per_s: Bytes
    mtu: Annotated[int, Field(ge=0, le=1 << 20)]
    carrier: bool
    driver: Word
    queues: Number
    addresses: Annotated[tuple[InterfaceAddress, ...], Field(max_length=256)]
    members: Annotated[tuple[Interface, ...], Field(max_length=256)] = ()
    capabilities: Annotated[tuple[Word, ...], Field(max_length=32)] = ()


class HostNetworksBody(Model):
    """policy.paths.HostNetworks on the wire."""

    host: Name
    links: Annotated[tuple[LinkBody, ...], Field(max_length=256)]
    incoming: Annotated[tuple[Address, ...], Field(max_length=256)] = ()
    preferred: Annotated[str, Field(max_length=64), AfterValidator(_an_address_or_nothing)] = ""

    @classmethod
    def of(cls, networks: HostNetworks) -> HostNetworksBody:
        return cls.model_validate(asdict(networks))

    def networks(self) -> HostNetworks:
        """What the body says; its addresses are addresses, or it would not have been read."""
        return HostNetworks(
            self.host, tuple(LinkFacts(**link.model_dump()) for link in self.links), self.incoming, self.preferred
        )


class NetworkRuleBody(Model):
    """policy.paths.NetworkRule on the wire."""

    subnet: Subnet
    metric: Annotated[int, Field(ge=0, le=MAX_METRIC)]
    allowed: bool = True
    name: Annotated[str, Field(max_length=63)] = ""

    @classmethod
    def of(cls, rule: NetworkRule) -> NetworkRuleBody:
        return cls.model_validate(asdict(rule))

    def rule(self) -> NetworkRule:
        return NetworkRule(**self.model_dump())


class NetworksView(Model):
    """What a host knows of networks: its own links, and the cluster's list as it last learnt it.

    :param serial: of the cluster's map, which a change names.
    """

    own: HostNetworksBody
    authority: Name
    serial: int
    rules: tuple[NetworkRuleBody, ...]


class SetNetworks(Model):
    """A whole new list for the cluster.

    :param serial: of the map that the list was made from; it is refused when the map is another by now.
    """

    serial: int
    rules: Annotated[tuple[NetworkRuleBody, ...], Field(max_length=MAX_RULES)]


class PathPair(Model):
    """A path by its two addresses.

    :param shared_subnet: one of the hosts has several NICs in its subnet.
    """

    source: Address
    destination: Address
    shared_subnet: bool = False


class PathView(Model):
    """A path as a plan shows it: policy.paths.Path.

    :param state: ``use``; ``spare``: taken only if those in use are unavailable at the start.
    """

    source_address: str
    destination_address: str
    network: str
    name: str
    source_link: str
    destination_link: str
    capacity_bytes_per_s: int
    mtu: int
    state: Literal["use", "spare"] = "use"


class LeftOutPath(Model):
    """What is not used, and why."""

    what: Text
    reason: Text


class PathMeasured(Model):
    """What a path was found to be before the copy.

    :param mtu_out: largest packet from source to destination; 0: nothing came through.
    :param mtu_in: the same from destination to source.
    """

    mtu_out: int = 0
    mtu_in: int = 0
    round_trip_ms: float | None = None


class AskNetworkTest(Model):
    """Test every path from the host that is asked."""

    destination: Name


class AskDoors(Model):
    """A source's links, for the other host to find the paths between both."""

    networks: HostNetworksBody


class DoorsAnswer(Model):
    """Where to probe, for some seconds.

    :param test: its number at the host that answers.
    :param port: TCP and UDP, on the destination's address of each of the paths.
    """

    test: Id
    port: Annotated[int, Field(ge=1, lt=1 << 16)]
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    networks: HostNetworksBody
    paths: Annotated[tuple[PathPair, ...], Field(max_length=64)]


class ProbedPath(Model):
    """What a test found out about a path; MTUs in bytes.

    :param measured: None when nothing came back.
    :param port_open: whether a TCP connection was made.
    :param level: ``fine``; ``warning``: it works, and is not set up as it was meant; ``fault``.
    :param verdict: what is amiss, and `remedy`: what mends it; empty: nothing.
    """

    source_address: str
    destination_address: str
    network: str
    name: str
    source_link: str
    destination_link: str
    source_mtu: int
    destination_mtu: int
    measured: PathMeasured | None = None
    port_open: bool
    level: Literal["fine", "warning", "fault"]
    verdict: str = ""
    remedy: str = ""


class NetworkTestView(Model):
    """The test of all paths from one host to another, at the destination's `port`.

    :param notes: what is to be said of several paths together.
    """

    source: str
    destination: str
    port: int
    paths: tuple[ProbedPath, ...]
    left_out: tuple[LeftOutPath, ...] = ()
    notes: tuple[str, ...] = ()


class PathReport(Model):
    """What one path carried, from the kernel's counters of its TCP (sub)flows on each host.

    :param source_bytes: acknowledged to the source.
    :param destination_bytes: received by the destination.
    :param share: of all bytes of the journey, 0 to 1.
    :param planned: False for a path that carried bytes and was not chosen.
    :param removed: how often it was taken for dead in the copy.
    :param longest_silence_ms: of its heartbeats.
    """

    source_address: str
    destination_address: str
    network: str = ""
    source_link: str = ""
    destination_link: str = ""
    capacity_bytes_per_s: int = 0
    planned: bool = True
    source_bytes: int = 0
    destination_bytes: int = 0
    share: float = 0.0
    subflows: int = 0
    retransmitted_segments: int = 0
    removed: int = 0
    longest_silence_ms: float | None = None
    measured: PathMeasured | None = None
