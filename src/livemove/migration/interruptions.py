"""What the guest, its user and a restarted agent do to a journey; the other rules are in steps.py."""

from __future__ import annotations

from dataclasses import replace

from livemove.migration import commands as do
from livemove.migration import events as on
from livemove.migration.events import Event
from livemove.migration.model import Ending, GuestRun, Owner, Phase, State
from livemove.migration.rules import Result, rule
from livemove.migration.steps import ASKING, AT_SOURCE, BEFORE_COPY, ENDS, MOVING, undo_all

# The guest and its user do things meanwhile ---------------------------------------------------------------------------


@rule(AT_SOURCE, on.UserPaused)
def _paused(state: State, event: Event) -> Result:
    return replace(state, guest=GuestRun.PAUSED), (do.Note("The VM was paused; it will arrive paused."),)


@rule(AT_SOURCE, on.UserResumed)
def _resumed(state: State, event: Event) -> Result:
    return replace(state, guest=GuestRun.RUNNING), (do.Note("The VM was resumed; it will arrive running."),)


@rule(AT_SOURCE, on.GuestDiskFailed)
def _disk_failed(state: State, event: Event) -> Result:
    return replace(state, guest=GuestRun.IO_ERROR), (
        do.Note("A disk error stopped the VM; it will arrive stopped.", "warning"),
    )


@rule(AT_SOURCE, on.GuestPanicked)
def _panicked(state: State, event: Event) -> Result:
    return replace(state, guest=GuestRun.PANICKED), (
        do.Note("The guest panicked; it will arrive as it is.", "warning"),
    )


@rule(AT_SOURCE, on.GuestReset)
def _reset(state: State, event: Event) -> Result:
    return state, (do.Note("The guest was reset; the copy goes on."),)


# A restarted agent ----------------------------------------------------------------------------------------------------


@rule((Phase.FINDING, *BEFORE_COPY), on.AgentRestarted, Phase.ABORTING, Phase.FAILED)
def _restarted_early(state: State, event: Event) -> Result:
    return undo_all(state, Ending.FAILED, "journey-failed", "The source's agent was restarted before the copy began.")


@rule(MOVING, on.AgentRestarted, Phase.ABORTING, Phase.UNRESOLVED)
def _restarted_copying(state: State, event: Event) -> Result:
    assert isinstance(event, on.AgentRestarted)
    if event.go_impossible:
        return undo_all(state, Ending.FAILED, "journey-failed", "The source's agent was restarted during the copy.")
    # the journal may be older than the GO, so only the destination knows
    unknown = replace(state, phase=Phase.UNRESOLVED, owner=Owner.UNKNOWN)
    return unknown, (
        do.Note("The source's agent was restarted near the hand-over: asking the destination.", "warning"),
        do.AskDestination(),
    )


@rule(ASKING, on.AgentRestarted, Phase.UNRESOLVED)
def _restarted_unresolved(state: State, event: Event) -> Result:
    return replace(state, phase=Phase.UNRESOLVED), (do.AskDestination(),)


@rule(Phase.CLEANING, on.AgentRestarted)
def _restarted_cleaning(state: State, event: Event) -> Result:
    return state, (do.RemoveSource(),)


@rule(Phase.ABORTING, on.AgentRestarted, *ENDS)
def _restarted_aborting(state: State, event: Event) -> Result:
    abort = state.abort
    assert abort is not None
    return undo_all(state, abort.ending, abort.code, abort.reason, abort.remedy)
