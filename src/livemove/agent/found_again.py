"""Outgoing journeys that were open when the agent ended, at its next start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from livemove.agent.departures import Departures
from livemove.agent.late_client import LateClient
from livemove.agent.leaving import LeavingVm
from livemove.agent.vms import Vms
from livemove.api.client import AgentClient
from livemove.base.clock import Clock
from livemove.base.errors import HypervisorError
from livemove.base.tasks import spawn
from livemove.migration.direct import DirectSource
from livemove.migration.journal import Journal, Record
from livemove.migration.model import State

_log = logging.getLogger(__name__)

SEARCH_INTERVAL_S = 1.0


class FoundAgain:
    """Has them resolved by asking, those whose QEMU hangs as soon as it answers or is gone."""

    def __init__(
        self, departures: Departures, vms: Vms, journal: Journal, clock: Clock, client_to: Callable[[str], AgentClient]
    ) -> None:
        self._departures = departures
        self._vms = vms
        self._journal = journal
        self._clock = clock
        self._client_to = client_to

    async def find_all(self) -> None:
        """Resolve every open journey. Raises StateUnwritable."""
        for record, state in await self._journal.open_outgoing():
            if record.vm in self._vms.mute or not await self._found(record, state):
                spawn(self._find_later(record, state), name=f"find journey {record.id} again")

    async def _find_later(self, record: Record, state: State) -> None:
        """Its QEMU hangs: whether it is dead, and what it has done, must be known first."""
        while True:
            self._departures.hold(record, state)
            if record.vm in self._vms.mute:
                await asyncio.wait([self._vms.mute[record.vm]])
            if await self._found(record, state):
                return
            await asyncio.sleep(SEARCH_INTERVAL_S)

    async def _found(self, record: Record, state: State) -> bool:
        """False while the VM's QEMU runs and does not answer, or not as it should."""
        try:
            await self._find(record, state)
        except HypervisorError as error:
            _log.error("journey %s: %s", record.id, error)
            return False
        return True

    async def _find(self, record: Record, state: State) -> None:
        running = self._vms.find_running(record.vm)
        vm_record = self._vms.records.find(record.vm)
        if running is None or vm_record is None:
            self._vms.journeys.pop(record.vm, None)
            await self._departures.recovery.resolve(record, state)
            return
        status = (await DirectSource(running.monitor, self._clock).read()).status
        vm = LeavingVm(
            self._vms, record.vm, running.frozen, vm_record.definition, running.monitor, running.process,
            vm_record.accelerator,
        )  # fmt: skip
        # made on use: a destination that left the cluster meanwhile is silent, and no reason for this agent not to start
        client = LateClient(record.destination, self._client_to)
        self._departures.take_up(record, state, vm, client, go_impossible=status != "completed")
