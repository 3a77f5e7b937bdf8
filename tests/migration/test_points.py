"""The list of fault points is whole, and every point of the source in it is reached."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.migration.test_runner import Answers, run

from livemove.base import fault_points
from livemove.base.database import Database
from livemove.base.errors import PortClosed
from livemove.migration import commands as do
from livemove.migration import events as on
from livemove.migration.events import Event
from livemove.migration.incoming import Effect
from livemove.migration.model import IncomingPhase, Verify
from livemove.migration.points import (
    COMMANDS,
    CREATED,
    DESTINATION_POINTS,
    EVENTS,
    NOT_JOURNALED,
    POINTS,
    REQUESTS,
    SOURCE_POINTS,
)
from livemove.policy.convergence import Sample


def test_every_command_effect_request_and_write_has_its_points():
    for kind in COMMANDS:
        assert kind is do.Note or {f"source.before.{kind.__name__}", f"source.after.{kind.__name__}"} <= {
            *SOURCE_POINTS
        }
    for event in EVENTS:
        assert (f"source.journal.before.{event.__name__}" in SOURCE_POINTS) is (event not in NOT_JOURNALED)
    for effect in Effect:
        assert effect is Effect.JOURNAL or f"destination.after.{effect.value}" in DESTINATION_POINTS
    for phase in IncomingPhase:
        assert f"destination.journal.before.{phase.value}" in DESTINATION_POINTS
    routes = (Path(fault_points.__file__).parents[1] / "agent" / "routes_incoming.py").read_text()
    asked = re.findall(r'@router.post\("/{journey}/(\w+)"\)', routes)
    assert [{"skeleton": "build"}.get(name, name) for name in asked] == [*REQUESTS]
    assert len(set(POINTS)) == len(POINTS)


async def test_every_point_of_the_source_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reached: set[str] = set()
    monkeypatch.setattr(fault_points, "_reached", reached.add)
    moving = (
        on.UserPaused(),
        on.UserResumed(),
        on.GuestDiskFailed(),
        on.UserResumed(),
        on.GuestPanicked(),
        on.UserResumed(),
    )
    stories: list[tuple[Answers, tuple[Event, ...]]] = [
        ({}, ()),
        ({do.VerifyMemory: on.MemoryDiffers("x")}, ()),
        ({}, moving),
        ({}, tuple(on.ProgressSampled(Sample(1, number, 900 << 20, 1e6)) for number in range(1, 12))),
        ({do.OpenConnection: PortClosed("TCP port 1 did not answer.")}, ()),
        ({do.SendGo: on.DestinationSilent("x"), do.AskDestination: on.DestinationDisowned("x")}, ()),
        ({do.SendGo: on.DestinationSilent("x"), do.AskDestination: on.DestinationDeclaredDead("x")}, ()),
        ({}, (on.CopyFailed("x"),)),
        ({}, (on.CancelRequested("x"),)),
        ({}, (on.GuestPoweredOff(),)),
        ({}, (on.SourceQemuDied("x"),)),
        ({}, (on.AgentRestarted(go_impossible=True),)),
    ]  # fmt: skip
    for number, (answers, posted) in enumerate(stories):
        own = Database(tmp_path / f"{number}.db")
        await own.open()
        await run(own, answers, copying=posted, verify=Verify.FULL)
        await own.close()
    created = {f"source.journal.{moment}.{CREATED}" for moment in ("before", "after")}
    assert reached == {*SOURCE_POINTS} - created
