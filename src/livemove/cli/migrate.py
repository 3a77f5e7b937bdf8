"""``livemove migrate`` and ``plan``: find the VM, ask the destination for its grant, start the journey at the source, watch it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from livemove.base.clock import SystemClock, boot_id
from livemove.base.errors import JourneyFailed, NotRunning, SameHost, by_code
from livemove.cli.journey_options import (
    Channels,
    Deadline,
    Downtime,
    MaxBandwidth,
    Option,
    Paths,
    Throttle,
    To,
    Verify,
    parse_options,
)
from livemove.cli.output import Usage, on_terminal, print_json, say, warn
from livemove.cli.process_start import process_start_s
from livemove.cli.verb import AsJson, OnHost, VmName, verb

if TYPE_CHECKING:
    from livemove.api.client import AgentClient
    from livemove.api.models import AskJourney, JourneyOptions, ReportView
    from livemove.cli.plain_view import JourneyShow
    from livemove.cli.session import Session

LEFT_EXIT_CODE = 130
"""The journey had not ended when the user left it, as after any Ctrl-C."""


@verb
async def migrate(
    vm: VmName,
    to: To,
    option: Option = None,
    paths: Paths = None,
    downtime: Downtime = None,
    deadline: Deadline = None,
    throttle: Throttle = False,
    channels: Channels = None,
    max_bandwidth: MaxBandwidth = None,
    verify: Verify = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, change nothing, print the plan.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return when the journey has begun.")] = False,
    probe: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Measure the downtime at a TCP echo service of the guest."),
    ] = None,
    host: OnHost = None,
    as_json: AsJson = False,
) -> None:
    """Move a running VM to another host.

    Ctrl-C cancels the journey and waits for its end; a second Ctrl-C leaves it running. The exit code tells how it
    ended: 0 when the VM moved, else the code of the error (docs/errors.md).
    """
    from livemove.cli.session import open_session

    options = parse_options(option, paths, downtime, deadline, throttle, channels, max_bandwidth, verify)
    if probe is not None:
        if dry_run or detach:
            raise Usage("--probe needs a journey to watch.", remedy="Leave out --dry-run and --detach.")
        from livemove.cli.echo_probe import parse_peer

        parse_peer(probe)
    async with open_session() as session:
        source, body = await _prepare(session, vm, to, host, options, dry_run=dry_run)
        if dry_run:
            await _tell_plan(source, body, as_json=as_json)
        elif detach:
            view = await source.start_journey(body)
            if as_json:
                print_json(view)
            else:
                say(f"Journey {view.id} moves {vm} from {view.source} to {view.destination}.")
                say(_how_to_watch(view.id))
        else:
            await _watch(source, body, probe, as_json=as_json)


@verb
async def plan(
    vm: VmName,
    to: To,
    option: Option = None,
    paths: Paths = None,
    downtime: Downtime = None,
    deadline: Deadline = None,
    throttle: Throttle = False,
    channels: Channels = None,
    max_bandwidth: MaxBandwidth = None,
    verify: Verify = None,
    host: OnHost = None,
    as_json: AsJson = False,
) -> None:
    """Check everything for a migration and change nothing: what would be done, over which paths, and why not others.

    The same as 'livemove migrate --dry-run'.
    """
    from livemove.cli.session import open_session

    options = parse_options(option, paths, downtime, deadline, throttle, channels, max_bandwidth, verify)
    async with open_session() as session:
        source, body = await _prepare(session, vm, to, host, options, dry_run=True)
        await _tell_plan(source, body, as_json=as_json)


async def _tell_plan(source: AgentClient, body: AskJourney, *, as_json: bool) -> None:
    found = await source.plan_journey(body)
    if as_json:
        print_json(found)
    else:
        from livemove.cli.report_text import plan_lines

        say("\n".join(plan_lines(found)))


async def _prepare(
    session: Session, vm: str, to: str, host: str | None, options: JourneyOptions, *, dry_run: bool
) -> tuple[AgentClient, AskJourney]:
    """The source's agent and the request for it, the destination's grant included."""
    from livemove.api.models import AskJourney

    await session.check_host(to)
    found = await session.find_vm(vm, host)
    if found.host == to:
        raise SameHost(f"VM '{vm}' is on {to} already.")
    if not found.uuid or found.state == "stopped":
        raise NotRunning(f"VM '{vm}' on {found.host} is {found.state}; only a VM with a QEMU process can move.")
    grant = await (await session.agent(to)).ask_grant(vm, found.uuid, found.host)
    body = AskJourney(
        vm=vm,
        destination=to,
        grant=grant,
        options=options,
        dry_run=dry_run,
        asked_monotonic_s=process_start_s(SystemClock()),
        asked_boot_id=boot_id(),
    )
    return await session.agent(found.host), body


async def _watch(source: AgentClient, body: AskJourney, probe: str | None, *, as_json: bool) -> None:
    """Start the journey and see it through. Ends the command with the exit code of the outcome."""
    from livemove.cli.follow import Interrupts, fetch_report, follow

    clock = SystemClock()
    interrupts = Interrupts()
    async with contextlib.AsyncExitStack() as stack:
        echo = None
        if probe is not None:
            from livemove.cli.echo_probe import EchoProbe

            echo = await stack.enter_async_context(EchoProbe(probe, clock))
        # from here on Ctrl-C must not cut us off between the request and the answer that names the journey
        stack.enter_context(interrupts.caught())
        start_s = clock.monotonic_s()
        view = await source.start_journey(body)
        show = _show(as_json=as_json)
        stack.callback(show.close)
        view = await follow(source, view, show, interrupts, clock)
        end_s = clock.monotonic_s()
        show.close()
        if not view.terminal:
            if as_json:
                print_json(view)
            warn(f"journey {view.id} goes on. {_how_to_watch(view.id)}")
            raise typer.Exit(LEFT_EXIT_CODE)
        report = await fetch_report(source, view.id, clock)
        if echo is not None:
            report = await source.add_client_blackout(view.id, await echo.longest_gap_ms(start_s, end_s))
    _tell_outcome(report, as_json=as_json)


def _tell_outcome(report: ReportView, *, as_json: bool) -> None:
    """Print the report. Raises the error of a journey that did not move the VM."""
    if not as_json:
        from livemove.cli.report_text import report_lines

        # the live view's last picture stays above
        say("\n".join(["", *report_lines(report)] if on_terminal() else report_lines(report)))
    elif report.outcome == "completed":
        print_json(report)
    if report.outcome != "completed":
        kind = by_code().get(report.code, JourneyFailed)
        details = {"report": report.model_dump(mode="json")} if as_json else None
        raise kind(
            report.reason or f"The journey of '{report.vm}' {report.outcome}.",
            remedy=report.remedy or None,
            details=details,
        )


def _show(*, as_json: bool) -> JourneyShow:
    from livemove.cli.plain_view import NoShow, PlainShow

    if as_json:
        return NoShow(warn)
    if on_terminal():
        from livemove.cli.live import LiveShow

        return LiveShow()
    return PlainShow(say, SystemClock())


def _how_to_watch(journey: str) -> str:
    return f"Watch it with 'livemove status', end it with 'livemove cancel {journey}'."
