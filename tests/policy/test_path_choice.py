"""Which paths two hosts use, cell by cell, and what holds of every plan."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livemove.base.errors import BadSetting, LivemoveError, NoCommonNetwork, PolicyRefused
from livemove.policy.network_rules import rule_for, why_not_allowed
from livemove.policy.path_choice import MAX_PATHS, choose_paths
from livemove.policy.paths import HostNetworks, LeftOut, LinkFacts, NetworkRule, PathPlan, PathWish, UsePaths
from livemove.policy.subnets import subnet_of

GBIT = 125_000_000
ONE, ALL = PathWish(UsePaths.ONE), PathWish(UsePaths.ALL)
NET1, NET2, NET3 = "10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24"


def listed(*words: str) -> PathWish:
    return PathWish(UsePaths.LISTED, words)


def link(name: str, *addresses: str, speed: int = GBIT, mtu: int = 1500, carrier: bool = True) -> LinkFacts:
    index = 1 + int("".join(filter(str.isdigit, name)) or 0)
    return LinkFacts(name, index, "physical", speed, mtu, carrier, "veth", 1, addresses)


def host(name: str, *links: LinkFacts, incoming: tuple[str, ...] = (), preferred: str = "") -> HostNetworks:
    return HostNetworks(name, links, incoming, preferred)


def two(name: str, **more: tuple[str, ...]) -> HostNetworks:
    """A host on NET1 and NET2."""
    last = 1 if name == "A" else 2
    return host(name, link("eth1", f"10.1.0.{last}/24"), link("eth2", f"10.2.0.{last}/24"), **more)


def used(plan: PathPlan) -> list[tuple[str, str]]:
    return [(path.source_address, path.destination_address) for path in plan.paths]


def networks(plan: PathPlan) -> list[str]:
    return [path.network for path in plan.paths]


def reasons(plan: PathPlan) -> dict[str, str]:
    return {each.what: each.reason for each in plan.left_out}


# The matrix of both hosts' settings, the cluster's list and the wish ----------------------------------------------------

INCOMING = {"any": (NET1, NET2), "both": (NET1, NET2), "first": (NET1,), "second": (NET2,)}
RULES = {
    "none": ((), (NET1, NET2)),
    "allow first": ((NetworkRule(NET1, 10),), (NET1,)),
    "deny first": ((NetworkRule(NET1, 10, allowed=False),), (NET2,)),
    "both, second preferred": ((NetworkRule(NET1, 20), NetworkRule(NET2, 10)), (NET2, NET1)),
}
WISHES = {"one": ONE, "all": ALL, "list first": listed(NET1), "list both": listed(NET1, NET2)}


def setting(name: str, last: int) -> tuple[str, ...]:
    return () if name == "any" else tuple(f"{subnet.removesuffix('0/24')}{last}" for subnet in INCOMING[name])


@pytest.mark.parametrize(("ours", "theirs", "rules", "wish"), list(product(INCOMING, INCOMING, RULES, WISHES)))
def test_45_46_47_what_both_hosts_and_the_list_allow_is_used_and_nothing_else(
    ours: str, theirs: str, rules: str, wish: str
) -> None:
    source, destination = two("A", incoming=setting(ours, 1)), two("B", incoming=setting(theirs, 2))
    the_rules, order = RULES[rules]
    allowed = [subnet for subnet in order if subnet in INCOMING[ours] and subnet in INCOMING[theirs]]
    asked = WISHES[wish]
    if asked.use is UsePaths.LISTED:
        if not set(asked.listed) <= set(allowed):
            for hosts in ((source, destination), (destination, source)):
                with pytest.raises(PolicyRefused, match="cannot be used"):
                    choose_paths(*hosts, the_rules, asked)
            return
        allowed = list(asked.listed)
    for one, other in ((source, destination), (destination, source)):
        if not allowed:
            with pytest.raises(NoCommonNetwork):
                choose_paths(one, other, the_rules, asked)
            continue
        plan = choose_paths(one, other, the_rules, asked)
        assert networks(plan) == (allowed[:1] if asked.use is UsePaths.ONE else allowed)
        assert [path.network for path in plan.spares] == (allowed[1:] if asked.use is UsePaths.ONE else [])
        assert len(plan.left_out) == 0 if len(allowed) == 2 else plan.left_out


# Order ----------------------------------------------------------------------------------------------------------------


def test_42_the_lowest_metric_is_first_and_names_are_shown() -> None:
    rules = (NetworkRule(NET1, 30, name="slow"), NetworkRule(NET2, 5, name="fast"))
    plan = choose_paths(two("A"), two("B"), rules, ALL)
    assert [(path.network, path.name) for path in plan.paths] == [(NET2, "fast"), (NET1, "slow")]


def test_metrics_of_a_list_that_only_denies_do_not_count() -> None:
    rules = (NetworkRule("10.9.0.0/24", 1, allowed=False),)
    assert networks(choose_paths(two("A"), two("B", preferred="10.2.0.2"), rules, ONE)) == [NET2]


def test_without_a_list_the_destinations_preferred_address_is_first_then_capacity_then_subnet() -> None:
    def at(name: str, last: int, preferred: str = "") -> HostNetworks:
        return host(
            name,
            link("eth1", f"10.1.0.{last}/24"),
            link("eth2", f"10.2.0.{last}/24", speed=10 * GBIT),
            link("eth3", f"10.3.0.{last}/24"),
            link("eth4", f"10.4.0.{last}/24", speed=0),
            preferred=preferred,
        )

    plan = choose_paths(at("A", 1), at("B", 2, "10.3.0.2"), (), ALL)
    assert networks(plan) == [NET3, NET2, NET1, "10.4.0.0/24"]
    assert networks(choose_paths(at("A", 1), at("B", 2), (), ALL)) == [NET2, NET1, NET3, "10.4.0.0/24"]
    # the preferred address has no NIC, but its network has
    assert networks(choose_paths(at("A", 1), at("B", 2, "10.3.0.99"), (), ONE)) == [NET3]


def test_unequal_paths_are_used_together_with_what_the_weaker_nic_has() -> None:
    source = host("A", link("eth1", "10.1.0.1/24", mtu=9000), link("eth2", "10.2.0.1/24", speed=10 * GBIT))
    plan = choose_paths(source, two("B"), (), ALL)
    assert [(path.capacity_bytes_per_s, path.mtu) for path in plan.paths] == [(GBIT, 1500), (GBIT, 1500)]
    unknown = host("A", link("eth1", "10.1.0.1/24", speed=0))
    assert choose_paths(unknown, two("B"), (), ONE).paths[0].capacity_bytes_per_s == 0


# The cluster's list ---------------------------------------------------------------------------------------------------


def test_39_the_rule_of_the_smallest_subnet_around_counts() -> None:
    rules = (NetworkRule("10.0.0.0/8", 1, allowed=False), NetworkRule(NET2, 2), NetworkRule("fd00::/8", 3))
    plan = choose_paths(two("A"), two("B"), rules, ALL)
    assert networks(plan) == [NET2]
    assert reasons(plan) == {NET1: "denied in the cluster's list, as a part of 10.0.0.0/8"}
    assert rule_for(NET2, rules) == rules[1] and rule_for("192.0.2.0/24", rules) is None


def test_why_a_network_is_not_allowed() -> None:
    assert why_not_allowed(NET1, ()) == ""
    assert why_not_allowed(NET1, (NetworkRule(NET2, 1),)) == "not in the cluster's list of networks"
    assert why_not_allowed(NET1, (NetworkRule(NET1, 1, allowed=False),)) == "denied in the cluster's list"
    assert why_not_allowed(NET1, (NetworkRule(NET2, 1, allowed=False),)) == ""
    assert subnet_of("10.1.0.7/24") == NET1


# The list of the command ----------------------------------------------------------------------------------------------


def test_listed_networks_are_used_in_that_order_by_subnet_or_name() -> None:
    rules = (NetworkRule(NET1, 10, name="Slow"), NetworkRule(NET2, 20))
    assert networks(choose_paths(two("A"), two("B"), rules, listed(NET2, "slow"))) == [NET2, NET1]
    plan = choose_paths(two("A"), two("B"), (), listed(NET2))
    assert (networks(plan), plan.spares) == ([NET2], ())
    assert reasons(plan) == {NET1: "not among the networks asked for"}
    # a wider subnet names all those within
    assert networks(choose_paths(two("A"), two("B"), (), listed("10.0.0.0/8"))) == [NET1, NET2]


@pytest.mark.parametrize(
    ("wish", "rules", "error", "says"),
    [
        (listed("10.9.0.0/24"), (), BadSetting, "There is no network '10.9.0.0/24'; A and B are on 10.1.0.0/24, 10.2"),
        (
            listed("fast"),
            (NetworkRule(NET1, 1, name="slow"),),
            BadSetting,
            r"no network 'fast'; .*10.1.0.0/24 \(slow\)",
        ),
        (
            listed("far"),
            (NetworkRule(NET3, 1, name="far"),),
            NoCommonNetwork,
            "Neither A nor B is on the network 'far'",
        ),
        (listed(NET3), (NetworkRule(NET3, 1),), NoCommonNetwork, "Neither A nor B is on"),
        (listed(NET1), (NetworkRule(NET2, 1),), PolicyRefused, "not in the cluster's list of networks"),
        (
            listed("old"),
            (NetworkRule(NET1, 1, False, "old"),),
            PolicyRefused,
            r"'old' \(10.1.0.0/24\) .* denied in the",
        ),
    ],
)
def test_a_listed_network_that_cannot_be_had(
    wish: PathWish, rules: tuple[NetworkRule, ...], error: type[LivemoveError], says: str
) -> None:
    with pytest.raises(error, match=says):
        choose_paths(two("A"), two("B"), rules, wish)


def test_a_listed_network_that_a_host_excludes_names_the_host() -> None:
    with pytest.raises(
        PolicyRefused, match=r"B's 10\.1\.0\.2 is not in its 'incoming', which has 10\.2\.0\.2"
    ) as caught:
        choose_paths(two("A"), two("B", incoming=("10.2.0.2",)), (), listed(NET1))
    assert caught.value.where == "B" and "--host B" in caught.value.remedy
    with pytest.raises(NoCommonNetwork, match=r"'10\.2\.0\.0/24' cannot be used: B is not on it"):
        choose_paths(two("A"), host("B", link("eth1", "10.1.0.2/24")), (), listed(NET1, NET2))


def test_a_listed_network_without_carrier_is_left_out_while_another_carries() -> None:
    dead = host("B", link("eth1", "10.1.0.2/24", carrier=False), link("eth2", "10.2.0.2/24"))
    plan = choose_paths(two("A"), dead, (), listed(NET1, NET2))
    assert networks(plan) == [NET2]
    assert reasons(plan)["B eth1 10.1.0.2"] == "no carrier on B's eth1"
    with pytest.raises(NoCommonNetwork, match="no carrier on B's eth1"):
        choose_paths(two("A"), dead, (), listed(NET1))


# What falls out, and why ------------------------------------------------------------------------------------------------


def test_13_a_dead_nic_is_left_out_and_the_next_network_taken() -> None:
    dead = host("A", link("eth1", "10.1.0.1/24", carrier=False), link("eth2", "10.2.0.1/24"))
    plan = choose_paths(dead, two("B"), (NetworkRule(NET1, 1), NetworkRule(NET2, 2)), ONE)
    assert networks(plan) == [NET2]
    assert reasons(plan) == {
        "A eth1 10.1.0.1": "no carrier on A's eth1",
        "B eth1 10.1.0.2": "A cannot use its address on 10.1.0.0/24",
    }


def test_a_network_of_one_host_alone() -> None:
    plan = choose_paths(two("A"), host("B", link("eth1", "10.1.0.2/24")), (), ALL)
    assert reasons(plan) == {"A eth2 10.2.0.1": "only A is on 10.2.0.0/24"}


def test_an_address_that_both_hosts_have_is_no_path() -> None:
    """Such as that of a bridge for containers."""
    both = link("docker0", "172.17.0.1/16")
    plan = choose_paths(
        host("A", both, link("eth1", "10.1.0.1/24")), host("B", both, link("eth1", "10.1.0.2/24")), (), ALL
    )
    assert networks(plan) == [NET1]
    assert reasons(plan) == {
        "A docker0 172.17.0.1": "B has the same address",
        "B docker0 172.17.0.1": "A has the same address",
    }


def test_incoming_that_names_an_address_on_no_nic() -> None:
    with pytest.raises(
        BadSetting, match=r"'incoming' of B names 10\.9\.9\.9, which is on none of its NICs; they have 10\.1"
    ):
        choose_paths(two("A"), two("B", incoming=("10.9.9.9",)), (), ONE)
    # a NIC that is gone does not take the others with it
    plan = choose_paths(two("A", incoming=("10.9.9.9", "10.2.0.1")), two("B"), (), ONE)
    assert networks(plan) == [NET2]
    assert reasons(plan)["A 10.9.9.9"] == "in A's 'incoming', but on none of its NICs"
    assert reasons(plan)["A eth1 10.1.0.1"] == "not in A's 'incoming'"


def test_no_path_says_what_both_sides_have() -> None:
    with pytest.raises(NoCommonNetwork) as caught:
        choose_paths(host("A", link("eth1", "10.1.0.1/24")), host("B", link("eth2", "10.2.0.2/24")), (), ONE)
    assert "A has 10.1.0.1/24 on eth1; B has 10.2.0.2/24 on eth2." in caught.value.message
    assert "only A is on 10.1.0.0/24" in caught.value.message
    assert len(caught.value.details["left_out"]) == 2
    with pytest.raises(NoCommonNetwork, match=r"A has no address; B has no address\.$"):
        choose_paths(host("A"), host("B"), (), ALL)


# Overlapping subnets ----------------------------------------------------------------------------------------------------


def wide_and_narrow(name: str, last: int) -> HostNetworks:
    return host(
        name, link("eth1", f"10.1.0.{last}/16"), link("eth2", f"10.1.7.{last}/24"), link("eth3", f"10.3.0.{last}/24")
    )


def test_overlapping_subnets_of_two_nics_are_refused_by_name_unless_one_is_chosen() -> None:
    hosts = wide_and_narrow("A", 1), wide_and_narrow("B", 2)
    plan = choose_paths(*hosts, (), ALL)
    assert networks(plan) == [NET3]
    assert reasons(plan)["10.1.0.0/16"].startswith("eth1 of A overlaps eth2 with 10.1.7.0/24; choose one of them")
    assert reasons(plan)["10.1.7.0/24"].startswith("eth2 of A overlaps eth1 with 10.1.0.0/16")
    assert networks(choose_paths(*hosts, (), listed("10.1.7.0/24"))) == ["10.1.7.0/24"]
    assert networks(
        choose_paths(*hosts, (NetworkRule("10.1.0.0/16", 1), NetworkRule("10.1.7.0/24", 1, False)), ALL)
    ) == ["10.1.0.0/16"]
    with pytest.raises(NoCommonNetwork, match="overlaps"):
        choose_paths(*hosts, (NetworkRule("10.1.0.0/16", 1),), ALL)


def test_overlapping_on_the_destination_alone_and_on_one_nic() -> None:
    """Two subnets on one and the same NIC on both hosts leave no doubt which NIC carries them."""
    together = host("A", link("eth1", "10.1.0.1/16", "10.1.7.1/24"))
    plan = choose_paths(together, host("B", link("eth1", "10.1.0.2/16", "10.1.7.2/24")), (), ALL)
    assert networks(plan) == ["10.1.0.0/16"]
    assert reasons(plan) == {"10.1.7.1 to 10.1.7.2": "eth1 and eth1 carry 10.1.0.0/16 already"}
    with pytest.raises(NoCommonNetwork, match="eth1 of B overlaps eth2"):
        choose_paths(together, host("B", link("eth1", "10.1.0.2/16"), link("eth2", "10.1.7.2/24")), (), ALL)


def test_prefixes_that_do_not_agree_are_named() -> None:
    with pytest.raises(
        NoCommonNetwork, match=r"10\.1\.0\.0/16: B has 10\.1\.0\.0/24 where A has 10\.1\.0\.0/16: the prefixes"
    ):
        choose_paths(host("A", link("eth1", "10.1.0.1/16")), host("B", link("eth1", "10.1.0.2/24")), (), ONE)
    # a bridge of one host's own that lies within a common network is no such fault
    bridge = host("B", link("eth1", "10.1.0.2/16"), link("br0", "10.1.7.1/24"))
    plan = choose_paths(host("A", link("eth1", "10.1.0.1/16")), bridge, (), ALL)
    assert networks(plan) == ["10.1.0.0/16"]
    assert reasons(plan) == {"B br0 10.1.7.1": "only B is on 10.1.7.0/24"}


# Two NICs in one subnet -------------------------------------------------------------------------------------------------


def test_two_nics_in_one_subnet_are_paired_one_to_one() -> None:
    source = host("A", link("eth1", "10.1.0.1/24"), link("eth2", "10.1.0.11/24"))
    destination = host("B", link("eth1", "10.1.0.2/24"), link("eth2", "10.1.0.12/24"))
    plan = choose_paths(source, destination, (), ALL)
    assert used(plan) == [("10.1.0.1", "10.1.0.2"), ("10.1.0.11", "10.1.0.12")]
    assert all(path.shared_subnet for path in plan.paths)
    assert [path.source_index for path in plan.paths] == [2, 3]
    one = choose_paths(source, destination, (), ONE)
    assert used(one) == [("10.1.0.1", "10.1.0.2")] and one.paths[0].shared_subnet and len(one.spares) == 1
    # the destination's choice of address decides which pair is first, the order of `incoming` who goes with whom
    ordered = replace(destination, incoming=("10.1.0.12", "10.1.0.2"))
    assert used(choose_paths(source, ordered, (), ALL)) == [("10.1.0.1", "10.1.0.12"), ("10.1.0.11", "10.1.0.2")]
    preferring = replace(destination, preferred="10.1.0.12")
    assert used(choose_paths(source, preferring, (), ALL))[0] == ("10.1.0.1", "10.1.0.12")


def test_fast_nics_of_one_subnet_are_paired_with_fast_ones() -> None:
    source = host("A", link("eth1", "10.1.0.1/24", speed=10 * GBIT), link("eth2", "10.1.0.11/24"))
    destination = host("B", link("eth1", "10.1.0.2/24"), link("eth2", "10.1.0.12/24", speed=10 * GBIT))
    plan = choose_paths(source, destination, (), ALL)
    assert used(plan) == [("10.1.0.1", "10.1.0.12"), ("10.1.0.11", "10.1.0.2")]
    assert plan.paths[0].capacity_bytes_per_s == 10 * GBIT


def test_a_nic_too_many_is_named_and_the_subnet_still_shared() -> None:
    source = host("A", link("eth1", "10.1.0.1/24"), link("eth2", "10.1.0.11/24"))
    plan = choose_paths(source, host("B", link("eth1", "10.1.0.2/24")), (), ALL)
    assert used(plan) == [("10.1.0.1", "10.1.0.2")] and plan.paths[0].shared_subnet
    assert reasons(plan) == {"A eth2 10.1.0.11": "B has no further NIC on 10.1.0.0/24"}


def test_a_second_address_on_a_nic_is_no_second_path() -> None:
    source = host("A", link("eth1", "10.1.0.1/24", "10.1.0.50/24"))
    destination = host("B", link("eth1", "10.1.0.2/24", "10.1.0.60/24"))
    plan = choose_paths(source, destination, (), ALL)
    assert used(plan) == [("10.1.0.1", "10.1.0.2")] and not plan.paths[0].shared_subnet
    assert reasons(plan) == {
        "A eth1 10.1.0.50": "the NIC takes part with 10.1.0.1",
        "B eth1 10.1.0.60": "the NIC takes part with 10.1.0.2",
    }
    restricted = replace(destination, incoming=("10.1.0.60",))
    assert used(choose_paths(source, restricted, (), ALL)) == [("10.1.0.1", "10.1.0.60")]


# Families and bounds ----------------------------------------------------------------------------------------------------


def test_one_family_a_journey_that_of_the_first_path() -> None:
    source = host("A", link("eth1", "10.1.0.1/24", "fd00:1::1/64"), link("eth2", "fd00:2::1/64"))
    destination = host("B", link("eth1", "10.1.0.2/24", "fd00:1::2/64"), link("eth2", "fd00:2::2/64"))
    plan = choose_paths(source, destination, (), ALL)
    assert used(plan) == [("10.1.0.1", "10.1.0.2")]
    assert reasons(plan)["fd00:2::1 to fd00:2::2"] == "a journey uses one family, and its first path is IPv4"
    six = choose_paths(source, replace(destination, preferred="fd00:2::2"), (), ALL)
    assert used(six) == [("fd00:2::1", "fd00:2::2"), ("fd00:1::1", "fd00:1::2")]
    assert reasons(six)["10.1.0.1 to 10.1.0.2"].endswith("is IPv6")


def test_a_journey_has_a_bounded_number_of_paths() -> None:
    hosts = [
        host(name, *(link(f"eth{number}", f"10.{number}.0.{last}/24") for number in range(MAX_PATHS + 2)))
        for name, last in (("A", 1), ("B", 2))
    ]
    plan = choose_paths(*hosts, (), ALL)
    assert len(plan.paths) == MAX_PATHS
    assert reasons(plan)["10.9.0.1 to 10.9.0.2"] == f"a journey has at most {MAX_PATHS} paths"


# What holds of every plan -----------------------------------------------------------------------------------------------

SUBNETS = [f"10.{number}.0.0/24" for number in range(1, 5)] + ["10.1.0.0/16", "fd00:1::/64", "fd00:2::/64"]
_RULES = st.lists(
    st.builds(NetworkRule, st.sampled_from([*SUBNETS, "10.0.0.0/8"]), st.integers(0, 3), st.booleans()),
    max_size=4,
    unique_by=lambda rule: rule.subnet,
)


@st.composite
def _hosts(draw: st.DrawFn, name: str) -> HostNetworks:
    """Up to four NICs with up to two addresses each; the two hosts' addresses are alike now and then."""
    numbers = iter(draw(st.permutations(range(1, 9))))
    offset = draw(st.sampled_from([0, 10])) if name == "B" else 0
    links = []
    for number in range(draw(st.integers(1, 4))):
        addresses = []
        for subnet in draw(st.lists(st.sampled_from(SUBNETS), min_size=1, max_size=2, unique=True)):
            network = ipaddress.ip_network(subnet)
            addresses.append(f"{network.network_address + next(numbers) + offset}/{network.prefixlen}")
        speed = draw(st.sampled_from([0, GBIT, 10 * GBIT]))
        links.append(
            link(f"eth{number}", *addresses, speed=speed, carrier=draw(st.sampled_from([True, True, True, False])))
        )
    own = [address.partition("/")[0] for each in links for address in each.addresses]
    incoming = tuple(draw(st.one_of(st.just(()), st.just(own), st.lists(st.sampled_from(own), unique=True))))
    return host(name, *links, incoming=incoming)


