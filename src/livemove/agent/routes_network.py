"""Routes about networks: this host's links, the cluster's list, and tests of the paths between two hosts."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends

from livemove.agent.host import Host
from livemove.agent.networks import set_networks
from livemove.agent.tls_server import require_host, require_role
from livemove.api.client_identity import Peer
from livemove.api.cluster_map import ClusterMap
from livemove.api.network_models import (
    AskDoors,
    AskNetworkTest,
    DoorsAnswer,
    HostNetworksBody,
    NetworkRuleBody,
    NetworksView,
    NetworkTestView,
    SetNetworks,
)

Viewer = Annotated[Peer, Depends(require_role("viewer"))]
Operator = Annotated[Peer, Depends(require_role("operator"))]
AnotherHost = Annotated[Peer, Depends(require_host())]
Admin = Annotated[Peer, Depends(require_role("admin"))]


def make_router(host: Host) -> APIRouter:
    router = APIRouter()

    async def view(cluster: ClusterMap) -> NetworksView:
        return NetworksView(
            own=HostNetworksBody.of(await host.networking.own()),
            authority=cluster.authority,
            serial=cluster.serial,
            rules=tuple(NetworkRuleBody.of(rule) for rule in cluster.networks),
        )

    @router.get("/networks")
    async def networks(peer: Viewer) -> NetworksView:
        """This host's links with addresses, what it lets migrations use, and the cluster's list as it knows it."""
        return await view(host.cluster())

    @router.put("/cluster/networks")
    async def change_networks(peer: Admin, body: SetNetworks) -> NetworksView:
        """On the authority's host: replace the cluster's list of networks; the other hosts follow within seconds."""
        rules = [rule.rule() for rule in body.rules]
        return await view(await asyncio.to_thread(set_networks, host.settings.state_dir, body.serial, rules))

    @router.post("/network-tests")
    async def test_network(peer: Operator, body: AskNetworkTest) -> NetworkTestView:
        """Probe every path from this host to another: connection, round trip, and the largest packet in each direction."""
        return await host.network_tests.run(body.destination)

    @router.post("/network-tests/doors")
    async def open_doors(peer: AnotherHost, body: AskDoors) -> DoorsAnswer:
        """Listen on a port of every path for the probes of that host's test, for 15 s at most."""
        return await host.network_tests.open_doors(peer.name, body)

    @router.delete("/network-tests/doors/{test}", status_code=204)
    async def close_doors(peer: AnotherHost, test: str) -> None:
        """That host's test is over."""
        await host.network_tests.close_doors(peer.name, test)

    return router
