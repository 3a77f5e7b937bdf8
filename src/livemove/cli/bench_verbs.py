"""``livemove bench``: measurements against stock QEMU driven by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from livemove.cli.output import print_json, say, table
from livemove.cli.verb import AsJson, group, verb

app = group("Benchmarks against stock QEMU (need root and QEMU).")


@app.command("list")
@verb
def list_all(as_json: AsJson = False) -> None:
    """The benchmarks and the question that each answers."""
    from livemove.bench.main import list_benchmarks

    found = list_benchmarks()
    if as_json:
        print_json({"benchmarks": [{"name": name, "question": question} for name, question in found.items()]})
    else:
        table(["NAME", "QUESTION"], [[name, question] for name, question in found.items()])


@app.command("run")
@verb
def run(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Benchmarks, from 'bench list'.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all samples and ratios to this file.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Times that each side is measured.")] = 5,
) -> None:
    """Run benchmarks one after the other, both sides in turn."""
    from livemove.bench.main import run_benchmarks

    run_benchmarks(names, json_path=json_file, pairs=pairs, say=say)
