"""What commands print: one JSON object under ``--json``, tables and colour on a terminal, plain text elsewhere.

Results go to standard output, errors and warnings to standard error as ``livemove: ...``. Under ``--json`` the error is on
standard output too, as the object that the API sends (``ErrorBody``), and always the last line.

Text that another machine sent is shown without its control characters: they could move the cursor or change the title.
Rich is imported only for a table on a terminal: it is a tenth of a short command's time.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from livemove.base.errors import CallerError, LivemoveError

MAX_MESSAGE = 4000


class Usage(CallerError):
    """The command line has an unknown verb or option, or lacks one."""

    code, exit_code, remedy_text = "usage", 2, "'livemove --help' lists the verbs."


def on_terminal(stream: TextIO | None = None) -> bool:
    """Whether a person looks at the stream (standard output if not given) and it can do more than lines."""
    return (stream or sys.stdout).isatty() and os.environ.get("TERM", "dumb") != "dumb"


def say(text: str = "") -> None:
    """One line, or several, of the command's result."""
    sys.stdout.write(f"{printable(text)}\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    """Odd, but the command goes on."""
    sys.stdout.flush()
    sys.stderr.write(f"livemove: warning: {printable(text)}\n")


def print_json(value: object) -> None:
    """One object on one line. Models of the API are written as the API writes them."""
    sys.stdout.write(json.dumps(value, default=_plain, ensure_ascii=False, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def print_error(error: LivemoveError, *, as_json: bool) -> None:
    """``livemove: <message>``, then the remedy; under ``--json`` also the object on standard output."""
    sys.stdout.flush()
    where = f"{error.where}: " if error.where and error.where not in error.message else ""
    sys.stderr.write(f"livemove: {where}{printable(error.message[:MAX_MESSAGE])}\n")
    if error.remedy:
        sys.stderr.write(f"  remedy: {printable(error.remedy[:MAX_MESSAGE])}\n")
    sys.stderr.flush()
    if as_json:
        print_json(error.to_json())


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str = "") -> None:
    """Rows under headers; `empty` is said instead when there are none."""
    if not rows and empty:
        say(empty)
    elif on_terminal():
        _rich_table(headers, rows)
    else:
        for line in columns([headers, *rows]):
            say(line)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the cells of each column under each other."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def facts(pairs: Mapping[str, str]) -> None:
    """Names with their values; those without a value are left out."""
    for line in columns([[f"{name}:", value] for name, value in pairs.items() if value] or [["", ""]]):
        say(line)


def printable(text: str) -> str:
    """`text` without control characters; line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else "?" for char in text)


def _rich_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
    for header in headers:
        shown.add_column(header, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(printable(cell), style=_STYLES.get(cell, "")) for cell in row))
    Console().print(shown)


_STYLES = {
    "running": "green",
    "completed": "green",
    "failed": "red",
    "io-error": "red",
    "guest-panicked": "red",
    "unknown": "red",
    "unresolved": "red",
    "paused": "yellow",
    "leaving": "cyan",
    "arriving": "cyan",
    "stopped": "dim",
    "moved": "dim",
}


def _plain(value: object) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    if isinstance(value, frozenset | set):
        return sorted(value)
    return str(value)
