"""Routes about journeys: grants, plans, journeys, events, reports."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from livemove.agent.grants import issue_grant
from livemove.agent.host import Host
from livemove.agent.tls_server import require_role
from livemove.api.client_identity import Peer
from livemove.api.models import (
    AskGrant,
    AskJourney,
    ClientBlackout,
    EventList,
    GrantAnswer,
    JourneyList,
    JourneyView,
    PlanView,
    ReportList,
    ReportView,
)
from livemove.base.clock import wall_text
from livemove.base.errors import AgentBusy, UnknownJourney
from livemove.fleet.admission import MAX_WAITING
from livemove.migration.journal import Record
from livemove.migration.model import IncomingPhase

Viewer = Annotated[Peer, Depends(require_role("viewer"))]
Operator = Annotated[Peer, Depends(require_role("operator"))]


def make_router(host: Host) -> APIRouter:
    router = APIRouter()
    departures, journal = host.departures, host.journal

    @router.post("/grants")
    async def grant(peer: Operator, body: AskGrant) -> GrantAnswer:
        """This destination's permission for one journey of that VM from that source, good for 10 minutes."""
        token = issue_grant(
            host.identity,
            vm_uuid=body.vm_uuid,
            vm_name=body.vm,
            source=body.source,
            person=peer,
            now_wall_s=host.clock.wall_s(),
        )
        return GrantAnswer(token=token)

    @router.post("/plans")
    async def plan(peer: Viewer, body: AskJourney) -> PlanView:
        """Everything that a journey would check and negotiate; nothing is changed on either host."""
        return await departures.plan(body, peer.role.value)

    @router.post("/journeys")
    async def start(peer: Operator, body: AskJourney) -> JourneyView:
        """Begin a journey; a VM with extra QEMU arguments needs the role admin."""
        if len(departures.queue.waiting) >= MAX_WAITING:
            raise AgentBusy(f"{MAX_WAITING} journeys wait for a slot on '{host.settings.name}'.")
        return await departures.start(body, peer.name, peer.role.value)

    @router.get("/journeys")
    async def list_journeys(peer: Viewer, all: bool = False) -> JourneyList:
        """Journeys that leave or reach this host now, with `all` also those that ended."""
        views = [departures.view(departure) for departure in departures.open()]
        for arrival in host.arrivals.all():
            phase = arrival.state.phase
            if phase not in (IncomingPhase.ABANDONED, IncomingPhase.SETTLED):
                views.append(_arriving(arrival.record, phase))
        if all:
            known = {view.id for view in views}
            views += [_ended(report) for report in await journal.reports() if report.id not in known]
        return JourneyList(journeys=views)

    @router.get("/journeys/{name}")
    async def show(peer: Viewer, name: str) -> JourneyView:
        """One journey by its id, or the newest of a VM by the VM's name."""
        departure = departures.find(name)
        if departure is not None:
            return departures.view(departure)
        reports = await journal.reports(journey_or_vm=name, limit=1)
        if not reports:
            raise UnknownJourney(f"This host has no journey '{name}' on record.")
        return _ended(reports[0])

    @router.post("/journeys/{name}/cancel")
    async def cancel(peer: Operator, name: str) -> JourneyView:
        """Ask a journey to end; the VM runs on at its source."""
        return departures.view(departures.cancel(name, peer.name))

    @router.get("/journeys/{name}/events")
    async def journey_events(peer: Viewer, name: str, after: Annotated[int, Query(ge=0)] = 0) -> EventList:
        """What happened on this host in one journey, with numbers above `after`, oldest first."""
        return EventList(events=await journal.events(await _journey_id(name), after=after))

    async def _journey_id(name: str) -> str:
        departure = departures.find(name)
        if departure is not None:
            return departure.record.id
        known = await journal.newest_id(name)
        if known is None:
            raise UnknownJourney(f"This host has no journey '{name}' on record.")
        return known

    @router.get("/events")
    async def events(
        peer: Viewer, after: Annotated[int, Query(ge=0)] = 0, limit: Annotated[int, Query(ge=1, le=1000)] = 200
    ) -> EventList:
        """What happened in all journeys of this host, with numbers above `after`, oldest first."""
        return EventList(events=await journal.events(None, after=after, limit=limit))

    @router.get("/journeys/{name}/report")
    async def report(peer: Viewer, name: str) -> ReportView:
        """The report of an ended journey by its id, or the newest of a VM by the VM's name."""
        reports = await journal.reports(journey_or_vm=name, limit=1)
        if not reports:
            raise UnknownJourney(f"This host has no report of '{name}'.")
        return reports[0]

    @router.get("/reports")
    async def reports(peer: Viewer, limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> ReportList:
        """Reports of ended journeys, newest first."""
        return ReportList(reports=await journal.reports(limit=limit))

    @router.post("/journeys/{name}/client-blackout")
    async def client_blackout(peer: Operator, name: str, body: ClientBlackout) -> ReportView:
        """Add to a report what a probe on the VM's network saw."""
        found = await report(peer, name)
        changed = found.model_copy(update={"downtime_client_ms": body.longest_gap_ms})
        await journal.replace_report(changed)
        return changed

    return router


def _arriving(record: Record, phase: IncomingPhase) -> JourneyView:
    owner = "destination" if phase.owns else "unknown" if phase is IncomingPhase.ARMED else "source"
    return JourneyView(
        id=record.id, vm=record.vm, vm_uuid=record.vm_uuid, role="destination", source=record.source,
        destination=record.destination, phase=phase.value, owner=owner, terminal=False, person=record.person,
        started=wall_text(record.started_wall_s),
    )  # fmt: skip


def _ended(report: ReportView) -> JourneyView:
    return JourneyView(
        id=report.id, vm=report.vm, vm_uuid=report.vm_uuid, role="source", source=report.source,
        destination=report.destination, phase=report.outcome, owner=report.owner, terminal=True, person=report.person,
        option=report.option, steps=report.steps, started=report.started, last_note=report.reason,
    )  # fmt: skip
