"""The journal of journeys: what a host knows after a crash, and the history of those that ended.

A journey has one row a role (a host may be the source of one and the destination of another). The row holds the machine's
whole state; every change is also a line of the journal, for people.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import TypeAdapter

from livemove.api.models import EventView, ReportView
from livemove.base.clock import Clock, wall_text
from livemove.base.database import Database, reading
from livemove.base.errors import UnknownJourney
from livemove.base.fault_points import around
from livemove.base.tasks import spawn
from livemove.migration.model import Incoming, IncomingPhase, Phase, State
from livemove.migration.points import GRANT

SOURCE, DESTINATION = "source", "destination"

#: Phases after which nobody asks any more: a source's last ones, and a no of the destination, which is also the answer to
#: what it knows nothing of.
_OVER = (*(phase.value for phase in Phase if phase.terminal), IncomingPhase.ABANDONED.value)

_COLUMNS = "id, role, vm, vm_uuid, source, destination, person, started_wall_s, request, phase, state, open, report"

T = TypeVar("T")

_log = logging.getLogger(__name__)

_states: TypeAdapter[State] = TypeAdapter(State)
_incomings: TypeAdapter[Incoming] = TypeAdapter(Incoming)


@dataclass(frozen=True, slots=True)
class Record:
    """What never changes of a journey.

    :param request: role-specific facts (options, addresses), plain JSON.
    """

    id: str
    role: str
    vm: str
    vm_uuid: str
    source: str
    destination: str
    person: str
    started_wall_s: float
    request: dict[str, Any]


@dataclass(frozen=True, slots=True)
class JourneyTrace:
    """What of a journey names the things that were made for it."""

    id: str
    role: str
    vm: str
    vm_uuid: str


class Journal:
    """Journeys of this host in its database."""

    def __init__(self, database: Database, clock: Clock, host: str) -> None:
        self._database = database
        self._clock = clock
        self._host = host

    async def create(self, record: Record, state: State | Incoming) -> None:
        """Put a new journey on record, durably."""

        def work(db: sqlite3.Connection) -> None:
            if record.role == SOURCE:
                # a VM leaves once at a time: an older journey that is open is one whose end could not be written
                db.execute("UPDATE journeys SET open=0 WHERE role=? AND vm=? AND open=1", (SOURCE, record.vm))
            db.execute(
                "INSERT OR REPLACE INTO journeys (id, role, vm, vm_uuid, source, destination, person, started_wall_s, request,"
                " phase, state, open) VALUES (?,?,?,?,?,?,?,?,?,?,?,1)",
                (
                    record.id, record.role, record.vm, record.vm_uuid, record.source, record.destination, record.person,
                    record.started_wall_s, json.dumps(record.request), state.phase.value, _dump(state),
                ),
            )  # fmt: skip
            self._line(db, record, state, "created")

        await self._database.run(work, durable=True)

    async def save(
        self, record: Record, state: State | Incoming, cause: str, *, durable: bool, closed: bool = False
    ) -> None:
        """Journal a change of state; with `durable` it is on disk when this returns."""

        def work(db: sqlite3.Connection) -> None:
            self.save_within(db, record, state, cause, closed=closed)

        await self._database.run(work, durable=durable)

    async def transaction(self, work: Callable[[sqlite3.Connection], None], *, durable: bool) -> None:
        """Carry out `work`, which uses :meth:`save_within`, in one transaction."""
        await self._database.run(work, durable=durable)

    def save_within(
        self, db: sqlite3.Connection, record: Record, state: State | Incoming, cause: str, *, closed: bool = False
    ) -> None:
        """:meth:`save` as part of a transaction of the caller."""
        db.execute(
            "UPDATE journeys SET phase=?, state=?, open=? WHERE id=? AND role=?",
            (state.phase.value, _dump(state), int(not closed), record.id, record.role),
        )
        self._line(db, record, state, cause)

    def _line(self, db: sqlite3.Connection, record: Record, state: State | Incoming, cause: str) -> None:
        db.execute(
            "INSERT INTO journal (journey, role, wall_s, phase, cause) VALUES (?,?,?,?,?)",
            (record.id, record.role, self._clock.wall_s(), state.phase.value, cause[:1000]),
        )

    async def open_outgoing(self) -> list[tuple[Record, State]]:
        """Journeys from here that have not ended."""
        return [(record, _state(_states, record, text)) for record, text in await self._open(SOURCE)]

    async def open_incoming(self) -> list[tuple[Record, Incoming]]:
        """Journeys to here that are not closed."""
        return [(record, _state(_incomings, record, text)) for record, text in await self._open(DESTINATION)]

    async def incoming(self, journey: str) -> tuple[Record, Incoming] | None:
        """What is on record of a journey to here, open or not."""

        def work(db: sqlite3.Connection) -> list[sqlite3.Row]:
            return db.execute(
                f"SELECT {_COLUMNS} FROM journeys WHERE id=? AND role=?", (journey, DESTINATION)
            ).fetchall()

        rows = await self._database.run(work, durable=False)
        return (_record(rows[0]), _state(_incomings, _record(rows[0]), rows[0]["state"])) if rows else None

    async def traces(self) -> list[JourneyTrace]:
        """All journeys of the history, open and ended, in either role."""

        def work(db: sqlite3.Connection) -> list[sqlite3.Row]:
            return db.execute("SELECT id, role, vm, vm_uuid FROM journeys").fetchall()

        return [JourneyTrace(*row) for row in await self._database.run(work, durable=False)]

    async def _open(self, role: str) -> list[tuple[Record, str]]:
        def work(db: sqlite3.Connection) -> list[sqlite3.Row]:
            return db.execute(
                f"SELECT {_COLUMNS} FROM journeys WHERE open=1 AND role=? ORDER BY started_wall_s", (role,)
            ).fetchall()

        return [(_record(row), row["state"]) for row in await self._database.run(work, durable=False)]

    async def lines(self, journey: str) -> list[str]:
        """The story of a journey, oldest first."""

        def work(db: sqlite3.Connection) -> list[str]:
            rows = db.execute(
                "SELECT wall_s, role, phase, cause FROM journal WHERE journey=? ORDER BY number", (journey,)
            ).fetchall()
            return [f"{wall_text(row['wall_s'])} {row['role']} {row['phase']}: {row['cause']}" for row in rows]

        return await self._database.run(work, durable=False)

    # Events and reports ---------------------------------------------------------------------------------------------

    async def add_event(self, record: Record, text: str, *, level: str = "info", event_id: int | None = None) -> None:
        """An event of a journey, for both people and programs."""

        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO events (journey, wall_s, level, event_id, vm, vm_uuid, source, destination, text)"
                " VALUES (?,?,?,?,?,?,?,?,?)",
                (
                    record.id, self._clock.wall_s(), level, event_id, record.vm, record.vm_uuid, record.source,
                    record.destination, text[:4000],
                ),
            )  # fmt: skip

        await self._database.run(work, durable=False)

    def teller(self, record: Record) -> Callable[[str, str], None]:
        """Adds events of the journey, a sentence and a level each, without anybody waiting for it."""

        def tell(text: str, level: str) -> None:
            spawn(self.add_event(record, text, level=level), name=f"event of {record.id}")

        return tell

    async def events(self, journey: str | None, *, after: int = 0, limit: int = 500) -> list[EventView]:
        """Events with numbers above `after`, oldest first; of all journeys with None."""

        def work(db: sqlite3.Connection) -> list[sqlite3.Row]:
            return db.execute(
                "SELECT * FROM events WHERE number>? AND (journey=? OR ?=0) ORDER BY number LIMIT ?",
                (after, journey or "", int(journey is not None), limit),
            ).fetchall()

        return [
            EventView(
                number=row["number"], at=wall_text(row["wall_s"]), host=self._host, level=row["level"], event_id=row["event_id"],
                correlation=row["journey"], vm=row["vm"], vm_uuid=row["vm_uuid"], source=row["source"],
                destination=row["destination"], text=row["text"],
            )
            for row in await self._database.run(work, durable=False)
        ]  # fmt: skip

    async def save_report(self, record: Record, report: ReportView) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE journeys SET report=? WHERE id=? AND role=?", (report.model_dump_json(), record.id, record.role)
            )

        await self._database.run(work, durable=True)

    async def reports(self, *, journey_or_vm: str | None = None, limit: int = 50) -> list[ReportView]:
        """Reports of ended journeys, newest first."""

        def work(db: sqlite3.Connection) -> list[str]:
            rows = db.execute(
                "SELECT report FROM journeys WHERE report IS NOT NULL AND (? IN (id, vm) OR ?) ORDER BY started_wall_s DESC LIMIT ?",
                (journey_or_vm or "", int(journey_or_vm is None), limit),
            ).fetchall()
            return [row["report"] for row in rows]

        return [found for text in await self._database.run(work, durable=False) if (found := _report(text)) is not None]

    async def newest_id(self, journey_or_vm: str) -> str | None:
        """The id of the newest journey of that id or VM, in either role; None when there is none."""

        def work(db: sqlite3.Connection) -> list[sqlite3.Row]:
            return db.execute(
                "SELECT id FROM journeys WHERE ? IN (id, vm) ORDER BY started_wall_s DESC LIMIT 1", (journey_or_vm,)
            ).fetchall()

        rows = await self._database.run(work, durable=False)
        return str(rows[0]["id"]) if rows else None

    async def replace_report(self, report: ReportView) -> None:
        """A report with something added afterwards."""

        def work(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE journeys SET report=? WHERE id=? AND report IS NOT NULL", (report.model_dump_json(), report.id)
            )

        await self._database.run(work, durable=False)

    async def keep_foreign_report(self, journey: str, source: str, report: ReportView) -> None:
        """The source's report of a journey that came here. Raises UnknownJourney when none of that source is on record."""

        def work(db: sqlite3.Connection) -> int:
            return db.execute(
                "UPDATE journeys SET report=? WHERE id=? AND role=? AND source=?",
                (report.model_dump_json(), journey, DESTINATION, source),
            ).rowcount

        if report.id != journey or await self._database.run(work, durable=False) == 0:
            raise UnknownJourney(f"No journey {journey} from {source} is on record here.")

    async def forget_before(self, wall_s: float) -> None:
        """Remove journeys that ended before `wall_s`, with their story.

        What is evidence stays, however old: open journeys, those whose end was never written, and a VM that came here as
        long as its source has not reported that it knows. Without that row this host would answer that it does not own it.
        """

        def work(db: sqlite3.Connection) -> None:
            old = [
                (row["id"], row["role"])
                for row in db.execute(
                    "SELECT id, role FROM journeys LEFT JOIN"
                    " (SELECT journey, role AS told_by, MAX(wall_s) AS ended_wall_s FROM journal GROUP BY journey, role)"
                    " ON journey=id AND told_by=role"
                    " WHERE open=0 AND COALESCE(ended_wall_s, started_wall_s)<?"
                    f" AND (phase IN ({','.join('?' * len(_OVER))}) OR (role=? AND phase=? AND report IS NOT NULL))",
                    (wall_s, *_OVER, DESTINATION, IncomingPhase.SETTLED.value),
                )
            ]
            db.executemany("DELETE FROM events WHERE journey=?", [(journey,) for journey, _ in old])
            db.executemany("DELETE FROM journal WHERE journey=? AND role=?", old)
            db.executemany("DELETE FROM journeys WHERE id=? AND role=?", old)

        await self._database.run(work, durable=False)

    async def consume_grant(self, grant: str, expires_wall_s: float) -> bool:
        """True the first time; a grant is used once. Durable before it takes effect."""

        def work(db: sqlite3.Connection) -> bool:
            db.execute("DELETE FROM used_grants WHERE expires_wall_s<?", (self._clock.wall_s() - 60,))
            found = db.execute(
                "INSERT OR IGNORE INTO used_grants (id, expires_wall_s) VALUES (?,?)", (grant, expires_wall_s)
            )
            return found.rowcount == 1

        with around("destination.journal", GRANT):
            return await self._database.run(work, durable=True)


def _report(text: str) -> ReportView | None:
    """A report of the history; one of another version is left out."""
    try:
        return ReportView.model_validate_json(text)
    except ValueError as error:
        _log.warning("a report of the history cannot be read and is left out: %s", str(error).splitlines()[0])
        return None


def _dump(state: State | Incoming) -> str:
    return (_states.dump_json(state) if isinstance(state, State) else _incomings.dump_json(state)).decode()


def _record(row: sqlite3.Row) -> Record:
    with reading(f"journey {row['id']} of VM '{row['vm']}'"):
        found = Record(
            row["id"], row["role"], row["vm"], row["vm_uuid"], row["source"], row["destination"], row["person"],
            float(row["started_wall_s"]), json.loads(row["request"]),
        )  # fmt: skip
        texts = (found.id, found.role, found.vm, found.vm_uuid, found.source, found.destination, found.person)
        if not all(isinstance(text, str) for text in texts) or not isinstance(found.request, dict):
            raise ValueError("it is not made of texts")
        return found


def _state(kind: TypeAdapter[T], record: Record, text: str) -> T:
    with reading(f"journey {record.id} of VM '{record.vm}'"):
        return kind.validate_json(text)
