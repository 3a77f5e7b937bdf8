"""The kernel's own words for "there is no more of it", as errors with a remedy: file space, descriptors, memory."""

from __future__ import annotations

import errno

from livemove.base.errors import MissingPrerequisite, NotEnoughMemory, OperatorError, StateUnwritable

DESCRIPTORS_REMEDY = "Raise the agent's limit of open files (LimitNOFILE= in its systemd unit, 'ulimit -n' elsewhere)."


def shortage_of(error: OSError) -> OperatorError | None:
    """What `error` says is missing on this host; None when it says something else."""
    where = f" ({error.filename})" if error.filename else ""
    match error.errno:
        case errno.EMFILE | errno.ENFILE:
            return MissingPrerequisite("The agent has no file descriptor left.", remedy=DESCRIPTORS_REMEDY)
        case errno.ENOSPC | errno.EDQUOT:
            return StateUnwritable(f"A file system of this host is full{where}.")
        case errno.EROFS:
            return StateUnwritable(f"A file system of this host is read-only{where}.")
        case errno.ENOMEM:
            return NotEnoughMemory("The kernel of this host has no memory left for the agent.")
    return None
