"""Journeys whose source's QEMU is gone when the agent starts again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from livemove.agent.recovery import Recovery
from livemove.agent.vm_records import VmRecord, VmRecords
from livemove.agent.vms import Vms
from livemove.api.client import AgentClient
from livemove.base.clock import ManualClock
from livemove.base.database import Database
from livemove.base.errors import AgentUnreachable
from livemove.base.settings import HostSettings
from livemove.migration.journal import SOURCE, Journal, Record
from livemove.migration.machine import begin
from livemove.migration.model import Owner, Phase
from livemove.policy.convergence import Contract

RECORD = Record("j1", SOURCE, "db1", "uuid-1", "A", "B", "ann", 0.0, {})


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(tmp_path / "x.db")
    await made.open()
    yield made
    await made.close()


def nobody(host: str) -> AgentClient:
    raise AgentUnreachable(f"'{host}' does not answer.")


async def test_a_vm_that_had_moved_is_resolved_when_its_journey_is_closed(database: Database, tmp_path: Path) -> None:
    """The agent ended while it removed the source's remains, and looked for its QEMU when it was back."""
    settings = HostSettings(name="A", state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    records, journal = VmRecords(database), Journal(database, ManualClock(), "A")
    vms = Vms(lambda: settings, cast(Any, None), records)
    await records.put(VmRecord("db1", "uuid-1", 'name = "db1"', moved_to="B"))
    state = replace(begin(Contract(0.3)), phase=Phase.CLEANING, owner=Owner.DESTINATION, may_hand_over=True)
    await journal.create(RECORD, state)
    vms.unresolved.add("db1")
    await Recovery(vms, journal, ManualClock(), nobody).resolve(RECORD, state)
    assert vms.unresolved == set() and await journal.open_outgoing() == []
    assert records.get("db1").moved_to == "B"
