"""What every verb has in common: how it is run, how it ends, and the options that many share."""

from __future__ import annotations

import functools
import inspect
import sys
import traceback
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, ParamSpec

import typer

from livemove.base.errors import Bug, LivemoveError
from livemove.cli.output import print_error

P = ParamSpec("P")


def verb(function: Callable[P, Coroutine[Any, Any, None] | None]) -> Callable[P, None]:
    """Run a verb, synchronous or not; its errors are printed and become the exit code.

    A livemove error ends with its own exit code; any other exception is a bug of ours: exit code 1, and the traceback
    on standard error.
    """

    @functools.wraps(function)
    def run_verb(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            work = function(*args, **kwargs)
            if inspect.iscoroutine(work):
                import asyncio  # half of a short command's time, and 'livemove --version' needs none of it

                asyncio.run(work)
        except LivemoveError as error:
            print_error(error, as_json=bool(kwargs.get("as_json")))
            raise typer.Exit(error.exit_code) from error
        except (typer.Exit, typer.Abort, typer.TyperException, BrokenPipeError):
            raise
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            bug = Bug(f"livemove itself failed: {type(error).__name__}: {error}.")
            print_error(bug, as_json=bool(kwargs.get("as_json")))
            raise typer.Exit(bug.exit_code) from error

    return run_verb


def group(help_text: str) -> typer.Typer:
    """A family of verbs, such as those of ``livemove vm``."""
    return typer.Typer(help=help_text, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


def complete_hosts(incomplete: str) -> list[str]:
    """Names of hosts for the shell's completion; nothing rather than an error."""
    try:
        from livemove.api.client_identity import find_identity
        from livemove.api.cluster_map import load_map

        hosts = load_map(find_identity().map_path).hosts
    except (LivemoveError, OSError):
        return []
    return sorted(host for host in hosts if host.startswith(incomplete))


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, last on standard output.")]
OnHost = Annotated[
    str | None,
    typer.Option("--host", metavar="HOST", help="Ask this host only.", autocompletion=complete_hosts),
]
VmName = Annotated[str, typer.Argument(metavar="VM", help="Name of the VM.")]
