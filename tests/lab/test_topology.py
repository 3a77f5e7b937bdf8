from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from livemove.base.errors import BadDefinition, BadQuantity
from livemove.lab.topology import (
    SWITCH,
    LabSpec,
    LinkSpec,
    is_namespace_of,
    parse_hosts,
    parse_lab,
    parse_link,
)


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("1Gbit", LinkSpec(125_000_000)),
        ("1Gbit,mtu=9000", LinkSpec(125_000_000, mtu=9000)),
        ("250Mbit,queue=5ms", LinkSpec(31_250_000, queue_bytes=156_250)),
        ("250Mbit, queue=512KiB ,offloads=off", LinkSpec(31_250_000, queue_bytes=524_288, offloads=False)),
        ("100MB/s", LinkSpec(100_000_000)),
        ("unshaped", LinkSpec()),
        ("unshaped,mtu=1400", LinkSpec(mtu=1400)),
    ],
)
def test_links_are_read_as_people_write_them(text: str, link: LinkSpec) -> None:
    assert parse_link(text) == link


@pytest.mark.parametrize(
    ("text", "error", "named"),
    [
        ("", BadDefinition, "begin with a rate"),
        ("mtu=9000", BadDefinition, "begin with a rate"),
        ("1Gbit,speed=3", BadDefinition, "speed=3"),
        ("1Gbit,mtu=9000,mtu=1500", BadDefinition, "mtu=1500"),
        ("1Gbit,mtu", BadDefinition, "mtu"),
        ("1Gbit,offloads=maybe", BadDefinition, "maybe"),
        ("unshaped,queue=5ms", BadDefinition, "no queue"),
        ("1Gbit,queue=", BadQuantity, ""),
        ("1000", BadQuantity, "1000"),
        ("0Gbit", BadQuantity, "0Gbit"),
        ("1bit", BadQuantity, "1bit"),
        ("1Gbit,mtu=1e3", BadQuantity, "1e3"),
        ("1Gbit,mtu=100", BadQuantity, "100"),
        ("1Gbit,mtu=70000", BadQuantity, "70000"),
        ("1Gbit,queue=5", BadQuantity, "5"),
        ("10Gbit,queue=10s", BadQuantity, "4 GiB"),
        ("900Gbit", BadQuantity, "400Gbit"),
    ],
)
def test_a_link_that_cannot_be_is_refused_with_a_sentence_that_names_it(
    text: str, error: type[BadDefinition | BadQuantity], named: str
) -> None:
    with pytest.raises(error) as caught:
        parse_link(text)
    assert named in caught.value.message
    assert caught.value.message.endswith(".")


def test_burst_and_limit_let_a_gso_packet_through_at_any_rate() -> None:
    slow, fast = parse_link("1Mbit"), parse_link("10Gbit,queue=1ms")
    assert slow.burst_bytes == 65536
    assert slow.limit_bytes == 65536 + 2500
    assert fast.burst_bytes == 2_500_000
    assert fast.limit_bytes == 2_500_000 + 1_250_000


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"name": "Lab"}, "Lab"),
        ({"name": "-a"}, "-a"),
        ({"name": "a-"}, "a-"),
        ({"name": "a" * 21}, "aaa"),
        ({"name": "../etc"}, "../etc"),
        ({"hosts": ("A",)}, "not 1"),
        ({"hosts": ()}, "not 0"),
        ({"hosts": tuple(f"h{number}" for number in range(65))}, "not 65"),
        ({"hosts": ("A", "A")}, "twice"),
        ({"hosts": ("A", "")}, "''"),
        ({"hosts": ("A", "b-c")}, "b-c"),
        ({"hosts": ("A", "toolonghost")}, "toolonghost"),
        ({"hosts": ("A", "client")}, "client"),
        ({"hosts": ("switch", "B")}, "switch"),
        ({"links": ()}, "not 0"),
        ({"links": (LinkSpec(),) * 17}, "not 17"),
        ({"guest_network": IPv4Network("10.77.0.0/30")}, "no room"),
        ({"guest_network": IPv4Network("10.79.0.0/16")}, "10.79.0.0/24"),
        ({"guest_network": IPv4Network("10.80.0.0/24")}, "10.80.0.0/24"),
    ],
)
def test_a_lab_that_cannot_be_is_refused(values: dict[str, object], named: str) -> None:
    with pytest.raises(BadDefinition) as caught:
        LabSpec(**values)  # type: ignore[arg-type]
    assert named in caught.value.message


