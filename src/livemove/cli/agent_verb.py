"""``livemove agent``: the service of this host."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from livemove.cli.verb import verb

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The host's settings; /etc/livemove/agent.toml if not given."),
]


@verb
def agent(config: ConfigFile = None) -> None:
    """Run the agent of this host in the foreground, as the systemd unit does."""
    from livemove.agent.main import run_agent
    from livemove.base.settings import DEFAULT_CONFIG

    run_agent(config or DEFAULT_CONFIG)
