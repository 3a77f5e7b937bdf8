"""Open invitations: one small file each in ``authority/invitations``, named by the hash of the secret.

A copy of the directory lets nobody join: the secret itself is only in the token. :func:`locked` keeps the agent and
commands apart; within it an invitation is found, and consumed once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from livemove.api.private_files import make_private_dir, sync_dir, write_private
from livemove.base.clock import Clock
from livemove.base.errors import Conflict, StateUnwritable

# far more than hosts that join within one lifetime; a bound for scripts that invite and never join
MAX_INVITATIONS = 256


class Invitation(BaseModel):
    """For whom the secret is, and until when.

    :param replace: the host is in the cluster already and was installed anew.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str
    expires_wall_s: float
    replace: bool


@contextlib.contextmanager
def locked(authority_dir: Path) -> Iterator[None]:
    """Hold the authority's lock; waits for another process that has it. Raises StateUnwritable."""
    try:
        descriptor = os.open(authority_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateUnwritable(f"The authority in {authority_dir} cannot be changed: {error.strerror}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def store(authority_dir: Path, secret: str, invitation: Invitation, clock: Clock) -> None:
    """Keep an invitation and forget expired ones. Raises Conflict when too many are open, StateUnwritable."""
    directory = authority_dir / "invitations"
    make_private_dir(directory)
    still_open = 0
    for path in directory.glob("*.json"):
        known = _read(path)
        if known is not None and known.expires_wall_s > clock.wall_s():
            still_open += 1
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    if still_open >= MAX_INVITATIONS:
        raise Conflict(f"{still_open} invitations are open.", remedy="Wait until some of them have expired.")
    write_private(_path(authority_dir, secret), invitation.model_dump_json().encode())


def find(authority_dir: Path, secret: str, clock: Clock) -> Invitation | None:
    """The invitation of this secret; None when there is none, it was used or it is too late."""
    invitation = _read(_path(authority_dir, secret))
    return invitation if invitation is not None and invitation.expires_wall_s > clock.wall_s() else None


def consume(authority_dir: Path, secret: str) -> None:
    """Forget the invitation, durably: when this returns, no crash brings it back. Raises StateUnwritable."""
    path = _path(authority_dir, secret)
    try:
        path.unlink()
        sync_dir(path.parent)
    except OSError as error:
        raise StateUnwritable(f"{path} cannot be removed: {error.strerror}.") from error


def _path(authority_dir: Path, secret: str) -> Path:
    return authority_dir / "invitations" / f"{hashlib.sha256(secret.encode()).hexdigest()}.json"


def _read(path: Path) -> Invitation | None:
    try:
        return Invitation.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None
