"""Testing every path between two hosts outside of a journey, in both directions: is my network all right? (N6)

    source                                 destination
      its links                     -->    the paths that both may use; our own listeners, TCP and UDP, on each of them
                                    <--    port, nonce, links
      MTU, round trip, connection   <->
      done                          -->    closed; by itself after a while

What journeys would be told about a path is said of it here, whatever they would do about it.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from livemove.agent.arrival_connection import ArrivalConnection
from livemove.agent.networking import AgentNetworking
from livemove.api.client import AgentClient
from livemove.api.network_models import (
    AskDoors,
    DoorsAnswer,
    HostNetworksBody,
    LeftOutPath,
    NetworkTestView,
    PathPair,
    ProbedPath,
)
from livemove.base.errors import AgentBusy, LivemoveError, PeerViolation, PortClosed, SameHost
from livemove.base.settings import HostSettings
from livemove.base.tasks import spawn
from livemove.migration.path_report import measured
from livemove.migration.receiving import probe_port
from livemove.network.mtu import probe_paths
from livemove.policy.dormant import dormant_paths
from livemove.policy.host_setup import Side, changes_for
from livemove.policy.mtu import PathMeasure, end_of, name_unlike
from livemove.policy.path_choice import choose_paths
from livemove.policy.path_test import Assessment, Door, assess, assess_dormant
from livemove.policy.paths import HostNetworks, NetworkRule, Path, PathPlan, PathWish, UsePaths
from livemove.wire.mtu_probe import NONCE_BYTES

#: Tests at a time, in each direction: each has a port of the range, and a few dozen packets in flight.
MAX_TESTS = 8
#: A source measures for 5 s at most and then connects for 5 s at most; one that is gone holds the port no longer.
OPEN_S = 15.0
#: How long a connection over a path is waited for whose datagrams were not answered: a SYN is repeated after 1 s.
_SILENT_PATIENCE_S = 1.5
_ALL = PathWish(UsePaths.ALL)

#: Source and destination.
_Hosts = tuple[HostNetworks, HostNetworks]


@dataclass(slots=True)
class _Door:
    source: str
    connection: ArrivalConnection
    expiry: asyncio.TimerHandle


class NetworkTests:
    """Both sides of this host's tests.

    :param taken: ports that journeys hold or have been promised.
    """

    def __init__(
        self,
        settings: Callable[[], HostSettings],
        networking: AgentNetworking,
        client_to: Callable[[str], AgentClient],
        taken: Callable[[], set[int]],
    ) -> None:
        self._settings = settings
        self._networking = networking
        self._client_to = client_to
        self._taken = taken
        self._doors: dict[str, _Door] = {}
        self._opening = asyncio.Lock()
        self._probing = 0
        #: tests for which the host's network may be changed
        self.under_way: set[str] = set()

    async def close(self) -> None:
        """The agent ends."""
        for test in tuple(self._doors):
            await self._close(test)

    # At the destination ---------------------------------------------------------------------------------------------

    async def open_doors(self, source: str, asked: AskDoors) -> DoorsAnswer:
        """Listen for that source's probes on every path that both hosts may use.

        Raises what :func:`choose_paths` raises; PortClosed, NetworkMissing, MissingPrerequisite; AgentBusy.
        """
        theirs = asked.networks.networks()
        if theirs.host != source:
            raise PeerViolation(f"{source} sent the links of {theirs.host}.")
        async with self._opening:
            if len(self._doors) >= MAX_TESTS or any(door.source == source for door in self._doors.values()):
                raise AgentBusy(f"A network test with {self._settings().name} is under way already.")
            own, rules = await asyncio.gather(self._networking.own(), self._networking.rules())
            paths = choose_paths(theirs, own, rules, _ALL).paths
            pairs = tuple(PathPair(source=each.source_address, destination=each.destination_address) for each in paths)
            test = _new_id()
            self.under_way.add(test)
            try:
                connection = await ArrivalConnection.open(
                    test, pairs, self._settings().ports, self._taken(), self._networking, _nobody
                )
            except BaseException:
                self.under_way.discard(test)
                raise
            expiry = asyncio.get_running_loop().call_later(OPEN_S, self._expire, test)
            self._doors[test] = _Door(source, connection, expiry)
        return DoorsAnswer(
            test=test, port=connection.port, nonce=connection.nonce, networks=HostNetworksBody.of(own), paths=pairs
        )

    async def close_doors(self, source: str, test: str) -> None:
        """The source is done. Nothing happens when the test is not that source's, or over."""
        door = self._doors.get(test)
        if door is not None and door.source == source:
            await self._close(test)

    def _expire(self, test: str) -> None:
        spawn(self._close(test), name=f"end of network test {test}")

    async def _close(self, test: str) -> None:
        door = self._doors.pop(test, None)
        if door is not None:
            door.expiry.cancel()
            await door.connection.close()
            self.under_way.discard(test)

    # At the source --------------------------------------------------------------------------------------------------

    async def run(self, destination: str) -> NetworkTestView:
        """Test every path from this host to another.

        Raises SameHost, UnknownHost, AgentUnreachable, AgentBusy; and what :meth:`open_doors` raises there.
        """
        if destination == self._settings().name:
            raise SameHost(f"{destination} is this host: there is no network to test.")
        if self._probing >= MAX_TESTS:
            raise AgentBusy(f"{MAX_TESTS} network tests are under way on {self._settings().name} already.")
        test = _new_id()
        self._probing += 1
        self.under_way.add(test)
        try:
            own, rules = await asyncio.gather(self._networking.own(), self._networking.rules())
            async with self._client_to(destination) as client:
                doors = await client.open_doors(AskDoors(networks=HostNetworksBody.of(own)))
                try:
                    return await self._probe(test, own, rules, doors)
                finally:
                    with contextlib.suppress(LivemoveError):
                        await client.close_doors(doors.test)
        finally:
            await self._networking.put_back(test)
            self._probing -= 1
            self.under_way.discard(test)

    async def _probe(
        self, test: str, own: HostNetworks, rules: Sequence[NetworkRule], doors: DoorsAnswer
    ) -> NetworkTestView:
        theirs = doors.networks.networks()
        plan = choose_paths(own, theirs, rules, _ALL)
        open_there = {(pair.source, pair.destination) for pair in doors.paths}
        paths = [path for path in plan.paths if (path.source_address, path.destination_address) in open_there]
        # two NICs in one subnet: without routes of the test's own the probes would all take one of them
        await self._networking.changes.apply(test, changes_for(paths, Side.SOURCE, clamp={}, multipath=False))
        measures = await probe_paths(paths, doors.port, bytes.fromhex(doors.nonce)[:NONCE_BYTES])
        tried = await asyncio.gather(*(_connect(path, measures[path], doors) for path in paths))
        ends = own, theirs
        dormant = dormant_paths(plan, own, theirs, rules, _ALL)
        carried = {path: min(measure.mtu_out, measure.mtu_in) for path, measure in measures.items() if measure.alive}
        return NetworkTestView(
            source=own.host, destination=theirs.host, port=doors.port,
            left_out=tuple(_left_out(plan, paths, dormant, ends)),
            paths=(
                *(_probed(path, measures[path], door, ends) for path, door in zip(paths, tried, strict=True)),
                *(_view(path, None, assess_dormant(path, *ends), ends, port_open=False) for path in dormant),
            ),
            notes=tuple(name_unlike(tuple(carried), carried)),
        )  # fmt: skip


