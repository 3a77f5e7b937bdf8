"""The rules of a journey at its destination.

The destination answers requests of the source; each answer follows from what its journal says. Two sentences carry the
safety: it owns the VM only after OWNED is durable, which only a GO in phase ARMED makes, or an operator's word that the source
is dead; and ABANDONED is durable, and its
QEMU dead, before it ever answers "no", so that a GO that comes late makes no second VM.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from livemove.migration.model import Incoming, IncomingPhase

#: How the reason of an arrival begins whose QEMU ended by itself.
QEMU_ENDED = "its QEMU ended"


class Request(Enum):
    """What reaches the destination: the source's requests, and what it sees itself."""

    BUILD = "build"
    BUILT = "built"
    LISTEN = "listen"
    ARM = "arm"
    GO = "go"
    TAKE = "take"
    CONTINUED = "continued"
    ABANDON = "abandon"
    QEMU_DIED = "qemu-died"
    CRASHED = "crashed"
    RESTARTED = "restarted"


class Effect(Enum):
    """What the destination does, in this order; a JOURNAL is durable before anything that follows it."""

    JOURNAL = "journal"
    START_QEMU = "start-qemu"
    LISTEN = "listen"
    RESUME_GUEST = "resume-guest"
    KILL_QEMU = "kill-qemu"
    RELEASE = "release"


class RefusedRequest(Exception):
    """A request that this phase does not allow; the source is answered with the phase."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The new state, what to do before answering, and whether the destination owns the VM afterwards."""

    state: Incoming
    effects: tuple[Effect, ...]


#: (phase, request) -> next phase; requests not listed are refused, repeated ones answered again.
TRANSITIONS: dict[tuple[IncomingPhase, Request], IncomingPhase] = {
    (IncomingPhase.RESERVED, Request.BUILD): IncomingPhase.BUILDING,
    (IncomingPhase.BUILDING, Request.BUILT): IncomingPhase.BUILT,
    (IncomingPhase.BUILT, Request.LISTEN): IncomingPhase.LISTENING,
    (IncomingPhase.LISTENING, Request.ARM): IncomingPhase.ARMED,
    (IncomingPhase.ARMED, Request.ARM): IncomingPhase.ARMED,
    (IncomingPhase.ARMED, Request.GO): IncomingPhase.OWNED,
    (IncomingPhase.ARMED, Request.TAKE): IncomingPhase.OWNED,
    (IncomingPhase.OWNED, Request.GO): IncomingPhase.OWNED,
    (IncomingPhase.SETTLED, Request.GO): IncomingPhase.SETTLED,
    (IncomingPhase.OWNED, Request.CONTINUED): IncomingPhase.SETTLED,
    # QEMU died after the source was told that the VM is here
    (IncomingPhase.OWNED, Request.CRASHED): IncomingPhase.SETTLED,
    (IncomingPhase.OWNED, Request.ABANDON): IncomingPhase.OWNED,
    (IncomingPhase.SETTLED, Request.ABANDON): IncomingPhase.SETTLED,
    (IncomingPhase.OWNED, Request.RESTARTED): IncomingPhase.OWNED,
    (IncomingPhase.SETTLED, Request.RESTARTED): IncomingPhase.SETTLED,
    (IncomingPhase.SETTLED, Request.QEMU_DIED): IncomingPhase.SETTLED,
    (IncomingPhase.ABANDONED, Request.ABANDON): IncomingPhase.ABANDONED,
    (IncomingPhase.ABANDONED, Request.RESTARTED): IncomingPhase.ABANDONED,
    (IncomingPhase.ABANDONED, Request.QEMU_DIED): IncomingPhase.ABANDONED,
    (IncomingPhase.ABANDONED, Request.BUILT): IncomingPhase.ABANDONED,
    **{
        (phase, request): IncomingPhase.ABANDONED
        for phase in (
            IncomingPhase.RESERVED, IncomingPhase.BUILDING, IncomingPhase.BUILT, IncomingPhase.LISTENING, IncomingPhase.ARMED,
        )
        for request in (Request.ABANDON, Request.QEMU_DIED, Request.RESTARTED)
    },
    # the guest never ran here and never will: QEMU is dead or cannot take its disks
    (IncomingPhase.OWNED, Request.QEMU_DIED): IncomingPhase.ABANDONED,
}  # fmt: skip


def step(state: Incoming, request: Request, *, resume: bool = False, reason: str = "") -> Answer:
    """What follows from `request`. Pure.

    :param resume: with GO: the guest ran at the source, so it shall run here.
    :raises RefusedRequest: the phase does not allow it.

    An OWNED guest whose QEMU died before it was ever told to continue is given back (ABANDONED); once it was told to
    continue it may have run and written, so it stays here, as a VM that crashed.
    """
    if state.phase is IncomingPhase.OWNED and request is Request.QEMU_DIED and state.continued:
        return Answer(replace(state, phase=IncomingPhase.SETTLED, reason=reason), (Effect.JOURNAL,))
    following = TRANSITIONS.get((state.phase, request))
    if following is None:
        raise RefusedRequest(f"'{request.value}' cannot happen while {state.phase.value}")
    if request is Request.RESTARTED and state.phase is IncomingPhase.OWNED:
        return Answer(state, (Effect.RESUME_GUEST,))
    if following is state.phase:
        # asked again, because an answer was lost: an owner that was told to run must run before it says yes
        asked = request is Request.GO or (request is Request.ABANDON and state.resume and not state.continued)
        return Answer(state, (Effect.RESUME_GUEST,) if asked and following is IncomingPhase.OWNED else ())
    match following:
        case IncomingPhase.ABANDONED:
            # QEMU dies before the journal says so: a journaled ABANDONED is a promise that it is dead
            gone = replace(state, phase=following, reason=reason)
            return Answer(gone, (Effect.KILL_QEMU, Effect.JOURNAL, Effect.RELEASE))
        case IncomingPhase.OWNED:
            return Answer(replace(state, phase=following, resume=resume), (Effect.JOURNAL, Effect.RESUME_GUEST))
        case IncomingPhase.BUILDING:
            return Answer(replace(state, phase=following), (Effect.JOURNAL, Effect.START_QEMU))
        case IncomingPhase.LISTENING:
            return Answer(replace(state, phase=following), (Effect.JOURNAL, Effect.LISTEN))
        case _:
            said = reason if request is Request.CRASHED else state.reason
            return Answer(replace(state, phase=following, reason=said), (Effect.JOURNAL,))
