"""A QEMU process as something that outlives the agent: told from a later process of the same number, waited for, ended.

Everything here works from a :class:`QemuProcess` read back from the journal as well as from one just launched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from livemove.base.errors import Bug, QemuFailed

# After SIGKILL a process is gone at once unless the kernel is stuck in its behalf (storage that does not answer).
_KILL_LIMIT_S = 15.0


@dataclass(frozen=True)
class QemuProcess:
    """One QEMU on this host.

    :param start_ticks: when it started, in clock ticks since boot: with the pid it is unique until the next boot.
    :param cgroup: directory of its own cgroup, if it has one.
    :param unit: its systemd unit, if it has one.
    """

    name: str
    pid: int
    start_ticks: int
    cgroup: str | None = None
    unit: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> QemuProcess:
        """The process that :meth:`to_json` described. Raises Bug when `data` is something else."""
        try:
            cgroup, unit = data.get("cgroup"), data.get("unit")
            return cls(str(data["name"]), int(data["pid"]), int(data["start_ticks"]), cgroup, unit)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise Bug(f"This describes no QEMU process: {data!r:.200}.") from error


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when there is no such process or it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # the name, in brackets, may hold anything; the fields after it are the state (3) to start time (22) and further
    fields = stat.rpartition(")")[2].split()
    state, threads, started = fields[0], int(fields[17]), int(fields[19])
    # the first thread is a zombie while others still give back memory, locks and taps: only then has QEMU ended
    return None if state in "ZX" and threads <= 1 else started


def find(process: QemuProcess) -> bool:
    """Whether that very process still runs."""
    return start_ticks(process.pid) == process.start_ticks


def _open_pidfd(process: QemuProcess) -> int | None:
    """A descriptor of that very process, for the caller to close; None when it is gone."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if find(process):
        return pidfd
    os.close(pidfd)
    return None


async def wait_gone(process: QemuProcess) -> None:
    """Return when the process has ended; at once when it already has. May be cancelled."""
    pidfd = _open_pidfd(process)
    if pidfd is None:
        return
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


async def kill(process: QemuProcess, *, grace_s: float = 5.0) -> None:
    """End the process and remove its cgroup; nothing happens when it is gone already.

    :param grace_s: how long QEMU may take to end by itself (it flushes its disks); 0 kills at once.
    :raise QemuFailed: it is still there 15 s after SIGKILL.
    """
    pidfd = _open_pidfd(process)
    if pidfd is not None:
        try:
            if not (grace_s > 0 and await _signal(process, pidfd, signal.SIGTERM, grace_s)) and not await _signal(
                process, pidfd, signal.SIGKILL, _KILL_LIMIT_S
            ):
                raise QemuFailed(
                    f"QEMU of {process.name} (process {process.pid}) did not end within {_KILL_LIMIT_S:g} s of SIGKILL.",
                    remedy="Its storage may not answer; look at 'cat /proc/PID/stack' on that host.",
                )
        finally:
            os.close(pidfd)
    await remove_cgroup(process.cgroup)


async def _signal(process: QemuProcess, pidfd: int, number: signal.Signals, wait_s: float) -> bool:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            await wait_gone(process)
    return not find(process)


async def remove_cgroup(cgroup: str | None) -> None:
    """Remove a VM's cgroup, and livemove's own above it when it was the last; one that something lives in is left."""
    if cgroup is None:
        return
    for _ in range(20):
        try:
            Path(cgroup).rmdir()
        except FileNotFoundError:
            return
        except OSError:
            await asyncio.sleep(0.005)  # the kernel empties it just after the process has gone
        else:
            break
    with contextlib.suppress(OSError):
        Path(cgroup).parent.rmdir()