def test_a_guest_network_that_is_none_is_refused() -> None:
    with pytest.raises(BadDefinition, match=r"10\.77\.0\.1/24"):
        parse_lab(guest_network="10.77.0.1/24")
    assert parse_lab(guest_network="192.168.5.0/24").client_address.compressed == "192.168.5.254/24"


def test_two_hosts_share_a_cable_and_more_share_a_switch() -> None:
    two, three = parse_lab(), parse_lab(hosts="A, B,C", links=["1Gbit", "1Gbit"])
    (cable,) = two.network("link0").cables
    assert (cable.near.member, cable.far.member) == ("A", "B")
    assert cable.far.address is not None and str(cable.far.address) == "10.80.0.2/24"
    assert two.network(0).opposite_of("B").member == "A"
    link1 = three.network("link1")
    assert [cable.near.member for cable in link1.cables] == ["A", "B", "C"]
    assert {cable.far.member for cable in link1.cables} == {SWITCH}
    assert {cable.far.bridge for cable in link1.cables} == {"link1"}
    assert link1.opposite_of("C").interface == "s1-C"


def test_addresses_follow_from_the_places_of_host_and_link() -> None:
    spec = parse_lab(hosts="A,B,C", links=["1Gbit"] * 3)
    assert str(spec.link_address("C", 2)) == "10.82.0.3"
    assert str(spec.control_address("B")) == "10.79.0.2"
    assert str(spec.client_address) == "10.77.0.254/24"
    for unknown in (lambda: spec.link_address("D"), lambda: spec.link_address("A", 3), lambda: spec.link_address("A", -1),
                    lambda: spec.control_address("client"), lambda: spec.network("link3"), lambda: spec.network(3),
                    lambda: spec.network("control").end_of("client"), lambda: spec.network(0).opposite_of("client"),
                    lambda: spec.namespace("D")):  # fmt: skip
        with pytest.raises(BadDefinition):
            unknown()


@pytest.mark.parametrize("hosts", ["A,B", "longhost,hostname", ",".join(f"hostno{number}" for number in range(64))])
def test_names_fit_the_kernel_and_are_unique_and_so_are_addresses(hosts: str) -> None:
    spec = parse_lab("a" * 20, hosts, ["1Gbit"] * 16)
    ends = [end for network in spec.networks for cable in network.cables for end in cable.ends]
    names = [end.interface for end in ends]
    assert max(map(len, names)) <= 15
    assert len(set(names)) == len(names)
    addresses = [end.address.ip for end in ends if end.address is not None]
    assert len(set(addresses)) == len(addresses)
    for network in spec.networks:
        assert all(end.address.ip in network.subnet for cable in network.cables for end in cable.ends if end.address)
    # what is a port of a bridge has no address, and the other way round
    assert all((end.bridge is None) != (end.address is None) for end in ends)
    assert not {network.name for network in spec.networks} & set(names)


def test_a_namespace_belongs_to_one_lab_only() -> None:
    assert is_namespace_of("a", "lm-a-B")
    assert not is_namespace_of("a", "lm-a-b-C")
    assert is_namespace_of("a-b", "lm-a-b-C")
    assert not is_namespace_of("a", "lm-a-")
    assert not is_namespace_of("a", "lm-ab-C")
    spec = parse_lab("x-1", "A,B,C")
    assert all(is_namespace_of("x-1", namespace) for namespace in spec.namespaces)
    assert len(set(spec.namespaces)) == 5


def test_hosts_are_read_from_a_list() -> None:
    assert parse_hosts("A, B,C ") == ("A", "B", "C")
