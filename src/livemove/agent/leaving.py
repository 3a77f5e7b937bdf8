"""A VM of this host as the journey that takes it away sees it; see migration.departure.SourceVm."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from livemove.agent.vms import Vms
from livemove.base.database import until_written
from livemove.base.errors import QemuGone
from livemove.hypervisor import lease
from livemove.hypervisor import process as processes
from livemove.hypervisor.frozen import FrozenVm
from livemove.hypervisor.process import QemuProcess
from livemove.hypervisor.qmp import Monitor

#: A killed process with much memory needs a while to end.
ENDING_PATIENCE_S = 15.0


@dataclass(slots=True)
class LeavingVm:
    """A VM of ours that leaves."""

    vms: Vms
    name: str
    frozen: FrozenVm
    definition: str
    monitor: Monitor
    process: QemuProcess
    accelerator: str

    async def lease_domain(self) -> str:
        return await self.vms.lease_domain()

    async def hold_lease(self) -> None:
        await self._lease(lease.take)

    async def give_up_lease(self) -> None:
        await self._lease(lease.give_up)

    async def _lease(self, change: Callable[[QemuProcess], None]) -> None:
        running = self.vms.find_running(self.name)
        if running is None:
            raise QemuGone(f"QEMU of {self.name} is gone.")
        await lease.change(change, running.process)

    @property
    def pid(self) -> int:
        return self.process.pid

    async def has_ended(self) -> bool:
        if self.monitor.closed.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ENDING_PATIENCE_S):
                    await processes.wait_gone(self.process)
        return not processes.find(self.process)

    async def remove(self, moved_to: str) -> None:
        async with self.vms.lock(self.name):
            # the guest runs elsewhere: nothing here is worth a polite end
            # and nobody may start it here before that is on record
            await until_written(
                lambda: self.vms.stopped_in_order(self.name, moved_to=moved_to, grace_s=0),
                f"That VM {self.name} moved to {moved_to}",
            )

    async def stop_powered_off(self) -> None:
        async with self.vms.lock(self.name):
            await self.vms.stopped_in_order(self.name)
