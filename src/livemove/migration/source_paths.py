"""The networks of one journey at its source: chosen, probed, set up, watched, counted, put back.

choose      both hosts' links and the cluster's list, by the pure rules of policy.path_choice
probe       every path at once, before the copy: what is dead is left out, what loses large packets is named
set up      routes and MPTCP of the journey; the keeper that watches the paths
finish      the kernel's counters, and whether they are what was planned
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

from livemove.api.incoming_models import ListenPath, PathTotals
from livemove.api.network_models import LeftOutPath, PathPair, PathReport, PathView
from livemove.base.errors import LivemoveError, MtuBlackHole, PortClosed
from livemove.migration.path_report import Probed, path_reports, text_of
from livemove.migration.path_watch import CountedPaths, KeptPaths, PathWatch, Tell
from livemove.migration.receiving import probe_port
from livemove.network.host_changes import HostChanges
from livemove.network.keeper_words import KeeperConfig, KeptPath
from livemove.network.mtu import probe_paths
from livemove.network.routes import source_address_towards
from livemove.policy.dormant import dormant_paths
from livemove.policy.host_setup import Side, changes_for
from livemove.policy.mtu import (
    USUAL_MTU,
    OnBlackHole,
    PathMeasure,
    Use,
    clamp_of_unmeasured,
    end_of,
    judge,
    name_filtered,
    name_unlike,
)
from livemove.policy.path_choice import choose_paths
from livemove.policy.paths import HostNetworks, LeftOut, NetworkRule, Path, PathPlan, PathWish
from livemove.wire.mtu_probe import NONCE_BYTES

#: How long a path may take to be connected when its datagrams were not answered and another path's were.
DEAD_PATIENCE_S = 1.0
_ON_BLACK_HOLE = {"refuse": OnBlackHole.REFUSE, "clamp": OnBlackHole.CLAMP, "avoid": OnBlackHole.LEAVE_OUT}


class Networking(Protocol):
    """What a host's agent knows of its network, and the one who changes it for journeys."""

    changes: HostChanges

    async def own(self) -> HostNetworks:
        """The links of this host as they are now."""

    async def rules(self) -> tuple[NetworkRule, ...]:
        """The cluster's list, as new as it can be had."""

    async def follow(self, journey: str, again: Callable[[], Awaitable[None]]) -> None:
        """Call `again` whenever a NIC comes up, until :meth:`put_back`."""

    async def put_back(self, journey: str) -> None:
        """Put back what was changed for a journey; what cannot be is a leftover."""

    async def govern_leaving(
        self, journey: str, paths: Sequence[Path], port: int, *, mptcp: bool, on_rate: Callable[[int], None]
    ) -> None:
        """Keep to the limits of bandwidth from before the first byte on; `on_rate` is told bytes per second, 0: no limit."""

    def heard(self, journey: str, by_address: Mapping[str, int]) -> None:
        """What the destination allows to be sent to its addresses, bytes per second."""

    @property
    def mtu_fault(self) -> Literal["refuse", "clamp", "avoid"]:
        """What is done with a path that loses large packets."""


@dataclass(frozen=True, slots=True)
class _Dead:
    """A path without connections.

    :param silent: nothing at all came back, so that it may be a cable that somebody plugs in.
    """

    path: Path
    error: LivemoveError
    silent: bool


