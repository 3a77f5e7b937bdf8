"""Every error livemove raises on purpose, by who must act.

    LivemoveError
    |-- CallerError       the command or its input was wrong; nothing was changed
    |-- OperatorError     the hosts are not as they must be; the remedy names what to mend
    |-- LinkError         the other side did not answer; trying again may help
    |-- HypervisorError   QEMU said no, or went away
    |-- JourneyError      the end of a journey that did not move the VM
    |-- PeerViolation     the other side said something that the protocol does not allow
    `-- Bug               livemove itself is wrong

A class has a stable ``code`` (in JSON, events and docs), an ``exit_code`` of its own and a ``remedy``; an instance may
give a more exact remedy. ``docs/errors.md`` is generated from this package.
"""

from livemove.base.errors.caller import (
    AlreadyMoving,
    BadDefinition,
    BadQuantity,
    BadSetting,
    Conflict,
    NotRunning,
    SameHost,
    UnknownHost,
    UnknownJourney,
    UnknownVm,
)
from livemove.base.errors.endings import (
    Bug,
    DeadlinePassed,
    GuestEnded,
    JourneyCancelled,
    JourneyFailed,
    MemoryDiffers,
)
from livemove.base.errors.faults import (
    AgentBusy,
    AgentUnreachable,
    LinkLost,
    OutcomeUnknown,
    PeerViolation,
    QemuFailed,
    QemuGone,
)
from livemove.base.errors.operator import (
    CpuUnsupported,
    DiskUnreachable,
    HugePagesMissing,
    LeaseMismatch,
    MigrationBlocked,
    MissingPrerequisite,
    MtuBlackHole,
    NetworkMissing,
    NoCommonNetwork,
    NoIdentity,
    NotEnoughMemory,
    NotMigratable,
    NotPermitted,
    PolicyRefused,
    PortClosed,
    QemuTooOld,
    StateDamaged,
    StateUnwritable,
    UnsafeDisk,
)
from livemove.base.errors.tree import (
    CallerError,
    HypervisorError,
    JourneyError,
    LinkError,
    LivemoveError,
    OperatorError,
    by_code,
    error_from_json,
    every_error,
)

__all__ = [
    "AgentBusy",
    "AgentUnreachable",
    "AlreadyMoving",
    "BadDefinition",
    "BadQuantity",
    "BadSetting",
    "Bug",
    "CallerError",
    "Conflict",
    "CpuUnsupported",
    "DeadlinePassed",
    "DiskUnreachable",
    "GuestEnded",
    "HugePagesMissing",
    "HypervisorError",
    "JourneyCancelled",
    "JourneyError",
    "JourneyFailed",
    "LeaseMismatch",
    "LinkError",
    "LinkLost",
    "LivemoveError",
    "MemoryDiffers",
    "MigrationBlocked",
    "MissingPrerequisite",
    "MtuBlackHole",
    "NetworkMissing",
    "NoCommonNetwork",
    "NoIdentity",
    "NotEnoughMemory",
    "NotMigratable",
    "NotPermitted",
    "NotRunning",
    "OperatorError",
    "OutcomeUnknown",
    "PeerViolation",
    "PolicyRefused",
    "PortClosed",
    "QemuFailed",
    "QemuGone",
    "QemuTooOld",
    "SameHost",
    "StateDamaged",
    "StateUnwritable",
    "UnknownHost",
    "UnknownJourney",
    "UnknownVm",
    "UnsafeDisk",
    "by_code",
    "error_from_json",
    "every_error",
]
