"""The shell of a journey at its source: one loop that feeds events to the rules and commands to the effects.

There are no decisions here. What reaches the disk before what is written in :meth:`JourneyRunner._journal`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Protocol

from livemove.base.clock import Clock
from livemove.base.database import until_written
from livemove.base.errors import Bug, LivemoveError
from livemove.base.fault_points import around
from livemove.base.shortage import shortage_of
from livemove.base.tasks import spawn
from livemove.migration import commands as do
from livemove.migration import events as on
from livemove.migration.commands import Command
from livemove.migration.events import Event
from livemove.migration.journal import Journal, Record
from livemove.migration.ledger import Ledger
from livemove.migration.machine import IllegalEvent, step
from livemove.migration.model import Owner, Phase, State

_log = logging.getLogger(__name__)

#: How long until a copy that could not be undone is undone again.
AGAIN_S = 1.0


class Effects(Protocol):
    """Whoever carries commands out: the direct engine, a later one, a test."""

    async def perform(self, command: Command, state: State) -> Event | None:
        """Carry `command` out; its outcome as an event, None when it has none.

        A LivemoveError becomes StepFailed.
        """

    async def finish(self, state: State) -> None:
        """The journey is over: let go of everything. Must not raise."""


class JourneyRunner:
    """Runs one journey to its end."""

    def __init__(
        self, record: Record, state: State, effects: Effects, journal: Journal, ledger: Ledger, clock: Clock,
        on_change: Callable[[State, str], None] = lambda state, cause: None,
    ) -> None:  # fmt: skip
        self.record = record
        self.state = state
        self.ledger = ledger
        self.decisions: list[str] = []
        self.done = asyncio.Event()
        self._effects = effects
        self._journal_of = journal
        self._clock = clock
        self._on_change = on_change
        self._events: asyncio.Queue[Event] = asyncio.Queue(maxsize=1000)
        self._story: list[str] = []

    def post(self, event: Event) -> None:
        """Tell the journey what happened; may be called from any callback in the loop."""
        if not self.done.is_set():
            self._events.put_nowait(event)

    async def run(self) -> State:
        """Until a terminal phase; the journey's errors are in the state, only a Bug is raised."""
        try:
            while not self.state.phase.terminal:
                await self._turn(await self._events.get())
        finally:
            with around("source", do.Finish.__name__):
                await self._effects.finish(self.state)
            self.done.set()
        return self.state

    async def _turn(self, event: Event) -> None:
        before = self.state
        cause = type(event).__name__
        self._story = [*self._story, f"{before.phase.name} {cause}"][-30:]
        try:
            self.state, commands = step(before, event)
        except IllegalEvent as error:
            story = " > ".join(self._story)
            _log.error("journey %s: %s (story: %s)", self.record.id, error, story)
            await self._journal_of.add_event(self.record, f"Internal: {error}. Story: {story}", level="error")
            return
        if self.state.phase is not before.phase:
            self.ledger.enter(self.state.phase, self._clock.monotonic_s())
        if await self._journal(before, cause):
            for command in commands:
                self._issue(command)
        self._on_change(self.state, cause)

    async def _journal(self, before: State, cause: str) -> bool:
        """Write what changed; False when the step may not be taken because it could not be written.

        What a restarted agent must know is durable before any command that follows from it: that the VM may be handed
        over before the destination is asked to arm, that a guest which may have been handed over goes back to the source
        before it runs there, the destination's ownership before the source's remains are removed, the end of the journey
        before its VM may be started anew. The rest may be lost with the power, since the QEMUs are lost with it.

        The GO is on record before it is sent, but does not wait for the disk: after a loss of power the line before it
        leads to the same question, and a fsync of the source would lengthen the blackout.
        """
        state = self.state
        if not is_journaled(before, state):
            return True
        durable = is_durable(before, state)
        save = functools.partial(
            self._journal_of.save, self.record, state, cause, durable=durable, closed=state.phase.terminal
        )
        try:
            with around("source.journal", cause):
                if state.owner is Owner.DESTINATION or state.phase.terminal:
                    # nobody may start or move the VM here before it is on record where it went, or that nothing goes on
                    await until_written(save, f"Journey {self.record.id}, {state.phase.value}")
                else:
                    await save()
        except LivemoveError as error:
            # before the hand-over the journey ends; from the GO on the destination's journal decides, and ours catches up
            _log.error("journey %s: the journal cannot be written: %s", self.record.id, error)
            if state.may_hand_over is not before.may_hand_over or state.armed is not before.armed:
                self.state = before
                self.post(on.StepFailed(error.code, error.message, error.remedy))
                return False
        return True

    def _issue(self, command: Command) -> None:
        match command:
            case do.Note():
                self.decisions = [*self.decisions, command.text][-200:]
                spawn(self._journal_of.add_event(self.record, command.text, level=command.level), name="note")
            case do.Finish():
                pass  # run() ends by the phase
            case _:
                if isinstance(command, do.OpenLatch | do.ThrottleGuest):
                    self.decisions = [*self.decisions, command.reason][-200:]
                    spawn(self._journal_of.add_event(self.record, command.reason), name="note")
                spawn(self._perform(command), name=f"{type(command).__name__} of {self.record.id}")

    async def _perform(self, command: Command) -> None:
        outcome = await self._outcome(command)
        while isinstance(command, do.CancelCopy) and isinstance(outcome, on.StepFailed):
            # the guest is to run here again, whatever stands in the way
            await asyncio.sleep(AGAIN_S)
            outcome = await self._outcome(command)
        if isinstance(outcome, on.StepFailed):
            outcome = meaning(command, outcome)
        if outcome is not None:
            self.post(outcome)

    async def _outcome(self, command: Command) -> Event | None:
        try:
            with around("source", type(command).__name__):
                return await self._effects.perform(command, self.state)
        except LivemoveError as error:
            return on.StepFailed(error.code, error.message, error.remedy)
        except Exception as error:
            _log.exception("journey %s: %s failed", self.record.id, type(command).__name__)
            fault = (shortage_of(error) if isinstance(error, OSError) else None) or Bug(
                f"{type(command).__name__} failed: {type(error).__name__}: {error}"
            )
            return on.StepFailed(fault.code, fault.message, fault.remedy)


def meaning(command: Command, failed: on.StepFailed) -> Event:
    """What the failure of `command` is to the rules: in the hand-over and after it no step simply fails.

    A GO or a question that could not be put is one that was not answered; a destination that could not be told finds out
    by itself.
    """
    match command:
        case do.SendGo() | do.AskDestination():
            return on.DestinationSilent(failed.reason)
        case do.AbandonDestination():
            return on.DestinationAbandoned()
        case _:
            return failed


def is_journaled(before: State, state: State) -> bool:
    """Whether the change is worth a line; counters and memories of the convergence are not."""
    return _journaled(state) != _journaled(before)


def is_durable(before: State, state: State) -> bool:
    """Whether the line of this change must have reached the disk before anything follows from it."""
    return (
        state.may_hand_over is not before.may_hand_over
        or state.armed is not before.armed
        or state.owner is not before.owner
        or (state.phase is Phase.ABORTING and before.phase is not state.phase and state.may_hand_over)
        or state.phase.terminal
    ) and state.phase is not Phase.HANDING_OVER


def _journaled(state: State) -> tuple[object, ...]:
    return (
        state.phase, state.owner, state.may_hand_over, state.armed, state.copied, state.guest, state.source_gone,
    )  # fmt: skip
