"""What a destination answers about journeys that ended, from its records alone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from livemove.agent.arrival_effects import Arrival
from livemove.agent.arrivals import Arrivals
from livemove.agent.networking import AgentNetworking
from livemove.agent.vm_records import VmRecord, VmRecords
from livemove.agent.vms import Vms
from livemove.api.incoming_models import OfferBody
from livemove.base.clock import ManualClock
from livemove.base.database import Database
from livemove.base.errors import Conflict, PeerViolation, QemuFailed
from livemove.base.settings import HostSettings
from livemove.hypervisor.process import QemuProcess
from livemove.migration.journal import DESTINATION, Journal, Record
from livemove.migration.model import Incoming, IncomingPhase

VM = VmRecord("db1", "uuid-1", 'name = "db1"', arrived_in="j1")


@dataclass
class Destination:
    records: VmRecords
    journal: Journal
    arrivals: Arrivals
    ended: list[str] = field(default_factory=list)
    stuck: bool = False

    async def end_orphan(self, name: str, uuid: str) -> None:
        """In the place of Vms.discard_orphan."""
        if self.stuck:
            raise QemuFailed("It has not ended.")
        self.ended.append(name)

    async def holds(self, *, loaded: bool = True) -> None:
        """An armed journey, known to this agent or (not `loaded`) to its journal alone."""
        record = Record("j1", DESTINATION, "db1", "uuid-1", "A", "B", "ann", 0.0, {})
        armed = Incoming(IncomingPhase.ARMED)
        await self.journal.create(record, Incoming(IncomingPhase.RESERVED))
        await self.journal.save(record, armed, "arm", durable=True)
        if loaded:
            self.arrivals._arrivals["j1"] = Arrival(record, armed)

    async def came(self, journey: str = "j1") -> None:
        record = Record(journey, DESTINATION, "db1", "uuid-1", "A", "B", "ann", 0.0, {})
        await self.journal.create(record, Incoming(IncomingPhase.RESERVED))
        settled = Incoming(IncomingPhase.SETTLED, resume=True, continued=True)
        await self.journal.save(record, settled, "settled", durable=True, closed=True)
        await self.records.put(replace(VM, arrived_in=journey))


@pytest.fixture
async def b(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Destination]:
    settings = HostSettings(name="B", state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    database, clock = Database(tmp_path / "x.db"), ManualClock()
    await database.open()
    records, journal = VmRecords(database), Journal(database, clock, "B")
    vms = Vms(lambda: settings, cast(Any, None), records)
    arrivals = Arrivals(
        lambda: settings, vms, journal, clock, lambda: cast(OfferBody, None), cast(AgentNetworking, None)
    )
    made = Destination(records, journal, arrivals)
    monkeypatch.setattr(vms, "discard_orphan", made.end_orphan)
    yield made
    await database.close()


async def test_a_vm_whose_record_names_the_journey_is_owned_though_the_journey_is_forgotten(b: Destination) -> None:
    assert not (await b.arrivals.ask("j1", "A")).owned
    await b.records.put(VM)
    for asked in (b.arrivals.ask, b.arrivals.abandon):
        assert (await asked("j1", "A")).owned
    assert (await b.arrivals.go("j1", "A", resume=True)).owned
    assert not (await b.arrivals.ask("j2", "A")).owned
    # it went on to a third host, where it may run
    await b.records.put(replace(VM, moved_to="C"))
    assert (await b.arrivals.ask("j1", "A")).owned
    await b.records.put(replace(VM, moved_to="A"))
    assert not (await b.arrivals.ask("j1", "A")).owned


async def test_an_overruled_host_gives_the_vm_up_once(b: Destination) -> None:
    await b.came()
    await b.arrivals.overrule("j1", "A")
    assert b.records.get("db1").moved_to == "A"
    assert not (await b.arrivals.ask("j1", "A")).owned
    # the answer was lost, the VM came back meanwhile and was used, and the source says it again
    for later in (replace(VM, arrived_in="j2"), replace(VM, arrived_in="")):
        await b.records.put(later)
        await b.arrivals.overrule("j1", "A")
        assert b.records.get("db1") == later


async def test_a_vm_that_came_anew_or_whose_qemu_is_there_is_not_given_up(b: Destination) -> None:
    await b.came()
    here = QemuProcess("db1", 1, 1)
    for kept in (replace(VM, arrived_in="j2"), replace(VM, arrived_in=""), replace(VM, process=here)):
        await b.records.put(kept)
        with pytest.raises(Conflict):
            await b.arrivals.overrule("j1", "A")
        assert b.records.get("db1") == kept


async def test_an_overruled_host_throws_what_it_only_holds_away(b: Destination) -> None:
    """It was never told to take the VM, and what it has loaded is older than what happened since."""
    await b.holds()
    await b.arrivals.overrule("j1", "A")
    assert b.ended == ["db1"]
    answer = await b.arrivals.ask("j1", "A")
    assert not answer.owned and answer.reason == "A took the VM back"
    with contextlib.suppress(PeerViolation):
        assert not (await b.arrivals.go("j1", "A", resume=True)).owned


async def test_an_arrival_whose_qemu_cannot_be_ended_keeps_no_agent_from_starting(b: Destination) -> None:
    await b.holds(loaded=False)
    b.stuck = True
    await b.arrivals.find_again()
    assert [arrival.record.id for arrival in b.arrivals.all()] == ["j1"]
    with pytest.raises(QemuFailed):
        # a no would be a lie while it lives
        await b.arrivals.ask("j1", "A")
    b.stuck = False
    assert not (await b.arrivals.ask("j1", "A")).owned
    assert await b.journal.open_incoming() == []
    await b.arrivals.close()
