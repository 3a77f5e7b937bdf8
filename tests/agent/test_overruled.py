"""What a destination must still be told: on record until it has heard, whatever happens to it and to our disk meanwhile."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from livemove.agent import overruled as module
from livemove.agent.overruled import Overruled
from livemove.api.client import AgentClient
from livemove.base.clock import ManualClock
from livemove.base.database import Database
from livemove.base.errors import Conflict, StateUnwritable, UnknownHost
from livemove.migration.journal import SOURCE, Journal, Record

RECORD = Record("j-1", SOURCE, "db1", "11111111-2222-4333-8444-555555555555", "A", "B", "maria", 0.0, {})


class Told:
    """Stands for the agent of B."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.known = True
        self.denies: set[str] = set()

    def client_to(self, host: str) -> AgentClient:
        if not self.known:
            raise UnknownHost(f"The cluster has no host '{host}'; it has A.")
        return cast("AgentClient", self)

    async def __aenter__(self) -> Told:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def abandon(self, journey: str, **_: Any) -> None:
        self.words.append(f"abandon {journey}")

    async def overrule(self, journey: str, **_: Any) -> None:
        if journey in self.denies:
            raise Conflict("VM 'db1' runs here.")
        self.words.append(f"overrule {journey}")


class Disk(Database):
    """Its writes can be made to fail."""

    broken = False

    async def run(self, work: Any, *, durable: bool) -> Any:
        if self.broken:
            raise StateUnwritable("The disk is full.")
        return await super().run(work, durable=durable)


@pytest.fixture
async def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Disk]:
    monkeypatch.setattr(module, "TELL_INTERVAL_S", 0.01)
    made = Disk(tmp_path / "livemove.db")
    await made.open()
    yield made
    made.broken = False
    await made.close()


def overruled(disk: Disk, told: Told) -> Overruled:
    return Overruled(disk, Journal(disk, ManualClock(), "A"), told.client_to)


async def rows(disk: Disk) -> list[sqlite3.Row]:
    return cast(
        "list[sqlite3.Row]",
        await disk.run(lambda db: db.execute("SELECT * FROM overruled").fetchall(), durable=False),
    )


async def settled(disk: Disk) -> None:
    await until(disk, 0)


async def until(disk: Disk, left: int) -> None:
    async with asyncio.timeout(5):
        while True:
            if len(await rows(disk)) <= left:
                return
            await asyncio.sleep(0.01)


async def test_a_host_that_left_the_cluster_is_told_when_it_is_back(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes back with its old state by an invitation, and would start the VM that it believes to own."""
    told = Told()
    told.known = False
    tell = overruled(disk, told)
    with caplog.at_level(logging.INFO, logger=module.__name__):
        await tell.add(RECORD, "overrule")
        await asyncio.sleep(0.2)
    assert len(await rows(disk)) == 1 and told.words == []
    assert caplog.text.count("no host 'B'") == 1, "said once, not with every attempt"
    told.known = True
    await settled(disk)
    assert told.words == ["overrule j-1"]
    await tell.close()


async def test_a_disk_that_is_full_for_a_while_does_not_silence_it(disk: Disk) -> None:
    told = Told()
    told.known = False
    tell = overruled(disk, told)
    await tell.add(RECORD, "overrule")
    disk.broken = True
    await asyncio.sleep(0.1)
    disk.broken = False
    told.known = True
    await settled(disk)
    assert told.words[-1] == "overrule j-1"
    await tell.close()


async def test_the_stronger_word_stays(disk: Disk) -> None:
    """A journey's end asks to forget it, an operator's word to give the VM up: in whichever order they come."""
    told = Told()
    told.known = False
    tell = overruled(disk, told)
    await tell.add(RECORD, "overrule")
    await tell.remind(RECORD)
    assert [row["word"] for row in await rows(disk)] == ["overrule"]
    await tell.close()


async def test_one_that_denies_it_keeps_no_other_from_hearing(disk: Disk) -> None:
    told = Told()
    told.denies = {"j-1"}
    tell = overruled(disk, told)
    await tell.add(RECORD, "overrule")
    await tell.add(replace(RECORD, id="j-2"), "overrule")
    await until(disk, 1)
    assert [row["journey"] for row in await rows(disk)] == ["j-1"] and told.words == ["overrule j-2"]
    # and may change its mind
    told.denies.clear()
    await settled(disk)
    await tell.close()
