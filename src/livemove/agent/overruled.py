"""What a destination must still be told when it can be reached again; on record until it has confirmed it.

``overrule``: it was declared dead, and the VM is no longer its own. ``abandon``: the journey ended while it was out of
reach, and it may hold a copy of the VM that it will never be given.

A host that was taken out of the cluster is not forgotten: invited anew with the state that it has, it would believe what it
believed before.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from typing import Literal

from livemove.api.client import AgentClient
from livemove.base.database import Database
from livemove.base.errors import Conflict, LinkError, LivemoveError, StateUnwritable
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.migration.journal import Journal, Record

_log = logging.getLogger(__name__)

TELL_INTERVAL_S = 5.0
TELL_TIMEOUT_S = 5.0


class Overruled:
    """Tells every overruled destination, until it has heard."""

    def __init__(self, database: Database, journal: Journal, client_to: Callable[[str], AgentClient]) -> None:
        self._database = database
        self._journal = journal
        self._client_to = client_to
        self._task: asyncio.Task[None] | None = None
        self._complained: set[str] = set()
        self._warned: dict[str, str] = {}

    async def add(self, record: Record, word: Literal["overrule", "abandon"]) -> None:
        """Put it on record, durably, once the VM is this host's again; ``abandon`` never takes the place of ``overrule``."""
        kept = "REPLACE" if word == "overrule" else "IGNORE"

        def work(db: sqlite3.Connection) -> None:
            db.execute(
                f"INSERT OR {kept} INTO overruled (journey, host, vm, vm_uuid, person, word) VALUES (?,?,?,?,?,?)",
                (record.id, record.destination, record.vm, record.vm_uuid, record.person, word),
            )

        await self._database.run(work, durable=True)
        self.start()

    async def remind(self, record: Record) -> None:
        """The destination shall forget the journey when it can be reached again."""
        try:
            await self.add(record, "abandon")
        except StateUnwritable as error:
            _log.error("journey %s: %s is not reminded to forget it: %s", record.id, record.destination, error)

    def start(self) -> None:
        """Tell those that are on record; called at the agent's start and when one is added."""
        if self._task is None or self._task.done():
            self._task = spawn(self._tell(), name="tell overruled hosts")

    async def close(self) -> None:
        await cancel_and_wait(self._task)

    async def _pending(self) -> list[sqlite3.Row]:
        return await self._database.run(lambda db: db.execute("SELECT * FROM overruled").fetchall(), durable=False)

    async def _tell(self) -> None:
        """Return when all have heard; a disk that is full for a while ends nothing."""
        while True:
            try:
                rows = await self._pending()
                if not rows:
                    return
                for row in rows:
                    await self._tell_and_forget(row)
            except LivemoveError as error:
                self._warn("", f"what other hosts must be told cannot be read: {error}")
            await asyncio.sleep(TELL_INTERVAL_S)

    async def _tell_and_forget(self, row: sqlite3.Row) -> None:
        try:
            if await self._tell_one(row):
                await self._forget(str(row["journey"]))
        except LivemoveError as error:
            self._warn(row["journey"], f"{row['host']} is told again of journey {row['journey']}: {error}")

    async def _forget(self, journey: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM overruled WHERE journey=?", (journey,))

        await self._database.run(work, durable=True)

    async def _tell_one(self, row: sqlite3.Row) -> bool:
        try:
            async with self._client_to(row["host"]) as client:
                if row["word"] == "abandon":
                    await client.abandon(row["journey"], timeout_s=TELL_TIMEOUT_S)
                else:
                    await client.overrule(row["journey"], timeout_s=TELL_TIMEOUT_S)
        except LinkError:
            return False
        except Conflict as error:
            await self._complain(row, error)
            return False
        except LivemoveError as error:
            self._warn(row["journey"], f"{row['host']} was not told that VM {row['vm']} is ours: {error}")
            return False
        return True

    def _warn(self, about: str, text: str) -> None:
        """Once for each reason, and not with every attempt."""
        if self._warned.get(about) != text:
            self._warned[about] = text
            _log.warning("%s", text)

    async def _complain(self, row: sqlite3.Row, error: LivemoveError) -> None:
        """Once: the operator's word was wrong."""
        if row["journey"] in self._complained:
            return
        _log.error("VM %s: %s", row["vm"], error)
        record = Record(row["journey"], "source", row["vm"], row["vm_uuid"], "", row["host"], row["person"], 0.0, {})
        await self._journal.add_event(record, error.message, level="error")
        self._complained.add(row["journey"])
