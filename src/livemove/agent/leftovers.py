"""What lies about on this host and belongs to nobody any more, although it is this agent's.

Everything that an agent makes has its owner, a VM or a journey, in the database before it is made, and a name that says
whose it is. So nothing is noted beside it: a thing is ours by its name and by what the database knows, and it is a leftover
when its VM does not run, start, arrive or leave here, or when its journey is not under way.

==============  =================================================================  ============================
kind            ours, because                                                      owner
==============  =================================================================  ============================
qemu            its monitor socket is in our run directory (agent.orphans)         the VM
cgroup          its name holds a digest of the VM's run directory                  the VM
tap             its name is a digest of a VM's name and UUID in our database       the VM
socket          it is in the VM's run directory                                    the VM
directory       it is a VM's run directory                                         the VM, then its journeys' history
filter          the nftables table has the id of a journey to here                 the journey
keys            they are in our run directory, under the journey's id              the journey
reservation     memory promised to a journey, in this process                      the journey
network         it is in the record of changes (network.host_changes)              the journey
probe           it is in our run directory                                         the start of an agent
==============  =================================================================  ============================

A memfd goes with its QEMU, a listening port and a slot with the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from livemove.agent.orphans import qemus_under
from livemove.agent.vms import Vms
from livemove.base.errors import LivemoveError
from livemove.base.settings import NAME, HostSettings
from livemove.hypervisor import process as processes
from livemove.hypervisor.command_line import CONSOLE_LOG, CONSOLE_SOCKET, QMP_SOCKET
from livemove.hypervisor.launch import QEMU_LOG, cgroup_of
from livemove.hypervisor.process import QemuProcess
from livemove.migration.journal import DESTINATION, Journal, JourneyTrace
from livemove.migration.packet_filter import filter_name, list_filters, remove_filter
from livemove.network.host_changes import HostChanges
from livemove.network.taps import remove_tap_patiently, taps_of

_log = logging.getLogger(__name__)

PROBE_DIR = "probe"
_SOCKETS = (QMP_SOCKET, CONSOLE_SOCKET)
_LOGS = (QEMU_LOG, QEMU_LOG + ".old", CONSOLE_LOG)


@dataclass(frozen=True, slots=True)
class Leftover:
    """One thing, why it is taken for a leftover (a sentence), and since when it is there (None: unknown).

    :param owner: the VM or the journey that it belonged to.
    """

    kind: str
    name: str
    owner: str
    reason: str
    since_wall_s: float | None = None
    process: QemuProcess | None = None


class Leftovers:
    """Finds and removes them."""

    def __init__(
        self,
        settings: Callable[[], HostSettings],
        vms: Vms,
        journal: Journal,
        open_journeys: Callable[[], set[str]],
        host_changes: HostChanges,
    ) -> None:
        self._settings = settings
        self._vms = vms
        self._journal = journal
        self._open_journeys = open_journeys
        self._host_changes = host_changes

    async def find(self) -> list[Leftover]:
        """Look; nothing is touched. Raises StateUnwritable when the database cannot be read."""
        traces = await self._journal.traces()
        filters, changes = await list_filters(), await self._host_changes.held()
        found = await asyncio.to_thread(lambda: [*self._of_vms(traces), *self._in_run_dir(traces)])
        # after the slow part, so that nothing is judged by what was true before it
        busy = self._open_journeys()
        found += [item for item in self._of_journeys(traces, filters, changes) if item.owner not in busy]
        return [item for item in found if item.kind in _OF_JOURNEYS or not self._in_use(item.owner)]

    async def remove(self, found: list[Leftover]) -> tuple[list[Leftover], list[tuple[Leftover, str]]]:
        """Remove what is a leftover still; those that are gone, and those that are not with the reason."""
        gone, left = [], []
        for item in found:
            try:
                if item.kind in _OF_JOURNEYS:
                    if item.owner in self._open_journeys():
                        continue
                    await self._take_away(item)
                else:
                    async with self._vms.lock(item.owner):
                        if self._in_use(item.owner, locked_by_us=True):
                            continue
                        await self._take_away(item)
            except (LivemoveError, OSError) as error:
                left.append((item, str(error)))
                _log.warning("the leftover %s %s could not be removed: %s", item.kind, item.name, error)
            else:
                gone.append(item)
                _log.info("removed a leftover: %s %s (%s)", item.kind, item.name, item.reason)
        return gone, left

    async def sweep(self) -> None:
        """At the agent's start: remove all of it. Never raises; what stays is logged."""
        try:
            await self.remove(await self.find())
        except LivemoveError as error:
            _log.warning("leftovers were not looked for: %s", error)

    # Whose ----------------------------------------------------------------------------------------------------------

    def _in_use(self, vm: str, *, locked_by_us: bool = False) -> bool:
        """Whether the VM runs, starts, stops, arrives, leaves, or may do so on another host for all we know."""
        vms, record = self._vms, self._vms.records.find(vm)
        return (
            vms.find_running(vm) is not None
            or (record is not None and record.process is not None)
            or vm in vms.arriving
            or vm in vms.journeys
            or vm in vms.unresolved
            or (vms.lock(vm).locked() and not locked_by_us)
        )

    def _of_vms(self, traces: list[JourneyTrace]) -> Iterator[Leftover]:
        vms_dir = self._settings().run_dir / "vms"
        for process in qemus_under(vms_dir):
            since_s = _process_start_wall_s(process.pid)
            reason = f"No VM '{process.name}' of this host runs in it, and none arrives."
            yield Leftover("qemu", str(process.pid), process.name, reason, since_s, process)
        known = {(record.name, record.uuid) for record in self._vms.records.all()}
        known |= {(trace.vm, trace.vm_uuid) for trace in traces}
        for vm, uuid in sorted(known):
            for tap in taps_of(vm, uuid):
                yield Leftover("tap", tap, vm, f"It belonged to VM '{vm}', which neither runs nor arrives here.")
        here = cgroup_of("x", vms_dir / "x")
        for path in sorted(here.parent.glob("vm-*")) if here is not None and here.parent.is_dir() else ():
            vm = path.name.removeprefix("vm-").rpartition("-")[0]
            if NAME.fullmatch(vm) and cgroup_of(vm, vms_dir / vm) == path:
                reason = f"It belonged to VM '{vm}', which neither runs nor arrives here."
                yield Leftover("cgroup", str(path), vm, reason, _changed_wall_s(path))

    def _in_run_dir(self, traces: list[JourneyTrace]) -> Iterator[Leftover]:
        run_dir = self._settings().run_dir
        named = {record.name for record in self._vms.records.all()} | {trace.vm for trace in traces}
        for path in _entries(run_dir / "vms"):
            for name in _SOCKETS:
                if (path / name).is_socket():
                    reason = f"VM '{path.name}' neither runs nor arrives here."
                    yield Leftover("socket", str(path / name), path.name, reason, _changed_wall_s(path / name))
            if path.is_dir() and path.name not in named and NAME.fullmatch(path.name):
                reason = f"This host has no VM '{path.name}', and no journey of one in its history."
                yield Leftover("directory", str(path), path.name, reason, _changed_wall_s(path))

    def _of_journeys(
        self, traces: list[JourneyTrace], filters: list[str], changes: Mapping[str, list[str]]
    ) -> Iterator[Leftover]:
        run_dir = self._settings().run_dir
        ids = {filter_name(trace.id): trace.id for trace in traces if trace.role == DESTINATION}
        for table in filters:
            if table in ids:
                yield Leftover("filter", table, ids[table], f"Journey {ids[table]} is not under way.")
        for path in _entries(run_dir / "keys"):
            yield Leftover(
                "keys", str(path), path.name, f"Journey {path.name} is not under way.", _changed_wall_s(path)
            )
        for journey in list(self._vms.reserved_bytes):
            yield Leftover("reservation", f"memory of {journey}", journey, f"Journey {journey} is not under way.")
        for journey, places in changes.items():
            reason = f"Changed for journey {journey}, which is not under way: {', '.join(places)}."
            yield Leftover("network", f"changes of {journey}", journey, reason)
        for path in _entries(run_dir / PROBE_DIR):
            reason = "The agent that asked its QEMU there was ended."
            yield Leftover("probe", str(path), path.name, reason, _changed_wall_s(path))

    # Taking away ----------------------------------------------------------------------------------------------------

    async def _take_away(self, item: Leftover) -> None:
        match item.kind:
            case "qemu":
                assert item.process is not None
                await processes.kill(item.process, grace_s=0)
            case "cgroup":
                await processes.remove_cgroup(item.name)
                if Path(item.name).exists():
                    raise OSError("something runs in it")
            case "tap":
                await remove_tap_patiently(item.name)
            case "socket":
                Path(item.name).unlink(missing_ok=True)
            case "directory":
                _remove_vm_directory(Path(item.name))
            case "filter":
                await remove_filter(item.owner)
            case "network":
                notes = await self._host_changes.take_back(item.owner)
                if item.owner in await self._host_changes.held():
                    raise OSError(" ".join(notes))
            case "reservation":
                self._vms.reserved_bytes.pop(item.owner, None)
            case "keys" | "probe":
                await asyncio.to_thread(_remove_tree, Path(item.name))


_OF_JOURNEYS = ("filter", "keys", "reservation", "network", "probe")


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _changed_wall_s(path: Path) -> float | None:
    with contextlib.suppress(OSError):
        return path.lstat().st_mtime
    return None


def _process_start_wall_s(pid: int) -> float | None:
    with contextlib.suppress(psutil.Error):
        return float(psutil.Process(pid).create_time())
    return None


def _remove_vm_directory(path: Path) -> None:
    """Only what a QEMU of ours puts there; a file of somebody else's keeps the directory."""
    for name in (*_SOCKETS, *_LOGS):
        (path / name).unlink(missing_ok=True)
    path.rmdir()


def _remove_tree(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
