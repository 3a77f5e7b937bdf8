"""The words of a journey: phases, owner, run states, the state that :func:`machine.step` changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from livemove.policy.convergence import Contract, Memory


class Owner(Enum):
    """Which host may run the VM. Never both; UNKNOWN starts nobody and leads to a question, never to a guess."""

    SOURCE = "source"
    DESTINATION = "destination"
    UNKNOWN = "unknown"


class Phase(Enum):
    """Where a journey is; the value is what people read. The ten steps of the journey are those with a number."""

    FINDING = "finding"
    QUEUED = "queued"
    PERMITTING = "permitting"
    CHECKING = "checking"
    PREPARING = "preparing"
    CONNECTING = "connecting"
    COPYING = "copying"
    CONVERGING = "converging"
    BLACKOUT = "blackout"
    VERIFYING = "verifying"
    HANDING_OVER = "handing-over"
    CLEANING = "cleaning"
    ABORTING = "aborting"
    UNRESOLVED = "unresolved"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    ENDED = "ended"

    @property
    def terminal(self) -> bool:
        """Nothing happens after it."""
        return self in _TERMINAL

    @property
    def step(self) -> int | None:
        """The number of the step, 1 to 10; None for phases that are not steps."""
        return _STEPS.get(self)


_TERMINAL = frozenset({Phase.COMPLETED, Phase.FAILED, Phase.CANCELLED, Phase.ENDED})
_STEPS = {
    Phase.FINDING: 1,
    Phase.PERMITTING: 2,
    Phase.CHECKING: 3,
    Phase.PREPARING: 4,
    Phase.CONNECTING: 5,
    Phase.COPYING: 6,
    Phase.CONVERGING: 7,
    Phase.BLACKOUT: 8,
    Phase.VERIFYING: 9,
    Phase.HANDING_OVER: 9,
    Phase.CLEANING: 10,
}

STEP_NAMES = {
    1: "find source and destination",
    2: "permission",
    3: "memory and fitness",
    4: "skeleton VM",
    5: "connection",
    6: "first round",
    7: "further rounds",
    8: "blackout",
    9: "final check and hand-over",
    10: "clean-up",
}


class Verify(Enum):
    """How much of the VM's memory both hosts compare between pause and resume."""

    OFF = "off"
    SAMPLE = "sample"
    FULL = "full"


class GuestRun(Enum):
    """The run state that the VM has at the source and must have at the destination."""

    RUNNING = "running"
    PAUSED = "paused"
    IO_ERROR = "io-error"
    PANICKED = "guest-panicked"
    POWERED_OFF = "shutdown"

    @classmethod
    def of(cls, qemu_status: str) -> GuestRun:
        """From QEMU's RunState; states of QEMU's own making (``inmigrate`` and the like) count as running."""
        for state in cls:
            if state.value == qemu_status:
                return state
        return (
            cls.PAUSED
            if qemu_status in ("prelaunch", "suspended", "debug", "watchdog", "internal-error")
            else cls.RUNNING
        )


class Ending(Enum):
    """Why a journey that is being aborted ends, hence which terminal phase it takes."""

    FAILED = "failed"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    GUEST_ENDED = "guest-ended"
    SOURCE_CRASHED = "source-crashed"


@dataclass(frozen=True, slots=True)
class Abort:
    """Data of ABORTING: what is still to be undone, and why."""

    ending: Ending
    code: str
    reason: str
    remedy: str
    copy_stopped: bool
    destination_gone: bool


@dataclass(frozen=True, slots=True)
class State:
    """One journey as its source sees it.

    :param guest: run state the VM had when it last ran by itself; what the destination is told to take on.
    :param may_hand_over: journaled here, durably, before the destination is asked to arm: from then on only the destination
        can say that it does not own the VM.
    :param armed: both hosts have journaled that they may hand over.
    :param copied: QEMU said that the destination has loaded everything.
    :param source_gone: the source's QEMU ended when the GO may have been out: nothing is left here to go back to.
    :param verify: what must still be compared before a GO; OFF once it is.
    :param abort: set exactly while ABORTING and in the terminal phases that follow it.
    """

    phase: Phase
    owner: Owner
    contract: Contract
    guest: GuestRun = GuestRun.RUNNING
    may_hand_over: bool = False
    armed: bool = False
    copied: bool = False
    verify: Verify = Verify.OFF
    copy_started: bool = False
    destination_made: bool = False
    source_gone: bool = False
    convergence: Memory = field(default_factory=Memory)
    abort: Abort | None = None


class IncomingPhase(Enum):
    """Where a journey is at its destination. Only OWNED and SETTLED own the VM."""

    RESERVED = "reserved"
    BUILDING = "building"
    BUILT = "built"
    LISTENING = "listening"
    ARMED = "armed"
    OWNED = "owned"
    SETTLED = "settled"
    ABANDONED = "abandoned"

    @property
    def owns(self) -> bool:
        return self in (IncomingPhase.OWNED, IncomingPhase.SETTLED)


@dataclass(frozen=True, slots=True)
class Incoming:
    """One journey as its destination sees it; see incoming.py."""

    phase: IncomingPhase
    resume: bool = False
    continued: bool = False
    reason: str = ""
