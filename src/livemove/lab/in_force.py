"""Which faults are in force in a lab, as its kernel has them, whoever made them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from livemove.base.units import format_rate
from livemove.lab import ingress
from livemove.lab.lab import Lab
from livemove.lab.namespaces import Tools, enter
from livemove.lab.topology import SWITCH, Cable, LabSpec, Network

#: Where faults put their rules, each with a comment that says what happens to what the host sends.
TABLE = "livemove_lab"
BLACK_HOLE, LOSS, LARGE = PURPOSES = ("hole", "loss", "large")


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is not as the lab was defined. `hosts` are those whose cable it is, or whose packets."""

    network: str
    hosts: tuple[str, ...]
    what: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What a namespace has: interfaces that are up, MTUs, rates of those shaped by tbf, comments of our rules by chain."""

    up: frozenset[str]
    mtus: Mapping[str, int]
    rates_bytes_per_s: Mapping[str, int]
    said: Mapping[str, str]


async def in_force(lab: Lab) -> list[Fault]:
    """All faults, link by link. Raises MissingPrerequisite when the lab is only partly there."""
    seen = await asyncio.gather(*(look(lab.tools, namespace) for namespace in lab.spec.namespaces))
    return find(lab.spec, dict(zip(lab.spec.members, seen, strict=True)))


async def look(tools: Tools, namespace: str) -> Seen:
    """Ask the kernel. Raises MissingPrerequisite."""
    shown, qdiscs, rules = await asyncio.gather(
        tools.run(["ip", "-j", "-n", namespace, "link"]),
        tools.run(["tc", "-j", "-n", namespace, "qdisc"]),
        tools.run([*enter(namespace), "nft", "-j", "list", "ruleset", "netdev"]),
    )
    return read(json.loads(shown), json.loads(qdiscs), json.loads(rules)["nftables"])


def read(
    shown: Iterable[Mapping[str, Any]], qdiscs: Iterable[Mapping[str, Any]], rules: Iterable[Mapping[str, Any]]
) -> Seen:
    """What `ip`, `tc` and `nft` say in JSON."""
    shown = list(shown)
    return Seen(
        frozenset(link["ifname"] for link in shown if "UP" in link["flags"]),
        {link["ifname"]: link["mtu"] for link in shown},
        {each["dev"]: each["options"]["rate"] for each in qdiscs if each["kind"] == "tbf" and "root" in each},
        {
            rule["chain"]: rule.get("comment", "")
            for rule in (each["rule"] for each in rules if "rule" in each)
            if rule["table"] == TABLE
        },
    )


def find(spec: LabSpec, seen: Mapping[str, Seen]) -> list[Fault]:
    """The faults of a lab from what its namespaces have."""
    return [fault for network in spec.networks for cable in network.cables for fault in _of_cable(network, cable, seen)]


def _of_cable(network: Network, cable: Cable, seen: Mapping[str, Seen]) -> Iterable[Fault]:
    owners = tuple(end.member for end in cable.ends if end.member != SWITCH)
    if any(end.interface not in seen[end.member].up for end in cable.ends):
        yield Fault(network.name, owners, "cut off")
    for sender in owners:
        arrival = cable.far if cable.near.member == sender else cable.near
        for purpose in PURPOSES:
            said = seen[arrival.member].said.get(ingress.chain_name(purpose, arrival))
            if said is not None:
                yield Fault(network.name, (sender,), said)
    rates = {seen[member].rates_bytes_per_s.get(interface) for member, interface in cable.shaped}
    for rate in sorted(rates - {network.spec.rate_bytes_per_s}, key=lambda rate: rate or 0):
        yield Fault(network.name, owners, "unshaped" if rate is None else f"rate {format_rate(rate)}")
    for end in cable.ends:
        mtu = seen[end.member].mtus.get(end.interface, end.mtu)
        if mtu != end.mtu:
            yield Fault(network.name, (end.member,), f"MTU {mtu} B")
