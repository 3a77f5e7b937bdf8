"""Routes about the VMs of a host."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response

from livemove.agent.console import read_console, type_on_console
from livemove.agent.holdings import refuse_held
from livemove.agent.host import Host
from livemove.agent.paths import check_paths, files_of
from livemove.agent.tls_server import require_role
from livemove.agent.vm_view import view_vm
from livemove.api.client_identity import Peer, Role
from livemove.api.models import ConsoleChunk, ConsoleInput, DefineVm, VmList, VmView
from livemove.api.resolution_models import DeclareDead, ResolutionView
from livemove.base.errors import Conflict, NotPermitted
from livemove.hypervisor.definition import Definition, parse_definition
from livemove.migration.model import IncomingPhase

Viewer = Annotated[Peer, Depends(require_role("viewer"))]
Operator = Annotated[Peer, Depends(require_role("operator"))]

#: Beyond what a host could run; a bound for whoever defines and never starts.
MAX_VMS = 1024
_COMMANDS = {"pause": "stop", "resume": "cont", "reset": "system_reset"}


def make_router(host: Host) -> APIRouter:
    router = APIRouter(prefix="/vms")
    vms = host.vms

    async def judge(peer: Peer, definition: Definition) -> None:
        """An operator's VM uses files of the allowed directories only; an admin is told nothing of the kind."""
        if peer.role is not Role.ADMIN:
            (paths, images), name, allowed = files_of(definition), host.settings.name, host.settings.allowed_disk_dirs
            await vms.files.look(
                lambda look: check_paths(look.each(paths), look.each(images), look.each(allowed), name), name
            )

    def view(name: str) -> VmView:
        return view_vm(vms, vms.records.get(name), host.settings.name)

    @router.get("")
    async def list_vms(peer: Viewer) -> VmList:
        """The VMs of this host, those that are arriving or have moved away included."""
        views = [view_vm(vms, record, host.settings.name) for record in vms.records.all()]
        here = {entry.name for entry in views if entry.state != "moved"}
        for arrival in host.arrivals.all():
            phase = arrival.state.phase
            if arrival.frozen is None or phase.owns or phase is IncomingPhase.ABANDONED or arrival.record.vm in here:
                continue
            views = [entry for entry in views if entry.name != arrival.record.vm]
            frozen = arrival.frozen
            views.append(
                VmView(
                    name=frozen.name, host=host.settings.name, uuid=frozen.uuid, state="arriving", cpus=frozen.cpus,
                    memory_bytes=frozen.memory_bytes, journey=arrival.record.id,
                )
            )  # fmt: skip
        return VmList(vms=views)

    @router.post("")
    async def define(peer: Operator, body: DefineVm) -> VmView:
        """Store a definition for the VM's next start; extra QEMU arguments and files elsewhere need the role admin."""
        definition = parse_definition(body.text)
        if definition.extra_arguments and peer.role is not Role.ADMIN:
            raise NotPermitted("A definition with extra QEMU arguments needs the role admin.")
        await judge(peer, definition)
        if len(vms.records.all()) >= MAX_VMS and vms.records.find(definition.name) is None:
            raise Conflict(f"This host has {MAX_VMS} VMs on record.", remedy="Remove some with 'livemove vm remove'.")
        return view((await vms.define(body.text)).name)

    @router.get("/{name}")
    async def show(peer: Viewer, name: str) -> VmView:
        """One VM with its definition, and the frozen one while it runs."""
        return view(name)

    @router.delete("/{name}", status_code=204)
    async def remove(peer: Operator, name: str) -> Response:
        """Forget a stopped VM; its disks stay."""
        await vms.remove(name)
        return Response(status_code=204)

    @router.post("/{name}/start")
    async def start(peer: Operator, name: str) -> VmView:
        """Freeze the definition and run it; a VM that runs stays as it is. Refused when another host says it has the VM."""
        if vms.find_running(name) is None:
            others = [other for other in host.cluster().hosts if other != host.settings.name]
            await refuse_held(name, vms.records.get(name).uuid, others, host.client_to)
        await judge(peer, parse_definition(vms.records.get(name).definition))
        await vms.start(name)
        return view(name)

    @router.post("/{name}/stop")
    async def stop(peer: Operator, name: str, force: bool = False) -> VmView:
        """Power the guest off, with `force` end QEMU at once; an error when the guest does not react in 30 s."""
        await vms.stop(name, force=force)
        return view(name)

    def add_command(verb: str, command: str) -> None:
        @router.post(f"/{{name}}/{verb}", name=verb)
        async def run(peer: Operator, name: str) -> VmView:
            """Pause, resume or reset the guest, as the path says; refused while a hand-over is not resolved."""
            await vms.command(name, command)
            await vms.refresh(name)
            return view(name)

    for verb, command in _COMMANDS.items():
        add_command(verb, command)

    @router.get("/{name}/resolution")
    async def resolution(peer: Viewer, name: str) -> ResolutionView:
        """What this host knows of a hand-over that is not resolved, and what it would do were the other host dead."""
        return await host.resolution.look(name)

    @router.post("/{name}/resolution")
    async def declare_dead(peer: Operator, name: str, body: DeclareDead) -> ResolutionView:
        """The operator's word that the other host is fenced; refused while that host answers."""
        return await host.resolution.declare_dead(name, body, peer.name)

    @router.get("/{name}/console")
    async def console(peer: Viewer, name: str, offset: Annotated[int, Query(ge=-65536)] = 0) -> ConsoleChunk:
        """A part of the serial console's log from byte `offset`, counted from the end when negative."""
        vms.records.get(name)
        return read_console(vms.run_dir(name), offset)

    @router.post("/{name}/console", status_code=204)
    async def typed(peer: Operator, name: str, body: ConsoleInput) -> Response:
        """Type on the serial console."""
        vms.running(name)
        await type_on_console(vms.run_dir(name), body.text)
        return Response(status_code=204)

    return router
