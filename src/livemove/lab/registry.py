"""What a lab has made, on record before it is made, so that ``lab down`` removes it after a crash anywhere.

/run/livemove-lab/<lab>/lock              held (flock) by whoever makes or removes the lab, and by the programs it runs
/run/livemove-lab/<lab>/lab.json          the lab's definition, from which every name follows, and its phase
/run/livemove-lab/<lab>/processes.jsonl   a line for every process started on purpose
/run/livemove-lab/<lab>/hosts/<host>/     etc state run log
/run/livemove-lab/<lab>/client/           etc state run log
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from livemove.base.errors import Conflict, LivemoveError
from livemove.lab import processes
from livemove.lab.link_spec import LinkSpec
from livemove.lab.topology import CLIENT, LabSpec, check_lab_name

RUN_ROOT = Path("/run/livemove-lab")
DIRECTORIES = ("etc", "state", "run", "log")
_POLL_S = 0.02


class Phase(StrEnum):
    """MAKING with nobody holding the lock means that the maker was killed; REMOVING likewise."""

    MAKING = "making"
    UP = "up"
    REMOVING = "removing"


@dataclass(frozen=True, slots=True)
class Record:
    spec: LabSpec
    phase: Phase


@dataclass(frozen=True, slots=True)
class Process:
    """A process that the lab started. `start_ticks` tells it from a later one with the same pid."""

    pid: int
    start_ticks: int
    member: str
    label: str
    argv: tuple[str, ...]
    log: str

    @property
    def alive(self) -> bool:
        return processes.start_ticks(self.pid) == self.start_ticks


class Registry:
    """The record of one lab. Raises BadDefinition for a name that is none."""

    def __init__(self, name: str, root: Path = RUN_ROOT) -> None:
        self.name = check_lab_name(name)
        self.root = root
        self.directory = root / name

    def member_directory(self, member: str) -> Path:
        return self.directory / CLIENT if member == CLIENT else self.directory / "hosts" / member

    @contextlib.asynccontextmanager
    async def locked(self, *, wait_s: float) -> AsyncIterator[int]:
        """Hold the lab alone; yields the lock's descriptor, for programs to inherit.

        Makes the lab's directory. Raises Conflict when somebody else holds it for longer than `wait_s`.
        """
        handle = await self._lock(wait_s)
        try:
            yield handle
        finally:
            os.close(handle)

    async def _lock(self, wait_s: float) -> int:
        path = self.directory / "lock"
        try:
            async with asyncio.timeout(wait_s):
                while True:
                    handle = self._try_lock(path)
                    if handle is not None:
                        return handle
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise Conflict(
                f"Lab '{self.name}' is being made or removed by another command.",
                remedy="Repeat the command when that one has ended.",
            ) from error

    def _try_lock(self, path: Path) -> int | None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return None  # removed by 'lab down' between the two
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # a lock on a file that 'lab down' has removed meanwhile protects nothing
            if os.fstat(handle).st_ino == path.stat().st_ino:
                return handle
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(handle)
        return None

    def write(self, record: Record) -> None:
        data = asdict(record.spec) | {"guest_network": str(record.spec.guest_network), "phase": record.phase.value}
        temporary = self.directory / "lab.json.new"
        temporary.write_text(json.dumps(data, indent=1) + "\n")
        temporary.replace(self.directory / "lab.json")

    def read(self) -> Record | None:
        """The record; None when the lab has none. Raises Conflict when another version of livemove wrote it."""
        try:
            text = (self.directory / "lab.json").read_text()
        except FileNotFoundError:
            return None
        try:
            data: dict[str, Any] = json.loads(text)
            spec = LabSpec(
                data["name"],
                tuple(data["hosts"]),
                tuple(LinkSpec(**link | {"host_mtus": tuple(link["host_mtus"])}) for link in data["links"]),
                IPv4Network(data["guest_network"]),
            )
            return Record(spec, Phase(data["phase"]))
        except (KeyError, TypeError, ValueError, LivemoveError) as error:
            raise Conflict(
                f"The record of lab '{self.name}' was written by another version of livemove.",
                remedy=f"Remove the lab with 'livemove lab down --name {self.name}'.",
            ) from error

    def make_directories(self, spec: LabSpec) -> None:
        for member in (*spec.hosts, CLIENT):
            for name in DIRECTORIES:
                (self.member_directory(member) / name).mkdir(parents=True, exist_ok=True)

    def add_process(self, process: Process) -> None:
        line = (json.dumps(asdict(process)) + "\n").encode()
        handle = os.open(self.directory / "processes.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, line)  # one write, so lines of two commands do not mix
        finally:
            os.close(handle)

    def processes(self) -> list[Process]:
        """Those started on purpose that are still alive, oldest first."""
        try:
            lines = (self.directory / "processes.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        names = {field.name for field in fields(Process)}
        found = []
        for line in lines:
            with contextlib.suppress(ValueError, TypeError):  # a line cut off by a full disk
                data = {key: value for key, value in json.loads(line).items() if key in names}
                found.append(Process(**(data | {"argv": tuple(data.get("argv", ()))})))
        return [process for process in found if process.alive]

    def remove(self) -> None:
        """Remove the lab's files, the record last, and the root when it was the last lab. Call with the lock held."""
        for entry in self.directory.iterdir() if self.directory.exists() else ():
            if entry.name not in ("lock", "lab.json"):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        for name in ("lab.json", "lock"):
            (self.directory / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another command has just made it again, or another lab is there
            self.directory.rmdir()
            self.root.rmdir()


def mounts_below(directory: Path) -> list[str]:
    """Mount points in a directory, innermost first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [point for point in reversed(points) if Path(point).is_relative_to(directory)]


def labs(root: Path = RUN_ROOT) -> list[str]:
    """The names of the labs on record."""
    try:
        return sorted(entry.name for entry in root.iterdir() if (entry / "lab.json").exists())
    except FileNotFoundError:
        return []
