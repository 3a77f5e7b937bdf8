"""The endpoints that the kernel makes by itself at a journey's destination, and which of them are taken away again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from livemove.network.keeper_words import SubflowsVerified
from livemove.network.kernel_state import EndpointSpot

from .test_path_keeper import kept
from .two_hosts import Traffic, TwoHosts, run

pytestmark = pytest.mark.qemu


async def test_an_implicit_endpoint_is_taken_away_once_no_subflow_needs_it() -> None:
    hosts = TwoHosts()
    spot = EndpointSpot(hosts.address("destination", 1))
    async with kept(hosts, connections=1) as world:
        with hosts.inside("destination"):
            assert spot.read() is None
        traffic = await asyncio.to_thread(Traffic, hosts, 1)
        try:
            await world.until("source", SubflowsVerified)
            with hosts.inside("destination"):
                made = spot.read()
                assert made is not None and made[1] == 1 and spot.is_ours(made, None)
                spot.put_back(made)
                spot.put_back(None)  # in use
                assert spot.is_same(spot.read(), made)
        finally:
            await asyncio.to_thread(traffic.stop)
        with hosts.inside("destination"):
            assert spot.read() == made  # the kernel keeps it
            spot.put_back(None)
            assert spot.read() is None
            spot.put_back(None)


@pytest.fixture
def hosts() -> Iterator[TwoHosts]:
    made = TwoHosts(1)
    yield made
    made.close()


def test_an_administrator_s_endpoint_stays(hosts: TwoHosts) -> None:
    spot = EndpointSpot(hosts.address("destination", 0))
    run("ip", "-n", hosts.destination, "mptcp", "endpoint", "add", spot.key, "id", "7", "signal")
    with hosts.inside("destination"):
        assert spot.read() == [7, 0] and not spot.is_ours([7, 0], None)
        spot.put_back(None)
        assert spot.read() == [7, 0]


def test_an_ipv6_endpoint_is_found() -> None:
    made = TwoHosts(1, ipv6=True)
    try:
        spot = EndpointSpot("fd77::2")
        run("ip", "-n", made.destination, "mptcp", "endpoint", "add", spot.key, "id", "9", "signal")
        with made.inside("destination"):
            assert spot.read() == [9, 0]
            assert EndpointSpot("fd77:9::9").read() is None
    finally:
        made.close()
