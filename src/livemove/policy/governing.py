"""One decision of a host's governor, ten times a second: who may use how much, from what was counted since the last one.

In order, for each direction by itself:

1. promised    what each NIC must keep for others: minimums and buffers, where the others' traffic is
2. room        what of that they want now (policy.room)
3. free        what is left to migration on each NIC, under LiveMigration's maximum, a total of the host
4. shares      that, divided among the journeys by weight and by what they can use

Incoming shares are allowances, told to the sources. Outgoing ones add up to a journey's rate, for QEMU; and no more leaves
a NIC for a journey than its destination allows there, nor more for all journeys than LiveMigration's maximum, for the
classes of the NICs.

Where a NIC has classes (`shaped`), outgoing room is their business: they know within a packet's time what others want. So 3
leaves everything to migration there, and 2 counts only without classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from livemove.policy.bandwidth import (
    LEAST_MIGRATION,
    Category,
    Claim,
    Limits,
    Nic,
    kept_on,
    living_cap,
    minimum_of,
    share_out,
    split_cap,
)
from livemove.policy.room import USABLE, Room, step_room

OTHERS = (Category.VIRTUAL_MACHINE, Category.DEFAULT)


class Direction(Enum):
    """Seen from this host."""

    OUT = "out"
    IN = "in"


@dataclass(frozen=True, slots=True)
class Member:
    """One journey of this host, as counted since the last decision. All mappings are by NIC, in bytes/s.

    :param used: what it carried.
    :param granted: its last shares; a NIC without an entry had none yet.
    :param heard: outgoing: what the destination allows; a NIC without an entry is not limited by it.
    """

    way: Direction
    weight: float
    links: tuple[str, ...]
    used: Mapping[str, float] = field(default_factory=dict)
    granted: Mapping[str, float] = field(default_factory=dict)
    heard: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Counted:
    """Everything since the last decision.

    :param elapsed_s: 0: nothing was counted yet, so others are taken to want what they are promised.
    :param others: bytes/s that are not migration's, by NIC and direction.
    :param shaped: NICs with classes of ours.
    """

    elapsed_s: float
    nics: Sequence[Nic]
    members: Mapping[str, Member]
    others: Mapping[tuple[str, Direction], float] = field(default_factory=dict)
    rooms: Mapping[tuple[str, Direction], Room] = field(default_factory=dict)
    shaped: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class NicClasses:
    """What one NIC's classes are to assure each category, and let it have at most; bytes/s out of `usable`."""

    usable: float
    assured: Mapping[Category, float]
    ceiling: Mapping[Category, float]


@dataclass(frozen=True, slots=True)
class Decision:
    """What holds until the next one.

    :param shares: by journey and living NIC of known capacity: an incoming journey's allowances, an outgoing one's
        parts of its rate.
    :param rates: by outgoing journey that has a living NIC; infinite where nothing limits it.
    :param classes: by living NIC of known capacity.
    """

    rooms: Mapping[tuple[str, Direction], Room]
    shares: Mapping[str, Mapping[str, float]]
    rates: Mapping[str, float]
    classes: Mapping[str, NicClasses]


def decide(limits: Limits, counted: Counted) -> Decision:
    """See the module's text."""
    living = {nic.name: nic for nic in counted.nics if nic.living}
    capacities = {name: float(nic.capacity_bytes_per_s) for name, nic in living.items() if nic.capacity_bytes_per_s}
    cap = living_cap(limits.get(Category.LIVE_MIGRATION), counted.nics)
    rooms: dict[tuple[str, Direction], Room] = {}
    shares: dict[str, dict[str, float]] = {}
    classes: dict[str, NicClasses] = {}
    for way in Direction:
        members = {name: member for name, member in counted.members.items() if member.way is way}
        promised = _promised(limits, way, capacities, counted)
        for nic, capacity in capacities.items():
            rooms[nic, way] = Room(sum(promised[nic].values()))
            if counted.elapsed_s:
                rooms[nic, way] = step_room(
                    counted.rooms.get((nic, way), Room()),
                    others_bytes_per_s=counted.others.get((nic, way), 0.0),
                    promised_bytes_per_s=sum(promised[nic].values()),
                    capacity_bytes_per_s=capacity,
                    elapsed_s=counted.elapsed_s,
                )
        in_use = {link for member in members.values() for link in member.links}
        caps = split_cap(cap, {nic: capacity for nic, capacity in capacities.items() if nic in in_use})
        for nic, capped in caps.items():
            kept = 0.0 if way is Direction.OUT and nic in counted.shaped else rooms[nic, way].kept_bytes_per_s
            free = max(LEAST_MIGRATION * capacities[nic], min(capped, USABLE * capacities[nic] - kept))
            for name, share in share_out(free, _claims(members, nic)).items():
                shares.setdefault(name, {})[nic] = min(share, members[name].heard.get(nic, math.inf))
        if way is Direction.OUT:
            classes = {
                nic: nic_classes(limits, capacity, promised[nic], caps.get(nic, capacity))
                for nic, capacity in capacities.items()
            }
    return Decision(rooms, shares, _rates(counted, living, shares, cap), classes)


