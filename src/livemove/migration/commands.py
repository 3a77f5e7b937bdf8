"""What to do for a journey. The counterpart are the events: what happened.

Commands say what, never how: the direct engine, a later one, or a test carries them out.
"""

from __future__ import annotations

from dataclasses import dataclass

from livemove.migration.model import Verify


@dataclass(frozen=True, slots=True)
class Command:
    """Base of all commands; only its subclasses are used, and those are not subclassed."""


@dataclass(frozen=True, slots=True)
class RequestSlot(Command):
    """Ask for one of this host's outgoing slots; answered by SlotGranted."""


@dataclass(frozen=True, slots=True)
class AskPermission(Command):
    """Present the grant to the destination and wait for one of its slots."""


@dataclass(frozen=True, slots=True)
class CheckFitness(Command):
    """Compare both hosts, negotiate, reserve memory; change nothing that must be undone but the reservation."""


@dataclass(frozen=True, slots=True)
class BuildSkeleton(Command):
    """Have the destination start a QEMU from the frozen definition."""


@dataclass(frozen=True, slots=True)
class OpenConnection(Command):
    """Probe the path against our own listener, then let the destination's QEMU listen."""


@dataclass(frozen=True, slots=True)
class StartCopy(Command):
    """Tell the source's QEMU to migrate."""


@dataclass(frozen=True, slots=True)
class ArmHandOver(Command):
    """Have both hosts journal, durably, that the VM may be handed over."""


@dataclass(frozen=True, slots=True)
class OpenLatch(Command):
    """Allow QEMU to switch over when what remains fits into `latch_s` at `rate_bytes_per_s`."""

    latch_s: float
    rate_bytes_per_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class ThrottleGuest(Command):
    """Let QEMU take up to `percent` of the guest's CPU time."""

    percent: int
    reason: str


@dataclass(frozen=True, slots=True)
class VerifyMemory(Command):
    """Compare the memory of both QEMUs, while no guest runs in either; answered by MemoryVerified or MemoryDiffers."""

    mode: Verify


@dataclass(frozen=True, slots=True)
class SendGo(Command):
    """Pass the ownership: the destination may journal OWNED and, with `resume`, run the guest.

    :param source_gone: the source's QEMU has ended, so nobody need look whether its guest runs; said again until answered.
    """

    resume: bool
    source_gone: bool = False


@dataclass(frozen=True, slots=True)
class AskDestination(Command):
    """Ask, until there is an answer, whether the destination owns the VM. Its no is binding."""


@dataclass(frozen=True, slots=True)
class CancelCopy(Command):
    """Stop QEMU's migration and give the guest the run state that it had, at full speed."""

    resume: bool


@dataclass(frozen=True, slots=True)
class AbandonDestination(Command):
    """Have the destination forget the journey; answered by DestinationAbandoned even when it is out of reach."""


@dataclass(frozen=True, slots=True)
class RemoveSource(Command):
    """End the source's QEMU, which handed the VM over, and free what belonged to it."""


@dataclass(frozen=True, slots=True)
class StopSourceVm(Command):
    """The guest powered itself off: end its QEMU in order and keep its definition."""


@dataclass(frozen=True, slots=True)
class Note(Command):
    """Put a sentence into the journey's events; `level` is info, warning or error."""

    text: str
    level: str = "info"


@dataclass(frozen=True, slots=True)
class Finish(Command):
    """The journey is over: write the report, give back the slot."""
