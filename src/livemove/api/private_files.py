"""Small files that only their owner may read, replaced as a whole: keys, certificates, invitations, the cluster's map."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from livemove.base.errors import StateUnwritable


def make_private_dir(path: Path) -> None:
    """Make the directory (and those above it) with mode 0700. Raises StateUnwritable."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.chmod(0o700)
    except OSError as error:
        raise StateUnwritable(f"The directory {path} cannot be made: {error.strerror}.") from error


def write_private(path: Path, data: bytes) -> None:
    """Put `data` into the file with mode 0600, durably: a crash leaves the old content or the new, never a part.

    The directory must exist. Raises StateUnwritable; the old content is then still there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_dir(path.parent)
    except OSError as error:
        raise StateUnwritable(f"{path} cannot be written: {error.strerror}.") from error


def sync_dir(path: Path) -> None:
    """Make names added to or removed from the directory durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
