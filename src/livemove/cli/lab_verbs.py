"""``livemove lab``: hosts as network namespaces of this machine, to try everything without a second machine."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Annotated

import typer

from livemove.base.units import format_rate, format_size
from livemove.cli.output import Usage, print_json, say, table, warn
from livemove.cli.verb import AsJson, group, verb

if TYPE_CHECKING:
    from livemove.lab.lab import LabStatus
    from livemove.lab.link_spec import LinkSpec

app = group("A lab: several hosts on this one machine (needs root).")

LINK_HELP = (
    "A link between all hosts, such as 1Gbit, unshaped or 250Mbit,queue=5ms; may be repeated. Options: queue=TIME|SIZE; "
    "mtu=BYTES, or mtu=9000/1500 host by host; offloads=off; switched (all shaping is in a switch, not on the hosts' NICs); "
    "switch-mtu=BYTES (what is larger vanishes in the switch); subnet=0 (second NICs in the subnet of link 0)."
)

LabName = Annotated[str, typer.Option("--name", metavar="NAME", help="Labs of different names live side by side.")]


@app.command("up")
@verb
async def up(
    hosts: Annotated[str, typer.Option(metavar="A,B,...", help="Names of the hosts.")] = "A,B",
    links: Annotated[
        list[str] | None,
        typer.Option("--link", metavar="RATE[,OPTION...]", help=LINK_HELP),
    ] = None,
    guest_network: Annotated[str, typer.Option(metavar="CIDR", help="Network of the guests.")] = "",
    agents: Annotated[bool, typer.Option("--agents/--no-agents", help="Start an agent in every host.")] = True,
    name: LabName = "lab",
    as_json: AsJson = False,
) -> None:
    """Make a lab, and start an agent in each of its hosts."""
    from livemove.lab.agents import start_agents
    from livemove.lab.lab import Lab
    from livemove.lab.topology import parse_lab

    lab = await Lab.up(parse_lab(name, hosts, links or ["unshaped"], guest_network))
    if agents:
        try:
            await start_agents(lab)
        except BaseException:
            warn(f"lab '{name}' is left up, for its logs; remove it with 'livemove lab down --name {name}'")
            raise
    state = await lab.status()
    if as_json:
        print_json(_as_json(state))
    else:
        _print_status(state)
        if agents:
            option = "" if name == "lab" else f" --name {name}"
            say(f"Try it: livemove lab run{option} {lab.spec.hosts[0]} -- livemove host show")


@app.command("down")
@verb
async def down(name: LabName = "lab", as_json: AsJson = False) -> None:
    """Remove a lab with everything in it, also after a crash; nothing when there is none."""
    from livemove.lab import lab

    await lab.down(name)
    if as_json:
        print_json({"name": name, "removed": True})
    else:
        say(f"Lab '{name}' is gone.")


@app.command("status")
@verb
async def status(name: LabName = "lab", as_json: AsJson = False) -> None:
    """A lab's hosts, links and processes."""
    from livemove.lab import lab

    state = await lab.status(name)
    if as_json:
        print_json(_as_json(state))
    else:
        _print_status(state)


@app.command("run", context_settings={"allow_interspersed_args": False})
@verb
async def run(
    host: Annotated[str, typer.Argument(metavar="HOST", help="A host of the lab, or 'client'.")],
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="What to run there.")],
    name: LabName = "lab",
) -> None:
    """Run a command in a host of a lab; ends with the command's exit code. Options of ours go before HOST.

    A livemove command that runs there is the lab's admin.
    """
    import asyncio

    from livemove.api.client_identity import IDENTITY_VARIABLE
    from livemove.lab.agents import admin_dir
    from livemove.lab.lab import Lab

    # what follows HOST is passed on as it stands, so the separator is still there
    argv = command[1:] if command[0] == "--" else command
    if not argv:
        raise Usage("No command is given.", remedy="Write such as 'livemove lab run A -- ip address'.")
    lab = Lab.open(name)
    # Ctrl-C at the terminal goes to the command as well, which is to decide what it means
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)
    done = await lab.run_in(host, argv, capture=False, env={IDENTITY_VARIABLE: str(admin_dir(lab))})
    code = done.returncode
    raise typer.Exit(code if code >= 0 else 128 - code)


def link_text(spec: LinkSpec) -> str:
    """How a link behaves: ``1 Gbit/s, queue 2.4 MiB, MTU 1500``."""
    parts = [format_rate(spec.rate_bytes_per_s) if spec.rate_bytes_per_s is not None else "unshaped"]
    if spec.rate_bytes_per_s is not None:
        parts.append(f"queue {format_size(spec.limit_bytes - spec.burst_bytes)}")
    parts.append(f"MTU {'/'.join(map(str, spec.host_mtus)) or spec.mtu} B")
    if not spec.offloads:
        parts.append("no offloads")
    if spec.switched:
        parts.append("switched")
    if spec.switch_mtu is not None:
        parts.append(f"MTU of the switch {spec.switch_mtu} B")
    if spec.subnet is not None:
        parts.append(f"in the subnet of link{spec.subnet}")
    return ", ".join(parts)


def _as_json(state: LabStatus) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(state)


def _print_status(state: LabStatus) -> None:
    if state.phase is None:
        say(f"There is no lab '{state.name}'.")
        for remnant in state.remains:
            say(f"  left over: {remnant}")
        return
    say(f"Lab '{state.name}' is {state.phase.value}; the client is {state.client_address}.")
    rows = [
        [
            host.name,
            host.control_address,
            ", ".join(host.link_addresses),
            ", ".join(f"{process.label or process.argv[0]} ({process.pid})" for process in host.processes) or "none",
        ]
        for host in state.hosts
    ]
    table(["HOST", "CONTROL", "LINKS", "PROCESSES"], rows)
    for link in state.links:
        dead = [host for host, carrier in link.carrier.items() if not carrier]
        without = f"; no carrier at {', '.join(dead)}" if dead else ""
        say(f"{link.name}: {link_text(link.spec)}{without}")
