"""``livemove``: the command line. One file per verb or family of verbs; this one puts them together.

Nothing heavy is imported before a verb needs it (no httpx, pydantic, Rich, FastAPI): a migration is to begin within 1.5 s
of the command, Python's start included, and the shell's completion runs this at every press of the key.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from livemove import __version__
from livemove.cli import (
    bandwidth_verbs,
    bench_verbs,
    certificate_verbs,
    cluster_verbs,
    host_verbs,
    journeys,
    lab_verbs,
    network_verbs,
    qos_verbs,
    vm_verbs,
)
from livemove.cli.agent_verb import agent
from livemove.cli.demo_verb import demo
from livemove.cli.gc_verb import gc
from livemove.cli.migrate import migrate, plan
from livemove.cli.output import Usage, print_error
from livemove.cli.resolve import resolve

INTERRUPTED = 130
_IDENTITY_VARIABLE = "LIVEMOVE_IDENTITY"  # api.client_identity has it too, and imports pydantic

app = typer.Typer(
    name="livemove",
    help="Live migration of running virtual machines between QEMU/KVM hosts.",
    # plain help: Rich would draw boxes into pipes and take a tenth of a second
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"livemove {__version__}\n")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def livemove(
    context: typer.Context,
    identity: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help=f"Identity to use; else ${_IDENTITY_VARIABLE}, ~/.config/livemove, /etc/livemove/identity.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Live migration of running virtual machines between QEMU/KVM hosts."""
    if identity is not None:
        os.environ[_IDENTITY_VARIABLE] = str(identity)
    if context.invoked_subcommand is None:
        sys.stdout.write(context.get_help() + "\n")


app.command("migrate")(migrate)
app.command("plan")(plan)
app.command("status")(journeys.status)
app.command("cancel")(journeys.cancel)
app.command("resolve")(resolve)
app.command("report")(journeys.report)
app.command("events")(journeys.events)
app.add_typer(vm_verbs.app, name="vm")
app.add_typer(host_verbs.app, name="host")
app.add_typer(bandwidth_verbs.app, name="bandwidth")
app.add_typer(qos_verbs.app, name="qos")
certificate_verbs.add_to(cluster_verbs.app)
app.add_typer(cluster_verbs.app, name="cluster")
app.add_typer(network_verbs.app, name="network")
app.command("gc")(gc)
app.command("agent")(agent)
app.add_typer(lab_verbs.app, name="lab")
app.command("demo")(demo)
app.add_typer(bench_verbs.app, name="bench")


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. The console script's entry point."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(words, prog_name="livemove", standalone_mode=False)
    except typer.Abort:
        return INTERRUPTED
    except typer.TyperException as error:
        command = getattr(getattr(error, "ctx", None), "command_path", "livemove")
        usage = Usage(error.format_message(), remedy=f"'{command} --help' tells what it takes.")
        print_error(usage, as_json="--json" in words)
        return usage.exit_code
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(run())
