"""``livemove demo``: the whole thing on one machine, in a minute and a half."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from livemove.cli.output import print_json, say
from livemove.cli.verb import AsJson, verb


@verb
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the lab up at the end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Move a loaded VM between two hosts of a lab, there and back, once with the destination killed half-way.

    Needs root and QEMU. With --json what happens is told on standard error.
    """
    from livemove.lab.demo import run_demo

    def tell(text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    result = run_demo(as_json=as_json, keep=keep, say=tell if as_json else say)
    if as_json:
        print_json(result)
