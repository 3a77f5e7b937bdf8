"""The cluster's list of networks and every way to change it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livemove.base.errors import BadSetting
from livemove.policy.network_rules import (
    MAX_RULES,
    Rules,
    allow,
    check_rules,
    deny,
    find_subnet,
    forget,
    prefer,
)
from livemove.policy.paths import MAX_METRIC, NetworkRule
from livemove.policy.subnets import parse_subnet

ONE, TWO, THREE = "10.1.0.0/24", "10.2.0.0/24", "fd00:3::/64"
LIST = (NetworkRule(ONE, 10, name="fast"), NetworkRule(TWO, 20), NetworkRule(THREE, 5, allowed=False, name="mgmt"))


def short(rules: Rules) -> list[tuple[str, int, bool]]:
    return [(rule.subnet, rule.metric, rule.allowed) for rule in rules]


def test_39_prefer_orders_and_what_was_allowed_comes_after() -> None:
    assert short(prefer((), [TWO, ONE])) == [(TWO, 10, True), (ONE, 20, True)]
    assert short(prefer(LIST, [TWO])) == [(THREE, 5, False), (TWO, 10, True), (ONE, 20, True)]
    again = prefer(LIST, ["MGMT", TWO])
    assert short(again) == [(THREE, 10, True), (TWO, 20, True), (ONE, 30, True)]
    assert [rule.name for rule in again] == ["mgmt", "", "fast"], "names stay"
    assert prefer(again, ["mgmt", TWO]) == again
    with pytest.raises(BadSetting, match=r"10\.1\.0\.0/24 is named twice"):
        prefer(LIST, [ONE, "fast"])


@pytest.mark.parametrize(
    ("network", "options", "result"),
    [
        ("10.9.0.0/24", {}, ("10.9.0.0/24", 30, "")),
        ("10.9.0.0/24", {"metric": 1, "name": "new"}, ("10.9.0.0/24", 1, "new")),
        (ONE, {}, (ONE, 10, "fast")),
        ("fast", {"metric": 7}, (ONE, 7, "fast")),
        ("fast", {"name": ""}, (ONE, 10, "")),
        ("mgmt", {}, (THREE, 30, "mgmt")),
    ],
)
def test_allow(network: str, options: dict[str, int | str], result: tuple[str, int, str]) -> None:
    changed = allow(LIST, network, **options)  # type: ignore[arg-type]  # a table of keywords
    rule = next(rule for rule in changed if rule.subnet == result[0])
    assert (rule.subnet, rule.metric, rule.name, rule.allowed) == (*result, True)
    assert {each for each in changed if each is not rule} == {each for each in LIST if each.subnet != rule.subnet}


def test_the_last_metric_has_a_bound() -> None:
    assert allow((NetworkRule(ONE, MAX_METRIC),), TWO)[-1].metric == MAX_METRIC


def test_deny_and_forget() -> None:
    assert short(deny(LIST, "fast")) == [(THREE, 5, False), (ONE, 10, False), (TWO, 20, True)]
    assert short(deny((), TWO)) == [(TWO, 0, False)]
    assert short(forget(LIST, "mgmt")) == [(ONE, 10, True), (TWO, 20, True)]
    assert forget(LIST, "10.9.0.0/24") == check_rules(LIST), "what has no rule needs none"
    with pytest.raises(BadSetting, match="'slow' is not a network"):
        forget(LIST, "slow")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("10.1.0.7/24", "'10.1.0.7/24' is an address on 10.1.0.0/24"),
        ("10.1.0.0", "not a network"),
        ("10.1.0.0/33", "not a network"),
        ("", "not a network"),
        ("fe80::1%eth0/64", "not a network"),
    ],
)
def test_what_is_no_subnet(text: str, says: str) -> None:
    with pytest.raises(BadSetting, match=re.escape(says)):
        parse_subnet(text)


def test_names_and_subnets() -> None:
    assert find_subnet(LIST, "FAST") == ONE
    assert find_subnet(LIST, "10.9.0.0/16") == "10.9.0.0/16"
    assert parse_subnet("FD00:3:0::/64") == THREE
    assert parse_subnet("10.1.0.0/255.255.255.0") == ONE


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ([NetworkRule(ONE, 1), NetworkRule(ONE, 2)], "have the subnet '10.1.0.0/24'"),
        ([NetworkRule(ONE, 1, name="a"), NetworkRule(TWO, 2, name="A")], "have the name 'a'"),
        ([NetworkRule(ONE, 1, name="all")], "'all' cannot be the name"),
        ([NetworkRule(ONE, 1, name="10.2.0.0/24")], "cannot be the name"),
        ([NetworkRule(ONE, -1)], "The metric of 10.1.0.0/24 is -1"),
        ([NetworkRule(ONE, MAX_METRIC + 1)], "The metric of"),
        ([NetworkRule("FD00:3::/64", 1)], "is not written as fd00:3::/64"),
        ([NetworkRule("x", 1)], "'x' is not a network"),
        ([NetworkRule(f"10.{number >> 8}.{number & 255}.0/24", 1) for number in range(MAX_RULES + 1)], "at most 256"),
    ],
)
def test_what_is_no_list(rules: list[NetworkRule], says: str) -> None:
    with pytest.raises(BadSetting, match=re.escape(says)):
        check_rules(rules)


_SUBNETS = st.sampled_from([ONE, TWO, THREE, "10.9.0.0/16"])


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([allow, deny, forget, lambda rules, one: prefer(rules, [one])]), _SUBNETS)))
def test_whatever_is_done_it_stays_a_list_and_doing_it_twice_changes_nothing(changes) -> None:  # type: ignore[no-untyped-def]  # pairs of function and subnet
    rules: Rules = ()
    for change, subnet in changes:
        rules = change(rules, subnet)
        assert rules == check_rules(rules) == change(rules, subnet)
        found = [rule for rule in rules if rule.subnet == subnet]
        assert [rule.allowed for rule in found] == ([] if change is forget else [change is not deny])
