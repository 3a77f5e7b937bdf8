"""A QEMU that hangs or dies in the copy and while it is undone: the order of cancel, lease and resume, who counts as dead."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any, cast

import pytest

from livemove.base.clock import ManualClock
from livemove.base.errors import Conflict, LivemoveError, MissingPrerequisite, QemuFailed, QemuGone
from livemove.hypervisor.qmp import QemuSilent
from livemove.migration import commands as do
from livemove.migration import departure as module
from livemove.migration import events as on
from livemove.migration.departure import DirectDeparture
from livemove.migration.events import Event
from livemove.migration.journal import SOURCE, Record
from livemove.migration.ledger import Ledger
from livemove.migration.machine import begin
from livemove.policy.convergence import Contract, Sample
from livemove.policy.paths import PathWish

#: A journey that never came to its network.
ROUTE = cast(Any, SimpleNamespace(paths=PathWish(), networking=None))
RECORD = Record("j1", SOURCE, "db1", "uuid-1", "A", "B", "ann", 0.0, {})


class Qemu:
    """The source's QEMU and its lease, as the departure drives them; `cancels` and `leases` fail first as told."""

    def __init__(self, cancels: list[LivemoveError], leases: list[LivemoveError], *, ends: bool = False) -> None:
        self.monitor = SimpleNamespace(closed=asyncio.Event(), name="db1", listen=lambda heard: lambda: None)
        self.pid = os.getpid()
        self.did: list[str] = []
        self._cancels, self._leases, self._ends = cancels, leases, ends

    async def cancel(self, *, resume: bool) -> None:
        self.did.append("cancel and run" if resume else "cancel")
        if self._cancels:
            raise self._cancels.pop(0)

    async def ensure_running(self) -> None:
        self.did.append("run")

    async def hold_lease(self) -> None:
        self.did.append("lease")
        if self._leases:
            raise self._leases.pop(0)

    async def has_ended(self) -> bool:
        return self._ends


async def undo(qemu: Qemu, *, holds: bool, resume: bool = True) -> Event | None:
    departure = DirectDeparture(
        RECORD, cast(Any, qemu), cast(Any, None), ROUTE, Ledger(0.0), ManualClock(), lambda event: None,
        cast(Any, None), lambda text, level: None,
    )  # fmt: skip
    departure.engine = cast(Any, qemu)
    departure.preparation.holds_lease = holds
    async with asyncio.timeout(5):
        return await departure.perform(do.CancelCopy(resume=resume), begin(Contract(0.3)))


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CANCEL_AGAIN_S", 0.001)


async def test_before_a_go_nothing_is_waited_for():
    qemu = Qemu([], [])
    assert await undo(qemu, holds=True) == on.CopyCancelled()
    assert qemu.did == ["cancel and run"]


async def test_after_a_go_the_copy_is_cancelled_and_then_the_lease_is_taken_before_the_guest_runs():
    qemu = Qemu([], [MissingPrerequisite("The agent has no file descriptor left.")])
    assert await undo(qemu, holds=False) == on.CopyCancelled()
    assert qemu.did == ["cancel", "lease", "lease", "run"]


async def test_a_guest_whose_lease_another_qemu_has_does_not_run():
    qemu = Qemu([], [Conflict("Another QEMU holds it.")])
    assert await undo(qemu, holds=False) == on.CopyCancelled()
    assert qemu.did == ["cancel", "lease"]


async def test_a_guest_that_was_paused_stays_so():
    qemu = Qemu([], [])
    assert await undo(qemu, holds=False, resume=False) == on.CopyCancelled()
    assert qemu.did == ["cancel"]


@pytest.mark.parametrize("error", [QemuSilent("It does not answer."), QemuFailed("It has not ended its migration.")])
async def test_a_qemu_that_hangs_is_not_dead(error: LivemoveError):
    qemu = Qemu([error, error], [])
    assert await undo(qemu, holds=True) == on.CopyCancelled()
    assert qemu.did == ["cancel and run"] * 3


@pytest.mark.parametrize("error", [QemuSilent("It does not answer."), QemuFailed("It has not ended its migration.")])
async def test_a_qemu_that_hung_and_has_ended_is(error: LivemoveError):
    assert isinstance(await undo(Qemu([error], [], ends=True), holds=True), on.SourceQemuDied)


async def test_a_qemu_that_is_gone_is_dead():
    assert isinstance(await undo(Qemu([QemuGone("It is gone.")], []), holds=True), on.SourceQemuDied)


async def test_a_qemu_that_hung_is_looked_at_again():
    """Else its rounds would go on for ever: nobody would see that the rest fits into the downtime."""
    heard: list[Event] = []
    departure = DirectDeparture(
        RECORD, cast(Any, Qemu([], [])), cast(Any, None), ROUTE, Ledger(0.0), ManualClock(), heard.append,
        cast(Any, None), lambda text, level: None,
    )  # fmt: skip
    answers: list[Any] = [QemuSilent("It does not answer."), Sample(2.0, 2, 1 << 20, 1e6), QemuGone("It is gone.")]

    async def sample() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    departure.engine = cast(Any, SimpleNamespace(sample=sample, counters=SimpleNamespace(rounds=2)))
    async with asyncio.timeout(10):
        await departure._sample()
    assert [type(event) for event in heard] == [on.ProgressSampled] and answers == []
