"""Journeys whose source's QEMU is gone as well when the agent starts again: asking is all that is left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from livemove.agent.vms import Vms
from livemove.api.client import AgentClient
from livemove.api.incoming_models import AskGo, OwnershipAnswer
from livemove.base.clock import Clock
from livemove.base.database import until_written
from livemove.base.errors import LivemoveError, PeerViolation, QemuGone, UnknownVm
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.migration.departure import GO_PATIENCE_S
from livemove.migration.journal import Journal, Record
from livemove.migration.model import GuestRun, Owner, Phase, State, Verify
from livemove.migration.report import bare_report

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Asking:
    """A journey whose destination is being asked."""

    record: Record
    state: State
    task: asyncio.Task[None] | None = None
    last_word: str = ""


class Recovery:
    """Resolves them one by one; those that nobody can answer yet stay unresolved, and their VMs may not be started."""

    def __init__(self, vms: Vms, journal: Journal, clock: Clock, client_to: Callable[[str], AgentClient]) -> None:
        self._vms = vms
        self._journal = journal
        self._clock = clock
        self._client_to = client_to
        #: by VM: journeys whose destination has not answered yet
        self.asking: dict[str, Asking] = {}

    async def resolve(self, record: Record, state: State) -> None:
        """The source's QEMU is gone too: either the VM moved, or it crashed; the destination knows."""
        if state.owner is Owner.DESTINATION:
            answer_owned = True
        elif not state.may_hand_over:
            answer_owned = False
            await self._abandon_quietly(record)
        else:
            self._vms.unresolved.add(record.vm)
            asking = self.asking[record.vm] = Asking(record, state)
            asking.task = spawn(self._ask_until_known(asking), name=f"resolve {record.id}")
            return
        await self._close_without_qemu(record, state, owned=answer_owned)
        # nobody could run it while its QEMU was looked for
        self._vms.unresolved.discard(record.vm)

    async def _abandon_quietly(self, record: Record) -> None:
        try:
            async with self._client_to(record.destination) as client:
                await client.abandon(record.id, timeout_s=3)
        except LivemoveError as error:
            _log.info("journey %s: the destination was not told to clean up: %s", record.id, error)

    async def take_back(self, vm: str, by: str) -> Record:
        """An operator's word that the destination is dead: the VM crashed here and may be started anew."""
        asking = self.asking.pop(vm, None)
        if asking is None:
            raise UnknownVm(f"The hand-over of VM '{vm}' has just been resolved.", remedy="See 'livemove vm list'.")
        await cancel_and_wait(asking.task)
        await self._close_without_qemu(
            asking.record, asking.state, owned=False, reason=f"{by} declared {asking.record.destination} dead"
        )
        self._vms.unresolved.discard(vm)
        return asking.record

    async def _ask_until_known(self, asking: Asking) -> None:
        record, state = asking.record, asking.state
        while True:
            try:
                async with self._client_to(record.destination) as client:
                    answer = await self._ask(client, record, state)
                break
            except LivemoveError as error:
                _log.warning("journey %s: still asking %s: %s", record.id, record.destination, error)
                asking.last_word = error.message
                await asyncio.sleep(2)
        # nobody may start the VM here before it is on record where it is
        await until_written(
            lambda: self._close_without_qemu(record, state, owned=answer.owned), f"The end of journey {record.id}"
        )
        self.asking.pop(record.vm, None)
        self._vms.unresolved.discard(record.vm)

    async def _ask(self, client: AgentClient, record: Record, state: State) -> OwnershipAnswer:
        """Whose is the VM? Where the GO was on record nothing has run here since, so the destination is told to take it."""
        if state.owner is Owner.UNKNOWN and state.verify is Verify.OFF:
            try:
                return await client.go(
                    record.id, AskGo(resume=state.guest is GuestRun.RUNNING), timeout_s=GO_PATIENCE_S
                )
            except PeerViolation as error:
                _log.warning("journey %s: %s", record.id, error)
        return await client.ask(record.id, timeout_s=GO_PATIENCE_S)

    async def _close_without_qemu(self, record: Record, state: State, *, owned: bool, reason: str = "") -> None:
        owner = Owner.DESTINATION if owned else Owner.SOURCE
        end = replace(state, phase=Phase.COMPLETED if owned else Phase.FAILED, owner=owner)
        if owned and self._vms.records.find(record.vm) is not None:
            async with self._vms.lock(record.vm):
                await self._vms.stopped_in_order(record.vm, moved_to=record.destination)
        text = "the VM is at the destination" if owned else "the VM crashed on the source while the agent was away"
        text += f" ({reason})" if reason else ""
        await self._journal.save(record, end, text, durable=True, closed=True)
        await self._journal.add_event(record, f"Resolved after a restart: {text}.", level="info" if owned else "error")
        report = bare_report(
            record, end, "" if owned else QemuGone.code, f"Resolved after a restart: {text}.", self._clock
        )
        await self._journal.save_report(record, report)
        if owned:
            # it may forget the journey some day when it knows that we know
            with contextlib.suppress(LivemoveError):
                async with self._client_to(record.destination) as client:
                    await client.keep_report(record.id, report)
