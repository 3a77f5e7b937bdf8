"""What a host must still be told is told until it has heard, whatever the disk or the network does meanwhile."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self, TypeVar

import pytest

from livemove.agent import overruled
from livemove.agent.overruled import Overruled
from livemove.api.client import AgentClient
from livemove.base.clock import ManualClock
from livemove.base.database import Database
from livemove.base.errors import Conflict, StateUnwritable
from livemove.migration.journal import SOURCE, Journal, Record

T = TypeVar("T")


class FullDisk(Database):
    """Takes nothing while `full`."""

    full = False
    refused = 0

    async def run(self, work: Callable[[sqlite3.Connection], T], *, durable: bool) -> T:
        if self.full:
            self.refused += 1
            raise StateUnwritable("the disk is full")
        return await super().run(work, durable=durable)


class Told:
    """Stands in for the clients of all hosts: a host called ``here`` denies what it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []
        self.host = ""

    def to(self, host: str) -> Any:
        self.host = host
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def overrule(self, journey: str, *, timeout_s: float) -> None:
        self.heard.append((self.host, journey))
        if self.host == "here":
            raise Conflict("VM 'db1' runs here.")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[FullDisk]:
    made = FullDisk(tmp_path / "x.db")
    await made.open()
    yield made
    await made.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while True:
            if true():
                return
            await asyncio.sleep(0.01)


async def test_a_full_disk_does_not_end_the_telling(database: FullDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overruled, "TELL_INTERVAL_S", 0.01)
    told = Told()
    to: Callable[[str], AgentClient] = told.to
    telling = Overruled(database, Journal(database, ManualClock(), "a"), to)
    for journey, host in (("j1", "here"), ("j2", "there")):
        await telling.add(Record(journey, SOURCE, "db1", "uuid-1", "a", host, "ann", 0.0, {}), "overrule")
    database.full = True
    await until(lambda: database.refused >= 3)
    database.full = False

    def left() -> bool:
        with sqlite3.connect(database.path) as reader:
            return [row[0] for row in reader.execute("SELECT journey FROM overruled")] == ["j1"]

    await until(left)
    # it denies it, and may change its mind
    told.heard.clear()
    await until(lambda: told.heard.count(("here", "j1")) >= 2)
    await telling.close()
