"""How NICs and switches are to tell migration from other traffic (#93-#95, #28): marks on packets, classes in the hardware.

A *priority* is that of 802.1p, 0 to 7; a *traffic class* a queue of the NIC. Every priority that was given a share has a
traffic class of its own, and the others share class 0. A lossless one is paused by the other end (PFC) instead of losing
packets; two at most, because every one takes room for what is under way from what all the others have.

Where the administrator decides, the NIC must not: *willing* is off, or DCBX would take over what the switch says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from livemove.base.errors import BadSetting

PRIORITIES = 8
#: What the hardware of NICs and switches can keep lossless; IEEE 802.1Qbb allows eight.
MOST_LOSSLESS = 2
#: For all that has no class of its own.
LEAST_REST = 10

#: RFC 2474, 2597, 3246, 5865, 8622; as iproute2 knows them.
DSCP: Mapping[str, int] = {
    **{f"CS{number}": number * 8 for number in range(8)},
    **{f"AF{of}{drop}": of * 8 + drop * 2 for of in range(1, 5) for drop in range(1, 4)},
    "EF": 46, "VA": 44, "LE": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrafficClass:
    """What a priority is given: `share` percent of a NIC at least, when the NIC is full."""

    priority: int
    share: int
    lossless: bool = False


@dataclass(frozen=True, slots=True)
class QosWish:
    """What an administrator wants of a host.

    :param dscp: of migration's packets; None: as the system sets it.
    :param priority: of migration's packets; None: none of its own.
    :param nics: for classes; empty: every NIC with DCB.
    """

    dscp: int | None = None
    priority: int | None = None
    classes: tuple[TrafficClass, ...] = ()
    nics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Marking:
    """How the packets of journeys are marked.

    :param hardware: NICs that queue by priority themselves, so that they need no classes of ours.
    """

    dscp: int | None = None
    priority: int | None = None
    hardware: frozenset[str] = frozenset()

    @property
    def any(self) -> bool:
        return self.dscp is not None or self.priority is not None


@dataclass(frozen=True, slots=True)
class DcbState:
    """What a NIC is set to: by traffic class its share and how it is served, by priority its class and whether it pauses.

    :param classes: how many traffic classes the NIC has.
    :param lossless: how many of them can pause.
    :param dscp_priority: the priority that the NIC gives to packets that come in with a DSCP.
    """

    willing: bool
    classes: int
    lossless: int
    share: tuple[int, ...]
    served: tuple[str, ...]
    class_of: tuple[int, ...]
    pauses: tuple[bool, ...]
    dscp_priority: tuple[tuple[int, int], ...] = ()


# What is wanted ---------------------------------------------------------------------------------------------------------


def parse_dscp(text: str) -> int:
    """``CS1``, ``AF11`` or a number from 0 to 63. Raises BadSetting."""
    if text.upper() in DSCP:
        return DSCP[text.upper()]
    if re.fullmatch(r"[0-9]{1,2}", text) and int(text) < 64:
        return int(text)
    raise BadSetting(f"'{text[:64]}' is no DSCP.", remedy="Write such as CS1, AF11, EF, LE, or 0 to 63.")


def dscp_name(dscp: int) -> str:
    """As people write it."""
    return next((name for name, number in DSCP.items() if number == dscp), str(dscp))


def parse_class(text: str) -> TrafficClass:
    """``PRIORITY=PERCENT`` or ``PRIORITY=PERCENT,lossless``. Raises BadSetting."""
    match = re.fullmatch(r"([0-7])=([0-9]{1,3})(,lossless)?", text)
    if not match:
        raise BadSetting(f"'{text[:64]}' is no class.", remedy="Write PRIORITY=PERCENT, such as 4=40 or 3=30,lossless.")
    return TrafficClass(int(match[1]), int(match[2]), bool(match[3]))


def check_wish(wish: QosWish) -> None:
    """Return when it makes sense by itself. Raises BadSetting."""
    if wish.dscp is None and wish.priority is None and not wish.classes:
        raise BadSetting("Nothing is asked for.", remedy="Give --dscp, --priority or --class.")
    for what, number, end in (("priority", wish.priority, PRIORITIES), ("DSCP", wish.dscp, 64)):
        if number is not None and not 0 <= number < end:
            raise BadSetting(f"There is no {what} {number}.", remedy=f"Give 0 to {end - 1}.")
    priorities = [of.priority for of in wish.classes]
    if twice := [number for number in priorities if priorities.count(number) > 1]:
        raise BadSetting(f"Priority {twice[0]} has two classes.", remedy="Give one --class for each priority.")
    if any(not 1 <= of.share <= 100 for of in wish.classes):
        raise BadSetting("A class has 1 to 100 percent.", remedy="Leave out what shall have no class of its own.")
    if (total := sum(of.share for of in wish.classes)) > 100 - LEAST_REST:
        raise BadSetting(
            f"The classes have {total} % together, and {LEAST_REST} % are for all other traffic.",
            remedy="Lower a share.",
        )
    if (lossless := sum(of.lossless for of in wish.classes)) > MOST_LOSSLESS:
        raise BadSetting(
            f"{lossless} classes shall be lossless, and hardware has room for {MOST_LOSSLESS}.",
            remedy="Keep it for storage and, where it is used, RDMA.",
        )
    if wish.classes and wish.priority is not None and wish.priority not in priorities:
        raise BadSetting(
            f"Migration's priority {wish.priority} has no class, so it would share one with all the rest.",
            remedy=f"Add --class {wish.priority}=PERCENT, or leave --priority out.",
        )


def wanted_state(wish: QosWish, now: DcbState, nic: str) -> DcbState:
    """What the NIC is to be set to. Raises BadSetting when it has too few classes."""
    if len(wish.classes) >= now.classes:
        raise BadSetting(
            f"{nic} has {now.classes} traffic classes, and {len(wish.classes) + 1} are needed.",
            remedy="Ask for fewer classes, or leave this NIC out with --nic.",
        )
    if sum(of.lossless for of in wish.classes) > now.lossless:
        raise BadSetting(
            f"{nic} can keep {now.lossless} classes lossless, and {sum(of.lossless for of in wish.classes)} are wanted.",
            remedy="Ask for fewer, or leave this NIC out with --nic.",
        )
    share, class_of, pauses = [0] * PRIORITIES, [0] * PRIORITIES, [False] * PRIORITIES
    share[0] = 100 - sum(of.share for of in wish.classes)
    served = ["strict"] * PRIORITIES
    served[0] = "ets"
    for number, of in enumerate(sorted(wish.classes, key=lambda of: of.priority), start=1):
        share[number], served[number] = of.share, "ets"
        class_of[of.priority], pauses[of.priority] = number, of.lossless
    trusted = dict(now.dscp_priority)
    if wish.dscp is not None and wish.priority is not None:
        trusted[wish.dscp] = wish.priority
    return replace(
        now,
        willing=False,
        share=tuple(share),
        served=tuple(served),
        class_of=tuple(class_of),
        pauses=tuple(pauses),
        dscp_priority=tuple(sorted(trusted.items())),
    )


# Both ends --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HostQos:
    """One host's wish and NICs, by network: a NIC of one host is compared with those that it talks to.

    :param nics: by network, name of the NIC and what it is set to; None: it has no DCB.
    """

    host: str
    wish: QosWish | None
    nics: Mapping[str, tuple[str, DcbState | None]]


def differences(hosts: Iterable[HostQos]) -> list[str]:
    """What the hosts do not agree about, a sentence each; two ends that differ protect nothing (#94)."""
    known = sorted(hosts, key=lambda host: host.host)
    found = []
    for number, one in enumerate(known):
        for other in known[number + 1 :]:
            found += _wishes(one, other)
            for network in sorted(one.nics.keys() & other.nics.keys()):
                found += _nics(network, one, other)
    return found


def _wishes(one: HostQos, other: HostQos) -> list[str]:
    mine, others = one.wish or QosWish(), other.wish or QosWish()

    def text(number: int | None, name: str) -> str:
        return "none" if number is None else (dscp_name(number) if name == "DSCP" else str(number))

    return [
        f"{one.host} gives migration {name} {text(here, name)}, {other.host} {text(there, name)}."
        for name, here, there in (
            ("DSCP", mine.dscp, others.dscp),
            ("priority", mine.priority, others.priority),
        )
        if here != there
    ]


def _nics(network: str, one: HostQos, other: HostQos) -> list[str]:
    (my_nic, mine), (other_nic, others) = one.nics[network], other.nics[network]
    here, there = f"{my_nic} of {one.host}", f"{other_nic} of {other.host}"
    if mine is None and others is None:
        return []
    if mine is None or others is None:
        lacking, having = (here, there) if mine is None else (there, here)
        return [f"On {network} {having} has classes in hardware, and {lacking} has none."]
    found = [f"On {network} {name} takes its settings from the switch (willing)." for name, of in ((here, mine), (there, others)) if of.willing]  # fmt: skip
    for priority in range(PRIORITIES):
        for what, my_value, other_value in (
            ("has", f"{mine.share[mine.class_of[priority]]} %", f"{others.share[others.class_of[priority]]} %"),
            ("is", _loss(mine, priority), _loss(others, priority)),
        ):
            if my_value != other_value:
                found.append(
                    f"On {network} priority {priority} {what} {my_value} at {here} and {other_value} at {there}."
                )
    return found


def _loss(of: DcbState, priority: int) -> str:
    return "lossless" if of.pauses[priority] else "not lossless"