def _promised(
    limits: Limits, way: Direction, capacities: Mapping[str, float], counted: Counted
) -> dict[str, dict[Category, float]]:
    """By NIC and category; together never so much that migration would stop."""
    others = {nic: counted.others.get((nic, way), 0.0) for nic in capacities}
    promised: dict[str, dict[Category, float]] = {nic: {} for nic in capacities}
    for category in OTHERS:
        for nic, kept in kept_on(limits.get(category), capacities, others).items():
            promised[nic][category] = kept
    for nic, kept_by in promised.items():
        too_much = sum(kept_by.values()) / (capacities[nic] * (1 - LEAST_MIGRATION))
        if too_much > 1:
            promised[nic] = {category: kept / too_much for category, kept in kept_by.items()}
    return promised


def _claims(members: Mapping[str, Member], nic: str) -> dict[str, Claim]:
    return {
        name: Claim(
            member.weight, member.used.get(nic, 0.0), member.granted.get(nic), member.heard.get(nic, math.inf)
        )
        for name, member in members.items()
        if nic in member.links
    }  # fmt: skip


def _rates(
    counted: Counted, living: Mapping[str, Nic], shares: Mapping[str, Mapping[str, float]], cap: float
) -> dict[str, float]:
    outgoing = {name: member for name, member in counted.members.items() if member.way is Direction.OUT}
    weights = sum(member.weight for member in outgoing.values())
    rates = {}
    for name, member in outgoing.items():
        links = [link for link in member.links if link in living]
        if links:
            # a NIC of unknown speed limits nothing, but the maximum still does
            rate = sum(shares.get(name, {}).get(link, member.heard.get(link, math.inf)) for link in links)
            rates[name] = rate if math.isfinite(rate) else cap * member.weight / weights
    return rates


def nic_classes(limits: Limits, capacity: float, promised: Mapping[Category, float], cap: float) -> NicClasses:
    """The classes of a NIC: who has a minimum is assured that, and the others share the rest evenly.

    What one does not use, the others may, up to their ceilings; so a category without a minimum is assured something too,
    or it would starve beside a busy one.

    :param cap: LiveMigration's maximum on this NIC.
    """
    usable = USABLE * capacity
    least = LEAST_MIGRATION * capacity
    assured = {category: promised.get(category, 0.0) for category in OTHERS}
    assured[Category.LIVE_MIGRATION] = min(
        minimum_of(limits.get(Category.LIVE_MIGRATION), capacity), max(0.0, usable - sum(assured.values()))
    )
    unpromised = [category for category, rate in assured.items() if not rate and _exists(category, limits)]
    rest = max(0.0, usable - sum(assured.values()))
    for category in unpromised:
        assured[category] = max(least, rest / len(unpromised))
    ceiling = {category: _ceiling(limits, category, usable) for category in Category}
    ceiling[Category.LIVE_MIGRATION] = min(usable, max(least, cap))
    return NicClasses(
        usable, {category: min(max(rate, least), ceiling[category]) for category, rate in assured.items()}, ceiling
    )


def _exists(category: Category, limits: Limits) -> bool:
    """Nothing is VirtualMachine before somebody says what is."""
    return category is not Category.VIRTUAL_MACHINE or category in limits


def _ceiling(limits: Limits, category: Category, usable: float) -> float:
    limit = limits.get(category)
    return min(usable, limit.max_bytes_per_s) if limit and limit.max_bytes_per_s else usable
