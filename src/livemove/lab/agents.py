"""An agent in every host of a lab: its settings written, started, waited for."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import tomlkit

from livemove.agent.join import LabHost, make_lab_cluster
from livemove.api.client_identity import Role
from livemove.base.clock import SystemClock
from livemove.base.errors import AgentUnreachable, Conflict
from livemove.base.settings import DEFAULT_PORT, parse_settings
from livemove.lab import processes
from livemove.lab.lab import Lab

LABEL = "agent"
_POLL_S = 0.05
_LOG_TAIL = 600

Setting = str | int | bool | list[str]


def admin_dir(lab: Lab) -> Path:
    """The identity of the lab's administrator, for ``LIVEMOVE_IDENTITY``."""
    return lab.directory(lab.spec.hosts[0]).parent.parent / "admin"


async def prepare_identity(lab: Lab) -> None:
    """Give every host of the lab its certificate, and the lab an administrator; once."""
    if admin_dir(lab).exists():
        return
    hosts = [
        LabHost(host, lab.directory(host) / "state", f"{lab.spec.control_address(host)}:{DEFAULT_PORT}")
        for host in lab.spec.hosts
    ]
    await asyncio.to_thread(
        make_lab_cluster, hosts, people={"admin": (Role.ADMIN, admin_dir(lab))}, clock=SystemClock()
    )


def settings_of(lab: Lab, host: str, changes: Mapping[str, Setting] | None = None) -> dict[str, Setting]:
    """The settings of a host's agent; `changes` win. Raises BadDefinition when the lab has no such host."""
    directory = lab.directory(host)
    return {
        "name": host,
        "listen": f"{lab.spec.control_address(host)}:{DEFAULT_PORT}",
        "state_dir": str(directory / "state"),
        "run_dir": str(directory / "run"),
        "migration_address": str(lab.spec.link_address(host, 0)),
        "nic_speeds": nic_speeds(lab, host),
        # several links are there for migrations to choose from; the control network is not among them
        "incoming": [str(lab.spec.link_address(host, index)) for index in range(len(lab.spec.links))],
        "accelerator": "tcg",
        **(changes or {}),
    }


def nic_speeds(lab: Lab, host: str) -> list[str]:
    """What the host's NICs on shaped links carry, as the setting of that name says it: the NICs themselves do not know."""
    return [
        f"{network.end_of(host).interface}={network.spec.rate_bytes_per_s}B"
        for network in lab.spec.link_networks
        if network.spec.rate_bytes_per_s is not None
    ]


def config_path(lab: Lab, host: str) -> Path:
    return lab.directory(host) / "etc" / "agent.toml"


async def start_agents(
    lab: Lab,
    *,
    settings: Mapping[str, Setting] | None = None,
    host_settings: Mapping[str, Mapping[str, Setting]] | None = None,
    command: Sequence[str] = (sys.executable, "-m", "livemove", "agent"),
    timeout_s: float = 30.0,
) -> dict[str, int]:
    """Start the agent of every host; returns their pids when all listen.

    `settings` are the same for all hosts, beside what the lab sets itself; `host_settings`, by host, win over them.
    Raises BadSetting for wrong ones, BadDefinition for those of a host that is not there, Conflict when a host's agent
    runs already (nothing is started then), AgentUnreachable when one ends or does not listen in
    time, with the end of its log; the others run on.
    """
    for host in host_settings or {}:
        lab.spec.control_address(host)
    for host in lab.spec.hosts:
        if lab.processes(host, LABEL):
            raise Conflict(
                f"The agent of host '{host}' runs already.", remedy="'livemove lab status' lists the agents."
            )
    for host in lab.spec.hosts:
        changes = {**(settings or {}), **(host_settings or {}).get(host, {})}
        text = tomlkit.dumps(settings_of(lab, host, changes))
        parse_settings(text, origin=f"the settings of host '{host}'")
        config_path(lab, host).write_text(text)
    await prepare_identity(lab)
    pids = {host: start_agent(lab, host, command=command) for host in lab.spec.hosts}
    for host, pid in pids.items():
        await wait_listening(lab, host, pid, timeout_s=timeout_s)
    return pids


def start_agent(lab: Lab, host: str, *, command: Sequence[str] = (sys.executable, "-m", "livemove", "agent")) -> int:
    """Start one host's agent with the settings it has, as after a crash; returns its pid at once."""
    argv = [*command, "--config", str(config_path(lab, host))]
    return lab.start_process(host, argv, log=log_path(lab, host), label=LABEL)


def log_path(lab: Lab, host: str) -> Path:
    return lab.directory(host) / "log" / "agent.log"


async def wait_listening(lab: Lab, host: str, pid: int, *, timeout_s: float = 30.0) -> None:
    """Return when the agent listens. Raises AgentUnreachable when it has ended, or does not within `timeout_s`."""
    port = parse_settings(config_path(lab, host).read_text()).listen.rpartition(":")[2]
    try:
        async with asyncio.timeout(timeout_s):
            while not processes.listens(pid, int(port)):
                if processes.start_ticks(pid) is None:
                    raise AgentUnreachable(
                        f"The agent of host '{host}' ended: {_tail(lab, host)}", remedy=_remedy(lab, host)
                    )
                await asyncio.sleep(_POLL_S)
    except TimeoutError as error:
        raise AgentUnreachable(
            f"The agent of host '{host}' does not listen on port {port} after {timeout_s:g} s: {_tail(lab, host)}",
            remedy=_remedy(lab, host),
        ) from error


def _remedy(lab: Lab, host: str) -> str:
    return f"Its log is {log_path(lab, host)}."


def _tail(lab: Lab, host: str) -> str:
    try:
        text = log_path(lab, host).read_text(errors="replace")
    except FileNotFoundError:
        text = ""
    return " ".join(text.split())[-_LOG_TAIL:] or "its log is empty."
