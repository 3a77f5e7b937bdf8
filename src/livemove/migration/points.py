"""All fault points of a journey, in the order of their places in the code; see base.fault_points.

Every command of the source and every effect, request and journal write of either side has a point before it and one after
it. The journal's points are named by the event that was journaled at the source, by the phase at the destination.
"""

from __future__ import annotations

from livemove.migration import commands as do
from livemove.migration import events as on
from livemove.migration.commands import Command
from livemove.migration.events import Event
from livemove.migration.incoming import Effect
from livemove.migration.model import IncomingPhase

#: Events that change nothing that the journal holds.
NOT_JOURNALED: tuple[type[Event], ...] = (on.GuestReset,)
#: Requests of a source that the destination answers.
REQUESTS = ("fitness", "build", "listen", "arm", "memory", "digests", "pieces", "page", "go", "ask", "abandon")
# not __subclasses__(): that also has the classes that dataclass(slots=True) has replaced
COMMANDS = tuple(kind for kind in vars(do).values() if isinstance(kind, type) and kind.__base__ is Command)
EVENTS = tuple(kind for kind in vars(on).values() if isinstance(kind, type) and kind.__base__ is Event)
CREATED, GRANT = "created", "grant"


def _around(where: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{where}.{moment}.{name}" for name in names for moment in ("before", "after"))


#: A Note is for people; nothing follows from it.
SOURCE_POINTS = (
    *_around("source", *(kind.__name__ for kind in COMMANDS if kind is not do.Note)),
    *_around("source.journal", CREATED, *(kind.__name__ for kind in EVENTS if kind not in NOT_JOURNALED)),
)
#: A journal effect is named by the phase that it writes.
DESTINATION_POINTS = (
    *_around("destination.request", *REQUESTS),
    *_around("destination", *(effect.value for effect in Effect if effect is not Effect.JOURNAL)),
    *_around("destination.journal", GRANT, *(phase.value for phase in IncomingPhase)),
)
POINTS = (*SOURCE_POINTS, *DESTINATION_POINTS)
