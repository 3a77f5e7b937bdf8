"""Transactions are whole, and a disk that cannot be written is named."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from livemove.base.database import Database
from livemove.base.errors import StateDamaged, StateUnwritable


async def test_a_failed_transaction_leaves_nothing(tmp_path: Path):
    database = Database(tmp_path / "d" / "x.db")
    await database.open()

    def half(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO used_grants VALUES ('a', 1)")
        raise ValueError("half-way")

    with pytest.raises(ValueError, match="half-way"):
        await database.run(half, durable=True)
    count = await database.run(lambda db: db.execute("SELECT count(*) FROM used_grants").fetchone()[0], durable=False)
    assert count == 0
    await database.close()
    await database.close()
    with pytest.raises((StateUnwritable, RuntimeError)):
        await database.run(lambda db: None, durable=False)


async def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    database = Database(tmp_path / "file" / "x.db")
    with pytest.raises(StateUnwritable, match="cannot be written"):
        await database.open()
    await database.close()


async def test_a_file_that_is_no_database_is_named(tmp_path: Path):
    (tmp_path / "x.db").write_bytes(b"rubbish" * 1000)
    database = Database(tmp_path / "x.db")
    with pytest.raises(StateDamaged):
        await database.open()
    await database.close()


async def test_a_database_of_an_older_version_gets_what_is_new(tmp_path: Path):
    path = tmp_path / "x.db"
    with sqlite3.connect(path) as old:
        old.execute(
            "CREATE TABLE vms (name TEXT PRIMARY KEY, uuid TEXT NOT NULL, definition TEXT NOT NULL, frozen TEXT, process TEXT,"
            " accelerator TEXT NOT NULL DEFAULT '', moved_to TEXT NOT NULL DEFAULT '', backing TEXT NOT NULL DEFAULT '')"
        )
        old.execute("INSERT INTO vms (name, uuid, definition) VALUES ('db1', 'u', 'name = \"db1\"')")
    for _ in range(2):
        database = Database(path)
        await database.open()
        row = await database.run(lambda db: db.execute("SELECT * FROM vms").fetchone(), durable=False)
        assert (row["name"], row["arrived_in"]) == ("db1", "")
        await database.close()
