"""``livemove status``, ``cancel``, ``report`` and ``events``: journeys that run, and what became of those that ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from livemove.base.errors import AgentUnreachable, Conflict, UnknownJourney
from livemove.base.units import format_duration, format_rate, format_size
from livemove.cli.output import print_json, say, table, warn
from livemove.cli.verb import AsJson, OnHost, verb

if TYPE_CHECKING:
    from livemove.api.models import EventView, HostView, JourneyView, ReportView
    from livemove.cli.session import Session

FOLLOW_PERIOD_S = 0.5
_EVENTS_SHOWN = 200
_REPORTS_LISTED = 20

WhichJourney = Annotated[
    str, typer.Argument(metavar="VM|ID", help="A VM's name (its newest journey) or a journey's id.")
]
MaybeJourney = Annotated[
    str | None,
    typer.Argument(metavar="[VM|ID]", help="A VM's name (its newest journey) or a journey's id; all if left out."),
]


@verb
async def status(
    every: Annotated[bool, typer.Option("--all", help="Also the journeys that have ended.")] = False,
    host: OnHost = None,
    as_json: AsJson = False,
) -> None:
    """Journeys under way, and how many each host may run at a time."""
    import asyncio

    from livemove.cli.session import open_session

    async with open_session() as session:
        hosts = [host] if host is not None else None
        asked = await asyncio.gather(
            session.ask(lambda agent: agent.journeys(ended=every), hosts=hosts),
            session.ask(lambda agent: agent.host(), hosts=hosts),
        )
        journeys = _merged(asked[0].or_raise())
        views = asked[1].given
    if as_json:
        print_json(
            {
                "journeys": journeys,
                "hosts": [slots(name, view) for name, view in sorted(views.items())],
                "silent": asked[0].silent,
            }
        )
        return
    rows = [_journey_row(view) for view in journeys]
    headers = ["VM", "FROM", "TO", "PHASE", "REMAINING", "RATE", "ELAPSED", "STARTED", "ID"]
    table(headers, rows, empty="No journey is under way." if not every else "No journey is on record.")
    say()
    for name, view in sorted(views.items()):
        say(_slots_line(name, view))


@verb
async def cancel(which: WhichJourney, as_json: AsJson = False) -> None:
    """End a journey that is under way; the VM runs on at its source."""
    from livemove.cli.session import open_session

    async with open_session() as session:
        told_by, view = await session.find_journey(which)
        if view.terminal:
            raise Conflict(
                f"Journey {view.id} of '{view.vm}' has ended already: {view.phase}.",
                remedy=f"'livemove report {view.id}' tells how.",
            )
        if told_by != view.source:
            raise AgentUnreachable(
                f"The agent of the source '{view.source}' does not answer, and only the source can cancel a journey."
            )
        view = await (await session.agent(view.source)).cancel_journey(view.id)
    if as_json:
        print_json(view)
    else:
        say(f"Journey {view.id} of {view.vm} from {view.source} to {view.destination} is being cancelled.")


@verb
async def report(
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="[VM|ID]", help="A VM's name (its newest journey) or a journey's id; the newest of all if left out."
        ),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="The newest reports, a line each.")] = False,
    as_json: AsJson = False,
) -> None:
    """What a journey that has ended did: outcome, downtime, steps, bytes, CPU."""
    from livemove.cli.report_text import report_lines
    from livemove.cli.session import open_session

    async with open_session() as session:
        if which is not None and not listed:
            told_by, view = await session.find_journey(which)
            if not view.terminal:
                raise Conflict(
                    f"Journey {view.id} of '{view.vm}' has not ended: {view.phase}.",
                    remedy="'livemove status' shows it.",
                )
            found = [await (await session.agent(told_by)).report(view.id)]
        else:
            found = await _newest(session, _REPORTS_LISTED if listed else 1, vm=which)
    if listed:
        found = found[:_REPORTS_LISTED]
        if as_json:
            print_json({"reports": found})
        else:
            headers = ["VM", "FROM", "TO", "OUTCOME", "TOTAL", "DOWNTIME", "ENDED", "ID"]
            table(headers, [_report_row(each) for each in found], empty="No journey has ended yet.")
    elif not found:
        raise UnknownJourney("No journey has ended yet on the hosts that answered.")
    elif as_json:
        print_json(found[0])
    else:
        say("\n".join(report_lines(found[0])))


@verb
async def events(
    which: MaybeJourney = None,
    following: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Events of journeys on all hosts, oldest first; with --follow --json one object a line."""
    import asyncio

    from livemove.cli.session import open_session

    async with open_session() as session:
        journey, hosts = None, session.hosts
        if which is not None:
            _, view = await session.find_journey(which)
            journey, hosts = view.id, [host for host in session.hosts if host in (view.source, view.destination)]
        last = dict.fromkeys(hosts, 0)
        found = await _new_events(session, journey, last, first=True)
        if not following:
            _print_events(found, as_json=as_json)
            return
        while True:
            for event in found:
                if as_json:
                    print_json(event)
                else:
                    say(event_line(event))
            await asyncio.sleep(FOLLOW_PERIOD_S)
            found = await _new_events(session, journey, last, first=False)


