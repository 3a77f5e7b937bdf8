"""``livemove vm``: definitions of VMs, and VMs that run. The console has a file of its own."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from livemove.base.errors import BadDefinition
from livemove.base.units import format_size
from livemove.cli.console import console
from livemove.cli.output import facts, print_json, say, table
from livemove.cli.verb import AsJson, OnHost, VmName, group, verb

if TYPE_CHECKING:
    from livemove.api.client import AgentClient
    from livemove.api.models import VmView

MAX_DEFINITION_BYTES = 262_144

app = group("Virtual machines.")
app.command("console")(console)


@app.command("define")
@verb
async def define(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The definition (TOML); - reads standard input.")],
    host: OnHost = None,
    as_json: AsJson = False,
) -> None:
    """Define a VM on a host, or change its definition for its next start.

    Without --host: this machine's own agent, or the cluster's only host.
    """
    from livemove.cli.session import open_session

    text = _read_definition(file)
    async with open_session() as session:
        if host is not None:
            await session.check_host(host)
        own = session.own_host(host)
        view = await (await session.agent(own)).define_vm(text)
    if as_json:
        print_json(view)
    elif view.edited:
        say(f"{view.name} on {own} is changed from its next start on; it runs and moves as it was started.")
    else:
        say(f"{view.name} is defined on {own}. Start it with 'livemove vm start {view.name}'.")


@app.command("list")
@verb
async def list_vms(
    every: Annotated[bool, typer.Option("--all", help="Also the places that VMs have moved away from.")] = False,
    host: OnHost = None,
    as_json: AsJson = False,
) -> None:
    """The VMs of all hosts."""
    from livemove.cli.session import open_session

    async with open_session() as session:
        if host is not None:
            await session.check_host(host)
        answers = await session.ask(lambda agent: agent.vms(), hosts=[host] if host is not None else None)
        by_host = answers.or_raise()
    found = [view for views in by_host.values() for view in views if every or view.state != "moved"]
    found.sort(key=lambda view: (view.name, view.host))
    if as_json:
        print_json({"vms": found, "silent": answers.silent})
        return
    headers = ["VM", "HOST", "STATE", "CPUS", "MEMORY", "ACCELERATOR", "NOTE"]
    table(headers, [_row(view) for view in found], empty="There are no VMs. Define one with 'livemove vm define FILE'.")


@app.command("show")
@verb
async def show(vm: VmName, host: OnHost = None, as_json: AsJson = False) -> None:
    """One VM, with its definition."""
    from livemove.cli.session import open_session

    async with open_session() as session:
        view = await session.find_vm(vm, host)
    if as_json:
        print_json(view)
        return
    facts(
        {
            "VM": view.name,
            "host": view.host,
            "state": view.state,
            "uuid": view.uuid,
            "accelerator": view.accelerator,
            "CPUs": str(view.cpus) if view.cpus else "",
            "memory": f"{format_size(view.memory_bytes)} {view.memory_backing}".rstrip() if view.memory_bytes else "",
            "QEMU's pid": str(view.pid) if view.pid is not None else "",
            "moved to": view.moved_to,
            "journey": view.journey,
            "definition": "edited since the start; what was started is what runs and moves" if view.edited else "",
        }
    )
    if view.definition:
        say(f"\n{view.definition.rstrip()}")


@app.command("start")
@verb
async def start(vm: VmName, host: OnHost = None, as_json: AsJson = False) -> None:
    """Start a VM; its definition is frozen until it stops."""
    await _act(vm, host, lambda agent: agent.start_vm(vm), as_json=as_json)


@app.command("stop")
@verb
async def stop(
    vm: VmName,
    force: Annotated[bool, typer.Option("--force", help="End its QEMU at once, as if power was cut.")] = False,
    host: OnHost = None,
    as_json: AsJson = False,
) -> None:
    """Ask a VM's guest to power off."""
    await _act(vm, host, lambda agent: agent.stop_vm(vm, force=force), as_json=as_json)


@app.command("pause")
@verb
async def pause(vm: VmName, host: OnHost = None, as_json: AsJson = False) -> None:
    """Stop a VM's processors; a paused VM may be migrated and arrives paused."""
    await _act(vm, host, lambda agent: agent.pause_vm(vm), as_json=as_json)


@app.command("resume")
@verb
async def resume(vm: VmName, host: OnHost = None, as_json: AsJson = False) -> None:
    """Let a paused VM run on."""
    await _act(vm, host, lambda agent: agent.resume_vm(vm), as_json=as_json)


@app.command("reset")
@verb
async def reset(vm: VmName, host: OnHost = None, as_json: AsJson = False) -> None:
    """Restart a VM's guest, as its reset button would."""
    await _act(vm, host, lambda agent: agent.reset_vm(vm), as_json=as_json)


@app.command("remove")
@verb
async def remove(vm: VmName, host: OnHost = None, as_json: AsJson = False) -> None:
    """Forget a stopped VM; its disks stay."""
    from livemove.cli.session import open_session

    async with open_session() as session:
        found = await session.find_vm(vm, host)
        await (await session.agent(found.host)).remove_vm(vm)
    if as_json:
        print_json({"removed": vm, "host": found.host})
    else:
        say(f"{vm} is removed from {found.host}; its disks are left as they are.")


async def _act(vm: str, host: str | None, action: Callable[[AgentClient], Awaitable[VmView]], *, as_json: bool) -> None:
    """Find the VM, have its host do something with it, and say in which state it is then."""
    from livemove.cli.session import open_session

    async with open_session() as session:
        found = await session.find_vm(vm, host)
        view = await action(await session.agent(found.host))
    if as_json:
        print_json(view)
    else:
        by = f" ({view.accelerator})" if view.accelerator and view.state == "running" else ""
        say(f"{vm} on {found.host} is {view.state}{by}.")


def _read_definition(file: str) -> str:
    """The text of the file. Raises BadDefinition when it cannot be read, or is longer than the agent accepts."""
    try:
        if file == "-":
            data = sys.stdin.buffer.read(MAX_DEFINITION_BYTES + 1)
        else:
            with Path(file).open("rb") as stream:
                data = stream.read(MAX_DEFINITION_BYTES + 1)
        if len(data) > MAX_DEFINITION_BYTES:
            raise BadDefinition(f"{file} is longer than {MAX_DEFINITION_BYTES >> 10} KiB, the most for a definition.")
        return data.decode()
    except OSError as error:
        raise BadDefinition(f"{file} cannot be read: {error.strerror}.", remedy="Name a readable file.") from error
    except UnicodeDecodeError as error:
        raise BadDefinition(f"{file} is not text in UTF-8.", remedy="Name a definition in TOML.") from error


def _row(view: VmView) -> list[str]:
    note = f"to {view.moved_to}" if view.moved_to else "definition edited since the start" if view.edited else ""
    return [
        view.name,
        view.host,
        view.state,
        str(view.cpus) if view.cpus else "",
        format_size(view.memory_bytes) if view.memory_bytes else "",
        view.accelerator,
        note,
    ]
