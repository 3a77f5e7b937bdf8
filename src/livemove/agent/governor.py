"""Sees to it, ten times a second, that migrations take what is idle and others get what they were promised.

It counts what each NIC and each journey carried, has policy.governing decide, and carries that out: classes and ceilings
on the NICs (network.shaping), each outgoing journey's rate (`on_rate`, for QEMU), each incoming journey's allowances
(`on_allowance`, for the path keeper, which tells the source).

It runs while there are journeys and something to keep: limits of this host, or allowances of a destination. Classes are on
a NIC only then, because HTB takes the place of one queue per core.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from livemove.base.clock import Clock
from livemove.base.errors import LivemoveError, MissingPrerequisite
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.network.nic_counters import NicCount, is_living, read_counts
from livemove.network.shaping import MAX_JOURNEYS, Shaping, class_table
from livemove.network.shaping_rules import ShapedJourney, ShapedPath
from livemove.policy.bandwidth import LEAST_RATE, Category, Limits, Nic
from livemove.policy.governing import Counted, Decision, Direction, Member, decide
from livemove.policy.payload import MOST_OWED_BYTES, Traffic, header_bytes, payload, rest_of
from livemove.policy.qos import Marking
from livemove.policy.room import Room

_log = logging.getLogger(__name__)

TICK_S = 0.1
#: An allowance counts for so long after it was heard; a destination that lost its limits, or its agent, says no more.
HEARD_S = 3.0
#: A rate is told again only when it differs by this part: QEMU counts in periods of 100 ms, and finer steps change nothing.
TOLD_STEP = 0.02


@dataclass(frozen=True, slots=True)
class GovernedPath:
    """One path of a journey, seen from this host."""

    link: str
    local: str
    peer: str


@dataclass(slots=True)
class _Journey:
    way: Direction
    paths: tuple[GovernedPath, ...]
    shaped: ShapedJourney
    headers: int
    counted: list[Traffic] = field(default_factory=list)
    carried: dict[str, float] = field(default_factory=dict)
    granted: dict[str, float] = field(default_factory=dict)
    heard: dict[str, float] = field(default_factory=dict)
    heard_at_s: float = -math.inf
    rate: float = math.inf
    told: float | None = None


class Governor:
    """One per agent; used from the agent's loop only. :meth:`close` takes everything back.

    :param limits: this host's, as they are now.
    :param read_nics: every NIC that migrations may use; asked when a journey joins and when limits change.
    :param read_marking: how journeys' packets are marked.
    :param on_rate: called with a journey from here and its rate in bytes/s, 0 when nothing limits it; at its start and
        whenever it changes by TOLD_STEP.
    :param on_allowance: called ten times a second with a journey to here and bytes/s by local address of its paths;
        empty once when there is no allowance any more.
    """

    def __init__(
        self,
        limits: Callable[[], Limits],
        read_nics: Callable[[], Awaitable[Sequence[Nic]]],
        clock: Clock,
        shaping: Shaping,
        *,
        read_marking: Callable[[], Marking] = Marking,
        on_rate: Callable[[str, int], None] = lambda *_: None,
        on_allowance: Callable[[str, Mapping[str, int]], None] = lambda *_: None,
    ) -> None:
        self._limits = limits
        self._read_nics = read_nics
        self._clock = clock
        self._shaping = shaping
        self._read_marking = read_marking
        self.on_rate = on_rate
        self.on_allowance = on_allowance
        self._journeys: dict[str, _Journey] = {}
        self._nics: dict[str, Nic] = {}
        self._hardware: frozenset[str] = frozenset()
        self._counts: dict[str, NicCount] = {}
        self._counted_at_s = 0.0
        self._rooms: Mapping[tuple[str, Direction], Room] = {}
        self._owed: dict[tuple[str, Direction], float] = {}
        self._task: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self.others: dict[tuple[str, Direction], float] = {}
        self.decision: Decision | None = None
        self.notes: dict[str, str] = {}
        """What cannot be done, by NIC (or empty for all): for people."""

    # Journeys ---------------------------------------------------------------------------------------------------------

    async def join(
        self,
        journey: str,
        *,
        role: Literal["source", "destination"],
        paths: Sequence[GovernedPath],
        port: int,
        mptcp: bool = False,
        weight: float = 1.0,
    ) -> None:
        """Count and govern a journey's connections from now on; before its first byte. One that joined joins anew.

        :param port: at the destination, of TCP for the memory and of UDP for the heartbeats.
        Raises nothing: what cannot be done is in :attr:`notes`.
        """
        async with self._lock:
            taken = {known.shaped.slot for name, known in self._journeys.items() if name != journey}
            slot = next(number for number in range(MAX_JOURNEYS) if number not in taken)
            way = Direction.OUT if role == "source" else Direction.IN
            shaped_paths = tuple(ShapedPath(path.link, path.peer) for path in paths)
            shaped = ShapedJourney(slot, way is Direction.OUT, shaped_paths, port, weight)
            headers = header_bytes(ipv6=any(":" in path.peer for path in paths), mptcp=mptcp)
            known = _Journey(way, tuple(paths), shaped, headers)
            known.counted = _counted(known, self._shaping.counted())  # what another journey left there
            self._journeys[journey] = known
            await self._begin()

    async def leave(self, journey: str) -> None:
        """The journey has ended; with the last one everything is taken back. One that is unknown is no fault."""
        async with self._lock:
            if self._journeys.pop(journey, None) is not None:
                await self._begin()

    def heard(self, journey: str, allowances: Mapping[str, int]) -> None:
        """What the destination allows now, by its addresses. An unknown journey or address is passed over."""
        known = self._journeys.get(journey)
        if known is None or known.way is not Direction.OUT:
            return
        first = not self._is_governed()
        # an address that several of our NICs send to has one allowance; a NIC that sends to several has them all
        senders = Counter(path.peer for path in known.paths)
        known.heard = {}
        for path in known.paths:
            if path.peer in allowances:
                allowed = max(LEAST_RATE, allowances[path.peer]) / senders[path.peer]
                known.heard[path.link] = known.heard.get(path.link, 0.0) + allowed
        known.heard_at_s = self._clock.monotonic_s()
        if first and known.heard:
            spawn(self._again(), name="govern as the destination says")

    @property
    def is_limited(self) -> bool:
        """Whether this host has limits at all."""
        return bool(self._limits())

    async def limits_changed(self) -> None:
        """Read limits and NICs again."""
        await self._again()

    async def _again(self) -> None:
        async with self._lock:
            await self._begin()

    async def close(self) -> None:
        """Take everything back; may be called twice."""
        async with self._lock:
            self._journeys.clear()
            await self._begin()

    @property
    def shaped(self) -> frozenset[str]:
        """The NICs that have classes now."""
        return self._shaping.links

    def shares(self) -> list[tuple[str, str, float]]:
        """Journey, this host's role, and what it may use now in bytes/s; infinite when nothing limits it."""
        return [
            (name, "source", known.rate)
            if known.way is Direction.OUT
            else (name, "destination", sum(known.granted.values()) or math.inf)
            for name, known in self._journeys.items()
        ]

    # Counting and carrying out ----------------------------------------------------------------------------------------

    def _is_governed(self) -> bool:
        return bool(self._journeys) and (bool(self._limits()) or any(known.heard for known in self._journeys.values()))

    async def _begin(self) -> None:
        """Start or stop, as journeys, limits and marks are now."""
        marking, governed = self._read_marking(), self._is_governed()
        if not governed:
            await self._stop_governing()
        if not governed and not (self._journeys and marking.any):
            await self._shaping.remove()
            self.notes.clear()
            return
        try:
            if governed:
                nics = {nic.name: nic for nic in await self._read_nics()}
                for path in (path for known in self._journeys.values() for path in known.paths):
                    nics.setdefault(path.link, Nic(path.link, 0))
                    if not nics[path.link].capacity_bytes_per_s:
                        said = f"The speed of {path.link} is not known, so nothing is promised on it; say it with nic_speeds."
                        self._note(path.link, said)
                self._nics = nics
            limit = self._limits().get(Category.VIRTUAL_MACHINE)
            shaped = [known.shaped for known in self._journeys.values()]
            await self._shaping.set_rules(shaped, limit.selectors if limit else None, marking, classes=governed)
            self.notes.pop("", None)
        except LivemoveError as error:
            self._note("", error.message)
        self._hardware = marking.hardware
        if governed and (self._task is None or self._task.done()):
            self._counts, self._owed = {}, {}
            self._task = spawn(self._run(), name="governor")

    async def _stop_governing(self) -> None:
        await cancel_and_wait(self._task)
        self._task = None
        for link in self._shaping.links:
            self._shaping.drop(link)
        self._rooms, self.decision, self.others = {}, None, {}
        self._tell_the_end()

    def _tell_the_end(self) -> None:
        """What was limited is free again."""
        for name, known in self._journeys.items():
            if known.way is Direction.OUT and known.told:
                self.on_rate(name, 0)
            if known.way is Direction.IN and known.granted:
                self.on_allowance(name, {})
            known.told, known.granted = None, {}

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            try:
                self.tick()
            except Exception:  # whatever it was, the next measurement may be sound, and nobody would govern else
                _log.exception("the governor could not decide")
            due_s = max(due_s + TICK_S, loop.time())  # what was missed is not made up for
            await asyncio.sleep(due_s - loop.time())
            if not self._is_governed():
                spawn(self._again(), name="govern no more")
                return

    def tick(self) -> None:
        """Count, decide, carry out, once."""
        now_s = self._clock.monotonic_s()
        elapsed_s, self._counted_at_s = now_s - self._counted_at_s, now_s
        before, self._counts = self._counts, read_counts()
        self._count_journeys()
        if not before or elapsed_s <= 0:
            # nothing is known yet, but classes are to be there before the first byte
            elapsed_s, self.others = 0.0, {}
        else:
            self._count_others(before, elapsed_s)
        nics = [Nic(nic.name, nic.capacity_bytes_per_s, is_living(nic.name)) for nic in self._nics.values()]
        for known in self._journeys.values():
            if known.heard and now_s - known.heard_at_s > HEARD_S:
                known.heard = {}
        limits = self._limits()
        members = {
            name: Member(
                known.way,
                known.shaped.weight,
                tuple(dict.fromkeys(path.link for path in known.paths)),
                {link: carried / elapsed_s if elapsed_s else 0.0 for link, carried in known.carried.items()},
                known.granted,
                known.heard,
            )
            for name, known in self._journeys.items()
        }
        self.decision = decide(limits, Counted(elapsed_s, nics, members, self.others, self._rooms, self._shaping.links))
        self._rooms = self.decision.rooms if elapsed_s else {}
        self._carry_out(self.decision, bool(limits))

    def _count_journeys(self) -> None:
        counters = self._shaping.counted()
        for known in self._journeys.values():
            known.carried = {path.link: 0.0 for path in known.paths}
            before, known.counted = known.counted, _counted(known, counters)
            for path, earlier, now in zip(known.paths, before, known.counted, strict=True):
                known.carried[path.link] += payload(now.since(earlier), known.headers, linked=False)

    def _count_others(self, before: Mapping[str, NicCount], elapsed_s: float) -> None:
        self.others = {}
        for name in self._nics.keys() & before.keys() & self._counts.keys():
            for way in Direction:
                own = [known for known in self._journeys.values() if known.way is way and name in known.carried]
                headers = max((known.headers for known in own), default=header_bytes(ipv6=False, mptcp=False))
                gained = _traffic(self._counts[name], way).since(_traffic(before[name], way))
                rest, self._owed[name, way] = rest_of(
                    payload(gained, headers, linked=True),
                    sum(known.carried[name] for known in own),
                    self._owed.get((name, way), MOST_OWED_BYTES),
                )
                self.others[name, way] = rest / elapsed_s

    def _carry_out(self, decision: Decision, limited: bool) -> None:
        shaped = [known.shaped for known in self._journeys.values()]
        leaving = {path.link for journey in shaped if journey.outgoing for path in journey.paths} - self._hardware
        for link, classes in decision.classes.items():
            if link in leaving:
                ceilings = {
                    known.shaped.slot: known.heard[link] for known in self._journeys.values() if link in known.heard
                }
                try:
                    self._note(
                        link,
                        self._shaping.put(
                            link, class_table(link, classes, shaped, ceilings), self._nics[link].capacity_bytes_per_s
                        ),
                    )
                except MissingPrerequisite as error:
                    self._note(link, error.message)
        for link in self._shaping.links - leaving:
            self._shaping.drop(link)
        for name, known in self._journeys.items():
            known.granted = dict(decision.shares.get(name, {}))
            if known.way is Direction.IN:
                if limited:
                    addresses = Counter(path.link for path in known.paths)
                    self.on_allowance(
                        name,
                        {
                            path.local: int(known.granted[path.link] / addresses[path.link])
                            for path in known.paths
                            if path.link in known.granted
                        },
                    )
            elif (rate := decision.rates.get(name)) is not None:
                self._tell_rate(name, known, rate)

    def _tell_rate(self, name: str, known: _Journey, rate: float) -> None:
        known.rate = rate
        rate = 0.0 if math.isinf(rate) else max(1.0, rate)
        if known.told is None or (rate == 0) != (known.told == 0) or abs(rate - known.told) > TOLD_STEP * known.told:
            known.told = rate
            self.on_rate(name, int(rate))

    def _note(self, link: str, note: str) -> None:
        if note and self.notes.get(link) != note:
            _log.warning("bandwidth: %s", note)
        if note:
            self.notes[link] = note
        else:
            self.notes.pop(link, None)


def _counted(known: _Journey, counters: Mapping[str, tuple[int, int]]) -> list[Traffic]:
    """By path."""
    return [Traffic(*counters.get(known.shaped.counter(number), (0, 0))) for number in range(len(known.paths))]


def _traffic(count: NicCount, way: Direction) -> Traffic:
    if way is Direction.IN:
        return Traffic(count.received_bytes, count.received_packets)
    return Traffic(count.sent_bytes, count.sent_packets)
