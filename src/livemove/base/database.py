"""The agent's SQLite database: one file, one connection, one thread.

Write-ahead logging; a durable transaction is on disk (fsync) when :meth:`Database.run` returns, any other one may be lost
with the machine's power but never torn. The journal's safety rests on exactly this, so every caller says which it needs.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from livemove.base.errors import LivemoveError, StateDamaged, StateUnwritable

T = TypeVar("T")

_log = logging.getLogger(__name__)

#: Number of the tables' form; a newer one may mean more than this version understands.
FORMAT = 1
#: What SQLite says of a file that is not what it wrote; Python itself says the rest (text that is none), without a code.
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT)

#: How often it is tried again to write what must be on record.
UNWRITABLE_PAUSE_S = 2.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS vms (
    name TEXT PRIMARY KEY, uuid TEXT NOT NULL, definition TEXT NOT NULL, frozen TEXT, process TEXT,
    accelerator TEXT NOT NULL DEFAULT '', moved_to TEXT NOT NULL DEFAULT '', backing TEXT NOT NULL DEFAULT '',
    arrived_in TEXT NOT NULL DEFAULT '');
CREATE TABLE IF NOT EXISTS journeys (
    id TEXT NOT NULL, role TEXT NOT NULL, vm TEXT NOT NULL, vm_uuid TEXT NOT NULL, source TEXT NOT NULL,
    destination TEXT NOT NULL, person TEXT NOT NULL, started_wall_s REAL NOT NULL, request TEXT NOT NULL,
    phase TEXT NOT NULL, state TEXT NOT NULL, open INTEGER NOT NULL, report TEXT, PRIMARY KEY (id, role));
CREATE INDEX IF NOT EXISTS journeys_open ON journeys (open, role);
CREATE TABLE IF NOT EXISTS journal (
    number INTEGER PRIMARY KEY AUTOINCREMENT, journey TEXT NOT NULL, role TEXT NOT NULL, wall_s REAL NOT NULL,
    phase TEXT NOT NULL, cause TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, journey TEXT NOT NULL, wall_s REAL NOT NULL, level TEXT NOT NULL,
    event_id INTEGER, vm TEXT NOT NULL, vm_uuid TEXT NOT NULL, source TEXT NOT NULL, destination TEXT NOT NULL, text TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_journey ON events (journey, number);
CREATE TABLE IF NOT EXISTS used_grants (id TEXT PRIMARY KEY, expires_wall_s REAL NOT NULL);
CREATE TABLE IF NOT EXISTS overruled (
    journey TEXT PRIMARY KEY, host TEXT NOT NULL, vm TEXT NOT NULL, vm_uuid TEXT NOT NULL, person TEXT NOT NULL,
    word TEXT NOT NULL);
"""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """What is read back from the database inside is what was written. Raises StateDamaged naming `what`."""
    try:
        yield
    except (ValueError, TypeError, KeyError, RecursionError, LivemoveError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StateDamaged(f"The record of {what} cannot be read: {reason[:300].rstrip('.')}.") from error


async def until_written(write: Callable[[], Awaitable[T]], what: str) -> T:
    """Carry out `write` again and again until the disk takes it; for what nobody may go on without.

    :param what: for the log, such as ``journey 5d: that the destination owns the VM``.
    """
    while True:
        try:
            return await write()
        except StateUnwritable as error:
            _log.error("%s cannot be put on record, and is tried again: %s", what, error)
            await asyncio.sleep(UNWRITABLE_PAUSE_S)


#: Columns that older databases do not have.
_ADDED = (("vms", "arrived_in", "TEXT NOT NULL DEFAULT ''"),)


class Database:
    """Open it with :meth:`open`, close it with :meth:`close`; both may be called from the loop.

    Raises StateUnwritable from every method when the file cannot be written (disk full, read-only, damaged).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="livemove-db")
        self._connection: sqlite3.Connection | None = None
        self._durable: bool | None = None

    async def open(self) -> None:
        await self._in_thread(self._open)

    def _open(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode=WAL")
        written_by = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if written_by > FORMAT:
            raise StateDamaged(f"{self.path} has format {written_by}, and this version of livemove knows {FORMAT}.")
        self._connection.executescript(_SCHEMA)
        for table, column, kind in _ADDED:
            known = {row["name"] for row in self._connection.execute(f"PRAGMA table_info({table})")}
            if column not in known:
                self._connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
        # a first write now, so that a full or read-only disk is known before any VM is touched
        self._connection.execute(f"PRAGMA user_version={FORMAT}")

    async def run(self, work: Callable[[sqlite3.Connection], T], *, durable: bool) -> T:
        """Carry out `work` in one transaction; with `durable` it has reached the disk when this returns."""
        return await self._in_thread(lambda: self._transaction(work, durable))

    def _transaction(self, work: Callable[[sqlite3.Connection], T], durable: bool) -> T:
        connection = self._connection
        if connection is None:
            raise StateUnwritable(f"{self.path} is not open.")
        if durable is not self._durable:
            connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._durable = durable
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return result

    async def close(self) -> None:
        """Close the file; may be called twice."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await asyncio.get_running_loop().run_in_executor(self._thread, connection.close)
        self._thread.shutdown(wait=False)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.DatabaseError as error:
            damaged = error.sqlite_errorcode in _DAMAGED if hasattr(error, "sqlite_errorcode") else True
            if damaged:
                raise StateDamaged(f"{self.path} cannot be read: {error}.") from error
            raise StateUnwritable(f"{self.path} cannot be written: {error}.") from error
        except OSError as error:
            raise StateUnwritable(f"{self.path} cannot be written: {error}.") from error
