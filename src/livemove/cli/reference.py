"""The reference pages of the documentation, made from the code: verbs, settings, errors, and those of reference_more.

python -m livemove.cli.reference --write       writes the pages of PAGES into docs/
python -m livemove.cli.reference               says which of them are stale; exit code 1 if any is
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import typer

from livemove.base.errors import LivemoveError, every_error
from livemove.base.settings import DEFAULT_CONFIG, HostSettings
from livemove.cli import reference_more
from livemove.cli.main import app

DOCS_DIR = Path(__file__).parents[3] / "docs"
_GENERATED = "(Generated from the code by `python -m livemove.cli.reference --write`.)"

_CLI_INTRODUCTION = """
Results are on standard output, errors and warnings on standard error. An error is one sentence that says what is wrong
and a second line that says what to do:

```
livemove: The cluster has no host 'C'; it has A, B.
  remedy: List the hosts with 'livemove cluster hosts'.
```

With `--json` the last line of standard output is one JSON object: the result, or the error with `code`, `exit_code`,
`message`, `remedy`, `where` and `details`. Tables, colours and the live view are for terminals only; `NO_COLOR` switches
colour off.

## Exit codes

| code | meaning |
|---|---|
| 0 | done |
| 1 | an error in livemove itself, or one without a code of its own |
| 2 | the command line is wrong; nothing was done |
| {first} to {last} | one code for each error, see [errors.md](errors.md) |
| 130 | ended by Ctrl-C; a journey left by a second Ctrl-C goes on |

`livemove lab run` ends with the code of the command that it ran.
"""


def _introduction() -> str:
    codes = [kind.exit_code for kind in errors() if kind.exit_code >= 10]
    return _CLI_INTRODUCTION.rstrip().replace("{first}", str(min(codes))).replace("{last}", str(max(codes)))


def cli_markdown() -> str:
    """The text of ``docs/cli.md``: every verb with its arguments and options."""
    root = typer.main.get_command(app)
    lines = ["# The command line", "", _GENERATED, _introduction(), "", "## Options before the verb"]
    lines += ["", *_parameter_table(root)]
    for path, command in _verbs(root, ("livemove",)):
        lines += ["", f"## {' '.join(path)}", ""]
        lines += [f"`{' '.join([*path, *_usage(command)])}`", "", *inspect.cleandoc(command.help or "").splitlines()]
        table = _parameter_table(command)
        lines += ["", *table] if table else []
    return "\n".join([*lines, ""])


def verbs() -> list[str]:
    """Every verb in full, such as ``livemove vm start``."""
    return [" ".join(path) for path, _ in _verbs(typer.main.get_command(app), ("livemove",))]


def errors() -> list[type[LivemoveError]]:
    """The error classes that users meet: those of base.errors and of the command line, by exit code."""
    return [
        kind for kind in every_error() if kind.__module__.startswith(("livemove.base.errors.", "livemove.cli.output"))
    ]


def settings_markdown() -> str:
    """The text of ``docs/settings.md``: every setting with its values, default and meaning."""
    lines = [
        "# Settings of a host",
        "",
        f"They are kept in `{DEFAULT_CONFIG}` (TOML). `livemove host show --host HOST` lists them, `livemove host set "
        "--host HOST KEY=VALUE` changes them; nothing is changed when one value is wrong. In a `set`, the members of a "
        "list are separated by commas. Unknown keys are refused.",
        _GENERATED,
        "",
        "| setting | values | default | meaning |",
        "|---|---|---|---|",
    ]
    for name, setting in HostSettings.model_fields.items():
        values = _values(setting.annotation, setting.metadata)
        lines.append(f"| `{name}` | {values} | {_default(setting.default)} | {setting.description} |")
    return "\n".join([*lines, ""])


def errors_markdown() -> str:
    """The text of ``docs/errors.md``: every error by exit code, with what to do."""
    lines = [
        "# Errors",
        "",
        "Every error has a code, an exit code of its own and a remedy; one that is told may come with a more exact "
        "remedy. Errors from 10 on are the command's, from 20 on the hosts', from 40 on the network's, from 50 on QEMU's or "
        "the other agent's, and from 60 on the ends of a journey that did not move the VM.",
        _GENERATED,
        "",
        "| exit code | code | meaning | remedy |",
        "|---|---|---|---|",
    ]
    lines += [f"| {kind.exit_code} | `{kind.code}` | {_meaning(kind)} | {kind.remedy_text} |" for kind in errors()]
    return "\n".join([*lines, ""])


PAGES = {
    "cli.md": cli_markdown,
    "settings.md": settings_markdown,
    "errors.md": errors_markdown,
    **reference_more.PAGES,
}


def stale_pages(directory: Path = DOCS_DIR) -> list[str]:
    """The pages that are missing, or differ from what the code says now."""
    return [
        name
        for name, make in PAGES.items()
        if not (directory / name).exists() or (directory / name).read_text() != make()
    ]


def write_pages(directory: Path = DOCS_DIR) -> None:
    """Write all pages."""
    directory.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        (directory / name).write_text(make())


def _verbs(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The commands that do something, with their names, in the order of the help."""
    below = getattr(command, "commands", None)
    if below is None:
        yield path, command
        return
    for name, child in below.items():
        yield from _verbs(child, (*path, name))


def _parameter_table(command: Any) -> list[str]:
    rows = []
    for parameter in command.params:
        if parameter.name == "help":
            continue
        default = parameter.default if isinstance(parameter.default, str | int) else None
        shown = f" Default: `{default}`." if default not in (None, "", False, True) else ""
        needed = " Compulsory." if parameter.required and parameter.param_type_name == "option" else ""
        written = _written(parameter).replace("|", "\\|")
        rows.append(f"| `{written}` | {parameter.help or ''}{needed}{shown} |")
    return ["| | |", "|---|---|", *rows] if rows else []


def _usage(command: Any) -> list[str]:
    arguments = [str(parameter.metavar) for parameter in command.params if parameter.param_type_name == "argument"]
    needed = [
        _written(parameter)
        for parameter in command.params
        if parameter.param_type_name == "option" and parameter.required
    ]
    optional = len(command.params) > len(arguments) + len(needed)
    return [*(["[OPTIONS]"] if optional else []), *needed, *arguments]


def _written(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar)
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    # every option that takes a value names it; the tests see to that
    return f"{names} {parameter.metavar}" if parameter.metavar else names


def _values(annotation: Any, limits: Sequence[Any]) -> str:
    if choices := [value for value in get_args(annotation) if isinstance(value, str)]:
        return ", ".join(f"`{value}`" for value in choices)
    if annotation is int:
        low, high = (next((getattr(limit, end) for limit in limits if hasattr(limit, end)), "") for end in ("ge", "le"))
        return f"{low} to {high}" if limits else "number"
    if annotation is bool:
        return "`true`, `false`"
    return "list of texts" if get_args(annotation) else "text"


def _default(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(f"`{part}`" for part in value)
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value != "" else ""


def _meaning(kind: type[LivemoveError]) -> str:
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split())


def main(arguments: Sequence[str]) -> int:
    if list(arguments) == ["--write"]:
        write_pages()
        return 0
    stale = stale_pages()
    for name in stale:
        sys.stderr.write(f"docs/{name} is stale: run 'python -m livemove.cli.reference --write'\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
