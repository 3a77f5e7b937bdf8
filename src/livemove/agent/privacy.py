"""The agent's own directories, looked at when it starts: nobody but their owner gets into them.

What was merely left open is closed, with a line in the log. What somebody else may already have read or changed (a private
key open to all, a directory that another user owns) is refused, because closing it now would not undo that.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from livemove.base.errors import NoIdentity, StateUnwritable

_log = logging.getLogger(__name__)
_OTHERS = 0o077


def keep_private(state_dir: Path) -> None:
    """Close state directory and database, identity and authority to other users.

    Raises NoIdentity for a private key that every user may read, StateUnwritable for what another user owns or what cannot
    be closed.
    """
    for key in (state_dir / "identity" / "key.pem", state_dir / "authority" / "ca.key"):
        if key.exists() and key.stat().st_mode & 0o007:
            raise NoIdentity(
                f"The private key {key} is open to every user (mode {stat.S_IMODE(key.stat().st_mode):o}).",
                remedy=f"Run 'chmod 600 {key}', and replace the certificate if somebody may have read the key.",
            )
    for path in _private(state_dir):
        try:
            found = path.lstat()
            if found.st_uid not in (os.geteuid(), 0):
                raise StateUnwritable(
                    f"{path} belongs to user {found.st_uid}, who could change it.",
                    remedy=f"See what it is, then run 'chown root {path}'.",
                )
            if stat.S_ISLNK(found.st_mode) or not found.st_mode & _OTHERS:
                continue
            path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)
            _log.warning("%s was open to other users (mode %o) and is closed now", path, stat.S_IMODE(found.st_mode))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StateUnwritable(f"{path} cannot be closed to other users: {error.strerror}.") from error


def _private(state_dir: Path) -> Iterator[Path]:
    yield state_dir
    yield from state_dir.glob("livemove.db*")
    for directory in (state_dir / "identity", state_dir / "authority"):
        yield directory
        yield from directory.rglob("*")
