"""``livemove vm console``: the verb; what it does is in console_line.py."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from livemove.cli.output import print_json
from livemove.cli.verb import AsJson, OnHost, VmName, verb


@verb
async def console(
    vm: VmName,
    following: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new output until Ctrl-C.")] = False,
    host: OnHost = None,
    as_json: AsJson = False,
) -> None:
    """A VM's serial console.

    On a terminal it is interactive: it begins with the newest output, keys go to the guest, Ctrl-] leaves. Elsewhere
    the log is printed from its beginning.
    """
    from livemove.cli.console_line import ConsoleFollower, interact, print_on, show
    from livemove.cli.session import open_session

    async with open_session() as session:
        found = await session.find_vm(vm, host)
        follower = ConsoleFollower(session, vm, await session.agent(found.host))
        if as_json:
            text = await follower.whole()
            print_json({"vm": vm, "host": found.host, "text": text, "next_offset": follower.offset})
        elif sys.stdin.isatty() and sys.stdout.isatty() and not following:
            await interact(follower)
        else:
            show(await follower.whole())
            if following:
                await print_on(follower)
