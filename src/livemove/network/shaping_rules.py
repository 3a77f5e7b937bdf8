"""Which packet belongs to which class: the nftables table that tells a host's packets apart, marks and counts them.

A rule sets the packet's priority to the number of a class (network.shaping), which HTB takes as it is. Journeys' rules come
first, then the agents', then those that select the VMs' storage; what no rule names is the class Default's. Where the NIC
itself queues by priority, that of 802.1p is set instead.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from livemove.policy.bandwidth import Selectors
from livemove.policy.qos import Marking

TABLE = "livemove_shaping"
#: The major number of our classes, "LM"; the minor ones are in the picture of network.shaping.
MAJOR = 0x4C4D0000
CONTROL, VIRTUAL_MACHINE, FIRST_JOURNEY = 0x10, 0x20, 0x100
UNMARKED = Marking()
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class ShapedPath:
    """One path of a journey: the NIC, and the address at its other end."""

    link: str
    peer: str


@dataclass(frozen=True, slots=True)
class ShapedJourney:
    """A journey's connections as rules and classes know them.

    :param slot: a number below MAX_JOURNEYS that no other journey has now.
    :param outgoing: its bytes leave this host for `port`; else they arrive at `port` here.
    """

    slot: int
    outgoing: bool
    paths: tuple[ShapedPath, ...]
    port: int
    weight: float = 1.0

    def counter(self, number: int) -> str:
        """Name of the counter of path `number`."""
        return f"journey{self.slot}_path{number}"


def rules(
    journeys: Iterable[ShapedJourney],
    selectors: Selectors | None,
    control_port: int,
    marking: Marking = UNMARKED,
    *,
    classes: bool = True,
) -> str:
    """The table, for ``nft -f``; its rules replace those that are there at once, and its counters count on.

    Rules match exact addresses and ports of a journey, because other programs' ports may lie in the same range.

    :param classes: NICs have classes of ours, but for `marking.hardware`; else packets are only counted and marked.
    """
    counters, leaving, arriving = [], [], []
    for journey in journeys:
        for number, path in enumerate(journey.paths):
            family = "ip6" if ipaddress.ip_address(path.peer.partition("%")[0]).version == 6 else "ip"
            name, port = journey.counter(number), journey.port
            ours = classes and path.link not in marking.hardware
            marked = "" if marking.dscp is None else f" {family} dscp set {marking.dscp}"
            marked += "" if ours or marking.priority is None else f" meta priority set 0:{marking.priority}"
            counters.append(f"  counter {name} {{}}")
            to_peer = f'    oifname "{path.link}" {family} daddr {path.peer}'
            if journey.outgoing:
                queue = f" {_priority(FIRST_JOURNEY + journey.slot)}" if ours else ""
                leaving.append(f"{to_peer} tcp dport {port} counter name {name}{marked}{queue} return")
            else:
                queue = f" {_priority(CONTROL)}" if ours else ""
                leaving.append(f"{to_peer} tcp sport {port}{marked}{queue} return")
                arriving.append(
                    f'    iifname "{path.link}" {family} saddr {path.peer} tcp dport {port} counter name {name}'
                )
            if ours:
                leaving += [f"{to_peer} udp {end} {port} {_priority(CONTROL)} return" for end in ("dport", "sport")]
    by_process: list[str] = []
    if classes:
        leaving += [f"    tcp {end} {control_port} {_priority(CONTROL)} return" for end in ("dport", "sport")]
        by_process, by_packet = _selector_rules(selectors) if selectors else ([], [])
        leaving += by_packet
    return "\n".join(
        [
            f"table inet {TABLE} {{}}",
            f"flush table inet {TABLE}",
            f"table inet {TABLE} {{",
            *counters,
            "  chain processes { type filter hook output priority 0; policy accept;",
            *by_process,
            "  }",
            "  chain leaving { type filter hook postrouting priority 0; policy accept;",
            *leaving,
            "  }",
            "  chain arriving { type filter hook prerouting priority -300; policy accept;",
            *arriving,
            "  }",
            "}",
            "",
        ]
    )


def _selector_rules(selectors: Selectors) -> tuple[list[str], list[str]]:
    """What selects by the sender's process, and what by the packet."""
    priority = _priority(VIRTUAL_MACHINE)
    by_packet = []
    if selectors.every_port:
        ports = ", ".join(selectors.every_port)
        by_packet += [
            f"    meta l4proto {{ tcp, udp }} th {end} {{ {ports} }} {priority}" for end in ("dport", "sport")
        ]
    for address in selectors.addresses:
        network = ipaddress.ip_network(address)
        by_packet.append(f"    {'ip6' if network.version == 6 else 'ip'} daddr {network} {priority}")
    by_process = [
        f'    socket cgroupv2 level {cgroup.count("/") + 1} "{found}" {priority}'
        for cgroup in (path.strip("/") for path in selectors.cgroups)
        if (found := find_cgroup(cgroup)) is not None
    ]
    return by_process, by_packet


def find_cgroup(cgroup: str) -> str | None:
    """Where a cgroup of version 2 is below /sys/fs/cgroup, which is where nft looks; None when there is none.

    nft refuses a whole table when one cgroup that it names is not there.
    """
    for prefix in ("", "unified/"):  # the latter where version 1 is mounted beside it
        # every cgroup of version 2 has this file, and none of version 1
        if (_CGROUPS / prefix / cgroup / "cgroup.controllers").exists():
            return prefix + cgroup
    return None


def _priority(minor: int) -> str:
    return f"meta priority set {MAJOR >> 16:x}:{minor:x}"
