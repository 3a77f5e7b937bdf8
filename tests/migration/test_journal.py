"""What is remembered, and what is forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from livemove.api.models import ReportView
from livemove.base.clock import ManualClock
from livemove.base.database import Database
from livemove.base.errors import UnknownJourney
from livemove.migration.journal import DESTINATION, SOURCE, Journal, Record
from livemove.migration.machine import begin
from livemove.migration.model import Abort, Ending, Incoming, IncomingPhase, Owner, Phase, State
from livemove.policy.convergence import Contract, Memory

RECORD = Record("j1", SOURCE, "db1", "uuid-1", "a", "b", "ann", 1000.0, {"options": {"channels": 2}})
OVER = replace(begin(Contract(0.3)), phase=Phase.COMPLETED, owner=Owner.DESTINATION)


def report(journey: str = "j1") -> ReportView:
    return ReportView(
        id=journey, vm="db1", vm_uuid="uuid-1", source="a", destination="b", person="ann", outcome="completed",
        owner="destination", code="", reason="", remedy="", started="", ended="", option="tcp", option_reason="",
        engine="direct", channels=2, compression="none", tls=True, memory_bytes=1, total_ms=1.0,
    )  # fmt: skip


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(wall_s=2000.0)


@pytest.fixture
async def journal(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Journal]:
    database = Database(tmp_path / "x.db")
    await database.open()
    yield Journal(database, clock, "a")
    await database.close()


async def test_a_state_comes_back_as_it_was(journal: Journal):
    state = State(
        Phase.ABORTING, Owner.SOURCE, Contract(0.5, 60.0, 30), armed=True, convergence=Memory(3, (1, 2, 3), 1, 2, 0.2, True),
        abort=Abort(Ending.CANCELLED, "c", "r", "", True, False),
    )  # fmt: skip
    await journal.create(RECORD, begin(Contract(0.3)))
    await journal.save(RECORD, state, "test", durable=True)
    assert await journal.open_outgoing() == [(RECORD, state)]
    assert await journal.open_incoming() == []


async def test_both_roles_of_one_journey_live_side_by_side(journal: Journal):
    arriving = replace(RECORD, role=DESTINATION)
    await journal.create(RECORD, begin(Contract(0.3)))
    await journal.create(arriving, Incoming(IncomingPhase.RESERVED))
    await journal.save(arriving, Incoming(IncomingPhase.ABANDONED, reason="x"), "abandon", durable=True, closed=True)
    assert len(await journal.open_outgoing()) == 1
    assert await journal.open_incoming() == []
    assert await journal.incoming("j1") == (arriving, Incoming(IncomingPhase.ABANDONED, reason="x"))
    assert await journal.incoming("j2") is None


async def test_events_by_journey_and_after_a_number(journal: Journal):
    other = replace(RECORD, id="j2")
    await journal.add_event(RECORD, "one", event_id=20413)
    await journal.add_event(other, "two")
    await journal.add_event(RECORD, "three", level="error")
    mine = await journal.events("j1")
    assert [event.text for event in mine] == ["one", "three"]
    assert (mine[0].event_id, mine[0].correlation, mine[0].host) == (20413, "j1", "a")
    assert [event.text for event in await journal.events(None, after=mine[0].number)] == ["two", "three"]
    assert [event.text for event in await journal.events(None, limit=1)] == ["one"]


async def test_reports_by_id_or_vm_and_of_other_hosts(journal: Journal):
    await journal.create(RECORD, begin(Contract(0.3)))
    assert await journal.reports() == []
    await journal.save_report(RECORD, report())
    assert [found.id for found in await journal.reports(journey_or_vm="db1")] == ["j1"]
    assert await journal.reports(journey_or_vm="other") == []
    await journal.replace_report(report().model_copy(update={"downtime_client_ms": 7.0}))
    assert (await journal.reports())[0].downtime_client_ms == 7.0
    with pytest.raises(UnknownJourney):
        await journal.keep_foreign_report("j1", "a", report())
    assert await journal.newest_id("db1") == "j1"
    assert await journal.newest_id("?") is None


async def test_a_grant_is_used_once(journal: Journal):
    assert await journal.consume_grant("g1", 3000.0)
    assert not await journal.consume_grant("g1", 3000.0)


async def test_history_is_forgotten_and_open_journeys_are_not(journal: Journal, clock: ManualClock):
    ended = replace(RECORD, id="old", vm="db2")
    await journal.create(ended, begin(Contract(0.3)))
    await journal.add_event(ended, "long ago")
    await journal.save(ended, OVER, "end", durable=True, closed=True)
    await journal.create(RECORD, begin(Contract(0.3)))
    await journal.forget_before(clock.wall_s() + 1)
    assert await journal.events("old") == [] and await journal.lines("old") == []
    assert await journal.newest_id("old") is None
    assert [record.id for record, _ in await journal.open_outgoing()] == ["j1"]


async def test_history_is_counted_from_the_end_of_a_journey(journal: Journal, clock: ManualClock):
    await journal.create(RECORD, begin(Contract(0.3)))
    await journal.save(RECORD, OVER, "end", durable=True, closed=True)
    # it started long before
    await journal.forget_before(clock.wall_s() - 1)
    assert await journal.newest_id("j1") == "j1"
    await journal.forget_before(clock.wall_s() + 1)
    assert await journal.newest_id("j1") is None


async def test_a_vm_that_came_here_is_not_forgotten_before_its_source_knows(journal: Journal, clock: ManualClock):
    arrived, refused = replace(RECORD, role=DESTINATION), replace(RECORD, id="j2", role=DESTINATION)
    settled = Incoming(IncomingPhase.SETTLED, resume=True, continued=True)
    for record, state in ((arrived, settled), (refused, Incoming(IncomingPhase.ABANDONED, reason="x"))):
        await journal.create(record, Incoming(IncomingPhase.RESERVED))
        await journal.save(record, state, "end", durable=True, closed=True)
    much_later = clock.wall_s() + 1e9
    await journal.forget_before(much_later)
    assert await journal.incoming("j1") == (arrived, settled)
    assert await journal.incoming("j2") is None
    await journal.keep_foreign_report("j1", "a", report())
    await journal.forget_before(much_later)
    assert await journal.incoming("j1") is None


async def test_a_journey_from_here_whose_end_was_never_written_is_not_forgotten(journal: Journal, clock: ManualClock):
    await journal.create(RECORD, begin(Contract(0.3)))
    # the VM leaves anew, which closes what could not be
    await journal.create(replace(RECORD, id="j2"), begin(Contract(0.3)))
    assert [record.id for record, _ in await journal.open_outgoing()] == ["j2"]
    await journal.forget_before(clock.wall_s() + 1e9)
    assert await journal.newest_id("j1") == "j1"
