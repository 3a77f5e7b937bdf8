"""Routes about marks on migration's packets and classes in the hardware of NICs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from livemove.agent.host import Host
from livemove.agent.tls_server import require_role
from livemove.api.client_identity import Peer
from livemove.api.qos_models import QosView, QosWishBody
from livemove.network.shaping import check_rights

Viewer = Annotated[Peer, Depends(require_role("viewer"))]
Admin = Annotated[Peer, Depends(require_role("admin"))]


def make_router(host: Host) -> APIRouter:
    router = APIRouter(prefix="/qos")

    @router.get("")
    async def show(peer: Viewer) -> QosView:
        """What was asked for, and what each NIC's hardware is set to."""
        return await host.qos.view()

    @router.put("")
    async def apply(peer: Admin, body: QosWishBody, dry_run: bool = False) -> QosView:
        """Mark migration's packets and set the NICs' classes as asked for, all of it or nothing."""
        if not dry_run:
            check_rights()
        view = await host.qos.apply(body.to_wish(), dry_run=dry_run)
        if not dry_run:
            await host.governor.limits_changed()
        return view

    @router.delete("")
    async def remove(peer: Admin, dry_run: bool = False) -> QosView:
        """Mark nothing, and set the NICs to what they were before."""
        view = await host.qos.remove(dry_run=dry_run)
        if not dry_run:
            await host.governor.limits_changed()
        return view

    return router