def event_line(event: EventView) -> str:
    """One event as text."""
    number = f" {event.event_id}" if event.event_id is not None else ""
    return f"{event.at} {event.host} {event.level}{number} {event.vm}: {event.text}"


def slots(host: str, view: HostView) -> dict[str, object]:
    """How many journeys a host runs and may run."""
    return {
        "host": host,
        "simultaneous": view.settings.get("simultaneous"),
        "outgoing": view.outgoing,
        "outgoing_waiting": view.outgoing_waiting,
        "incoming": view.incoming,
        "incoming_waiting": view.incoming_waiting,
    }


def _slots_line(host: str, view: HostView) -> str:
    limit = view.settings.get("simultaneous", "?")
    waiting = [*view.outgoing_waiting, *view.incoming_waiting]
    line = f"{host}: {len(view.outgoing)} of {limit} outgoing, {len(view.incoming)} of {limit} incoming"
    return f"{line}, waiting in this order: {', '.join(waiting)}" if waiting else line


def _merged(by_host: dict[str, list[JourneyView]]) -> list[JourneyView]:
    """Every journey once, as its source sees it where that answered; oldest first."""
    merged: dict[str, JourneyView] = {}
    for host, views in by_host.items():
        for view in views:
            if view.id not in merged or host == view.source:
                merged[view.id] = view
    return sorted(merged.values(), key=lambda view: view.started)


def _journey_row(view: JourneyView) -> list[str]:
    progress = view.progress
    return [
        view.vm,
        view.source,
        view.destination,
        f"{view.phase} ({view.queue_place})" if view.queue_place else view.phase,
        format_size(progress.remaining_bytes) if progress and not view.terminal else "",
        format_rate(progress.rate_bytes_per_s) if progress and not view.terminal else "",
        format_duration(progress.elapsed_s) if progress else "",
        view.started,
        view.id,
    ]


def _report_row(report: ReportView) -> list[str]:
    return [
        report.vm,
        report.source,
        report.destination,
        report.outcome,
        format_duration(report.total_ms / 1e3),
        format_duration(report.downtime_ms / 1e3) if report.downtime_ms is not None else "",
        report.ended,
        report.id,
    ]


async def _newest(session: Session, limit: int, *, vm: str | None) -> list[ReportView]:
    """The newest reports of all hosts, newest first, each once; only those of a VM if one is named."""
    answers = await session.ask(lambda agent: agent.reports(limit=limit))
    merged: dict[str, ReportView] = {}
    for host, reports in answers.or_raise().items():
        for each in reports:
            if vm in (None, each.vm, each.id) and (each.id not in merged or host == each.source):
                merged[each.id] = each
    return sorted(merged.values(), key=lambda each: each.ended, reverse=True)


async def _new_events(session: Session, journey: str | None, last: dict[str, int], *, first: bool) -> list[EventView]:
    """Events since those in `last` (host to number), which is brought up to date."""

    async def ask(host: str) -> list[EventView]:
        agent = await session.agent(host)
        if journey is not None:
            return (await agent.journey_events(journey, after=last[host])).events
        return (await agent.events(after=last[host], limit=_EVENTS_SHOWN)).events

    answers = await session.ask(lambda agent: ask(agent.host_name), hosts=list(last))
    if first:
        if not answers.given:
            answers.or_raise()
        answers.warn_of_failures(expected=(UnknownJourney,))
    found = []
    for host, events_there in answers.given.items():
        found += events_there
        last[host] = max([last[host], *(event.number for event in events_there)])
    return sorted(found, key=lambda event: (event.at, event.host, event.number))


def _print_events(found: list[EventView], *, as_json: bool) -> None:
    if as_json:
        print_json({"events": found})
    elif not found:
        warn("there are no events yet")
    for event in found if not as_json else ():
        say(event_line(event))
