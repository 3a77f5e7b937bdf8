"""``livemove lab``: hosts as network namespaces of this machine, to try everything without a second machine."""

from __future__ import annotations

import signal
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from livemove.base.units import format_rate, format_size
from livemove.cli.output import Usage, print_json, say, table, warn
from livemove.cli.verb import AsJson, group, verb

if TYPE_CHECKING:
    from livemove.lab.in_force import Fault
    from livemove.lab.lab import Lab, LabStatus
    from livemove.lab.link_spec import LinkSpec

app = group("A lab: several hosts on this one machine (needs root).")

LINK_HELP = (
    "A link between all hosts, such as 1Gbit, unshaped or 250Mbit,queue=5ms; may be repeated. Options: queue=TIME or SIZE; "
    "mtu=BYTES, or mtu=9000/1500 host by host; offloads=off; switched (all shaping is in a switch, not on the hosts' NICs); "
    "switch-mtu=BYTES (what is larger vanishes in the switch); subnet=0 (second NICs in the subnet of link 0)."
)

AMOUNT_HELP = (
    "lose: percent, such as 1 or 0.5; drop-large: the largest size that passes, in bytes; rate: such as 250Mbit, or "
    "'unshaped'; mtu: bytes."
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
        print_json(asdict(state))
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
    """A lab's hosts, links and processes, and the faults that are in force."""
    from livemove.lab import lab
    from livemove.lab.in_force import in_force
    from livemove.lab.registry import Phase

    state = await lab.status(name)
    found = await in_force(lab.Lab.open(name)) if state.phase is Phase.UP else []
    if as_json:
        print_json({**asdict(state), "faults": [asdict(each) for each in found]})
    else:
        _print_status(state)
        _print_faults(found)


class FaultKind(StrEnum):
    """What may go wrong with a network."""

    CUT = "cut"
    BLACK_HOLE = "black-hole"
    LOSE = "lose"
    DROP_LARGE = "drop-large"
    RATE = "rate"
    MTU = "mtu"


NetworkName = Annotated[
    str, typer.Argument(metavar="NETWORK", help="link0, link1 or just its number; control; guests.")
]


@app.command("fault")
@verb
async def fault(
    kind: Annotated[FaultKind, typer.Argument(metavar="KIND", help=", ".join(FaultKind))],
    network: NetworkName,
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help=AMOUNT_HELP)] = "",
    host: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="This host's cable, or what this host sends; everybody's if not given."),
    ] = None,
    name: LabName = "lab",
    as_json: AsJson = False,
) -> None:
    """Break a network of a lab while it runs, to see what becomes of a migration.

    cut: no carrier. black-hole: all that is sent vanishes, with the carrier there. lose: a share of it vanishes at random.
    drop-large: packets over a size vanish, as in a switch with a smaller MTU. rate, mtu: another rate; another MTU of one
    host's NIC. With --host the faults of packets are of one direction. 'livemove lab heal' undoes all of them.
    """
    from livemove.base.units import parse_rate
    from livemove.lab import faults
    from livemove.lab.lab import Lab

    if (kind in (FaultKind.CUT, FaultKind.BLACK_HOLE)) == bool(amount):
        raise Usage(
            f"'{kind}' {'has no' if amount else 'needs an'} amount.", remedy="'livemove lab fault --help' lists them."
        )
    lab = Lab.open(name)
    which = _which(network)
    match kind:
        case FaultKind.CUT:
            await faults.cut(lab, which, host=host)
        case FaultKind.BLACK_HOLE:
            await faults.black_hole(lab, which, sender=host)
        case FaultKind.LOSE:
            await faults.lose(lab, which, _percent(amount), sender=host)
        case FaultKind.DROP_LARGE:
            await faults.drop_large(lab, which, _bytes(amount), sender=host)
        case FaultKind.RATE:
            await faults.set_rate(lab, which, None if amount == "unshaped" else parse_rate(amount), host=host)
        case FaultKind.MTU:
            if host is None:
                raise Usage("'mtu' is one host's.", remedy="Add --host HOST.")
            await faults.set_mtu(lab, which, host, _bytes(amount))
    await _tell_faults(lab, as_json=as_json)


@app.command("heal")
@verb
async def heal(
    network: NetworkName,
    host: Annotated[str | None, typer.Option(metavar="HOST", help="Only this host's cable.")] = None,
    name: LabName = "lab",
    as_json: AsJson = False,
) -> None:
    """Undo all faults of a network of a lab; returns when packets pass again."""
    from livemove.lab import faults
    from livemove.lab.lab import Lab

    lab = Lab.open(name)
    await faults.restore(lab, _which(network), host=host)
    await _tell_faults(lab, as_json=as_json)


def _which(network: str) -> str:
    return f"link{network}" if network.isdecimal() else network


def _percent(text: str) -> float:
    try:
        return float(text.removesuffix("%"))
    except ValueError as error:
        raise Usage(f"'{text[:64]}' is not a percentage.", remedy="Write such as 'lose link0 0.5'.") from error


def _bytes(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 7):
        raise Usage(f"'{text[:64]}' is not a number of bytes.", remedy="Write such as 'drop-large link0 1500'.")
    return int(text)


async def _tell_faults(lab: Lab, *, as_json: bool) -> None:
    """Print the faults that are in force now."""
    from livemove.lab.in_force import in_force

    found = await in_force(lab)
    if as_json:
        print_json({"name": lab.spec.name, "faults": [asdict(each) for each in found]})
    elif not found:
        say(f"Nothing is broken in lab '{lab.spec.name}'.")
    else:
        _print_faults(found)


def _print_faults(found: list[Fault]) -> None:
    for each in found:
        say(f"{each.network}, {' and '.join(each.hosts)}: {each.what}")


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
