"""Classes on NICs, so that a minimum holds within a packet's time, in a burst and in the blackout too (#89-#92).

HTB is put at the root of a NIC with a little less than the NIC carries, so that packets queue where classes tell them apart:

    4c4d:1                all: USABLE of the NIC
      |-- :10   prio 0    control: path heartbeats, the agents, the acknowledgements of journeys that arrive
      |-- :20   prio 1    VirtualMachine
      |-- :30   prio 1    Default; also what no rule names
      `-- :40             LiveMigration: ceil is its maximum on this NIC
            |-- :100 prio 1   a journey: ceil is what its destination allows on this path
            `-- :101 ...

Every class is assured its `rate` and borrows what others leave, up to `ceil`: nothing is wasted. Which packet belongs where is
said by the nftables table TABLE, whose rules set the packet's priority to the number of a class; HTB takes that as it is. The
same table counts the journeys' bytes.

What was there before comes back by itself: only what the kernel put at a NIC's root on its own account (handle 0) is
replaced, and the kernel puts it back when ours is removed. A root that somebody else made is left alone. What is ours is
known by its handle and name, so a crash leaves nothing that :func:`remove_everything` would not find.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from livemove.base.errors import MissingPrerequisite
from livemove.network.nft import apply_rules
from livemove.network.shaping_rules import (
    CONTROL,
    FIRST_JOURNEY,
    MAJOR,
    TABLE,
    UNMARKED,
    VIRTUAL_MACHINE,
    ShapedJourney,
    rules,
)
from livemove.network.traffic_control import INGRESS, ROOT, HtbClass, Qdisc, TrafficControl
from livemove.policy.bandwidth import Category, Selectors
from livemove.policy.governing import NicClasses
from livemove.policy.qos import Marking

_log = logging.getLogger(__name__)

_ALL, _DEFAULT, _MIGRATION = 0x1, 0x30, 0x40
_CLASS = {Category.VIRTUAL_MACHINE: VIRTUAL_MACHINE, Category.DEFAULT: _DEFAULT, Category.LIVE_MIGRATION: _MIGRATION}
MAX_JOURNEYS = 0x1000

#: Of a NIC, assured to heartbeats and control: a hundred journeys' heartbeats on a link of 100 Mbit/s.
_CONTROL_SHARE = 0.01
#: A class may send this much at once: two of the largest segments that TCP hands to a NIC, or so long at its rate.
_BURST_BYTES, _BURST_S = 128 << 10, 0.002
_QUANTUM, _MOST_QUANTUM = 60_000, 200_000
#: HTB has one queue for all cores, mq one for each; from this speed on that may cost throughput.
FAST_BYTES_PER_S = 25e9 / 8
_CAP_NET_ADMIN = 12  # linux/capability.h


# Classes --------------------------------------------------------------------------------------------------------------


def class_table(
    link: str, classes: NicClasses, journeys: Iterable[ShapedJourney], ceilings: Mapping[int, float]
) -> dict[int, HtbClass]:
    """The classes of a NIC by handle, parents first.

    :param ceilings: by slot of a journey, bytes/s; infinite or missing: the category's own.
    """

    def entry(minor: int, parent: int, rate: float, ceil: float, weight: float = 1.0, prio: int = 1) -> HtbClass:
        burst = max(_BURST_BYTES, int(ceil * _BURST_S))
        quantum = min(_MOST_QUANTUM, max(1500, int(_QUANTUM * weight)))
        return HtbClass(MAJOR | minor, MAJOR | parent, int(min(rate, ceil)), int(ceil), quantum, prio, burst)

    usable, least = classes.usable, classes.usable * _CONTROL_SHARE
    table = [entry(_ALL, 0, usable, usable), entry(CONTROL, _ALL, least, usable, prio=0)]
    for category, minor in _CLASS.items():
        table.append(entry(minor, _ALL, classes.assured[category], classes.ceiling[category]))
    leaving = [journey for journey in journeys if journey.outgoing and any(path.link == link for path in journey.paths)]
    weights = sum(journey.weight for journey in leaving)
    migration, most = classes.assured[Category.LIVE_MIGRATION], classes.ceiling[Category.LIVE_MIGRATION]
    for journey in leaving:
        rate, ceil = migration * journey.weight / weights, min(most, ceilings.get(journey.slot, most))
        table.append(entry(FIRST_JOURNEY + journey.slot, _MIGRATION, rate, ceil, journey.weight))
    return {htb.handle: htb for htb in table}


def as_commands(link: str, table: Mapping[int, HtbClass]) -> list[str]:
    """The `tc` commands that would do the same, for people."""
    handle = f"{MAJOR >> 16:x}:"
    lines = [f"tc qdisc add dev {link} root handle {handle} htb default {_DEFAULT:x}"]
    for htb in table.values():
        parent = handle if htb.parent == MAJOR else f"{handle}{htb.parent & 0xFFFF:x}"
        lines.append(
            f"tc class add dev {link} parent {parent} classid {handle}{htb.handle & 0xFFFF:x} htb "
            f"rate {htb.rate_bytes_per_s * 8}bit ceil {htb.ceil_bytes_per_s * 8}bit "
            f"burst {htb.burst_bytes} cburst {htb.burst_bytes} quantum {htb.quantum} prio {htb.prio}"
        )
    return lines


# The kernel -----------------------------------------------------------------------------------------------------------


class Shaping:
    """The classes and rules of this host. Make it in the thread of the agent's loop; :meth:`remove` before it is dropped.

    :param control_port: of the agents.
    """

    def __init__(self, control_port: int) -> None:
        self._control_port = control_port
        self._kernel: TrafficControl | None = None
        self._present: dict[str, tuple[int, dict[int, HtbClass]]] = {}
        # None: there is no table of ours; empty: there may be one, and what it has is not known
        self._rules: str | None = None

    @property
    def links(self) -> frozenset[str]:
        """The NICs that have classes."""
        return frozenset(self._present)

    async def set_rules(
        self,
        journeys: Sequence[ShapedJourney],
        selectors: Selectors | None,
        marking: Marking = UNMARKED,
        *,
        classes: bool = True,
    ) -> None:
        """Put the rules in place of those that are there; see :func:`rules`. Raises MissingPrerequisite.

        Counters count on, those of journeys that have left too, until :meth:`remove`: their slots are taken again.
        """
        text = rules(journeys, selectors, self._control_port, marking, classes=classes)
        if text != self._rules:
            self._rules = ""
            await _nft(text)
            self._rules = text

    def put(self, link: str, table: Mapping[int, HtbClass], capacity_bytes_per_s: float) -> str:
        """Give a NIC its classes, or change those that differ; a sentence when it cannot have them, else empty.

        :raise MissingPrerequisite: no right to do so, or no HTB in the kernel.
        """
        try:
            if link not in self._present and (reason := self._install(link, capacity_bytes_per_s)):
                return reason
            index, present = self._present[link]
            for handle in [*present]:
                if handle not in table:
                    self.kernel.remove_class(index, handle)
                    del present[handle]
            for handle, htb in table.items():
                if present.get(handle) != htb:
                    self.kernel.put_class(index, htb)
                    if handle not in present and handle in (MAJOR | VIRTUAL_MACHINE, MAJOR | _DEFAULT):
                        with contextlib.suppress(OSError):  # not in every kernel; plain queues do
                            self.kernel.add_leaf(index, handle, "fq_codel")
                    present[handle] = htb
        except OSError as error:
            self.drop(link)
            if error.errno in (errno.ENODEV, errno.ENOENT, errno.EINVAL) and not _index(link):
                return f"{link} is gone."
            raise MissingPrerequisite(
                f"The classes of {link} cannot be set: {error.strerror or error}.",
                remedy="livemove needs CAP_NET_ADMIN and the kernel's HTB (sch_htb) to keep minimums.",
            ) from error
        return ""

    def _install(self, link: str, capacity_bytes_per_s: float) -> str:
        index = _index(link)
        if not index:
            return f"{link} is gone."
        there = [qdisc for qdisc in self.kernel.qdiscs() if qdisc.index == index]
        if any(is_ours(qdisc) for qdisc in there):
            self.kernel.remove_root(index)
            there = []
        if foreign := foreign_qdisc(there):
            return f"{link} has a queueing discipline of somebody else's ({foreign}), which is left as it is."
        if capacity_bytes_per_s >= FAST_BYTES_PER_S and any(qdisc.kind == "mq" for qdisc in there):
            _log.warning("%s: HTB replaces mq while migrations run; at this speed one queue may cost throughput", link)
        self._present[link] = (index, {})
        self.kernel.add_htb_root(index, MAJOR, _DEFAULT)
        return ""

    def counted(self) -> dict[str, tuple[int, int]]:
        """Bytes and packets by counter; none when the table is not there."""
        try:
            return self.kernel.counters(TABLE) if self._rules is not None else {}
        except OSError:
            return {}

    def drop(self, link: str) -> None:
        """Take the classes of one NIC away; what somebody else put in their place since stays."""
        index, _ = self._present.pop(link, (0, {}))
        with contextlib.suppress(OSError):
            if index and any(qdisc.index == index and is_ours(qdisc) for qdisc in self.kernel.qdiscs()):
                self.kernel.remove_root(index)

    async def remove(self) -> None:
        """Take everything away; may be called twice."""
        for link in [*self._present]:
            self.drop(link)
        if self._rules is not None:
            self._rules = None
            with contextlib.suppress(MissingPrerequisite):
                await _nft(f"table inet {TABLE} {{}}\ndelete table inet {TABLE}\n")
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None

    @property
    def kernel(self) -> TrafficControl:
        if self._kernel is None:
            self._kernel = TrafficControl()
        return self._kernel


def is_ours(qdisc: Qdisc) -> bool:
    return qdisc.kind == "htb" and qdisc.handle == MAJOR and qdisc.parent == ROOT


def foreign_qdisc(there: Iterable[Qdisc]) -> str:
    """Kind and handle of the first one that is not the kernel's own choice; empty when there is none.

    One for what comes in (ingress, clsact) stands beside the root and is nobody's concern.
    """
    for qdisc in there:
        if qdisc.handle and qdisc.parent != INGRESS:
            return f"{qdisc.kind} {qdisc.handle >> 16:x}:"
    return ""


async def remove_everything() -> list[str]:
    """Remove what an agent that crashed left; the NICs that had classes.

    An agent calls it when it starts, before its first journey. Raises nothing.
    """
    cleared = []
    try:
        with TrafficControl() as kernel:
            for qdisc in kernel.qdiscs():
                if is_ours(qdisc):
                    kernel.remove_root(qdisc.index)
                    cleared.append(socket.if_indextoname(qdisc.index))
            if kernel.has_table(TABLE):
                await _nft(f"delete table inet {TABLE}\n")
    except (OSError, MissingPrerequisite) as error:
        # without the right to remove them no agent of ours has made any
        level = logging.INFO if isinstance(error, PermissionError) else logging.WARNING
        _log.log(level, "classes that a former agent may have left cannot be removed: %s", error)
    return cleared


def check_rights() -> None:
    """Raises MissingPrerequisite when this process may not set classes and rules, or lacks the program for the latter."""
    remedy = "Give the agent CAP_NET_ADMIN and install nftables; bandwidth limits need both."
    if not _capabilities() >> _CAP_NET_ADMIN & 1:
        raise MissingPrerequisite("The agent has no CAP_NET_ADMIN, which bandwidth limits need.", remedy=remedy)
    if shutil.which("nft") is None:
        raise MissingPrerequisite("There is no 'nft' program to tell packets apart.", remedy=remedy)


def _capabilities() -> int:
    """Those in effect, as proc(5) prints them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _index(link: str) -> int:
    try:
        return socket.if_nametoindex(link)
    except OSError:
        return 0


async def _nft(text: str) -> None:
    remedy = "Install nftables and give the agent CAP_NET_ADMIN; bandwidth limits need both."
    await apply_rules(text, "Telling packets apart", remedy)
