"""``livemove agent``: run one host's agent until it is told to end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

from livemove.agent.app import make_app
from livemove.agent.host import Host
from livemove.agent.room import raise_descriptor_limit
from livemove.agent.tls_server import AgentServer
from livemove.base import fault_points
from livemove.base.settings import load_settings
from livemove.base.trace import set_up_logging

_log = logging.getLogger(__name__)


def run_agent(config: Path) -> None:
    """Run until SIGTERM or SIGINT; SIGHUP reads settings and certificate anew. VMs run on."""
    set_up_logging(load_settings(config).log_level)
    raise_descriptor_limit()
    asyncio.run(serve(config))


async def serve(config: Path) -> None:
    """The agent's life. Raises what Host.start raises, and Conflict when the address is taken."""
    if fault_points.arm(load_settings(config).run_dir, os.environ):
        _log.warning("fault points are armed: this agent stops itself wherever a test says")
    host = await Host.start(config)
    server = AgentServer(
        make_app(host), address=host.settings.listen, identity=host.identity, clock=host.clock,
        membership=host.membership, refusals=host.refusals,
    )  # fmt: skip
    host.follower.on_change.append(lambda: _use_identity(host, server))
    try:
        await server.start()
        _log.info("agent of host %s listens on %s", host.settings.name, server.address)
        _tell_systemd("READY=1")
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, ended.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: _reload(host, server))
        await ended.wait()
        _log.info("agent of host %s ends; its VMs run on", host.settings.name)
    finally:
        await server.close()
        await host.close()


def _reload(host: Host, server: AgentServer) -> None:
    try:
        host.settings = load_settings(host.config)
        _log.info("settings were read anew")
    except Exception as error:  # the old ones stay in force
        _log.error("settings were not read anew: %s", error)
    _use_identity(host, server)


def _use_identity(host: Host, server: AgentServer) -> None:
    """Take certificate, authority and revoked certificates as they are now."""
    try:
        host.use_identity(server.reload())
        _log.info("certificate and revoked certificates were read anew")
    except Exception as error:  # the old ones stay in force
        _log.error("the certificate was not read anew: %s", error)
    server.drop_revoked()


def _tell_systemd(state: str) -> None:
    """sd_notify(3): one datagram to the socket that systemd names; nothing without systemd."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect("\0" + path[1:] if path.startswith("@") else path)
        channel.send(state.encode())
