"""Processes of a lab: started so that they outlive the command that started them, found again, ended.

They are found by the network namespace they are in and by a mark in their environment, so also those that a host's
agent started (QEMUs, movers), and those whose start was not recorded because the recorder was killed.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from livemove.base.errors import Conflict, MissingPrerequisite
from livemove.lab.namespaces import MARK, NamespaceId, enter, namespace_id

_PROC = Path("/proc")
_POLL_S = 0.02
_KILL_WAIT_S = 10.0
_MARKED_POLL_S, _MARKED_TRIES = 0.0005, 2000
# Started by this process: nobody else collects their status.
_children: set[int] = set()


def start(namespace: str, argv: Sequence[str], *, directory: Path, log: Path, env: Mapping[str, str]) -> int:
    """Start a command in a namespace and a session of its own; returns its pid.

    Standard output and error are appended to `log`, standard input is empty, the working directory is `directory`. A
    command that cannot be executed ends with status 127 and says why in its log. Raises MissingPrerequisite without
    nsenter.
    """
    reap()
    words = enter(namespace)
    # posix_spawn, not subprocess: asyncio kills its children when the loop ends, and Popen complains about living ones
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    try:
        pid = os.posix_spawnp(
            words[0],
            [*words[:-1], f"--wd={directory}", "--", *argv],
            {**os.environ, **env},
            file_actions=actions,
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT],
        )
    except FileNotFoundError as error:
        raise MissingPrerequisite(f"'nsenter' is not installed, or {log.parent} does not exist.") from error
    _children.add(pid)
    _wait_marked(pid)
    return pid


def _wait_marked(pid: int) -> None:
    """Return when the process shows its environment, by which it is known as the lab's.

    The kernel lets posix_spawn return when the child's memory is its own, a moment before the environment is there.
    """
    for _ in range(_MARKED_TRIES):
        try:
            if start_ticks(pid) is None or (_PROC / str(pid) / "environ").read_bytes():
                return
        except OSError:
            return
        time.sleep(_MARKED_POLL_S)


def reap() -> None:
    """Collect the status of processes of :func:`start` that have ended, so that no zombies stay."""
    for pid in list(_children):
        try:
            ended, _ = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            ended = pid
        if ended:
            _children.discard(pid)


def start_ticks(pid: int) -> int | None:
    """When the process began, in ticks since boot: tells it from a later one with the same id. None if it has ended."""
    try:
        state, *fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])


def belongs(pid: int, lab: str, namespaces: set[NamespaceId]) -> bool:
    """Whether a living process is in one of the namespaces or carries the lab's mark."""
    if start_ticks(pid) is None:
        return False
    if namespace_id(_PROC / str(pid) / "ns/net") in namespaces:
        return True
    try:
        return f"{MARK}={lab}".encode() in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def find(lab: str, namespaces: set[NamespaceId]) -> list[int]:
    """The lab's living processes, this one excepted."""
    pids = (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal())
    return sorted(pid for pid in pids if pid != os.getpid() and belongs(pid, lab, namespaces))


def command_of(pid: int) -> str:
    """The command line, for people; empty when the process has ended."""
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return b" ".join(words).decode(errors="replace").strip()[:200]


def listens(pid: int, port: int) -> bool:
    """Whether anything in the process's network namespace listens on a TCP port; asks the kernel, connects to nothing."""
    for table in ("tcp", "tcp6"):
        try:
            lines = (_PROC / str(pid) / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                return True
    return False


async def end(pids: Iterable[int], *, lab: str, namespaces: set[NamespaceId], grace_s: float = 3.0) -> None:
    """End processes: SIGTERM, and SIGKILL for those that are still there after `grace_s`.

    Only processes that belong to the lab at the moment of the signal get one. Returns when all have ended; raises
    Conflict naming those that do not even after SIGKILL.
    """
    handles: dict[int, int] = {}
    try:
        for pid in pids:
            try:
                handles[pid] = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            # asked only now, when the handle keeps the id from being given to another process
            if not belongs(pid, lab, namespaces):
                os.close(handles.pop(pid))
        for signals, wait_s in (((signal.SIGTERM, signal.SIGCONT), grace_s), ((signal.SIGKILL,), _KILL_WAIT_S)):
            for handle in handles.values():
                for number in signals:
                    _send(handle, number)
            await _wait(handles, wait_s)
            if not handles:
                return
        names = ", ".join(f"{pid} ({command_of(pid)})" for pid in handles)
        raise Conflict(f"Processes of lab '{lab}' do not end: {names}.", remedy="Repeat 'livemove lab down' later.")
    finally:
        for handle in handles.values():
            os.close(handle)


def send(pid: int, number: signal.Signals, *, lab: str, namespaces: set[NamespaceId]) -> None:
    """Send a signal to one process of the lab. Raises Conflict when it is not one, or has ended."""
    try:
        handle = os.pidfd_open(pid)
    except OSError as error:
        raise Conflict(f"Process {pid} has ended.", remedy="'livemove lab status' lists the processes.") from error
    try:
        if not belongs(pid, lab, namespaces):
            raise Conflict(f"Process {pid} is not of lab '{lab}'.", remedy="'livemove lab status' lists its processes.")
        _send(handle, number)
    finally:
        os.close(handle)


def _send(handle: int, number: signal.Signals) -> None:
    try:
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return


async def _wait(handles: dict[int, int], wait_s: float) -> None:
    """Wait until all have ended, or the time is over; closes and forgets the handles of those that have."""
    try:
        async with asyncio.timeout(wait_s):
            while handles:
                poll = select.poll()
                for handle in handles.values():
                    poll.register(handle, select.POLLIN)
                ended = {handle for handle, _ in poll.poll(0)}
                for pid in [pid for pid, handle in handles.items() if handle in ended]:
                    os.close(handles.pop(pid))
                reap()
                if handles:
                    await asyncio.sleep(_POLL_S)
    except TimeoutError:
        return
