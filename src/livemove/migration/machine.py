"""A journey as its source sees it: :func:`step` is all that changes its state.

Two laws. Everything that changes the state of a journey is a rule of steps.py or interruptions.py (the guest, its user and a
restarted agent), behind :func:`step`. And ownership passes through one narrow place: :class:`SendGo` is issued only when
QEMU has completed, both journals are armed and what was to be verified is; from then on the owner is UNKNOWN until the destination has answered; the
source's guest is resumed only while the owner is SOURCE.

The counterpart at the destination is incoming.py.
"""

from __future__ import annotations

from livemove.migration import interruptions, steps
from livemove.migration.events import Event
from livemove.migration.model import Owner, Phase, State, Verify
from livemove.migration.rules import OBSERVATIONS, TABLE, TRANSITIONS, IllegalEvent, Result
from livemove.policy.convergence import Contract

__all__ = ["TRANSITIONS", "IllegalEvent", "begin", "step"]

# their rules are in the table once they are imported
_ = (interruptions, steps)


def begin(contract: Contract, verify: Verify = Verify.OFF) -> State:
    """A journey before its first event."""
    return State(Phase.FINDING, Owner.SOURCE, contract, verify=verify)


def step(state: State, event: Event) -> Result:
    """The next state, and what to do now. Pure.

    Raises IllegalEvent for an answer that nobody waits for.
    """
    change = TABLE.get((state.phase, type(event)))
    if change is None:
        late = state.phase.terminal or state.phase in (Phase.ABORTING, Phase.UNRESOLVED)
        if late or isinstance(event, OBSERVATIONS):
            return state, ()
        raise IllegalEvent(f"{type(event).__name__} cannot happen while {state.phase.name}")
    following, commands = change(state, event)
    if following.phase not in TRANSITIONS[state.phase, type(event)]:
        raise IllegalEvent(
            f"{type(event).__name__} led from {state.phase.name} to {following.phase.name}, which is not declared"
        )
    return following, commands
