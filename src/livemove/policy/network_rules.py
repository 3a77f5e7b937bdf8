"""The cluster's list of networks: what is a list, what it says of a network, how it is changed (#39, #40, #42).

A list has one rule a subnet. As soon as it allows a network, the others are out; one that only denies leaves all others in.
The smaller metric is taken first.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import replace

from livemove.base.errors import BadSetting
from livemove.policy.paths import MAX_METRIC, NetworkRule
from livemove.policy.subnets import Subnet, contains, parse_subnet

MAX_RULES = 256
METRIC_STEP = 10
Rules = tuple[NetworkRule, ...]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,62}")
#: They mean something else where networks are named.
_RESERVED = ("one", "all", "any")


def check_rules(rules: Sequence[NetworkRule]) -> Rules:
    """The list by metric and subnet. Raises BadSetting when it is none, naming the rule."""
    if len(rules) > MAX_RULES:
        raise BadSetting(f"The list has {len(rules)} networks; at most {MAX_RULES} are kept.")
    for rule in rules:
        if parse_subnet(rule.subnet) != rule.subnet:
            raise BadSetting(f"'{rule.subnet[:80]}' is not written as {parse_subnet(rule.subnet)}.")
        if not 0 <= rule.metric <= MAX_METRIC:
            raise BadSetting(f"The metric of {rule.subnet} is {rule.metric}; it is a number from 0 to {MAX_METRIC}.")
        if rule.name:
            _check_name(rule.name)
    for what, values in (
        ("subnet", [rule.subnet for rule in rules]),
        ("name", [rule.name.lower() for rule in rules if rule.name]),
    ):
        twice = next((value for number, value in enumerate(values) if value in values[:number]), None)
        if twice is not None:
            raise BadSetting(f"Two networks of the list have the {what} '{twice}'.", remedy="Give each its own.")
    return tuple(sorted(rules, key=lambda rule: (rule.metric, ipaddress.ip_network(rule.subnet).version, rule.subnet)))


def is_strict(rules: Sequence[NetworkRule]) -> bool:
    """Whether only networks that the list allows are used; one that does not allow any leaves out what it denies."""
    return any(rule.allowed for rule in rules)


def rule_for(subnet: str | Subnet, rules: Sequence[NetworkRule]) -> NetworkRule | None:
    """The rule that counts for a subnet: that of the smallest subnet that contains it, as with routes."""
    inner = ipaddress.ip_network(subnet)
    around = [rule for rule in rules if contains(ipaddress.ip_network(rule.subnet), inner)]
    return max(around, key=lambda rule: ipaddress.ip_network(rule.subnet).prefixlen, default=None)


def why_not_allowed(subnet: str | Subnet, rules: Sequence[NetworkRule]) -> str:
    """Why the list does not allow the subnet; empty when it does."""
    rule = rule_for(subnet, rules)
    if rule is not None and not rule.allowed:
        return "denied in the cluster's list" + (f", as a part of {rule.subnet}" if rule.subnet != str(subnet) else "")
    if rule is None and is_strict(rules):
        return "not in the cluster's list of networks"
    return ""


def prefer(rules: Sequence[NetworkRule], networks: Sequence[str]) -> Rules:
    """Allow these, in this order before all others that are allowed. Raises BadSetting for a network named twice."""
    subnets = [find_subnet(rules, network) for network in networks]
    for number, subnet in enumerate(subnets):
        if subnet in subnets[:number]:
            raise BadSetting(f"The network {subnet} is named twice.", remedy="Name each once.")
    first = [replace(_of(rules, subnet), allowed=True) for subnet in subnets]
    rest = [rule for rule in check_rules(rules) if rule.subnet not in subnets]
    after = [rule for rule in rest if rule.allowed]
    ordered = [replace(rule, metric=METRIC_STEP * place) for place, rule in enumerate([*first, *after], start=1)]
    return check_rules([*ordered, *(rule for rule in rest if not rule.allowed)])


def allow(rules: Sequence[NetworkRule], network: str, *, metric: int | None = None, name: str | None = None) -> Rules:
    """Allow a network; without a metric it keeps the one that it has, or comes last. Raises BadSetting."""
    subnet = find_subnet(rules, network)
    rule = _of(rules, subnet)
    if metric is None and not (rule.allowed and rule in rules):
        last = max((each.metric for each in rules if each.allowed and each.subnet != subnet), default=0)
        metric = min(last + METRIC_STEP, MAX_METRIC)
    changed = replace(
        rule,
        allowed=True,
        metric=rule.metric if metric is None else metric,
        name=rule.name if name is None else name,
    )
    return check_rules([*(each for each in rules if each.subnet != subnet), changed])


def deny(rules: Sequence[NetworkRule], network: str) -> Rules:
    """Deny a network. Raises BadSetting."""
    subnet = find_subnet(rules, network)
    return check_rules([*(each for each in rules if each.subnet != subnet), replace(_of(rules, subnet), allowed=False)])


def forget(rules: Sequence[NetworkRule], network: str) -> Rules:
    """The list without the network's rule, if it has one. Raises BadSetting for what is neither a subnet nor a name in it."""
    subnet = find_subnet(rules, network)
    return check_rules([each for each in rules if each.subnet != subnet])


def find_subnet(rules: Sequence[NetworkRule], network: str) -> str:
    """The subnet that a name in the list, or a subnet, means. Raises BadSetting."""
    for rule in rules:
        if rule.name and rule.name.lower() == network.lower():
            return rule.subnet
    return parse_subnet(network)


def _of(rules: Sequence[NetworkRule], subnet: str) -> NetworkRule:
    return next((rule for rule in rules if rule.subnet == subnet), NetworkRule(subnet, 0))


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or name.lower() in _RESERVED:
        raise BadSetting(
            f"'{name[:80]}' cannot be the name of a network.",
            remedy="Begin with a letter; then letters, digits, '.', '_' and '-'. Not one, all or any.",
        )
