"""The shell: what it does with the outcomes of commands, and what is on disk before what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from livemove.base.clock import ManualClock
from livemove.base.database import Database
from livemove.base.errors import PortClosed, StateUnwritable
from livemove.migration import commands as do
from livemove.migration import events as on
from livemove.migration.commands import Command
from livemove.migration.events import Event
from livemove.migration.journal import SOURCE, Journal, Record
from livemove.migration.ledger import Ledger
from livemove.migration.machine import begin
from livemove.migration.model import GuestRun, Owner, Phase, State, Verify
from livemove.migration.runner import JourneyRunner
from livemove.policy.convergence import Contract

RECORD = Record("j1", SOURCE, "db1", "uuid-1", "a", "b", "ann", 1.0, {})
ARRIVES: dict[type[Command], Event] = {
    do.RequestSlot: on.SlotGranted(), do.AskPermission: on.PermissionGiven(), do.CheckFitness: on.FitnessConfirmed(),
    do.BuildSkeleton: on.SkeletonBuilt(), do.OpenConnection: on.ConnectionOpened(), do.StartCopy: on.CopyStarted(),
    do.ArmHandOver: on.HandOverArmed(), do.VerifyMemory: on.MemoryVerified(), do.SendGo: on.DestinationOwned(), do.RemoveSource: on.SourceRemoved(),
    do.CancelCopy: on.CopyCancelled(), do.AbandonDestination: on.DestinationAbandoned(),
}  # fmt: skip


Answers = dict[type[Command], Event | Exception]


class ScriptedEffects:
    """Answers every command as told; notes what the journal held when the command was given.

    :param copying: what happens in the copy, once the hand-over is armed.
    """

    def __init__(self, database: Database, answers: Answers, copying: tuple[Event, ...] = ()) -> None:
        self.database = database
        self.answers = answers
        self.copying = copying
        self.performed: list[Command] = []
        self.journaled: dict[type[Command], str] = {}
        self.finished: State | None = None
        self.runner: JourneyRunner | None = None

    async def perform(self, command: Command, state: State) -> Event | None:
        self.performed.append(command)
        row = await self.database.run(lambda db: db.execute("SELECT state FROM journeys").fetchone(), durable=False)
        self.journaled[type(command)] = row["state"]
        answer = self.answers.get(type(command))
        if isinstance(answer, Exception):
            raise answer
        if isinstance(command, do.ArmHandOver) and self.runner is not None:
            for event in self.copying:
                asyncio.get_running_loop().call_later(0.005, self.runner.post, event)
            asyncio.get_running_loop().call_later(0.01, self.runner.post, on.SourceStopped())
            asyncio.get_running_loop().call_later(0.02, self.runner.post, on.CopyCompleted())
        return answer

    async def finish(self, state: State) -> None:
        self.finished = state


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = Database(tmp_path / "x.db")
    await database.open()
    yield database
    await database.close()


async def run(
    database: Database,
    answers: Answers,
    journal: Journal | None = None,
    copying: tuple[Event, ...] = (),
    verify: Verify = Verify.OFF,
) -> tuple[JourneyRunner, ScriptedEffects]:
    journal = journal or Journal(database, ManualClock(), "a")
    effects = ScriptedEffects(database, {**ARRIVES, **answers}, copying)
    state = replace(begin(Contract(0.3, max_throttle=50)), verify=verify)
    await journal.create(RECORD, state)
    runner = JourneyRunner(RECORD, state, effects, journal, Ledger(0.0), ManualClock())
    effects.runner = runner
    runner.post(on.JourneyAccepted(GuestRun.RUNNING))
    async with asyncio.timeout(5):
        await runner.run()
    return runner, effects


async def test_a_journey_that_arrives(database: Database):
    runner, effects = await run(database, {})
    assert (runner.state.phase, runner.state.owner) == (Phase.COMPLETED, Owner.DESTINATION)
    assert [type(command).__name__ for command in effects.performed][-2:] == ["SendGo", "RemoveSource"]
    assert effects.finished is runner.state and runner.done.is_set()
    assert '"may_hand_over":true' in effects.journaled[do.ArmHandOver], "on disk before the destination can own"
    assert '"armed":true' in effects.journaled[do.SendGo], "armed is on disk before the GO"
    assert '"owner":"unknown"' in effects.journaled[do.SendGo], "the GO is on record before it is sent"
    assert '"owner":"destination"' in effects.journaled[do.RemoveSource], (
        "the new owner is on disk before the remains go"
    )
    assert await Journal(database, ManualClock(), "a").open_outgoing() == []


async def test_a_command_that_fails_ends_the_journey_with_its_code(database: Database):
    runner, effects = await run(database, {do.OpenConnection: PortClosed("TCP port 1 did not answer.")})
    assert runner.state.phase is Phase.FAILED
    assert runner.state.abort is not None and runner.state.abort.code == "port-closed"
    assert any(isinstance(command, do.AbandonDestination) for command in effects.performed)


async def test_a_mistake_of_ours_is_a_bug_and_not_a_hang(database: Database, caplog: pytest.LogCaptureFixture):
    runner, _ = await run(database, {do.CheckFitness: ZeroDivisionError("oops")})
    assert runner.state.abort is not None and runner.state.abort.code == "bug"
    assert "oops" in runner.state.abort.reason


class Stubborn(ScriptedEffects):
    """Fails every command of some kinds a number of times, as the operating system may."""

    def __init__(self, database: Database, answers: Answers, failing: dict[type[Command], int]) -> None:
        super().__init__(database, answers)
        self.failing = failing

    async def perform(self, command: Command, state: State) -> Event | None:
        outcome = await super().perform(command, state)
        if self.failing.get(type(command), 0) > 0:
            self.failing[type(command)] -= 1
            raise OSError(24, "Too many open files")
        return outcome


@pytest.mark.parametrize(
    "failing, ends",
    [
        ({do.SendGo: 1}, Phase.FAILED),
        ({do.SendGo: 1, do.AskDestination: 2}, Phase.FAILED),
        ({do.SendGo: 1, do.AskDestination: 2, do.CancelCopy: 2}, Phase.FAILED),
        ({do.ArmHandOver: 1, do.CancelCopy: 1, do.AbandonDestination: 1}, Phase.FAILED),
        ({do.RemoveSource: 1}, Phase.COMPLETED),
    ],
)
async def test_nothing_that_fails_in_the_hand_over_leaves_the_vm_without_an_owner(
    database: Database, failing: dict[type[Command], int], ends: Phase, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("livemove.migration.runner.AGAIN_S", 0.01)
    answers = {**ARRIVES, do.AskDestination: on.DestinationDisowned("it was not told")}
    effects = Stubborn(database, answers, dict(failing))
    journal, state = Journal(database, ManualClock(), "a"), begin(Contract(0.3, max_throttle=50))
    await journal.create(RECORD, state)
    runner = JourneyRunner(RECORD, state, effects, journal, Ledger(0.0), ManualClock())
    effects.runner = runner
    runner.post(on.JourneyAccepted(GuestRun.RUNNING))
    async with asyncio.timeout(5):
        await runner.run()
    assert runner.state.phase is ends
    assert runner.state.owner is (Owner.DESTINATION if ends is Phase.COMPLETED else Owner.SOURCE)
    assert not any(effects.failing.values()), "every one of them was tried again"


class Diary(Journal):
    """Notes which causes were durable; cannot write one of them."""

    def __init__(self, database: Database, *, full_at: str = "") -> None:
        super().__init__(database, ManualClock(), "a")
        self.full_at = full_at
        self.durable: list[str] = []

    async def save(self, record: Record, state: object, cause: str, *, durable: bool, closed: bool = False) -> None:
        if cause == self.full_at:
            raise StateUnwritable("disk full")
        if durable:
            self.durable.append(cause)
        await super().save(record, state, cause, durable=durable, closed=closed)  # type: ignore[arg-type]


async def test_what_waits_for_the_disk(database: Database):
    diary = Diary(database)
    await run(database, {}, diary)
    assert diary.durable == ["CopyStarted", "HandOverArmed", "DestinationOwned", "SourceRemoved"]


async def test_a_vm_that_goes_back_after_it_was_armed_is_on_disk_before_it_runs_there(database: Database):
    diary = Diary(database)
    _, effects = await run(database, {do.ArmHandOver: PortClosed("no answer")}, diary)
    assert diary.durable[:2] == ["CopyStarted", "StepFailed"]
    assert '"phase":"aborting"' in effects.journaled[do.CancelCopy]


@pytest.mark.parametrize("cause", ["CopyStarted", "HandOverArmed"])
async def test_a_journal_that_cannot_say_armed_ends_the_journey(database: Database, cause: str):
    runner, effects = await run(database, {}, Diary(database, full_at=cause))
    assert runner.state.phase is Phase.FAILED
    assert not any(isinstance(command, do.SendGo) for command in effects.performed), "no GO without an armed journal"


async def test_the_story_of_a_journey_is_kept(database: Database):
    await run(database, {})
    lines = await Journal(database, ManualClock(), "a").lines("j1")
    assert [line.split()[2] for line in lines][:3] == ["finding:", "queued:", "permitting:"]
    assert "completed: SourceRemoved" in lines[-1]
