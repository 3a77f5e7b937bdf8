"""``livemove cluster certificates``, ``renew``, ``revoke``, ``remove``: what becomes of certificates after they were issued."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from livemove.base.clock import SystemClock, wall_text
from livemove.cli.agent_verb import ConfigFile
from livemove.cli.cluster_verbs import own_settings
from livemove.cli.output import print_json, say, table
from livemove.cli.verb import AsJson, verb

if TYPE_CHECKING:
    from livemove.agent.revoking import Issued

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


@verb
def certificates(config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Every certificate of hosts and people, with the days that it has left; run it on the authority's host."""
    from livemove.agent.revoking import issued_certificates

    _, settings = own_settings(config)
    found = [_row(each) for each in issued_certificates(settings.state_dir)]
    if as_json:
        print_json({"certificates": found})
        return
    rows = [[str(each[key]) for key in ("name", "role", "state", "days_left", "ends", "serial")] for each in found]
    table(["NAME", "ROLE", "STATE", "DAYS LEFT", "ENDS", "SERIAL"], rows)


@verb
async def renew(
    force: Annotated[bool, typer.Option("--force", help="Renew it although it is not due.")] = False,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Renew this host's own certificate when it is due, as its agent does by itself; nothing is interrupted."""
    from livemove.agent.renewal import renew_own

    _, settings = own_settings(config)
    done = await renew_own(settings.state_dir, clock=SystemClock(), force=force, dry_run=dry_run)
    if as_json:
        print_json(
            {
                "host": done.host,
                "renewed": done.renewed,
                "due": done.due,
                "days_left": round(done.days_left, 2),
                "dry_run": dry_run,
            }
        )
    elif done.renewed:
        say(f"The certificate of {done.host} was renewed and has {done.days_left:.0f} days left.")
    else:
        due = "is due and would be renewed" if done.due else "is not due"
        say(f"The certificate of {done.host} has {done.days_left:.0f} days left: it {due}.")


@verb
def revoke(
    who: Annotated[str, typer.Argument(metavar="NAME|SERIAL", help="A person, a host, or one certificate.")],
    dry_run: DryRun = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Make certificates worthless before they end; run it on the authority's host.

    All agents refuse them within seconds, on open connections too. Repeated, it does nothing more.
    """
    from livemove.agent import revoking

    _, settings = own_settings(config)
    revoked = revoking.revoke(settings.state_dir, who, clock=SystemClock(), dry_run=dry_run)
    _tell({"who": who}, revoked, dry_run, as_json)


@verb
def remove(
    host: Annotated[str, typer.Argument(metavar="HOST", help="The host that is to leave the cluster.")],
    dry_run: DryRun = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Take a host out of the cluster: its name out of the map, its certificates revoked; run it on the authority's host.

    Move or stop its VMs before: nobody can move them afterwards. Repeated, it does nothing more.
    """
    from livemove.agent import revoking

    _, settings = own_settings(config)
    revoked = revoking.remove_host(settings.state_dir, host, clock=SystemClock(), dry_run=dry_run)
    if not as_json:
        say(f"{host} {'would be' if dry_run else 'is'} out of the cluster.")
    _tell({"host": host}, revoked, dry_run, as_json)


def _tell(about: dict[str, Any], revoked: list[Issued], dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json({**about, "revoked": [_row(each) for each in revoked], "dry_run": dry_run})
        return
    word = "would be revoked" if dry_run else "is revoked"
    for each in revoked:
        say(f"The certificate {each.peer.serial} of {each.peer} {word}.")
    if not revoked:
        say("No valid certificate is left to revoke.")


def _row(each: Issued) -> dict[str, Any]:
    now_wall_s = SystemClock().wall_s()
    return {
        "name": each.peer.name,
        "role": each.peer.role.value,
        "state": each.state(now_wall_s),
        "days_left": round(each.days_left(now_wall_s), 1),
        "ends": wall_text(each.peer.not_after_wall_s),
        "serial": each.peer.serial,
    }


def add_to(app: typer.Typer) -> None:
    """Put the verbs into the group ``livemove cluster``."""
    for name, work in (("certificates", certificates), ("renew", renew), ("revoke", revoke), ("remove", remove)):
        app.command(name)(work)
