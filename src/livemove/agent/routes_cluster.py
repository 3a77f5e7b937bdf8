"""Routes about the host and its cluster."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from livemove.agent.host import Host
from livemove.agent.join import JoinAnswer, JoinRequest, redeem
from livemove.agent.metrics import render_metrics
from livemove.agent.tls_server import require_peer, require_role
from livemove.api.client_identity import Peer
from livemove.api.models import ChangeSettings, ClusterView, HostView

Viewer = Annotated[Peer, Depends(require_role("viewer"))]
Admin = Annotated[Peer, Depends(require_role("admin"))]
Member = Annotated[Peer, Depends(require_peer)]


def make_router(host: Host) -> APIRouter:
    router = APIRouter()

    @router.get("/host")
    async def show_host(peer: Viewer) -> HostView:
        return host.view()

    @router.patch("/host")
    async def change_host(peer: Admin, body: ChangeSettings) -> HostView:
        host.change_settings(dict(body.changes))
        return host.view()

    @router.get("/cluster")
    async def show_cluster(peer: Member) -> ClusterView:
        cluster = await host.learn_cluster()
        return ClusterView.model_validate(cluster.to_json())

    @router.get("/metrics")
    async def metrics(peer: Viewer) -> Response:
        return Response(render_metrics(host), media_type="text/plain; version=0.0.4")

    # a joining host has no certificate yet: these two admit anybody, and the token's secret is what counts
    @router.get("/cluster/ca")
    async def authority_certificate() -> dict[str, Any]:
        return {"ca": host.identity.ca_path.read_text()}

    @router.post("/cluster/join")
    async def join(body: JoinRequest) -> JoinAnswer:
        return await asyncio.to_thread(redeem, host.settings.state_dir, body, clock=host.clock)

    return router
