from __future__ import annotations

from ipaddress import ip_network

from livemove.policy.subnets import contains, sort_subnets, subnet_of


def test_subnets_are_sorted_by_their_numbers() -> None:
    assert sort_subnets(["fd00::/64", "10.10.0.0/24", "10.9.0.0/24", "10.9.0.0/16"]) == [
        "10.9.0.0/16",
        "10.9.0.0/24",
        "10.10.0.0/24",
        "fd00::/64",
    ]


def test_the_subnet_of_an_address() -> None:
    assert (subnet_of("10.1.0.7/24"), subnet_of("fd00::7/64"), subnet_of("10.1.0.7/32")) == (
        "10.1.0.0/24",
        "fd00::/64",
        "10.1.0.7/32",
    )


def test_what_contains_what() -> None:
    assert contains(ip_network("10.0.0.0/8"), ip_network("10.1.0.0/24"))
    assert contains(ip_network("10.1.0.0/24"), ip_network("10.1.0.0/24"))
    assert not contains(ip_network("10.1.0.0/24"), ip_network("10.0.0.0/8"))
    assert not contains(ip_network("0.0.0.0/0"), ip_network("fd00::/64"))
