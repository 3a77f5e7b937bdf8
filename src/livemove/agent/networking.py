"""This host's network as its journeys use it: the links, the cluster's list, and what is changed for them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pathlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal

from livemove.agent.governor import GovernedPath, Governor
from livemove.agent.networks import host_networks
from livemove.api.cluster_map import ClusterMap
from livemove.api.network_models import PathPair
from livemove.base.errors import LivemoveError, NetworkMissing
from livemove.base.settings import HostSettings
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.network.host_changes import HostChanges
from livemove.network.link_watch import LinkChange, LinkWatch
from livemove.policy.path_check import check_pairs
from livemove.policy.paths import HostNetworks, LinkFacts, NetworkRule, Path
from livemove.policy.subnets import subnet_of

_log = logging.getLogger(__name__)

MPTCP_ENABLED = pathlib.Path("/proc/sys/net/mptcp/enabled")
CHANGES_FILE = "host-changes.json"


#: How long the authority's host may take to tell the cluster's list; every agent has it from a few seconds ago anyway.
LEARN_S = 2.0

#: Makes the changes of a journey again.
Again = Callable[[], Awaitable[None]]


class AgentNetworking:
    """One for a host's agent; see migration.source_paths.Networking.

    :param learn: the cluster's map, as new as it can be had; `known`, as it was last heard.
    :param agent_address: the address by which the cluster knows this host's agent.
    :param governor: shares out the bandwidth; what it says of journeys is passed on from here.
    """

    def __init__(
        self,
        settings: Callable[[], HostSettings],
        learn: Callable[[], Awaitable[ClusterMap]],
        known: Callable[[], ClusterMap],
        agent_address: Callable[[], str],
        governor: Governor,
    ) -> None:
        self.changes = HostChanges(settings().run_dir / CHANGES_FILE)
        self._watch: LinkWatch | None = None
        self._again: dict[str, Again] = {}
        self._governor = governor
        self._on_rate: dict[str, Callable[[int], None]] = {}
        self._on_allowance: dict[str, Callable[[Mapping[str, int]], None]] = {}
        governor.on_rate = lambda journey, rate: self._on_rate.get(journey, _nobody)(rate)
        governor.on_allowance = lambda journey, by_address: self._on_allowance.get(journey, _nobody)(by_address)
        self._making_again: dict[str, set[asyncio.Task[None]]] = {}
        self._watching = asyncio.Lock()
        self._settings = settings
        self._learn = learn
        self._known = known
        self._agent_address = agent_address

    async def own(self) -> HostNetworks:
        """The links of this host as they are now."""
        return await host_networks(self._settings(), self._agent_address())

    async def rules(self) -> tuple[NetworkRule, ...]:
        """The cluster's list, as new as it can be had without waiting for a host that does not answer."""
        try:
            async with asyncio.timeout(LEARN_S):
                return (await self._learn()).networks
        except TimeoutError:
            return self._known().networks

    @property
    def mtu_fault(self) -> Literal["refuse", "clamp", "avoid"]:
        """What is done with a path that loses large packets."""
        return self._settings().mtu_fault

    async def check(self, pairs: Sequence[PathPair]) -> None:
        """This host's own word on the paths that a source means to use. Raises PolicyRefused, naming the path."""
        check_pairs([(pair.source, pair.destination) for pair in pairs], await self.own(), self._known().networks)

    async def as_destination(self, listed: Sequence[PathPair]) -> tuple[list[Path], list[Path]]:
        """The paths with what this host knows of its own end, and those of them whose NIC carries.

        Raises NetworkMissing when the NIC of the first one has gone since the plan; others are without a NIC then.
        """
        links = (await self.own()).links
        _at_destination(listed[0], links)
        paths = [_at_destination(pair, links, may_be_gone=True) for pair in listed]
        carrying = {link.name for link in links if link.carrier}
        return paths, [path for path in paths if path.destination_link in carrying]

    @property
    def is_limited(self) -> bool:
        """Whether this host has limits of bandwidth, so that it may have to tell a source how much it can take."""
        return self._governor.is_limited

    async def govern_leaving(
        self, journey: str, paths: Sequence[Path], port: int, *, mptcp: bool, on_rate: Callable[[int], None]
    ) -> None:
        """Keep to this host's limits, and to those that the destination tells, from before the first byte on."""
        self._on_rate[journey] = on_rate
        governed = [GovernedPath(path.source_link, path.source_address, path.destination_address) for path in paths]
        await self._governor.join(journey, role="source", paths=governed, port=port, mptcp=mptcp)

    async def govern_arriving(
        self,
        journey: str,
        paths: Sequence[Path],
        port: int,
        *,
        mptcp: bool,
        on_allowance: Callable[[Mapping[str, int]], None],
    ) -> None:
        """Tell `on_allowance` how much the source may send to each of this host's addresses, bytes per second."""
        self._on_allowance[journey] = on_allowance
        governed = [
            GovernedPath(path.destination_link, path.destination_address, path.source_address) for path in paths
        ]
        await self._governor.join(journey, role="destination", paths=governed, port=port, mptcp=mptcp)

    def heard(self, journey: str, by_address: Mapping[str, int]) -> None:
        """What the destination of a journey allows now."""
        self._governor.heard(journey, by_address)

    async def follow(self, journey: str, again: Again) -> None:
        """Call `again` whenever a NIC comes up: the kernel forgets the routes of one that went down."""
        async with self._watching:
            self._again[journey] = again
            try:
                if self._watch is None:
                    self._watch = await LinkWatch.open(self._settings().speeds_bytes_per_s, self._changed)
            except LivemoveError as error:
                # the paths are there; only one that goes down and comes up again would lack its route
                _log.warning("journey %s: NICs that come up are not noticed: %s", journey, error)

    def _changed(self, change: LinkChange) -> None:
        if change.came_up:
            for journey, again in self._again.items():
                task = spawn(_made_again(journey, again), name=f"routes of {journey} again")
                self._making_again.setdefault(journey, set()).add(task)
                task.add_done_callback(self._making_again[journey].discard)

    async def put_back(self, journey: str) -> None:
        """Put back what was changed for a journey; what cannot be is a leftover, which the next start tries again."""
        self._on_rate.pop(journey, None)
        self._on_allowance.pop(journey, None)
        async with self._watching:
            self._again.pop(journey, None)
            if not self._again and self._watch is not None:
                watch, self._watch = self._watch, None
                await watch.close()
        await cancel_and_wait(*self._making_again.pop(journey, ()))
        try:
            await self._governor.leave(journey)
        finally:
            with contextlib.suppress(LivemoveError):
                await self.changes.take_back(journey)