_WISHES = st.one_of(
    st.just(ONE),
    st.just(ALL),
    st.lists(st.sampled_from(SUBNETS), min_size=1, max_size=3, unique=True).map(lambda names: listed(*names)),
)


@settings(deadline=None)
@given(_hosts("A"), _hosts("B"), _RULES, _WISHES)
def test_157_everybody_allows_every_path_and_the_way_back_is_the_same(
    source: HostNetworks, destination: HostNetworks, rules: list[NetworkRule], wish: PathWish
) -> None:
    try:
        plan = choose_paths(source, destination, rules, wish)
    except LivemoveError as error:
        assert isinstance(error, (BadSetting, PolicyRefused, NoCommonNetwork))
        with pytest.raises(type(error)):
            choose_paths(destination, source, rules, wish)
        return
    assert plan == choose_paths(source, destination, rules, wish)
    for path in (*plan.paths, *plan.spares):
        subnet = ipaddress.ip_network(path.network)
        assert why_not_allowed(path.network, rules) == ""
        for side, address, nic in (
            (source, path.source_address, path.source_link),
            (destination, path.destination_address, path.destination_link),
        ):
            assert not side.incoming or address in side.incoming
            (carrying,) = (each for each in side.links if each.name == nic)
            assert carrying.carrier and f"{address}/{subnet.prefixlen}" in carrying.addresses
        assert path.source_address != path.destination_address
        if wish.use is UsePaths.LISTED:
            assert any(
                subnet.version == 4 and subnet.subnet_of(ipaddress.ip_network(w)) if ":" not in w else w == path.network
                for w in wish.listed
            )
    everything = [
        address for path in (*plan.paths, *plan.spares) for address in (path.source_address, path.destination_address)
    ]
    assert len(set(everything)) == len(everything)
    assert len({":" in address for address in everything}) == 1
    assert len(plan.paths) == 1 or wish.use is not UsePaths.ONE
    assert 1 <= len(plan.paths) <= MAX_PATHS
    back = choose_paths(destination, source, rules, wish)
    assert networks(back) == networks(plan)
    assert used(back) == [pair[::-1] for pair in used(plan)]


@settings(deadline=None)
@given(_hosts("A"), _hosts("B"), _RULES)
def test_every_address_is_used_spare_or_left_out_with_a_reason(
    source: HostNetworks, destination: HostNetworks, rules: list[NetworkRule]
) -> None:
    try:
        plan = choose_paths(source, destination, rules, ALL)
    except NoCommonNetwork as error:
        plan = PathPlan((), (), tuple(LeftOut(each["what"], each["reason"]) for each in error.details["left_out"]))
    told = {address for pair in used(plan) for address in pair}
    told |= {word for each in plan.left_out for word in each.what.split()}
    for side in (source, destination):
        for each in side.links:
            for text in each.addresses:
                assert text.partition("/")[0] in told or subnet_of(text) in told
    assert all(each.reason for each in plan.left_out)
