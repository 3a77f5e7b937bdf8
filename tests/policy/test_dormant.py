"""Which paths are taken up when their NICs get a carrier."""

from __future__ import annotations

from dataclasses import replace

from tests.policy.test_path_choice import ALL, NET1, NET2, ONE, host, link, listed, networks, two

from livemove.policy.dormant import dormant_paths
from livemove.policy.path_choice import choose_paths
from livemove.policy.paths import HostNetworks, NetworkRule, PathWish


def without_carrier(host: HostNetworks, name: str) -> HostNetworks:
    return replace(host, links=tuple(replace(link, carrier=link.carrier and link.name != name) for link in host.links))


def dormant(source: HostNetworks, destination: HostNetworks, wish: PathWish, *rules: NetworkRule) -> list[str]:
    plan = choose_paths(source, destination, rules, wish)
    return [path.network for path in dormant_paths(plan, source, destination, rules, wish)]


def test_a_nic_without_carrier_on_either_host_is_waited_for() -> None:
    assert dormant(without_carrier(two("A"), "eth1"), two("B"), ALL) == [NET1]
    assert dormant(two("A"), without_carrier(two("B"), "eth2"), listed(NET1, NET2)) == [NET2]
    assert dormant(two("A"), two("B"), ALL) == []


def test_one_path_waits_for_no_other() -> None:
    assert dormant(without_carrier(two("A"), "eth1"), two("B"), ONE) == []


def test_what_was_not_asked_for_or_is_denied_is_not_waited_for() -> None:
    down = without_carrier(two("A"), "eth1")
    assert dormant(down, two("B"), ALL, NetworkRule(NET1, 10, allowed=False)) == []
    assert dormant(down, two("B"), listed(NET2)) == []
    assert dormant(down, two("B", incoming=("10.2.0.2",)), ALL) == []


def test_an_address_of_a_path_in_use_is_in_no_other() -> None:
    """Two NICs in one subnet: whichever pairs they would make with all of them up, those in use stay as they are."""
    a = host("A", link("eth1", "10.1.0.1/24", carrier=False), link("eth2", "10.1.0.2/24"))
    b = host("B", link("eth1", "10.1.0.11/24"), link("eth2", "10.1.0.12/24"))
    plan = choose_paths(a, b, (), ALL)
    assert networks(plan) == [NET1]
    assert dormant_paths(plan, a, b, (), ALL) == ()
