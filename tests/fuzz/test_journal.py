"""A database that is damaged, cut off, or from a newer version: said with a remedy, and nothing is read wrongly."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemove.agent.vm_records import VmRecord, VmRecords
from livemove.base.clock import ManualClock
from livemove.base.database import FORMAT, Database
from livemove.base.errors import LivemoveError, StateDamaged
from livemove.hypervisor.process import QemuProcess
from livemove.migration.journal import DESTINATION, SOURCE, Journal, Record
from livemove.migration.machine import begin
from livemove.migration.model import Contract, Incoming, IncomingPhase

from .frozen import UUID, frozen_vm
from .profile import altered, anything, fuzz

COLUMNS = {
    "journeys": ("id", "role", "vm", "vm_uuid", "source", "person", "started_wall_s", "request", "phase", "state", "report"),
    "vms": ("name", "uuid", "definition", "frozen", "process", "moved_to", "backing"),
}  # fmt: skip


async def _write(path: Path) -> None:
    database = Database(path)
    await database.open()
    journal, records = Journal(database, ManualClock(), "A"), VmRecords(database)
    process = QemuProcess("web1", 4242, 99)
    await records.put(VmRecord("web1", UUID, 'name = "web1"\n', frozen_vm(), process, "tcg"))
    await journal.create(
        Record("out-0001", SOURCE, "web1", UUID, "A", "B", "ann", 1.0, {"options": {}}), begin(Contract(0.3))
    )
    arriving = Record("in-0001", DESTINATION, "db1", UUID, "B", "A", "ann", 2.0, {"role": "operator"})
    await journal.create(arriving, Incoming(IncomingPhase.ARMED))
    await database.close()


async def _read(path: Path) -> tuple[list[Any], ...]:
    """All that an agent reads at its start and when it is asked about the past."""
    database = Database(path)
    try:
        await database.open()
        journal, records = Journal(database, ManualClock(), "A"), VmRecords(database)
        await records.load()
        found = (records.all(), await journal.open_outgoing(), await journal.open_incoming())
        await journal.incoming("in-0001")
        await journal.reports()
        await journal.traces()
        await journal.lines("out-0001")
        return found
    finally:
        await database.close()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "livemove.db"
    asyncio.run(_write(path))
    return path


@pytest.fixture
def spoilt(good: Path, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "livemove.db"
    shutil.copy(good, path)
    yield path


def change(path: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(path) as db:
        db.execute(statement, values)
    db.close()


def refusal(path: Path) -> StateDamaged:
    with pytest.raises(StateDamaged) as caught:
        asyncio.run(_read(path))
    assert caught.value.message.endswith(".") and "\n" not in caught.value.message and caught.value.remedy
    return caught.value


def test_what_was_written_is_read(good: Path) -> None:
    vms, outgoing, incoming = asyncio.run(_read(good))
    assert ([vm.name for vm in vms], len(outgoing), len(incoming)) == (["web1"], 1, 1)


def test_a_phase_of_a_newer_version_names_journey_and_vm(spoilt: Path) -> None:
    state = {"phase": "teleporting", "resume": True, "continued": False, "reason": ""}
    change(spoilt, "UPDATE journeys SET state=? WHERE role='destination'", json.dumps(state))
    assert "in-0001" in refusal(spoilt).message and "'db1'" in refusal(spoilt).message


def test_a_vm_that_cannot_be_read_is_named(spoilt: Path) -> None:
    change(spoilt, "UPDATE vms SET frozen='{}'")
    assert "'web1'" in refusal(spoilt).message


def test_a_newer_form_of_the_tables(spoilt: Path) -> None:
    change(spoilt, f"PRAGMA user_version={FORMAT + 1}")
    assert f"format {FORMAT + 1}" in refusal(spoilt).message
    with sqlite3.connect(spoilt) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == FORMAT + 1, "it was not touched"
    db.close()


def test_a_file_that_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "livemove.db"
    path.write_bytes(b"#!/bin/sh\n" * 1000)
    assert str(path) in refusal(path).message


def test_a_report_of_another_version_does_not_hide_the_others(spoilt: Path) -> None:
    change(spoilt, "UPDATE journeys SET report='{\"new\": 1}'")
    asyncio.run(_read(spoilt))


@fuzz
@given(st.sampled_from([(t, c) for t, columns in COLUMNS.items() for c in columns]),
       st.text(max_size=20) | st.integers(-9, 9) | st.binary(max_size=9) | st.none() | anything.map(json.dumps))  # fmt: skip
def test_any_value_in_any_column(
    good: Path, tmp_path_factory: pytest.TempPathFactory, place: tuple[str, str], value: object
) -> None:
    path = tmp_path_factory.mktemp("db") / "livemove.db"
    shutil.copy(good, path)
    try:
        change(path, f"UPDATE {place[0]} SET {place[1]}=?", value)
    except (sqlite3.IntegrityError, UnicodeEncodeError):
        return
    try:
        asyncio.run(_read(path))
    except LivemoveError as error:
        assert error.remedy and error.message


@fuzz
@given(data=st.data())
def test_a_file_with_altered_bytes(good: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("db") / "livemove.db"
    path.write_bytes(data.draw(altered(good.read_bytes())))
    try:
        asyncio.run(_read(path))
    except LivemoveError as error:
        assert error.remedy and error.message
