"""Scripts for the machine: ``>>`` an event that happens, ``<<`` the commands that must follow."""

from __future__ import annotations

from livemove.migration.commands import Command, Note
from livemove.migration.events import Event
from livemove.migration.machine import begin, step
from livemove.migration.model import Owner, Phase, State, Verify
from livemove.policy.convergence import Contract


class Playbook:
    """Notes are left out of the comparison; they are for people."""

    def __init__(self, state: State | None = None) -> None:
        self.state = state or begin(Contract(0.3))
        self.issued: tuple[Command, ...] = ()
        self.notes: list[str] = []

    def __rshift__(self, event: Event) -> Playbook:
        assert not self.issued, f"{self.issued} were issued and not expected"
        self.state, commands = step(self.state, event)
        self.notes += [command.text for command in commands if isinstance(command, Note)]
        self.issued = tuple(command for command in commands if not isinstance(command, Note))
        check_invariants(self.state)
        return self

    def __lshift__(self, command: Command) -> Playbook:
        assert self.issued, f"{command} was expected, nothing more was issued"
        assert self.issued[0] == command
        self.issued = self.issued[1:]
        return self

    def ends(self, phase: Phase, owner: Owner) -> State:
        assert not self.issued, f"{self.issued} were issued and not expected"
        assert (self.state.phase, self.state.owner) == (phase, owner)
        return self.state


def check_invariants(state: State) -> None:
    """What holds in every state of every journey."""
    if state.owner is Owner.DESTINATION:
        assert state.phase in (Phase.CLEANING, Phase.COMPLETED)
    if state.owner is Owner.UNKNOWN:
        assert state.phase in (Phase.HANDING_OVER, Phase.UNRESOLVED)
    if state.phase is Phase.VERIFYING:
        assert state.owner is Owner.SOURCE and state.verify is not Verify.OFF
    if state.phase in (Phase.VERIFYING, Phase.HANDING_OVER):
        assert state.armed and state.copied
    if state.phase is Phase.HANDING_OVER:
        assert state.verify is Verify.OFF
    if state.phase is Phase.COMPLETED:
        assert state.owner is Owner.DESTINATION
    if state.phase in (Phase.FAILED, Phase.CANCELLED, Phase.ENDED):
        assert state.owner is Owner.SOURCE
        assert state.abort is not None and state.abort.copy_stopped and state.abort.destination_gone
    assert (state.abort is None) == (state.phase not in (Phase.ABORTING, Phase.FAILED, Phase.CANCELLED, Phase.ENDED))
