"""How much of a host's bandwidth migration may use, and what the others are promised (#81-#84, #90-#92).

Three categories share a host's NICs: *LiveMigration*, *VirtualMachine* (the VMs' storage traffic, chosen by selectors)
and *Default* (the rest). A maximum is a total of the host over all its NICs and journeys. A minimum is a promise to the
category and no cap on the others: what it does not use, they may. The *buffer* is kept on top of a minimum, as soon as the
category is seen to want it, so that a spike finds room.

Units are bytes per second of payload and TCP/IP headers, as the kernel counts them. This module has the limits and how
they are divided over NICs and journeys; how they follow the traffic is in policy.room.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from livemove.base.errors import BadSetting
from livemove.base.units import format_rate

#: Part of a NIC that migration keeps whatever was promised: one that gets nothing at all would time out, not wait.
LEAST_MIGRATION = 0.02
#: Of a minimum, kept on top of it when nothing else is said.
DEFAULT_BUFFER = 0.1
#: What a journey that sends little now keeps of its fair share, so that its blackout does not begin at a crawl.
IDLE_SHARE = 0.25
#: A journey that uses more than this part of what it was given is taken to want more.
BUSY = 0.7
#: The smallest rate that can be asked for or allowed, 1 Mbit/s: the largest segment of TCP, 64 KiB, then takes half a second.
LEAST_RATE = 125_000
MAX_SELECTORS = 64

_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_CGROUP = re.compile(r"(?!.*//)(?!.*(?:^|/)\.\.?(?:/|$))[A-Za-z0-9][A-Za-z0-9_.@:\\/-]{0,254}")


class Category(Enum):
    """Whose traffic it is."""

    LIVE_MIGRATION = "LiveMigration"
    VIRTUAL_MACHINE = "VirtualMachine"
    DEFAULT = "Default"


#: Ports of the servers, from IANA's registry and the projects' own documents (Ceph: docs.ceph.com, network configuration
#: reference: monitors 3300 and 6789, daemons 6800-7568).
PRESETS: Mapping[str, tuple[str, ...]] = {
    "nfs": ("2049",),
    "iscsi": ("860", "3260"),
    "nbd": ("10809",),
    "ceph": ("3300", "6789", "6800-7568"),
}


@dataclass(frozen=True, slots=True)
class Selectors:
    """Which traffic is the VMs' storage: what matches any of them.

    :param ports: of TCP or UDP at either end, ``PORT`` or ``FIRST-LAST``.
    :param addresses: of the other end, or networks in CIDR.
    :param cgroups: paths below the root of cgroup v2, whose processes' own sockets count.
    :param presets: names from PRESETS.
    """

    ports: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    cgroups: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.ports or self.addresses or self.cgroups or self.presets)

    @property
    def every_port(self) -> tuple[str, ...]:
        """Ports of the presets and those named, each once."""
        named = [port for preset in self.presets for port in PRESETS[preset]]
        return tuple(dict.fromkeys([*named, *self.ports]))


@dataclass(frozen=True, slots=True)
class Limit:
    """What one category of a host may have at most, or is promised; 0: nothing is said.

    :param min_share: the minimum as a part (0 to 1) of what the living NICs carry, instead of a rate.
    :param buffer: part of the minimum that is kept on top of it.
    """

    category: Category
    max_bytes_per_s: int = 0
    min_bytes_per_s: int = 0
    min_share: float = 0.0
    buffer: float = DEFAULT_BUFFER
    selectors: Selectors = Selectors()

    @property
    def has_minimum(self) -> bool:
        return self.min_bytes_per_s > 0 or self.min_share > 0


Limits = Mapping[Category, Limit]


@dataclass(frozen=True, slots=True)
class Nic:
    """A NIC that migration may use. capacity_bytes_per_s 0: not known, so nothing can be shared out on it."""

    name: str
    capacity_bytes_per_s: int
    living: bool = True


# Checking -------------------------------------------------------------------------------------------------------------


def parse_category(text: str) -> Category:
    """The category of that name, in any case. Raises BadSetting."""
    for category in Category:
        if text.lower() == category.value.lower():
            return category
    known = ", ".join(category.value for category in Category)
    raise BadSetting(f"There is no category '{text[:64]}'.", remedy=f"Name one of {known}.")


def check_limit(limit: Limit) -> None:
    """Return when the limit makes sense by itself. Raises BadSetting."""
    name = limit.category.value
    if not limit.max_bytes_per_s and not limit.has_minimum:
        raise BadSetting(f"Nothing is said about {name}.", remedy="Give --max, --min or --min-percent.")
    if limit.min_bytes_per_s and limit.min_share:
        raise BadSetting(f"{name} has two minimums.", remedy="Give --min or --min-percent.")
    if limit.min_share > 1:
        raise BadSetting(f"{name} cannot have {limit.min_share:.0%} of the bandwidth.", remedy="Give 1 to 100 percent.")
    for rate in (limit.max_bytes_per_s, limit.min_bytes_per_s):
        if 0 < rate < LEAST_RATE:
            raise BadSetting(
                f"{format_rate(rate)} for {name} is less than the smallest rate that can be kept, {format_rate(LEAST_RATE)}.",
                remedy="Check the unit: 8Gbit, 1000MB and 1000MiB are per second.",
            )
    if not 0 <= limit.buffer <= 1:
        raise BadSetting(
            f"A buffer of {limit.buffer:.0%} of the minimum makes no sense.", remedy="Give 0 to 100 percent."
        )
    if limit.max_bytes_per_s and limit.min_bytes_per_s > limit.max_bytes_per_s:
        raise BadSetting(
            f"{name} is promised {format_rate(limit.min_bytes_per_s)} and may have {format_rate(limit.max_bytes_per_s)} at most.",
            remedy="Give a --max that is above --min, or only one of them.",
        )
    if limit.category is Category.VIRTUAL_MACHINE:
        if limit.selectors.empty:
            raise BadSetting(
                "Which traffic is the VMs' storage is not said.",
                remedy="Choose it with --preset, --ports, --addresses or --cgroup.",
            )
        check_selectors(limit.selectors)
    elif not limit.selectors.empty:
        raise BadSetting(
            f"{name} takes no selectors: livemove knows its own connections, and Default is the rest.",
            remedy="Give --preset, --ports, --addresses and --cgroup with --category VirtualMachine.",
        )


def check_selectors(selectors: Selectors) -> None:
    """Return when every selector can be one. Raises BadSetting naming the first that cannot."""
    every = (selectors.ports, selectors.addresses, selectors.cgroups, selectors.presets)
    if any(len(kind) > MAX_SELECTORS for kind in every):
        raise BadSetting(
            f"There are more than {MAX_SELECTORS} selectors of one kind.", remedy="Name ranges or networks."
        )
    for port in selectors.ports:
        match = _PORTS.fullmatch(port)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 0 < first <= last < 65536:
            raise BadSetting(
                f"'{port[:64]}' is neither a port nor a range of ports.", remedy="Write 3260 or 6800-7568."
            )
    for address in selectors.addresses:
        try:
            ipaddress.ip_network(address)
        except ValueError as error:
            raise BadSetting(
                f"'{address[:64]}' is neither an address nor a network: {error}.",
                remedy="Write 192.0.2.7 or 192.0.2.0/24.",
            ) from error
    for cgroup in selectors.cgroups:
        if not _CGROUP.fullmatch(cgroup):
            raise BadSetting(f"'{cgroup[:64]}' is not a path of a cgroup.", remedy="Write it as below /sys/fs/cgroup.")
    for preset in selectors.presets:
        if preset not in PRESETS:
            raise BadSetting(f"There is no preset '{preset[:64]}'.", remedy=f"Name one of {', '.join(PRESETS)}.")


def check_limits(limits: Limits, nics: Sequence[Nic]) -> list[str]:
    """Return warnings when the limits together can hold on these NICs.

    Raises BadSetting when a limit by itself makes no sense, or the minimums are more than the NICs carry.
    """
    for limit in limits.values():
        check_limit(limit)
    percent = sum(limit.min_share for limit in limits.values())
    if percent > 1 + 1e-9:
        raise BadSetting(f"The minimums are {percent:.0%} of the bandwidth together.", remedy="Lower one of them.")
    known = [nic for nic in nics if nic.capacity_bytes_per_s]
    capacity = sum(nic.capacity_bytes_per_s for nic in known)
    warnings = [
        f"The speed of {nic.name} is not known, so nothing is promised on it; say it with the setting nic_speeds."
        for nic in nics
        if not nic.capacity_bytes_per_s
    ]
    if not nics:
        warnings.append("This host has no NIC that migration could use.")
    promised = sum(minimum_of(limit, capacity) for limit in limits.values())
    if known and promised > capacity * (1 + 1e-9):
        raise BadSetting(
            f"The minimums are {format_rate(promised)} together, and the NICs carry {format_rate(capacity)} "
            f"({', '.join(f'{nic.name} {format_rate(nic.capacity_bytes_per_s)}' for nic in known)}).",
            remedy="Lower a minimum, or correct the speeds with the setting nic_speeds.",
        )
    live = limits.get(Category.LIVE_MIGRATION)
    if live and known and live.max_bytes_per_s >= capacity:
        warnings.append(
            f"LiveMigration's maximum of {format_rate(live.max_bytes_per_s)} is no limit: the NICs carry {format_rate(capacity)}."
        )
    return warnings


# Dividing -------------------------------------------------------------------------------------------------------------


def minimum_of(limit: Limit | None, capacity_bytes_per_s: float) -> float:
    """What the category is promised when its NICs carry `capacity_bytes_per_s`; 0 without a minimum."""
    return limit.min_bytes_per_s + limit.min_share * capacity_bytes_per_s if limit else 0.0


def living_cap(limit: Limit | None, nics: Iterable[Nic]) -> float:
    """The maximum that counts now: it loses the part that the dead NICs were of all (#92). Infinite without one."""
    nics = list(nics)
    whole = sum(nic.capacity_bytes_per_s for nic in nics)
    if limit is None or not limit.max_bytes_per_s:
        return math.inf
    living = sum(nic.capacity_bytes_per_s for nic in nics if nic.living)
    return limit.max_bytes_per_s * living / whole if whole else float(limit.max_bytes_per_s)


def kept_on(limit: Limit | None, capacities: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    """How much each NIC must keep for the category, buffer included.

    A minimum in percent is that of each NIC. One in bytes is a total of the host; traffic cannot choose its NIC, so each NIC
    keeps of it what is not used on the others, and its proportional part at least.

    :param capacities: bytes/s by living NIC.
    :param others: bytes/s that traffic other than migration uses now, by NIC.
    """
    if limit is None:
        return dict.fromkeys(capacities, 0.0)
    whole = sum(capacities.values())
    used = sum(others.get(name, 0.0) for name in capacities)
    kept = {}
    for name, capacity in capacities.items():
        elsewhere = used - others.get(name, 0.0)
        here = max(limit.min_bytes_per_s * capacity / whole, limit.min_bytes_per_s - elsewhere)
        minimum = here + limit.min_share * capacity
        kept[name] = min(minimum * (1 + limit.buffer), capacity * (1 - LEAST_MIGRATION))
    return kept


def split_cap(cap_bytes_per_s: float, capacities: Mapping[str, float]) -> dict[str, float]:
    """A maximum divided over the NICs that journeys use now, in proportion to what they carry."""
    whole = sum(capacities.values())
    return {
        name: min(capacity, cap_bytes_per_s * capacity / whole) if math.isfinite(cap_bytes_per_s) else capacity
        for name, capacity in capacities.items()
    }


@dataclass(frozen=True, slots=True)
class Claim:
    """A journey's claim on a rate.

    :param used_bytes_per_s: what it used of `granted_bytes_per_s`, its last share; None when it had none yet.
    :param most_bytes_per_s: more than this it cannot use.
    """

    weight: float
    used_bytes_per_s: float = 0.0
    granted_bytes_per_s: float | None = None
    most_bytes_per_s: float = math.inf


def share_out(total_bytes_per_s: float, claims: Mapping[str, Claim]) -> dict[str, float]:
    """Divide a rate by weight; what a journey does not want goes to the others, and what nobody wants to all.

    The shares never come to more than the total, and a journey that wants little keeps IDLE_SHARE of its fair one.
    """
    if not claims:
        return {}
    whole = sum(claim.weight for claim in claims.values())
    fair = {name: total_bytes_per_s * claim.weight / whole for name, claim in claims.items()}
    wanted = {name: _wanted(claim, fair[name]) for name, claim in claims.items()}
    shares: dict[str, float] = {}
    left, open_claims = total_bytes_per_s, dict(claims)
    while open_claims:
        weight = sum(claim.weight for claim in open_claims.values())
        content = [name for name, claim in open_claims.items() if wanted[name] <= left * claim.weight / weight]
        if not content:
            shares |= {name: left * claim.weight / weight for name, claim in open_claims.items()}
            return shares
        for name in content:
            shares[name] = wanted[name]
            del open_claims[name]
        left = max(0.0, total_bytes_per_s - sum(shares.values()))
    return {name: share + left * claims[name].weight / whole for name, share in shares.items()}


def _wanted(claim: Claim, fair_bytes_per_s: float) -> float:
    granted = claim.granted_bytes_per_s
    if granted is None or claim.used_bytes_per_s >= BUSY * granted:
        return claim.most_bytes_per_s
    return min(claim.most_bytes_per_s, max(claim.used_bytes_per_s / BUSY, IDLE_SHARE * fair_bytes_per_s))
