"""Routes about the host and its cluster."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from livemove.agent.host import Host
from livemove.agent.join import JoinAnswer, JoinRequest, redeem
from livemove.agent.leftovers import Leftover
from livemove.agent.metrics import render_metrics
from livemove.agent.renewal import renew_for
from livemove.agent.tls_server import require_host, require_peer, require_role
from livemove.api.client_identity import Peer
from livemove.api.models import (
    ChangeSettings,
    ClusterView,
    HostView,
    LeftoverList,
    LeftoverView,
    RenewAnswer,
    RenewRequest,
)
from livemove.base.clock import wall_text

Viewer = Annotated[Peer, Depends(require_role("viewer"))]
Operator = Annotated[Peer, Depends(require_role("operator"))]
Admin = Annotated[Peer, Depends(require_role("admin"))]
AnotherHost = Annotated[Peer, Depends(require_host())]
Member = Annotated[Peer, Depends(require_peer)]


def _leftover(item: Leftover, kept: str = "") -> LeftoverView:
    since = wall_text(item.since_wall_s) if item.since_wall_s is not None else ""
    return LeftoverView(
        kind=item.kind, name=item.name, owner=item.owner, reason=item.reason, since=since, kept=kept[:4096]
    )


def make_router(host: Host) -> APIRouter:
    router = APIRouter()

    @router.get("/host")
    async def show_host(peer: Viewer) -> HostView:
        """What this host is, has and is set to; its journeys by slot."""
        return host.view()

    @router.patch("/host")
    async def change_host(peer: Admin, body: ChangeSettings) -> HostView:
        """Set several settings, or none of them when one is wrong; those read at the start count from the next one."""
        host.change_settings(dict(body.changes))
        return host.view()

    @router.get("/leftovers")
    async def leftovers(peer: Operator) -> LeftoverList:
        """What was made for VMs and journeys and belongs to nobody any more; nothing is touched."""
        return LeftoverList(leftovers=[_leftover(item) for item in await host.leftovers.find()])

    @router.delete("/leftovers")
    async def remove_leftovers(peer: Operator) -> LeftoverList:
        """Remove it; the answer has what was removed, and what could not be with the reason in `kept`."""
        gone, left = await host.leftovers.remove(await host.leftovers.find())
        return LeftoverList(
            leftovers=[*(_leftover(item) for item in gone), *(_leftover(item, why) for item, why in left)]
        )

    @router.get("/cluster")
    async def show_cluster(peer: Member) -> ClusterView:
        """The cluster's hosts and addresses, refreshed from the authority's host when that answers."""
        cluster = await host.follower.learn()
        return ClusterView.model_validate({**cluster.to_json(), "revocations": host.membership.revocations.pem})

    @router.post("/cluster/renew")
    async def renew(peer: AnotherHost, body: RenewRequest) -> RenewAnswer:
        """On the authority's host: a new certificate for the host that calls, with its present one as proof."""
        return await asyncio.to_thread(renew_for, host.settings.state_dir, peer, body, clock=host.clock)

    @router.get("/metrics")
    async def metrics(peer: Viewer) -> Response:
        """Measured values of this host for Prometheus, as text (docs/metrics.md)."""
        return Response(render_metrics(host), media_type="text/plain; version=0.0.4")

    # a joining host has no certificate yet: these two admit anybody, and the token's secret is what counts
    @router.get("/cluster/ca")
    async def authority_certificate() -> dict[str, Any]:
        """The authority's certificate, for a joining host that compares it with its token."""
        return {"ca": host.identity.ca_path.read_text()}

    @router.post("/cluster/join")
    async def join(body: JoinRequest) -> JoinAnswer:
        """Redeem the secret of a join token, once, for a host's certificate and the cluster's map."""
        return await asyncio.to_thread(redeem, host.settings.state_dir, body, clock=host.clock)

    return router
