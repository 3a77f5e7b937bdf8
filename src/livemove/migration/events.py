"""What happened to a journey. The counterpart are the commands: what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

from livemove.migration.model import GuestRun
from livemove.policy.convergence import Sample


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events; only its subclasses are used, and those are not subclassed."""


@dataclass(frozen=True, slots=True)
class JourneyAccepted(Event):
    """Source and destination are known, the VM is here, the request is on record."""

    guest: GuestRun


@dataclass(frozen=True, slots=True)
class SlotGranted(Event):
    """Fewer journeys than ``simultaneous`` leave this host."""


@dataclass(frozen=True, slots=True)
class PermissionGiven(Event):
    """The destination accepted the grant and has a slot; from now on it has something to forget."""


@dataclass(frozen=True, slots=True)
class FitnessConfirmed(Event):
    """Memory reserved, both QEMUs agree, nothing blocks."""


@dataclass(frozen=True, slots=True)
class SkeletonBuilt(Event):
    """The destination's QEMU waits."""


@dataclass(frozen=True, slots=True)
class ConnectionOpened(Event):
    """Path and port are probed and the destination's QEMU listens."""


@dataclass(frozen=True, slots=True)
class CopyStarted(Event):
    """QEMU accepted the migrate command."""


@dataclass(frozen=True, slots=True)
class HandOverArmed(Event):
    """Both journals say, durably, that the VM may be handed over."""


@dataclass(frozen=True, slots=True)
class ProgressSampled(Event):
    """QEMU's counters were read."""

    sample: Sample


@dataclass(frozen=True, slots=True)
class SourceStopped(Event):
    """QEMU stopped the guest to send the last pages: the blackout began."""


@dataclass(frozen=True, slots=True)
class CopyCompleted(Event):
    """QEMU at the source is completed, hence the destination has loaded everything."""


@dataclass(frozen=True, slots=True)
class MemoryVerified(Event):
    """What was compared is the same on both hosts."""


@dataclass(frozen=True, slots=True)
class MemoryDiffers(Event):
    """The destination loaded something else than the source sent."""

    reason: str


@dataclass(frozen=True, slots=True)
class CopyFailed(Event):
    """QEMU's migration failed; its guest is at the source."""

    reason: str


@dataclass(frozen=True, slots=True)
class CopyCancelled(Event):
    """QEMU's migration is over and the guest has its run state back at the source, at full speed."""


@dataclass(frozen=True, slots=True)
class DestinationOwned(Event):
    """The destination answered: journaled and running (or paused, as it was)."""


@dataclass(frozen=True, slots=True)
class DestinationDisowned(Event):
    """The destination answered a binding no: ABANDONED is journaled and its QEMU is dead."""

    reason: str


@dataclass(frozen=True, slots=True)
class DestinationSilent(Event):
    """No answer to a question about ownership."""

    reason: str


@dataclass(frozen=True, slots=True)
class DestinationDeclaredDead(Event):
    """An operator gave the word that the destination, which is silent, is fenced and does not run the VM.

    :param paused: the guest is not to be resumed.
    """

    by: str
    paused: bool = False


@dataclass(frozen=True, slots=True)
class DestinationAbandoned(Event):
    """The destination has forgotten the journey, or owns nothing and will find out by itself when it returns.

    :param cause: what went wrong there, when it gave the journey up before it was told to; else empty.
    """

    cause: str = ""


@dataclass(frozen=True, slots=True)
class SourceRemoved(Event):
    """Nothing of the VM is left at the source but the record of where it went."""


@dataclass(frozen=True, slots=True)
class StepFailed(Event):
    """A command before the hand-over could not be carried out."""

    code: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class CancelRequested(Event):
    """Somebody asked to end the journey."""

    by: str


@dataclass(frozen=True, slots=True)
class GuestPoweredOff(Event):
    """The guest shut itself down."""


@dataclass(frozen=True, slots=True)
class GuestReset(Event):
    """The guest rebooted; it keeps running."""


@dataclass(frozen=True, slots=True)
class GuestPanicked(Event):
    """The guest's kernel panicked and QEMU holds it."""


@dataclass(frozen=True, slots=True)
class GuestDiskFailed(Event):
    """A disk error stopped the guest."""


@dataclass(frozen=True, slots=True)
class UserPaused(Event):
    """Somebody paused the VM."""


@dataclass(frozen=True, slots=True)
class UserResumed(Event):
    """Somebody resumed the VM."""


@dataclass(frozen=True, slots=True)
class SourceQemuDied(Event):
    """The source's QEMU process is gone.

    :param proven: the end of the process was seen, and not only that of its monitor.
    """

    reason: str
    proven: bool = False


@dataclass(frozen=True, slots=True)
class AgentRestarted(Event):
    """The source's agent was restarted and found this journey open in its journal.

    :param go_impossible: the source's QEMU is alive and has not completed the copy, hence no GO was ever sent.
    """

    go_impossible: bool
