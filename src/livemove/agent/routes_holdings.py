"""The route by which hosts ask each other whether a VM is there before they start it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from livemove.agent.holdings import holding
from livemove.agent.host import Host
from livemove.agent.tls_server import require_host
from livemove.api.client_identity import Peer
from livemove.api.resolution_models import HoldingView


def make_router(host: Host) -> APIRouter:
    router = APIRouter()

    @router.get("/holdings/{vm_uuid}")
    async def show(peer: Annotated[Peer, Depends(require_host())], vm_uuid: str) -> HoldingView:
        """Whether this host has the VM, and in which state."""
        return holding(host.vms, host.arrivals, vm_uuid, host.settings.name)

    return router
