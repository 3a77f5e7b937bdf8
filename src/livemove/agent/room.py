"""Whether this host has room for a journey's own needs: space for journal and sockets, file descriptors.

Asked at both hosts before a VM is touched, because a journey that runs out of them in the middle can only stand still.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

from livemove.base.errors import MissingPrerequisite, StateUnwritable
from livemove.base.settings import HostSettings
from livemove.base.shortage import DESCRIPTORS_REMEDY
from livemove.base.units import format_size, parse_size

# A journey takes some twenty at each host (sockets, process handles, pipes), and people's connections need theirs.
LEAST_DESCRIPTORS = 64
# As in the systemd unit; a host of 64 busy VMs uses a few thousand.
MOST_DESCRIPTORS = 65536
# Files of one journey: sockets, logs, keys, what SQLite adds.
LEAST_FILES = 32


def check_room(settings: HostSettings) -> None:
    """Raises StateUnwritable or MissingPrerequisite naming what this host lacks, and how much of it."""
    for setting, directory in (("state_dir", settings.state_dir), ("run_dir", settings.run_dir)):
        _check_space(setting, directory, parse_size(settings.disk_reserve), settings.name)
    left = descriptors_left()
    if left < LEAST_DESCRIPTORS:
        raise MissingPrerequisite(
            f"The agent of {settings.name} may open {max(left, 0)} more files, and a journey needs {LEAST_DESCRIPTORS}.",
            remedy=DESCRIPTORS_REMEDY, where=settings.name,
        )  # fmt: skip


def _check_space(setting: str, directory: Path, least_bytes: int, host: str) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.statvfs(directory)
    except OSError as error:
        raise StateUnwritable(
            f"{directory} ('{setting}' of {host}) cannot be used: {error.strerror}.", where=host
        ) from error
    what = f"{directory} ('{setting}' of {host})"
    if found.f_flag & os.ST_RDONLY:
        raise StateUnwritable(
            f"{what} is on a read-only file system.", remedy="Mount it writable; the kernel's log tells why it is not.",
            where=host,
        )  # fmt: skip
    free_bytes = found.f_bavail * found.f_frsize
    if free_bytes < least_bytes:
        raise StateUnwritable(
            f"{what} has {format_size(free_bytes)} of space left, and a journey needs {format_size(least_bytes)}.",
            remedy=f"Free space there, or lower 'disk_reserve' with 'livemove host set --host {host}'.", where=host,
        )  # fmt: skip
    # some file systems count no files
    if found.f_files and found.f_favail < LEAST_FILES:
        raise StateUnwritable(
            f"{what} can take {found.f_favail} more files, and a journey needs {LEAST_FILES}.",
            remedy="Remove files there; the file system has no inodes left.", where=host,
        )  # fmt: skip


def descriptors_left() -> int:
    """How many files this process may still open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return 1 << 30
    try:
        return limit - sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError:
        return 0  # not even the one for looking


def raise_descriptor_limit() -> None:
    """Raise this process's limit of open files to what the systemd unit has, as far as it may by itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
