from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from livemove.base.errors import BadDefinition
from livemove.lab.link_spec import LinkSpec
from livemove.lab.topology import SWITCH, LabSpec, is_namespace_of, parse_hosts, parse_lab

SWITCHED = LinkSpec(switched=True)


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
        ({"links": (LinkSpec(mtu=9000, host_mtus=(9000, 1500, 1500)),)}, "3 MTUs for 2 hosts"),
        ({"links": (LinkSpec(switch_mtu=1500, offloads=False),)}, "no switch"),
        ({"links": (SWITCHED, replace(SWITCHED, subnet=1))}, "subnet of link 1"),
        ({"links": (SWITCHED, replace(SWITCHED, subnet=2))}, "subnet of link 2"),
        ({"links": (SWITCHED, replace(SWITCHED, subnet=0), replace(SWITCHED, subnet=1))}, "subnet of link 1"),
        ({"links": (LinkSpec(), replace(SWITCHED, subnet=0))}, "need a switch"),
        ({"links": (SWITCHED, LinkSpec(subnet=0))}, "need a switch"),
        (
            {"links": (SWITCHED, LinkSpec(switched=True, subnet=0, switch_mtu=1500, offloads=False))},
            "which has one MTU",
        ),
        ({"links": (SWITCHED, *[replace(SWITCHED, subnet=0)] * 3)}, "no room for link 3"),
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


def test_a_switched_link_has_a_switch_also_between_two_hosts_and_is_shaped_nowhere_else() -> None:
    spec = parse_lab(links=["1Gbit", "1Gbit,switched"])
    assert spec.network(0).direct and not spec.network(1).direct
    assert [cable.shaped for cable in spec.network(0).cables] == [(("A", "link0-A"), ("B", "link0-B"))]
    assert [cable.shaped for cable in spec.network(1).cables] == [
        ((SWITCH, "s1-A"), (SWITCH, "u1-A")),
        ((SWITCH, "s1-B"), (SWITCH, "u1-B")),
    ]
    assert spec.network(1).cables_of("B") == spec.network(1).cables[1:]
    assert spec.network(0).cables_of("B") == spec.network(0).cables_of(None) == spec.network(0).cables
    with pytest.raises(BadDefinition):
        spec.network(1).cables_of(SWITCH)


def test_second_nics_in_a_subnet_are_on_its_bridge_with_addresses_and_metrics_of_their_own() -> None:
    spec = parse_lab(hosts="A,B,C", links=["1Gbit", "1Gbit", "1Gbit,subnet=0", "unshaped,subnet=0"])
    assert [str(spec.link_address("B", index)) for index in range(4)] == [
        "10.80.0.2", "10.81.0.2", "10.80.0.102", "10.80.0.202",
    ]  # fmt: skip
    assert {cable.far.bridge for cable in spec.network(3).cables} == {"link0"}
    assert [network.own_bridge for network in spec.link_networks] == ["link0", "link1", None, None]
    assert [spec.network(index).end_of("C").metric for index in range(4)] == [0, 0, 1, 2]
    assert spec.network(2).subnet == spec.network(0).subnet


def test_every_host_has_its_mtu_and_the_switch_passes_all() -> None:
    spec = parse_lab(links=["unshaped,mtu=9000/1500", "unshaped,mtu=1500/9000,switched"])
    assert [end.mtu for end in spec.network(0).ends] == [9000, 1500]
    assert [end.mtu for end in spec.network(1).ends] == [1500, 65535, 9000, 65535]


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
