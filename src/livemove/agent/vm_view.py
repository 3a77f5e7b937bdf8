"""What people see of a VM."""

from __future__ import annotations

from livemove.agent.vm_records import VmRecord
from livemove.agent.vms import Vms
from livemove.api.models import VmView
from livemove.hypervisor.frozen import definition_digest


def view_vm(vms: Vms, record: VmRecord, host: str) -> VmView:
    """What people see of one VM."""
    running = vms.find_running(record.name)
    frozen = record.frozen
    state = running.status if running else "moved" if record.moved_to else "stopped"
    # the QEMU of a VM that moved may be long in ending, and is never used again
    if record.name in vms.unresolved or (record.name in vms.mute and not record.moved_to):
        state = "unknown"
    elif record.name in vms.journeys and running:
        state = "leaving" if running.status == "running" else running.status
    return VmView(
        name=record.name, host=host, uuid=record.uuid, state=state, accelerator=record.accelerator,
        cpus=frozen.cpus if frozen else 0, memory_bytes=frozen.memory_bytes if frozen else 0,
        memory_backing=record.backing, pid=running.process.pid if running else None, moved_to=record.moved_to,
        journey=vms.journeys.get(record.name, ""), definition=record.definition,
        edited=frozen is not None and frozen.definition_digest != definition_digest(record.definition),
        frozen=frozen.model_dump(mode="json") if frozen else None,
    )  # fmt: skip
