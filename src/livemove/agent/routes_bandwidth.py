"""Routes about the bandwidth that migration may use, and what others are promised."""

from __future__ import annotations

import asyncio
import math
from typing import Annotated

from fastapi import APIRouter, Depends

from livemove.agent.host import Host
from livemove.agent.nics import host_nics
from livemove.agent.tls_server import require_role
from livemove.api.bandwidth_models import BandwidthJourney, BandwidthLimit, BandwidthNic, BandwidthView, limit_body
from livemove.api.client_identity import Peer
from livemove.network.shaping import as_commands, check_rights, class_table
from livemove.network.shaping_rules import rules
from livemove.policy.bandwidth import Category, Limits, Nic, check_limits, parse_category
from livemove.policy.governing import Counted, Direction, decide

Viewer = Annotated[Peer, Depends(require_role("viewer"))]
Admin = Annotated[Peer, Depends(require_role("admin"))]


def make_router(host: Host) -> APIRouter:
    router = APIRouter(prefix="/bandwidth")

    def view(limits: Limits, nics: list[Nic], *, warnings: list[str], dry_run: bool = False) -> BandwidthView:
        governor = host.governor
        return BandwidthView(
            host=host.settings.name,
            limits=[limit_body(limits[category]) for category in Category if category in limits],
            nics=[
                BandwidthNic(
                    name=nic.name, speed_bytes_per_s=nic.capacity_bytes_per_s, living=nic.living,
                    shaped=nic.name in governor.shaped,
                    others_out_bytes_per_s=int(governor.others.get((nic.name, Direction.OUT), 0)),
                    others_in_bytes_per_s=int(governor.others.get((nic.name, Direction.IN), 0)),
                )
                for nic in nics
            ],
            journeys=tuple(
                BandwidthJourney(journey=name, role=role, bytes_per_s=0 if math.isinf(rate) else int(rate))
                for name, role, rate in governor.shares()
            ),
            warnings=tuple(warnings),
            notes=tuple(sorted(governor.notes.values())),
            commands=tuple(_commands(limits, nics)) if dry_run else (),
        )  # fmt: skip

    async def change(limits: Limits, *, dry_run: bool) -> BandwidthView:
        nics = await host_nics(host.settings)
        warnings = check_limits(limits, nics)
        if limits:
            check_rights()
        if not dry_run and limits != host.bandwidth.limits:
            await asyncio.to_thread(host.bandwidth.replace, limits)
            await host.governor.limits_changed()
        return view(limits, nics, warnings=warnings, dry_run=dry_run)

    @router.get("")
    async def show(peer: Viewer) -> BandwidthView:
        """The limits of this host, its NICs, and how journeys share them now."""
        nics = await host_nics(host.settings)
        return view(host.bandwidth.limits, nics, warnings=[])

    @router.put("")
    async def set_limit(peer: Admin, body: BandwidthLimit, dry_run: bool = False) -> BandwidthView:
        """Set what is said of one category, in place of what was; refused when the minimums are more than the NICs carry."""
        limit = body.to_limit()
        return await change({**host.bandwidth.limits, limit.category: limit}, dry_run=dry_run)

    @router.delete("/{category}")
    async def remove(peer: Admin, category: str, dry_run: bool = False) -> BandwidthView:
        """Say nothing of a category any more; one of which nothing is said stays so."""
        gone = parse_category(category)
        kept = {name: limit for name, limit in host.bandwidth.limits.items() if name is not gone}
        return await change(kept, dry_run=dry_run)

    def _commands(limits: Limits, nics: list[Nic]) -> list[str]:
        decision = decide(limits, Counted(0.0, nics, {}))
        limit = limits.get(Category.VIRTUAL_MACHINE)
        port = int(host.settings.listen.rpartition(":")[2])
        lines = [
            line for link, of in decision.classes.items() for line in as_commands(link, class_table(link, of, (), {}))
        ]
        return [*lines, "nft -f - <<'END'", *rules((), limit.selectors if limit else None, port).splitlines(), "END"]

    return router
