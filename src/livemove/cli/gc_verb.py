"""``livemove gc``: show and remove what VMs and journeys have left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from livemove.base.errors import Conflict
from livemove.cli.output import Usage, print_json, say, table, warn
from livemove.cli.verb import AsJson, OnHost, verb

if TYPE_CHECKING:
    from livemove.api.models import LeftoverView


@verb
async def gc(
    host: OnHost = None,
    everywhere: Annotated[bool, typer.Option("--all", help="On every host of the cluster.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show it; nothing is touched.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what VMs and journeys have left on a host, such as after a crash: QEMUs, taps, filters, keys, sockets.

    An agent does so by itself at its start. Only what the host's agent made itself and nobody uses is ever removed.
    Without --host or --all: on this machine's own host, or the cluster's only one.
    """
    from livemove.cli.session import open_session

    if host is not None and everywhere:
        raise Usage("--host and --all exclude each other.", remedy="Give one of them.")
    async with open_session() as session:
        if host is not None:
            await session.check_host(host)
        answers = await session.ask(
            lambda agent: agent.leftovers() if dry_run else agent.remove_leftovers(),
            hosts=None if everywhere else [session.own_host(host)],
        )
        found = answers.or_raise()
    codes = [error.exit_code for error in answers.refused.values()]
    codes += [Conflict.exit_code for items in found.values() for item in items if item.kept]
    if as_json:
        print_json({"hosts": dict(sorted(found.items())), "dry_run": dry_run, "silent": answers.silent})
    else:
        _print(found, dry_run=dry_run)
    if codes:
        raise typer.Exit(codes[0])


def _print(found: dict[str, list[LeftoverView]], *, dry_run: bool) -> None:
    rows = [_row(host, item) for host, items in sorted(found.items()) for item in items if not item.kept]
    if not rows and not any(found.values()):
        say(f"Nothing is left over on {', '.join(sorted(found))}.")
        return
    if rows:
        table(["HOST", "KIND", "NAME", "SINCE", "WHY"], rows)
        say("Nothing was touched." if dry_run else f"{len(rows)} removed.")
    for host, items in sorted(found.items()):
        for item in items:
            if item.kept:
                warn(f"{item.kind} {item.name} on {host} is still there: {item.kept}")


def _row(host: str, item: Any) -> list[str]:
    return [host, item.kind, item.name, item.since or "-", item.reason]
