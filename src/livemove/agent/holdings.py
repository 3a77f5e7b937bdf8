"""Before a VM is started: does another host have it? What can be asked is asked; a lease is what binds (hypervisor.lease)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from livemove.agent.arrivals import Arrivals
from livemove.agent.vm_view import view_vm
from livemove.agent.vms import Vms
from livemove.api.client import AgentClient
from livemove.api.resolution_models import HoldingView
from livemove.base.errors import Conflict, LivemoveError
from livemove.migration.model import IncomingPhase

_log = logging.getLogger(__name__)

#: A host that is up answers in milliseconds; a dead one must not make every start wait.
ANSWER_S = 1.0
#: States of a VM that is not on that host, or that its owner starts when he likes.
ELSEWHERE = ("", "moved", "stopped")


def holding(vms: Vms, arrivals: Arrivals, vm_uuid: str, host: str) -> HoldingView:
    """What this host has of a VM."""
    for arrival in arrivals.all():
        phase = arrival.state.phase
        if arrival.record.vm_uuid == vm_uuid and phase is not IncomingPhase.ABANDONED and not phase.owns:
            return HoldingView(name=arrival.record.vm, state="arriving")
    for record in vms.records.all():
        if record.uuid == vm_uuid:
            return HoldingView(name=record.name, state=view_vm(vms, record, host).state)
    return HoldingView()


async def refuse_held(name: str, vm_uuid: str, hosts: Iterable[str], client_to: Callable[[str], AgentClient]) -> None:
    """Raises Conflict when one of `hosts` says that it has the VM; those that are silent are passed over."""

    async def ask(host: str) -> tuple[str, HoldingView]:
        try:
            async with client_to(host) as client:
                return host, await client.holding(vm_uuid, timeout_s=ANSWER_S)
        except LivemoveError as error:
            _log.info("start of VM %s: %s was not asked: %s", name, host, error)
            return host, HoldingView()

    for host, view in await asyncio.gather(*map(ask, hosts)):
        if view.state not in ELSEWHERE:
            raise Conflict(
                f"VM '{name}' is {view.state} on {host}; started here it would run twice.",
                remedy=f"Use it there, or look with 'livemove resolve {name}' if it should not be there.",
            )
