"""The table of a journey's rules.

Each rule is registered for a phase and an event and declares where it may lead. The diagram in docs/states.md is drawn
from it. An answer that nobody waits for is an error; observations (a guest that resets, a reading of counters) may come
at any time, and where no rule wants them they change nothing. The rules themselves are in steps.py and interruptions.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from livemove.migration import events as on
from livemove.migration.commands import Command
from livemove.migration.events import Event
from livemove.migration.model import Phase, State

Result = tuple[State, tuple[Command, ...]]
Rule = Callable[[State, Event], Result]


class IllegalEvent(Exception):
    """An event that cannot happen in this phase: a mistake in livemove, never in the peer or the user."""


#: (phase, event) -> phases it may lead to; the source of the diagram.
TRANSITIONS: dict[tuple[Phase, type[Event]], frozenset[Phase]] = {}
TABLE: dict[tuple[Phase, type[Event]], Rule] = {}

OBSERVATIONS = (
    on.ProgressSampled, on.GuestReset, on.GuestPanicked, on.GuestDiskFailed, on.GuestPoweredOff, on.UserPaused, on.UserResumed,
    on.SourceStopped, on.SourceQemuDied, on.CopyFailed, on.CopyCompleted,
    on.DestinationDeclaredDead,
)  # fmt: skip


def rule(phases: Phase | Iterable[Phase], event: type[Event], *to: Phase) -> Callable[[Rule], Rule]:
    def register(change: Rule) -> Rule:
        for phase in (phases,) if isinstance(phases, Phase) else phases:
            TABLE[phase, event] = change
            TRANSITIONS[phase, event] = frozenset(to) or frozenset({phase})
        return change

    return register
