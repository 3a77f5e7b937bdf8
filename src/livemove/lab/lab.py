"""A lab: several hosts on one machine, each a network namespace, with links between them that can be shaped and broken.

    async with Lab(parse_lab(hosts="A,B", links=["1Gbit", "1Gbit"])) as lab:
        pid = lab.start_process("A", ["qemu-system-x86_64", ...], log=lab.directory("A") / "log/vm.log")
        await lab.run_in("B", ["ip", "route"])

Outside ``async with`` a lab stays until :func:`down`, whoever calls it, also after this process or the machine's user
was cut off in the middle. Labs of different names may exist side by side.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from types import TracebackType
from typing import Any, Self

from livemove.base.errors import Conflict
from livemove.base.tasks import spawn
from livemove.lab import links, namespaces, processes
from livemove.lab.link_spec import LinkSpec
from livemove.lab.namespaces import NamespaceId, Tools
from livemove.lab.registry import RUN_ROOT, Phase, Process, Record, Registry, mounts_below
from livemove.lab.topology import LabSpec

# Making a lab takes about a tenth of a second, ending its processes up to some seconds.
_UP_WAIT_S = 15.0
_DOWN_WAIT_S = 30.0
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class HostStatus:
    """One host: where it is and what runs in it."""

    name: str
    namespace: str
    exists: bool
    control_address: str
    link_addresses: tuple[str, ...]
    directory: Path
    processes: tuple[Process, ...]


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """One link. `carrier` tells for each host whether its NIC is up and sees a signal; `spec` is as it was defined."""

    name: str
    spec: LinkSpec
    carrier: Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class LabStatus:
    """A lab as it is now. `phase` None: there is none; MAKING or REMOVING: under way or cut off, see `remains`."""

    name: str
    phase: Phase | None
    hosts: tuple[HostStatus, ...]
    links: tuple[LinkStatus, ...]
    client_address: str
    remains: tuple[str, ...]


class Lab:
    """A lab that is up, or will be on entering ``async with``; leaving that takes it down."""

    def __init__(self, spec: LabSpec, *, root: Path = RUN_ROOT) -> None:
        self.spec = spec
        self.registry = Registry(spec.name, root)
        self._made = False

    @classmethod
    async def up(cls, spec: LabSpec, *, root: Path = RUN_ROOT) -> Self:
        """Make a lab. If this fails or is cancelled, nothing of it is left.

        Raises Conflict when a lab of that name exists, MissingPrerequisite without root or a program or kernel feature.
        """
        lab = cls(spec, root=root)
        await lab._make()
        return lab

    @classmethod
    def open(cls, name: str = "lab", *, root: Path = RUN_ROOT) -> Self:
        """A lab that another command made. Raises Conflict when it is not up."""
        record = Registry(name, root).read()
        if record is None or record.phase is not Phase.UP:
            raise Conflict(
                f"Lab '{name}' is not up{'' if record is None else ': it is half made or half removed'}.",
                remedy=f"Make it with 'livemove lab up --name {name}'{'' if record is None else ' after lab down'}.",
            )
        lab = cls(record.spec, root=root)
        lab._made = True
        return lab

    async def __aenter__(self) -> Self:
        if not self._made:
            await self._make()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _uninterrupted(self.down(), name=f"down of lab {self.spec.name}")

    async def down(self) -> None:
        """Remove the lab and everything in it; see :func:`down`."""
        self._made = False
        await down(self.spec.name, root=self.registry.root)

    async def status(self) -> LabStatus:
        return await status(self.spec.name, root=self.registry.root)

    @property
    def tools(self) -> Tools:
        return Tools(self.spec.name)

    @property
    def namespace_ids(self) -> set[NamespaceId]:
        return namespaces.ids_of(self.spec.namespaces)

    def directory(self, member: str) -> Path:
        """The directory of a host or of the client; it has etc, state, run and log. Raises BadDefinition."""
        self.spec.namespace(member)
        return self.registry.member_directory(member)

    def start_process(
        self, member: str, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, label: str = ""
    ) -> int:
        """Start a command in a host (or the client) that outlives this process; returns its pid.

        It is ended by :meth:`down`. Its output is appended to `log`; it sees this process's environment and `env`. Raises
        BadDefinition for an unknown host, Conflict when the lab is not there.
        """
        namespace = self.spec.namespace(member)
        if not (namespaces.NETNS_DIRECTORY / namespace).exists():
            raise Conflict(f"Lab '{self.spec.name}' is not up.", remedy="Make it with 'livemove lab up'.")
        environment = {**(env or {}), **namespaces.marks(self.spec.name, member)}
        pid = processes.start(namespace, argv, directory=self.directory(member), log=log, env=environment)
        ticks = processes.start_ticks(pid)
        if ticks is not None:
            self.registry.add_process(Process(pid, ticks, member, label, tuple(argv), str(log)))
        return pid

    async def run_in(
        self,
        member: str,
        argv: Sequence[str],
        *,
        capture: bool = True,
        env: Mapping[str, str] | None = None,
        input_bytes: bytes | None = None,
        timeout_s: float | None = None,
    ) -> CompletedProcess[bytes]:
        """Run a command in a host to its end; see :func:`namespaces.run_in`. Raises BadDefinition for an unknown host."""
        environment = {**(env or {}), **namespaces.marks(self.spec.name, member)}
        return await namespaces.run_in(
            self.spec.namespace(member),
            argv,
            env=environment,
            capture=capture,
            input_bytes=input_bytes,
            timeout_s=timeout_s,
        )

    async def end_process(self, pid: int, *, grace_s: float = 3.0) -> None:
        """End one process: SIGTERM, then SIGKILL. Nothing when it has ended or is not the lab's. Raises Conflict if it stays."""
        await processes.end([pid], lab=self.spec.name, namespaces=self.namespace_ids, grace_s=grace_s)

    def processes(self, member: str | None = None, label: str | None = None) -> list[Process]:
        """Living processes that :meth:`start_process` started, oldest first."""
        return [
            process
            for process in self.registry.processes()
            if member in (None, process.member) and label in (None, process.label)
        ]

    async def _make(self) -> None:
        namespaces.require_root()
        name = self.spec.name
        async with self.registry.locked(wait_s=_UP_WAIT_S) as lock_fd:
            record = self.registry.read()
            if record is not None or namespaces.existing(name):
                half = "" if record is not None and record.phase is Phase.UP else "partly "
                raise Conflict(
                    f"Lab '{name}' is {half}up already.", remedy=f"Remove it with 'livemove lab down --name {name}'."
                )
            tools = Tools(name, lock_fd)
            try:
                self.registry.write(Record(self.spec, Phase.MAKING))
                self.registry.make_directories(self.spec)
                await namespaces.make(tools, self.spec.namespaces)
                await links.make(tools, self.spec)
                self.registry.write(Record(self.spec, Phase.UP))
            except BaseException:
                await _uninterrupted(_remove(self.registry, tools, self.spec), name=f"removal of lab {name}")
                raise
        self._made = True


