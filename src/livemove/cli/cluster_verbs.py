"""``livemove cluster``: how a cluster begins, how hosts and people come to it, which hosts it has.

``init``, ``invite``, ``join`` and ``person`` work on this host's own files, so they need no agent, but the right to write
them (root).
"""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from livemove.base.clock import SystemClock
from livemove.cli.agent_verb import ConfigFile
from livemove.cli.output import print_json, say, table
from livemove.cli.verb import AsJson, group, verb

if TYPE_CHECKING:
    from livemove.base.settings import HostSettings

app = group("The cluster: its hosts, and the people who may use it.")

Address = Annotated[
    str,
    typer.Option("--address", metavar="IP:PORT", help="Where this host's agent answers, as the other hosts see it."),
]


class PersonRole(enum.StrEnum):
    """What a person may do: viewers look, operators also run and move VMs, admins also change hosts."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


@app.command("init")
@verb
def init(
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="This host's name in the cluster.")],
    address: Address,
    admin: Annotated[
        str | None, typer.Option(metavar="NAME", help="The first admin; this user's name if not given.")
    ] = None,
    identity_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the admin's identity goes; ~/.config/livemove if not given."),
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Begin a cluster on this host, which keeps its authority, and make the first admin's identity."""
    import getpass

    from livemove.agent.join import init_cluster
    from livemove.api.client_identity import default_identity_dir

    path, settings = own_settings(config)
    person, directory = admin or getpass.getuser(), identity_dir or default_identity_dir()
    identity = init_cluster(
        settings.state_dir, name=name, address=address, clock=SystemClock(), admin=person, admin_dir=directory
    )
    _keep_name(path, settings, name)
    if as_json:
        print_json({"host": name, "address": address, "admin": person, "identity_dir": str(directory)})
        return
    say(f"The cluster begins: {name} at {address} holds its authority, in {identity.directory.parent}.")
    say(f"{person} is its admin, with the identity in {directory}.")
    say("Start the agent ('systemctl start livemove-agent'), then 'livemove cluster invite HOST' for every other host.")


@app.command("invite")
@verb
def invite(
    host: Annotated[str, typer.Argument(metavar="HOST", help="Name of the host that is to join.")],
    ttl: Annotated[str, typer.Option(metavar="TIME", help="How long the invitation is good, up to 24h.")] = "10m",
    replace: Annotated[
        bool, typer.Option("--replace", help="The cluster has that host already, and it was installed anew.")
    ] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a token with which a host may join once; run it on the authority's host."""
    from livemove.agent import join
    from livemove.base.units import parse_duration

    lifetime_s = parse_duration(ttl)
    _, settings = own_settings(config)
    token = join.invite(settings.state_dir, host, clock=SystemClock(), lifetime_s=lifetime_s, replace=replace)
    if as_json:
        print_json({"host": host, "token": token, "lifetime_s": lifetime_s})
    else:
        say(f"Within {ttl}, run this on {host}, with its own address, and paste the token when it asks for it:\n")
        say("livemove cluster join --address IP:PORT\n")
        say(token)


@app.command("join")
@verb
async def join_host(
    address: Address,
    token: Annotated[
        str,
        typer.Argument(
            metavar="TOKEN",
            help="From 'cluster invite'. Without it, or with -, it is asked for or read from standard input, so that "
            "neither 'ps' nor the shell's history shows it.",
        ),
    ] = "-",
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Make this host a member of the cluster that invited it."""
    from livemove.agent.join_client import join_cluster

    path, settings = own_settings(config)
    text = _asked_token() if token == "-" else token
    identity = await join_cluster(text.strip(), address=address, state_dir=settings.state_dir)
    _keep_name(path, settings, identity.name)
    if as_json:
        print_json({"host": identity.name, "address": address})
    else:
        say(f"This host is '{identity.name}' of the cluster now. Start its agent ('systemctl start livemove-agent').")


def _asked_token() -> str:
    if sys.stdin.isatty():
        print("Token: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline()


@app.command("person")
@verb
def person(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The person's name.")],
    role: Annotated[
        PersonRole, typer.Option("--role", metavar="viewer|operator|admin", help="What the person may do.")
    ] = PersonRole.VIEWER,
    identity_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the identity goes; ./NAME if not given.")
    ] = None,
    validity: Annotated[
        str, typer.Option(metavar="TIME", help="How long the certificate is good, in hours.")
    ] = "2160h",
    renew: Annotated[
        bool,
        typer.Option("--renew", help="DIR holds the person's identity: keep its key and role, renew the certificate."),
    ] = False,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a person's identity; run it on the authority's host, and give the directory to that person alone."""
    from livemove.agent.join import issue_person
    from livemove.agent.renewal import renew_person
    from livemove.api.client_identity import Role
    from livemove.base.units import parse_duration

    validity_s = parse_duration(validity)
    _, settings = own_settings(config)
    directory = identity_dir or Path(name)
    if renew:
        identity = renew_person(settings.state_dir, directory, name, clock=SystemClock(), validity_s=validity_s)
    else:
        identity = issue_person(
            settings.state_dir,
            name=name,
            role=Role(role.value),
            directory=directory,
            clock=SystemClock(),
            validity_s=validity_s,
        )
    if as_json:
        print_json({"person": name, "role": identity.role.value, "identity_dir": str(directory)})
    else:
        say(f"The identity of {name} ({identity.role.value}) is in {directory}.")
        say(f"It goes to ~/.config/livemove of {name}, or wherever LIVEMOVE_IDENTITY says.")


@app.command("hosts")
@verb
async def hosts(as_json: AsJson = False) -> None:
    """The cluster's hosts, and whether their agents answer."""
    from livemove.cli.session import open_session

    async with open_session() as session:
        answers = await session.ask(lambda agent: agent.host())
        found = [
            {
                "name": host,
                "address": session.address_of(host),
                "answers": host in answers.given,
                "version": answers.given[host].livemove_version if host in answers.given else "",
                "reason": answers.refused[host].message if host in answers.refused else "",
            }
            for host in session.hosts
        ]
    if as_json:
        print_json({"hosts": found})
        return
    rows = [[str(each[key]) for key in ("name", "address", "version", "reason")] for each in found]
    table(["HOST", "ADDRESS", "LIVEMOVE", "DOES NOT ANSWER BECAUSE"], rows)


def own_settings(config: Path | None) -> tuple[Path, HostSettings]:
    """The configuration file and the settings in it."""
    from livemove.base.settings import DEFAULT_CONFIG, load_settings

    path = config or DEFAULT_CONFIG
    return path, load_settings(path)


def _keep_name(path: Path, settings: HostSettings, name: str) -> None:
    """The agent must go by the name in its certificate."""
    if settings.name != name:
        from livemove.base.settings import change_settings

        change_settings(path, {"name": name})
