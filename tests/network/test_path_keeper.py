"""Path keepers on two hosts, started and heard as agents do, with MPTCP connections that carry traffic."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import pytest

from livemove.network.keeper_words import KeeperConfig, KeptPath, PathDied, PathHealed, Report, SubflowsVerified
from livemove.network.path_keeper import PathKeeper

from .two_hosts import PORT, Traffic, TwoHosts

pytestmark = pytest.mark.qemu
R = TypeVar("R", bound=Report)
NONCE = "5a" * 16


def config(hosts: TwoHosts, role: str, **changes: object) -> KeeperConfig:
    other = "destination" if role == "source" else "source"
    paths = tuple(
        KeptPath(number, hosts.address(role, number), hosts.address(other, number), hosts.link(role, number))
        for number in range(hosts.count)
    )
    return KeeperConfig(role, "journey", PORT, NONCE, paths, **changes)  # type: ignore[arg-type]


class Kept:
    """Two hosts with a keeper each, and what the keepers said."""

    def __init__(self, hosts: TwoHosts) -> None:
        self.hosts = hosts
        self.said: dict[str, list[Report]] = {"source": [], "destination": []}
        self.keepers: dict[str, PathKeeper] = {}

    async def start(self, role: str, **changes: object) -> PathKeeper:
        with self.hosts.inside(role):
            keeper = await PathKeeper.start(config(self.hosts, role, **changes), self.said[role].append)
        self.keepers[role] = keeper
        return keeper

    def heard(self, role: str, kind: type[R]) -> list[R]:
        return [report for report in self.said[role] if isinstance(report, kind)]

    async def until(self, role: str, kind: type[R], count: int = 1, limit_s: float = 10.0) -> R:
        await eventually(lambda: len(self.heard(role, kind)) >= count, f"{role}: {kind.__name__}; {self.said}", limit_s)
        return self.heard(role, kind)[count - 1]


async def eventually(true: Callable[[], bool], what: str, limit_s: float = 10.0) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def kept(hosts: TwoHosts, **changes: object) -> AsyncIterator[Kept]:
    world = Kept(hosts)
    try:
        for role in ("destination", "source"):
            await world.start(role, **changes)
        yield world
    finally:
        for keeper in world.keepers.values():
            await keeper.close()
        hosts.close()


async def test_a_black_hole_costs_a_path_and_healing_brings_it_back() -> None:
    hosts = TwoHosts()
    async with kept(hosts, connections=3) as world:
        traffic = await asyncio.to_thread(Traffic, hosts, 3)
        try:
            assert (await world.until("source", SubflowsVerified)).paths == (0, 1)
            hosts.black_hole(0)
            for role in ("source", "destination"):
                died = await world.until(role, PathDied)
                assert died.path == 0
            hosts.heal(0)
            for role in ("source", "destination"):
                assert (await world.until(role, PathHealed)).path == 0
        finally:
            await asyncio.to_thread(traffic.stop)
        assert traffic.errors == [] and traffic.sent == traffic.received > 0
        totals = await world.keepers["destination"].finish()
        assert totals is not None and sum(path.bytes_received for path in totals.paths) >= traffic.received
