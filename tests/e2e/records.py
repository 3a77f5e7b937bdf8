"""What an agent has on disk of its journeys, read beside it, also while it is stopped or dead."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path


def newest_journey(state_dir: Path, vm: str, known: set[str]) -> str | None:
    """The journey of `vm` away from here that is not among `known`."""
    rows = _read(state_dir, "SELECT id FROM journeys WHERE role='source' AND vm=? ORDER BY started_wall_s DESC", vm)
    return next((row[0] for row in rows if row[0] not in known), None)


def phase(state_dir: Path, journey: str, role: str) -> str:
    """The phase that is on record; empty when nothing is."""
    rows = _read(state_dir, "SELECT phase FROM journeys WHERE id=? AND role=?", journey, role)
    return str(rows[0][0]) if rows else ""


def all_journeys(state_dir: Path, role: str = "") -> list[tuple[str, str, bool]]:
    """Id, phase, and whether it is open, of all journeys (or those with that role here), oldest first."""
    query = "SELECT id, phase, open FROM journeys WHERE role=? OR ?='' ORDER BY started_wall_s"
    return [(str(row[0]), str(row[1]), bool(row[2])) for row in _read(state_dir, query, role, role)]


def journal_lines(state_dir: Path, journey: str) -> list[str]:
    """The journal of a journey, oldest line first."""
    rows = _read(state_dir, "SELECT wall_s, role, phase, cause FROM journal WHERE journey=? ORDER BY number", journey)
    return [f"{wall_s:.3f} {role} {phase}: {cause}" for wall_s, role, phase, cause in rows]


def events(state_dir: Path, journey: str) -> list[str]:
    """What people were told of a journey."""
    return [str(row[0]) for row in _read(state_dir, "SELECT text FROM events WHERE journey=? ORDER BY number", journey)]


def _read(state_dir: Path, query: str, *values: str) -> list[tuple[str, ...]]:
    path = state_dir / "livemove.db"
    if not path.exists():
        return []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as db:
        return db.execute(query, values).fetchall()
