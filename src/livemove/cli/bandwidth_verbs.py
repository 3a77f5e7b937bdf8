"""``livemove bandwidth``: what migrations may use of a host's NICs, and what is promised to everything else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from livemove.base.errors import BadQuantity
from livemove.base.units import format_rate, parse_rate
from livemove.cli.output import print_json, say, table, warn
from livemove.cli.verb import AsJson, OnHost, group, verb

if TYPE_CHECKING:
    from livemove.api.bandwidth_models import BandwidthLimit, BandwidthView

app = group("What migrations may use of the network, and what others are promised.")

_CATEGORIES = "LiveMigration, VirtualMachine (the VMs' storage) or Default (the rest)"
Category = Annotated[str, typer.Option("--category", metavar="NAME", help=f"{_CATEGORIES}.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check it and print what would be done; change nothing.")]


@app.command("set")
@verb
async def set_limit(
    category: Category,
    most: Annotated[
        str,
        typer.Option(
            "--max", metavar="RATE", help="At most this, over all NICs and migrations, such as 8Gbit or 1000MB."
        ),
    ] = "",
    least: Annotated[
        str, typer.Option("--min", metavar="RATE", help="Promised: the others give way when the category wants it.")
    ] = "",
    percent: Annotated[
        float | None,
        typer.Option("--min-percent", metavar="P", help="The same in percent of what the living NICs carry."),
    ] = None,
    buffer: Annotated[
        float, typer.Option("--buffer", metavar="P", help="Kept on top of the minimum for spikes, in percent of it.")
    ] = 10,
    preset: Annotated[
        list[str] | None,
        typer.Option("--preset", metavar="NAME", help="VirtualMachine: nfs, iscsi, nbd or ceph; may be repeated."),
    ] = None,
    ports: Annotated[
        list[str] | None,
        typer.Option("--ports", metavar="PORT[-PORT]", help="VirtualMachine: ports at either end; may be repeated."),
    ] = None,
    addresses: Annotated[
        list[str] | None,
        typer.Option(
            "--addresses", metavar="ADDRESS", help="VirtualMachine: of servers, or networks; may be repeated."
        ),
    ] = None,
    cgroup: Annotated[
        list[str] | None,
        typer.Option(
            "--cgroup", metavar="PATH", help="VirtualMachine: processes below /sys/fs/cgroup; may be repeated."
        ),
    ] = None,
    dry_run: DryRun = False,
    host: OnHost = None,
    as_json: AsJson = False,
) -> None:
    """Set the limit of a category on a host, in place of what was said of it before.

    A maximum is a total of the host, over all NICs and migrations. A minimum is no cap on the others: they use what the
    category leaves, and give it back within 0.3 s. Without --host: this machine's own agent, or the cluster's only host.
    """
    from livemove.api.bandwidth_models import BandwidthLimit
    from livemove.cli.session import open_session

    for option, value in (("--min-percent", percent), ("--buffer", buffer)):
        if value is not None and not 0 <= value <= 100:
            raise BadQuantity(f"{option} {value:g} is not a percentage.", remedy="Give 0 to 100.")
    limit = BandwidthLimit(
        category=category[:128],
        max_bytes_per_s=_rate(most),
        min_bytes_per_s=_rate(least),
        min_percent=percent or 0,
        buffer_percent=buffer,
        presets=_words(preset),
        ports=_words(ports),
        addresses=_words(addresses),
        cgroups=_words(cgroup),
    )
    async with open_session() as session:
        if host is not None:
            await session.check_host(host)
        view = await (await session.agent(session.own_host(host))).set_bandwidth(limit, dry_run=dry_run)
    _changed(view, dry_run=dry_run, as_json=as_json)


@app.command("get")
@verb
async def get(
    category: Annotated[str, typer.Option("--category", metavar="NAME", help=f"Only {_CATEGORIES}.")] = "",
    host: OnHost = None,
    as_json: AsJson = False,
) -> None:
    """Show the limits of all hosts, or of one, and what their NICs carry."""
    from livemove.cli.session import open_session
    from livemove.policy.bandwidth import parse_category

    wanted = parse_category(category).value if category else ""
    async with open_session() as session:
        if host is not None:
            await session.check_host(host)
        answers = await session.ask(lambda agent: agent.bandwidth(), hosts=[host] if host is not None else None)
        views = answers.or_raise()
    shown = [
        view.model_copy(update={"limits": [limit for limit in view.limits if not wanted or limit.category == wanted]})
        for _, view in sorted(views.items())
    ]
    if as_json:
        print_json({"hosts": shown, "silent": answers.silent})
        return
    _show_limits(shown)
    say()
    _show_nics(shown)


@app.command("remove")
@verb
async def remove(category: Category, dry_run: DryRun = False, host: OnHost = None, as_json: AsJson = False) -> None:
    """Say nothing of a category any more. One of which nothing is said stays so."""
    from livemove.cli.session import open_session

    async with open_session() as session:
        if host is not None:
            await session.check_host(host)
        view = await (await session.agent(session.own_host(host))).remove_bandwidth(category, dry_run=dry_run)
    _changed(view, dry_run=dry_run, as_json=as_json)


def _rate(text: str) -> int:
    if not text:
        return 0
    rate = parse_rate(text)
    if not rate:
        raise BadQuantity(f"A rate of '{text}' is none.", remedy="'livemove bandwidth remove' takes a limit away.")
    return rate


def _words(given: list[str] | None) -> tuple[str, ...]:
    """Options that may be repeated, each with several values between commas."""
    return tuple(word.strip() for text in given or () for word in text.split(",") if word.strip())


def _changed(view: BandwidthView, *, dry_run: bool, as_json: bool) -> None:
    for warning in view.warnings:
        warn(warning)
    if as_json:
        print_json(view)
        return
    _show_limits([view])
    if dry_run:
        say("\nNothing was changed. While a migration runs, this would keep it:")
        for line in view.commands:
            say(line)


def _show_limits(views: Iterable[BandwidthView]) -> None:
    table(
        ["HOST", "CATEGORY", "AT MOST", "PROMISED", "BUFFER", "SELECTED BY"],
        [_row(view.host, limit) for view in views for limit in view.limits],
        empty="No limits: migrations take what the NICs carry.",
    )


def _row(host: str, limit: BandwidthLimit) -> list[str]:
    promised = format_rate(limit.min_bytes_per_s) if limit.min_bytes_per_s else ""
    if limit.min_percent:
        promised = f"{limit.min_percent:g} %"
    selected = [*limit.presets, *limit.ports, *limit.addresses, *limit.cgroups]
    return [
        host,
        limit.category,
        format_rate(limit.max_bytes_per_s) if limit.max_bytes_per_s else "",
        promised,
        f"{limit.buffer_percent:g} %" if promised else "",
        ", ".join(selected),
    ]


def _show_nics(views: Sequence[BandwidthView]) -> None:
    rows = [
        [
            view.host,
            nic.name,
            format_rate(nic.speed_bytes_per_s) if nic.speed_bytes_per_s else "unknown",
            "" if nic.living else "no carrier",
            # counted only while journeys are governed
            format_rate(nic.others_out_bytes_per_s) if view.journeys else "",
            format_rate(nic.others_in_bytes_per_s) if view.journeys else "",
        ]
        for view in views
        for nic in view.nics
    ]
    table(["HOST", "NIC", "SPEED", "STATE", "OTHERS OUT", "OTHERS IN"], rows, empty="No NIC for migrations.")
    for view in views:
        for journey in view.journeys:
            rate = format_rate(journey.bytes_per_s) if journey.bytes_per_s else "all there is"
            say(f"journey {journey.journey}, {view.host} is its {journey.role}: may use {rate}")
        for note in view.notes:
            warn(f"{view.host}: {note}")
