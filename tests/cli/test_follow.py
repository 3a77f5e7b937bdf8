"""What a watched journey says when something goes wrong around it."""

from __future__ import annotations

from typing import Any

import pytest

from livemove.api.models import EventList, JourneyView
from livemove.base.clock import ManualClock
from livemove.base.errors import AgentUnreachable, UnknownJourney
from livemove.cli import follow as follow_module
from livemove.cli.follow import Interrupts, fetch_report, follow

from .fake_agent import completed_journey, copying, report_view
from .test_journeys import event


class Show:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.views: list[JourneyView] = []

    def update(self, view: JourneyView) -> None:
        self.views.append(view)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def close(self) -> None:
        return


class ScriptedAgent:
    """Answers with the given views, or raises them when they are errors; every answer takes `step_s`."""

    host_name = "A"

    def __init__(self, script: list[Any], clock: ManualClock, step_s: float = 0.15, events: EventList | None = None):
        self.script = script
        self.clock = clock
        self.step_s = step_s
        self.events = events or EventList(events=[])
        self.cancelled = 0

    async def journey(self, _: str) -> JourneyView:
        self.clock.advance(self.step_s)
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def journey_events(self, _: str, *, after: int = 0) -> EventList:
        return EventList(events=[found for found in self.events.events if found.number > after])

    async def cancel_journey(self, _: str) -> JourneyView:
        self.cancelled += 1
        return copying(0.5)

    async def report(self, _: str) -> Any:
        return await self.journey(_)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_module, "POLL_S", 0.0)


async def watched(script: list[Any], **more: Any) -> tuple[JourneyView, Show, ScriptedAgent]:
    clock, show = ManualClock(), Show()
    agent = ScriptedAgent(script, clock, **more)
    view = await follow(agent, copying(0.1), show, Interrupts(), clock)  # type: ignore[arg-type]
    return view, show, agent


async def test_an_agent_that_restarts_is_waited_for() -> None:
    away = AgentUnreachable("The agent of 'A' is away.")
    view, show, _ = await watched([away, away, copying(0.9), completed_journey()[-1]])
    assert view.phase == "completed"
    assert show.notes == [
        "The agent of 'A' is away. Asking again; the journey goes on without this command.",
        "The agent of 'A' answers again.",
    ]


async def test_an_agent_that_stays_away_is_given_up() -> None:
    with pytest.raises(AgentUnreachable, match="said nothing for 60 s; journey j-0001 may go on"):
        await watched([AgentUnreachable("away")], step_s=10.0)


async def test_a_journey_that_is_forgotten_ends_the_watch() -> None:
    with pytest.raises(UnknownJourney):
        await watched([UnknownJourney("never heard of")])


async def test_warnings_among_the_events_are_told_once() -> None:
    events = EventList(
        events=[
            event(1, "A", "T", level="info", text="begun"),
            event(2, "A", "T", level="warning", text="the guest writes faster than the link"),
        ]
    )
    counted = [copying(0.2, events_count=2), copying(0.3, events_count=2), completed_journey()[-1]]
    _, show, _ = await watched(counted, events=events)
    assert show.notes == ["warning: the guest writes faster than the link"]


async def test_one_signal_that_asks_to_end_counts_as_two_interrupts() -> None:
    clock, show, interrupts = ManualClock(), Show(), Interrupts()
    agent = ScriptedAgent([copying(0.5)], clock)
    interrupts.add(2)
    view = await follow(agent, copying(0.1), show, interrupts, clock)  # type: ignore[arg-type]
    assert not view.terminal
    assert agent.cancelled == 0


async def test_the_report_may_come_a_little_late() -> None:
    clock = ManualClock()
    late = ScriptedAgent([UnknownJourney("not yet"), AgentUnreachable("away"), report_view()], clock)
    assert (await fetch_report(late, "j-0001", clock)).outcome == "completed"  # type: ignore[arg-type]
    never = ScriptedAgent([UnknownJourney("never")], clock, step_s=1.0)
    with pytest.raises(UnknownJourney):
        await fetch_report(never, "j-0001", clock)  # type: ignore[arg-type]