def _left_out(plan: PathPlan, tested: Sequence[Path], dormant: Sequence[Path], ends: _Hosts) -> Iterator[LeftOutPath]:
    source, destination = ends
    # those that only want a carrier have a row of their own
    dark = {f"{source.host} {path.source_link} {path.source_address}" for path in dormant}
    dark |= {f"{destination.host} {path.destination_link} {path.destination_address}" for path in dormant}
    for each in plan.left_out:
        if each.what not in dark:
            yield LeftOutPath(what=each.what, reason=each.reason)
    for path in plan.paths:
        if path not in tested:
            pair = f"{path.source_address} to {path.destination_address}"
            yield LeftOutPath(what=pair, reason=f"{destination.host} does not admit it")


async def _connect(path: Path, measure: PathMeasure, doors: DoorsAnswer) -> Door:
    """Whether a connection can be made over the path, now that its datagrams are known to pass or not."""
    address, port = path.destination_address, doors.port
    try:
        async with asyncio.timeout(None if measure.alive else _SILENT_PATIENCE_S):
            await probe_port(address, port, doors.nonce, source=path.source_address)
    except TimeoutError:
        return Door(address, port, f"TCP port {port} of {address} did not answer.")
    except PortClosed as error:
        return Door(address, port, error.message, error.remedy)
    return Door(address, port)


def _probed(path: Path, measure: PathMeasure, door: Door, ends: _Hosts) -> ProbedPath:
    source, destination = ends
    found = assess(measure, door, end_of(source, path.source_link), end_of(destination, path.destination_link))
    return _view(path, measure if measure.alive else None, found, ends, port_open=not door.closed)


def _view(
    path: Path, measure: PathMeasure | None, found: Assessment, ends: _Hosts, *, port_open: bool
) -> ProbedPath:  # fmt: skip
    source, destination = ends
    return ProbedPath(
        source_address=path.source_address, destination_address=path.destination_address, network=path.network,
        name=path.name, source_link=path.source_link, destination_link=path.destination_link,
        source_mtu=end_of(source, path.source_link).mtu, destination_mtu=end_of(destination, path.destination_link).mtu,
        measured=measured(measure) if measure is not None else None, port_open=port_open, level=found.level.value,
        verdict=found.verdict, remedy=found.remedy,
    )  # fmt: skip


def _new_id() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


def _nobody(text: str, level: str) -> None:
    """There is no journey to tell of."""