async def down(name: str = "lab", *, root: Path = RUN_ROOT) -> None:
    """Remove a lab: its processes, namespaces, mounts and files. Nothing when there is none; may be repeated.

    Raises Conflict when called from inside the lab, when another command is making or removing it, or when a process
    does not end; MissingPrerequisite without root.
    """
    namespaces.require_root()
    registry = Registry(name, root)
    # Asked without the lock, which would make the directory. A lab whose making has just begun counts as not there.
    if not registry.directory.exists() and not leftovers(name, root=root):
        return
    async with registry.locked(wait_s=_DOWN_WAIT_S) as lock_fd:
        try:
            record = registry.read()
        except Conflict:
            record = None  # names of namespaces tell whose they are, so the record is not needed
        own = namespaces.namespace_id(Path("/proc/self/ns/net"))
        if own in namespaces.ids_of(namespaces.existing(name)):
            raise Conflict(f"This command runs inside lab '{name}'.", remedy="Leave the lab's shell and repeat it.")
        if record is not None:
            registry.write(Record(record.spec, Phase.REMOVING))
        await _remove(registry, Tools(name, lock_fd), record.spec if record is not None else None)


async def status(name: str = "lab", *, root: Path = RUN_ROOT) -> LabStatus:
    """The lab as it is now; `phase` is None when there is none. Raises Conflict when its record cannot be read."""
    registry = Registry(name, root)
    record = registry.read()
    remains = tuple(leftovers(name, root=root))
    if record is None:
        return LabStatus(name, None, (), (), "", remains)
    spec = record.spec
    running = registry.processes()
    hosts = tuple(
        HostStatus(
            host,
            spec.namespace(host),
            (namespaces.NETNS_DIRECTORY / spec.namespace(host)).exists(),
            str(spec.control_address(host)),
            tuple(str(spec.link_address(host, index)) for index in range(len(spec.links))),
            registry.member_directory(host),
            tuple(process for process in running if process.member == host),
        )
        for host in spec.hosts
    )
    carriers = await asyncio.gather(*(_carriers(Tools(name), host) for host in hosts))
    link_statuses = tuple(
        LinkStatus(
            network.name,
            network.spec,
            {
                host.name: found.get(network.end_of(host.name).interface, False)
                for host, found in zip(hosts, carriers, strict=True)
            },
        )
        for network in spec.link_networks
    )
    return LabStatus(name, record.phase, hosts, link_statuses, str(spec.client_address.ip), remains)


def leftovers(name: str = "lab", *, root: Path = RUN_ROOT) -> list[str]:
    """Everything of a lab that exists, a sentence each; empty when there is no lab of that name."""
    registry = Registry(name, root)
    names = namespaces.existing(name)
    found = [f"namespace {namespace}" for namespace in names]
    found += [f"process {pid}: {processes.command_of(pid)}" for pid in processes.find(name, namespaces.ids_of(names))]
    found += [f"mount {point}" for point in mounts_below(registry.directory)]
    if registry.directory.exists():
        found.append(f"directory {registry.directory}")
    return found


async def _remove(registry: Registry, tools: Tools, spec: LabSpec | None) -> None:
    name = registry.name
    known: set[NamespaceId] = set()
    for _ in range(_ROUNDS):
        names = sorted({*namespaces.existing(name), *(spec.namespaces if spec is not None else ())})
        # kept from round to round: a process may have entered just before the name was removed
        known |= namespaces.ids_of(names)
        await processes.end(processes.find(name, known), lab=name, namespaces=known)
        await namespaces.remove(tools, names)
        if not namespaces.existing(name) and not processes.find(name, known):
            break
    else:
        raise Conflict(f"Lab '{name}' keeps starting processes.", remedy="Stop what starts them, and repeat lab down.")
    for point in mounts_below(registry.directory):
        await tools.run(["umount", "-l", point])
    registry.remove()


async def _carriers(tools: Tools, host: HostStatus) -> dict[str, bool]:
    if not host.exists:
        return {}
    found: list[dict[str, Any]] = json.loads(await tools.run(["ip", "-j", "-n", host.namespace, "link"]))
    return {link["ifname"]: "LOWER_UP" in link["flags"] for link in found}


async def _uninterrupted(work: Coroutine[Any, Any, None], *, name: str) -> None:
    """Finish `work` though the caller is cancelled meanwhile; the cancellation is raised afterwards."""
    task = spawn(work, name=name)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()
