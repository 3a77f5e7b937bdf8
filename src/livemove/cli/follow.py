"""Watching a journey to its end from the command that started it.

The journey is the agents' business and goes on without us: when the source's agent does not answer we say so and ask
again. Ctrl-C asks for the journey's end once, and we go on watching; the second time we leave it alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator

from livemove.api.client import AgentClient
from livemove.api.models import JourneyView, ReportView
from livemove.base.clock import Clock
from livemove.base.errors import AgentUnreachable, LinkError, LivemoveError, UnknownJourney
from livemove.cli.plain_view import JourneyShow

POLL_S = 0.15
# the first round is long, and on a small host every question takes CPU from the copy
COPY_POLL_S = 0.4
SILENCE_S = 60.0
"""An agent that says nothing for this long is given up; restarting one takes a few seconds."""
REPORT_WAIT_S = 5.0
"""The report is written when the journey has ended; both agents have to fsync it."""

_NOTED_LEVELS = ("warning", "error", "critical")


class Interrupts:
    """Counts Ctrl-C (SIGINT); SIGTERM and SIGHUP count as two. Use :meth:`caught`."""

    def __init__(self) -> None:
        self.count = 0
        self._news = asyncio.Event()

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Count signals instead of ending by them, for the length of ``with``."""
        loop = asyncio.get_running_loop()
        weights = {signal.SIGINT: 1, signal.SIGTERM: 2, signal.SIGHUP: 2}
        for number, weight in weights.items():
            loop.add_signal_handler(number, self.add, weight)
        try:
            yield
        finally:
            for number in weights:
                loop.remove_signal_handler(number)

    def add(self, weight: int = 1) -> None:
        self.count += weight
        self._news.set()

    async def sleep(self, seconds: float) -> None:
        """Sleep, but wake at the next signal."""
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), seconds)


async def follow(
    agent: AgentClient, view: JourneyView, show: JourneyShow, interrupts: Interrupts, clock: Clock
) -> JourneyView:
    """Show the journey until it has ended; returns the last view, which is not terminal if the user left.

    Raises AgentUnreachable when the agent was silent for a minute, UnknownJourney when it forgot the journey.
    """
    asked_to_end = False
    seen_event = 0
    silent_since_s: float | None = None
    while True:
        show.update(view)
        if view.terminal or interrupts.count >= 2:
            return view
        if interrupts.count and not asked_to_end:
            asked_to_end = True
            show.note("Cancelling; press Ctrl-C again to leave the journey running.")
            await _cancel(agent, view.id, show)
        else:
            await interrupts.sleep(COPY_POLL_S if view.phase == "copying" else POLL_S)
        try:
            before, view = view, await agent.journey(view.id)
            if view.events_count > before.events_count or seen_event == 0:
                seen_event = await _tell_events(agent, view.id, seen_event, show)
            if silent_since_s is not None:
                show.note(f"The agent of '{agent.host_name}' answers again.")
            silent_since_s = None
        except LinkError as error:
            now_s = clock.monotonic_s()
            if silent_since_s is None:
                silent_since_s = now_s
                show.note(f"{error.message} Asking again; the journey goes on without this command.")
            elif now_s - silent_since_s > SILENCE_S:
                raise AgentUnreachable(
                    f"The agent of '{agent.host_name}' said nothing for {SILENCE_S:.0f} s; journey {view.id} may go on.",
                    remedy=f"Start the agent, and see 'livemove report {view.id}'.",
                ) from error


async def fetch_report(agent: AgentClient, journey: str, clock: Clock) -> ReportView:
    """The report of a journey that has just ended. Raises what the agent said when it has none after 5 s."""
    until_s = clock.monotonic_s() + REPORT_WAIT_S
    while True:
        try:
            return await agent.report(journey)
        except LivemoveError as error:
            if clock.monotonic_s() >= until_s or not isinstance(error, LinkError | UnknownJourney):
                raise
            await asyncio.sleep(POLL_S)


async def _cancel(agent: AgentClient, journey: str, show: JourneyShow) -> None:
    try:
        await agent.cancel_journey(journey)
    except LivemoveError as error:
        show.note(f"It cannot be cancelled: {error.message}")


async def _tell_events(agent: AgentClient, journey: str, after: int, show: JourneyShow) -> int:
    """Show warnings and errors among the new events; returns the number of the last one seen."""
    for event in (await agent.journey_events(journey, after=after)).events:
        after = max(after, event.number)
        if event.level.lower() in _NOTED_LEVELS:
            show.note(f"{event.level.lower()}: {event.text}")
    return after