class SourcePaths:
    """The paths of one journey."""

    def __init__(self, journey: str, wish: PathWish, networking: Networking, tell: Tell) -> None:
        self.probed: tuple[Probed, ...] = ()
        self.reports: list[PathReport] = []
        self._watch: PathWatch | None = None
        self._journey = journey
        self._wish = wish
        self._networking = networking
        self._tell = tell
        self._plan: PathPlan | None = None
        self._hosts: tuple[HostNetworks, HostNetworks]
        self._left_out: tuple[LeftOut, ...] = ()
        self._black_holes: list[MtuBlackHole] = []
        #: they wait for a carrier
        self._dormant: tuple[Path, ...] = ()

    # Before the copy ------------------------------------------------------------------------------------------------

    async def choose(self, destination: HostNetworks) -> None:
        """Make the plan. Raises what :func:`choose_paths` raises."""
        own, rules = await asyncio.gather(self._networking.own(), self._networking.rules())
        self._hosts = own, destination
        self._plan = choose_paths(own, destination, rules, self._wish)
        self._dormant = dormant_paths(self._plan, own, destination, rules, self._wish)
        self._left_out = self._plan.left_out

    def use_one(self, reason: str) -> None:
        """Use the first path only, the others instead of it if it does not work (#13); tells `reason` if it changes anything."""
        first, others = self.plan.paths[:1], self.plan.paths[1:]
        if others and reason:
            self._tell(f"One path is used of {len(self.plan.paths)}: {reason}.", "warning")
        self._plan, self._dormant = replace(self.plan, paths=first, spares=(*others, *self.plan.spares)), ()

    def only_trusted(self, is_trusted: Callable[[Path], bool]) -> bool:
        """Whether the journey may go without TLS: all paths of the plan are on trusted networks.

        Those that would only stand in for them are left out then, where they are not.
        """
        if not all(map(is_trusted, self.plan.paths)):
            return False
        others = [path for path in (*self.plan.spares, *self._dormant) if not is_trusted(path)]
        reason = "its network is not trusted on both hosts, and the others are, so that TLS is off"
        self._left_out = (*self._left_out, *(LeftOut(text_of(path), reason) for path in others))
        self._plan = replace(self.plan, spares=tuple(path for path in self.plan.spares if path not in others))
        self._dormant = tuple(path for path in self._dormant if path not in others)
        return True

    @property
    def plan(self) -> PathPlan:
        assert self._plan is not None
        return self._plan

    @property
    def candidates(self) -> tuple[Path, ...]:
        """Everything that may come to be used, in order."""
        return (*self.plan.paths, *self.plan.spares, *self._dormant)

    @property
    def in_use(self) -> tuple[Path, ...]:
        """What is used as far as it is known: the plan's, or those of it that turned out to work, first."""
        return tuple(probed.path for probed in self.probed) or self.plan.paths

    @property
    def capacity_bytes_per_s(self) -> int:
        """What the paths in use carry together; 0 when that of one is unknown."""
        capacities = [path.capacity_bytes_per_s for path in self.in_use]
        return sum(capacities) if all(capacities) else 0

    @property
    def pairs(self) -> list[PathPair]:
        """All candidates, as the destination is told them."""
        return [
            PathPair(source=path.source_address, destination=path.destination_address, shared_subnet=path.shared_subnet)
            for path in self.candidates
        ]

    async def probe(self, port: int, nonce: str) -> None:
        """Find out which paths work, and how large their packets may be.

        Raises PortClosed when none does, MtuBlackHole when one loses large packets and that is to be refused.
        """
        # two NICs in one subnet: without routes of the journey's own the probes would all take one of them
        await self._change((*self.plan.paths, *self.plan.spares), clamp={}, multipath=False)
        dead: list[_Dead] = []
        before = len(self._left_out)
        for group in filter(None, (self.plan.paths, self.plan.spares)):
            measures = await probe_paths(group, port, bytes.fromhex(nonce)[:NONCE_BYTES])
            found = await asyncio.gather(
                *(self._connect(path, measure, port, nonce, len(group)) for path, measure in measures.items())
            )
            dead = [each for each in found if isinstance(each, _Dead)]
            works = self._watchable([each for each in found if isinstance(each, Probed)], port)
            self.probed = tuple(self._without_faults(works))
            for each in dead:
                self._leave_out(each.path, each.error.message)
            if self.probed:
                break
        else:
            failed = self._left_out[before:]
            raise dead[0].error if len(failed) == len(dead) == 1 else self._none_works(failed)
        if group is self.plan.spares:
            self.probed = self.probed[:1]
        elif len(self.candidates) > 1 and not self.plan.spares:
            # they are taken up when they work
            silent = (*(each.path for each in dead if each.silent), *self._dormant)
            self.probed += tuple(
                Probed(path, PathMeasure(), clamp_of_unmeasured(path.mtu), dead=True) for path in silent
            )

    async def _connect(self, path: Path, measure: PathMeasure, port: int, nonce: str, among: int) -> Probed | _Dead:
        """Whether a connection over the path works, now that its datagrams are known to pass or not."""
        try:
            patience_s = DEAD_PATIENCE_S if among > 1 and not measure.alive else None
            async with asyncio.timeout(patience_s):
                await probe_port(path.destination_address, port, nonce, source=path.source_address)
        except TimeoutError:
            return _Dead(path, PortClosed("Nothing arrives that is sent over it: the path is dead."), True)
        except PortClosed as error:
            return _Dead(path, error, not measure.alive)
        return Probed(path, measure)

    def _watchable(self, works: Sequence[Probed], port: int) -> list[Probed]:
        """Without paths whose datagrams are filtered, which could not be watched; if there is no other, one of them."""
        kept = [each for each in works if each.measure.alive]
        for each in works:
            if each.measure.alive:
                continue
            sentence, remedy = name_filtered(each.path.destination_address, port)
            if kept:
                self._leave_out(each.path, f"{sentence} It could not be watched beside others. {remedy}")
            else:
                kept.append(each)
                self._tell(f"{text_of(each.path)}: {sentence} {_unmeasured(each.path)}{remedy}", "warning")
        return kept

    def _without_faults(self, works: Sequence[Probed]) -> list[Probed]:
        """Raises MtuBlackHole where that is the setting."""
        kept: list[Probed] = []
        mtus: dict[Path, int] = {}
        for probed in works:
            path = probed.path
            if not probed.measure.alive:
                # its datagrams are filtered and its connections are not: nothing is known about large packets
                kept.append(replace(probed, clamp_mtu=clamp_of_unmeasured(path.mtu)))
                continue
            source, destination = self._hosts
            verdict = judge(
                probed.measure, end_of(source, path.source_link), end_of(destination, path.destination_link),
                _ON_BLACK_HOLE[self._networking.mtu_fault], ipv6=":" in path.source_address,
            )  # fmt: skip
            if verdict.use is Use.REFUSE:
                raise MtuBlackHole(verdict.sentence, remedy=verdict.remedy)
            if verdict.use is Use.LEAVE_OUT:
                self._black_holes.append(MtuBlackHole(verdict.sentence, remedy=verdict.remedy))
                self._leave_out(path, f"{verdict.sentence} {verdict.remedy}")
                continue
            if verdict.sentence:
                self._tell(f"{text_of(path)}: {verdict.sentence} {verdict.remedy}", "warning")
            kept.append(replace(probed, clamp_mtu=verdict.mtu if verdict.use is Use.CLAMP else 0))
            mtus[path] = verdict.mtu
        for sentence in name_unlike(tuple(mtus), mtus):
            self._tell(sentence, "warning")
        return kept

    def _leave_out(self, path: Path, reason: str) -> None:
        self._left_out = (*self._left_out, LeftOut(text_of(path), reason))
        self._tell(f"{text_of(path)} is not used: {reason}", "warning")

    def _none_works(self, failed: Sequence[LeftOut]) -> LivemoveError:
        said = "; ".join(f"{left.what}: {left.reason.rstrip('.')}" for left in failed)
        if self._black_holes:
            remedy = f"{self._black_holes[0].remedy} Or use it with smaller packets: set 'mtu_fault' to clamp."
            return MtuBlackHole(f"No path is left that migrations may use: {said}.", remedy=remedy)
        return PortClosed(f"No path to the destination works: {said}.")

    @property
    def to_listen(self) -> list[ListenPath]:
        """The paths in use, as the destination is told them when its QEMU is to listen."""
        return [
            ListenPath(
                source=each.path.source_address,
                destination=each.path.destination_address,
                shared_subnet=each.path.shared_subnet,
                clamp_mtu=each.clamp_mtu,
                dead=each.dead,
            )
            for each in self.probed
        ]

    async def set_up(self, *, multipath: bool) -> None:
        """Change routes and MPTCP of this host for the journey. Raises MissingPrerequisite; nothing is left changed then."""
        await self._change_carrying(multipath=multipath)
        if multipath:
            await self._networking.follow(self._journey, lambda: self._change_carrying(multipath=True))

    async def _change_carrying(self, *, multipath: bool) -> None:
        """A NIC without carrier takes no routes; it is set up when it has one."""
        carrying = {link.name for link in (await self._networking.own()).links if link.carrier}
        awake = [each for each in self.probed if each.path.source_link in carrying]
        clamp = {each.path: each.clamp_mtu for each in awake if each.clamp_mtu}
        await self._change([each.path for each in awake], clamp=clamp, multipath=multipath)

    async def _change(self, paths: Sequence[Path], *, clamp: Mapping[Path, int], multipath: bool) -> None:
        links = self._hosts[0].links
        # QEMU binds to no address, and the destination admits that of the path only
        astray = {path for path in paths if source_address_towards(path.destination_address) != path.source_address}
        changes = changes_for(paths, Side.SOURCE, clamp=clamp, multipath=multipath, links=links, astray=astray)
        for note in await self._networking.changes.apply(self._journey, changes):
            self._tell(note, "warning")

    async def watch(self, port: int, *, multipath: bool, heartbeat_key: str, on_rate: Callable[[int], None]) -> None:
        """Watch, count and govern the paths from now on, before the copy begins. Raises MissingPrerequisite.

        :param heartbeat_key: of the keepers on both hosts; empty: nobody sends any.
        :param on_rate: told how much may be sent at most, bytes per second; 0: no limit.
        """
        await self._networking.govern_leaving(self._journey, self.in_use, port, mptcp=multipath, on_rate=on_rate)
        paths = tuple(
            KeptPath(
                number, each.path.source_address, each.path.destination_address, each.path.source_link,
                each.path.source_index, dead=each.dead,
            )
            for number, each in enumerate(self.probed)
        )  # fmt: skip
        config = KeeperConfig("source", self._journey, port, heartbeat_key, paths, multipath=multipath)
        names = {number: text_of(path) for number, path in enumerate(self.in_use)}
        if heartbeat_key:
            heard = partial(self._networking.heard, self._journey)
            self._watch = await KeptPaths.start(config, names, self._tell, heard)
        else:
            self._watch = CountedPaths(config)

    def copy_begins(self, connections: int) -> None:
        """QEMU has been told to migrate over that many connections."""
        if self._watch is not None:
            self._watch.expect(connections)

    async def count(self, destination: Sequence[PathTotals]) -> None:
        """After the last connection: what every path carried, and whether that was planned."""
        if self._watch is None:
            return
        self.reports, differences = path_reports(self.probed, await self._watch.finish(), destination)
        for difference in differences:
            self._tell(difference, "warning")

    # For people -----------------------------------------------------------------------------------------------------

    def views(self) -> list[PathView]:
        """The plan's paths, spares included."""
        shown: list[PathView] = []
        states: tuple[tuple[Literal["use", "spare"], tuple[Path, ...]], ...] = (
            ("use", self.plan.paths),
            ("spare", self.plan.spares),
        )
        for state, paths in states:
            shown += [
                PathView(
                    source_address=path.source_address,
                    destination_address=path.destination_address,
                    network=path.network,
                    name=path.name,
                    source_link=path.source_link,
                    destination_link=path.destination_link,
                    capacity_bytes_per_s=path.capacity_bytes_per_s,
                    mtu=path.mtu,
                    state=state,
                )
                for path in paths
            ]
        return shown

    def left_out(self) -> list[LeftOutPath]:
        """What is not used, and why."""
        return [LeftOutPath(what=left.what, reason=left.reason) for left in self._left_out]

    async def close(self) -> None:
        """Put everything back; may be called twice, and before anything was set up."""
        if self._watch is not None:
            await self._watch.close()
        await self._networking.put_back(self._journey)


def _unmeasured(path: Path) -> str:
    if not clamp_of_unmeasured(path.mtu):
        return ""
    return f"Whether packets of {path.mtu} bytes pass is not known, so {USUAL_MTU} are used. "