def _nobody(_: object) -> None:
    """A journey that has just ended."""


async def _made_again(journey: str, again: Again) -> None:
    try:
        await again()
    except LivemoveError as error:
        _log.warning("journey %s: a NIC came up, and is not used as planned: %s", journey, error)


def _at_destination(pair: PathPair, links: Sequence[LinkFacts], *, may_be_gone: bool = False) -> Path:
    for link in links:
        for address in link.addresses:
            if address.partition("/")[0] == pair.destination:
                subnet = subnet_of(address)
                others = sum(subnet in map(subnet_of, other.addresses) for other in links)
                return Path(
                    pair.source, pair.destination, subnet, "", "", link.name, 0, link.speed_bytes_per_s, link.mtu,
                    shared_subnet=pair.shared_subnet or others > 1,
                )  # fmt: skip
    if may_be_gone:
        return Path(pair.source, pair.destination, "", "", "", "", 0, 0, 0)
    raise NetworkMissing(
        f"No NIC has the address {pair.destination} any more.",
        remedy="'livemove network list' shows the NICs as they are; run the command again.",
    )


def why_no_mptcp(host: str, *, in_qemu: bool) -> str:
    """Why this host cannot use MPTCP, naming what to change; empty when it can."""
    if not in_qemu:
        return f"the QEMU of {host} was built without it"
    try:
        enabled = MPTCP_ENABLED.read_text().strip()
    except OSError:
        return f"the kernel of {host} has none"
    return "" if enabled == "1" else f"net.mptcp.enabled is {enabled[:8]} on {host}"
