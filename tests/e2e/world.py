"""Two hosts with real agents, a client, and the guests that the tests move: everything a test does to them, as plain calls."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from livemove.agent.orphans import qemu_in
from livemove.api.client import AgentClient
from livemove.api.client_identity import load_identity
from livemove.api.cluster_map import load_map
from livemove.api.models import AskJourney, JourneyOptions, JourneyView, ReportView, VmView
from livemove.api.trust import client_context
from livemove.base.clock import SystemClock
from livemove.base.errors import LinkError, LivemoveError, UnknownVm
from livemove.base.units import parse_rate
from livemove.hypervisor.process import QemuProcess, start_ticks
from livemove.lab import agents, faults, processes
from livemove.lab.image import GuestImage, ensure_image
from livemove.lab.lab import Lab, down, leftovers
from livemove.lab.reference import Workload, ask_guest, parse_fields
from livemove.lab.registry import RUN_ROOT
from livemove.lab.topology import parse_lab

from .inside import Inside

T = TypeVar("T")
HOSTS = ("A", "B")
#: Enough for a small guest's slowest journey here, and short enough that a hang is seen.
PATIENCE_S = 45.0
CGROUPS = Path("/sys/fs/cgroup/unified/livemove")
#: Slower than any guest is copied otherwise, so that a journey is still copying when a test does something to it.
SLOW = "20Mbit"
#: A copy of some seconds: long enough to do something in it, short enough to wait for its end.
STEADY = "300Mbit"


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of standard output, which must be JSON."""
        return json.loads(self.out.splitlines()[-1])


class World:
    """A lab of two hosts; made by the session's fixture, used by every test in turn."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.image: GuestImage = ensure_image()
        self.clock = SystemClock()
        self._out = Inside()
        #: an agent is asked from its own host, so that it answers when the network between them does not
        self._in = {host: Inside(Path("/run/netns") / lab.spec.namespace(host)) for host in HOSTS}
        self._in_client = Inside(Path("/run/netns") / lab.spec.namespace("client"))
        self._clients: dict[str, AgentClient] = {}

    def open(self, settings: Mapping[str, agents.Setting] | None = None) -> None:
        """Start the agents."""
        self.do(agents.start_agents(self.lab, settings=settings))
        identity = load_identity(agents.admin_dir(self.lab))
        cluster, context = load_map(identity.map_path), client_context(identity)
        for host in HOSTS:
            client = AgentClient(identity, host, cluster.address_of(host), context=context)
            self._clients[host] = self._in[host].run(client.__aenter__())

    def close(self) -> None:
        for host, client in self._clients.items():
            self._in[host].run(client.aclose())
        for inside in (self._out, *self._in.values(), self._in_client):
            inside.close()

    def do(self, work: Coroutine[Any, Any, T], *, timeout_s: float = 120.0) -> T:
        """Carry out something of the lab's own."""
        return self._out.run(work, timeout_s=timeout_s)

    def wait(self, found: Callable[[], T], what: str, *, timeout_s: float = PATIENCE_S, pause_s: float = 0.05) -> T:
        """What `found` returns as soon as that is true; an AssertionError naming `what` when it does not become so."""
        until_s = self.clock.monotonic_s() + timeout_s
        while True:
            result = found()
            if result:
                return result
            assert self.clock.monotonic_s() < until_s, f"not within {timeout_s:g} s: {what}"
            self.do(asyncio.sleep(pause_s))

    # Commands -------------------------------------------------------------------------------------------------------

    def livemove(
        self,
        *words: str,
        host: str = "A",
        identity: Path | None = None,
        expect: int | None = 0,
        timeout_s: float = 90.0,
    ) -> Ended:
        """``livemove WORDS`` typed on a host, to its end, with the exit code `expect` (None: any)."""
        process = self.typed(*words, host=host, identity=identity)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        assert expect is None or process.returncode == expect, (words, process.returncode, out, err)
        return Ended(process.returncode, out, err)

    def typed(self, *words: str, host: str = "A", identity: Path | None = None) -> subprocess.Popen[str]:
        """``livemove WORDS`` typed on a host, running; its user is the lab's administrator unless another is named."""
        directory = agents.admin_dir(self.lab) if identity is None else identity
        return subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.lab.spec.namespace(host)}", sys.executable, "-m", "livemove", *words],
            env={**os.environ, "LIVEMOVE_IDENTITY": str(directory), "LIVEMOVE_LAB": self.lab.spec.name},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    # Agents ---------------------------------------------------------------------------------------------------------

    def ask(self, host: str, question: Callable[[AgentClient], Coroutine[Any, Any, T]]) -> T:
        """The agent's answer; asked once more when its connection was left over from an agent that was ended."""
        try:
            return self._in[host].run(question(self._clients[host]))
        except LinkError:
            return self._in[host].run(question(self._clients[host]))

    def ask_once(self, host: str, question: Callable[[AgentClient], Coroutine[Any, Any, T]]) -> T:
        """The agent's answer to what must not be said twice."""
        return self._in[host].run(question(self._clients[host]))

    def agent_pid(self, host: str) -> int:
        found = self.lab.processes(host, agents.LABEL)
        assert found, f"no agent on {host}"
        return found[-1].pid

    def signal_agent(self, host: str, number: signal.Signals) -> None:
        """SIGKILL and SIGTERM return when it has ended."""
        pid = self.agent_pid(host)
        faults.kill(self.lab, pid, number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self.wait_ended(pid)

    def wait_ended(self, pid: int) -> None:
        """Return when all threads of a process have gone, and so its sockets."""

        def ended() -> bool:
            processes.reap()
            return start_ticks(pid) is None

        self.wait(ended, f"process {pid} ends", timeout_s=15, pause_s=0.01)

    def start_agent(self, host: str) -> None:
        """Start an agent that was ended; returns when it answers."""
        self.start_agents([host])

    def start_agents(self, hosts: Sequence[str]) -> None:
        """Start agents that were ended, all at once."""
        for host, pid in [(host, agents.start_agent(self.lab, host)) for host in hosts]:
            self.do(agents.wait_listening(self.lab, host, pid))

    def restart_agent(self, host: str, number: signal.Signals = signal.SIGTERM) -> None:
        self.signal_agent(host, number)
        self.start_agent(host)

    def ensure_agents(self) -> None:
        """Start the agents that a failed test has left ended or stopped."""
        for host in HOSTS:
            if self.lab.processes(host, agents.LABEL):
                self.signal_agent(host, signal.SIGCONT)
            else:
                self.start_agent(host)

    def settings(self, host: str, changes: Mapping[str, str]) -> None:
        """Change settings of a host."""
        self.ask(host, lambda agent: agent.change_settings(changes))

    # VMs and journeys -----------------------------------------------------------------------------------------------

    def vm(self, host: str, name: str) -> VmView | None:
        """The VM as that host sees it."""
        try:
            return self.ask(host, lambda agent: agent.vm(name))
        except UnknownVm:
            return None

    def journeys(self, host: str) -> list[JourneyView]:
        """Journeys under way."""
        return self.ask(host, lambda agent: agent.journeys())

    def start_journey(
        self, vm: str, source: str, max_bandwidth: str = "", verify: Literal["full", "sample", "off"] | None = None,
        downtime_s: float | None = None, throttle: bool = False, deadline_s: float | None = None,
        option: Literal["auto", "tcp", "compression", "multichannel"] | None = None, paths: str | None = None,
    ) -> str:  # fmt: skip
        """Begin to move a VM away from `source`, as ``migrate --detach`` does; the journey's id."""
        view, destination = self.vm(source, vm), other(source)
        assert view is not None
        grant = self.ask(destination, lambda agent: agent.ask_grant(vm, view.uuid, source))
        options = JourneyOptions(
            max_bandwidth_bytes_per_s=parse_rate(max_bandwidth) if max_bandwidth else None, verify=verify,
            downtime_s=downtime_s, throttle=throttle, deadline_s=deadline_s, option=option, paths=paths,
        )  # fmt: skip
        body = AskJourney(vm=vm, destination=destination, grant=grant, options=options)
        return self.ask(source, lambda agent: agent.start_journey(body)).id

    def phase(self, host: str, journey: str) -> str:
        """The journey's phase by the agent of its source; its outcome when it has ended."""
        return self.ask(host, lambda agent: agent.journey(journey)).phase

    def wait_copying(self, host: str, journey: str, *, bytes_sent: int = 1 << 20) -> JourneyView:
        """Return in the middle of the copy."""

        def copying() -> JourneyView | None:
            view = self.ask(host, lambda agent: agent.journey(journey))
            assert not view.terminal, view
            sent = view.progress.transferred_bytes if view.progress is not None else 0
            return view if view.phase in ("copying", "converging") and sent >= bytes_sent else None

        return self.wait(copying, f"journey {journey} copies", timeout_s=20)

    def report(self, host: str, journey: str, *, timeout_s: float = PATIENCE_S) -> ReportView:
        """The report of a journey, as soon as it has ended."""

        def ended() -> ReportView | None:
            try:
                return self.ask(host, lambda agent: agent.report(journey))
            except LivemoveError:
                return None

        return self.wait(ended, f"journey {journey} ends", timeout_s=timeout_s)

    def guest(self, address: str, line: str, *, timeout_s: float = 30.0) -> dict[str, str]:
        """The guest's answer to a command on its control port, asked from the client."""
        return parse_fields(self._in_client.run(ask_guest(address, line, timeout_s=timeout_s)))

    # What is on the hosts -------------------------------------------------------------------------------------------

    def qemu(self, host: str, name: str) -> QemuProcess | None:
        """The QEMU of a VM on that host, whatever its agent says."""
        return qemu_in(self.run_dir(host) / "vms" / name, name)

    def run_dir(self, host: str) -> Path:
        return self.lab.directory(host) / "run"

    def run(self, host: str, *words: str) -> str:
        """Output of a command in the host's namespace, which must succeed."""
        done = self.do(self.lab.run_in(host, words, timeout_s=20))
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout.decode()

    def traces(self, host: str) -> list[str]:
        """What VMs and journeys have on a host: QEMUs, taps, packet filters, keys, sockets; sorted."""
        mine = str(self.run_dir(host)).encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                command = (entry / "cmdline").read_bytes() if entry.name.isdecimal() else b""
            except OSError:
                continue
            if mine + b"/vms/" in command:
                found.append(f"process {entry.name}")
        links = json.loads(self.run(host, "ip", "-j", "link"))
        found += [f"tap {link['ifname']}" for link in links if link["ifname"].startswith("lm")]
        # of family inet are the agents' tables; the lab's own (netdev) goes with the lab
        tables = self.run(host, "nft", "list", "tables").splitlines()
        found += [f"nft {line}" for line in tables if "inet livemove_" in line]
        files = (path for path in self.run_dir(host).rglob("*") if path.suffix not in (".log", ".old"))
        found += [f"file {path.relative_to(self.run_dir(host))}" for path in files if not _is_vm_directory(path)]
        return sorted(found)


@contextmanager
def lab_world(
    name: str, link: str | Sequence[str], settings: Mapping[str, agents.Setting] | None = None, *, hosts: str = "A,B"
) -> Iterator[World]:
    """A lab of two hosts with their agents; what it leaves behind when it is taken down is a failure.

    VMs in it have names that begin with its own.
    """
    asyncio.run(down(name))
    lab = asyncio.run(Lab.up(parse_lab(name, hosts, [link] if isinstance(link, str) else link)))
    made = World(lab)
    try:
        # auto would decide by how busy this machine happens to be
        made.open({"option": "tcp", **(settings or {})})
        yield made
    finally:
        made.close()
        asyncio.run(down(name))
    assert leftovers(name) == []
    assert not (RUN_ROOT / name).exists()
    assert not [path for path in Path("/run/netns").iterdir() if path.name.startswith(f"lm-{name}-")]
    assert not list(CGROUPS.glob(f"vm-{name}-*"))


def other(host: str) -> str:
    return "B" if host == "A" else "A"


def _is_vm_directory(path: Path) -> bool:
    # it stays for the logs, which tell what became of a VM that left or failed to arrive
    return path.is_dir() and (path.name in ("vms", "keys", "leases") or path.parent.name == "vms")


@dataclass
class Guest:
    """A reference guest that is moved to and fro. `host` is where it ran when last looked at."""

    world: World
    name: str
    address: str
    workload: Workload
    memory: str = "128MiB"
    #: of QEMU, as TOML strings
    extra_arguments: tuple[str, ...] = ()

    @property
    def definition(self) -> str:
        return (
            f'name = "{self.name}"\nextra_arguments = {json.dumps(self.extra_arguments)}\n[memory]\nsize = "{self.memory}"\n[boot]\nkernel = "{self.world.image.kernel}"\n'
            f'initrd = "{self.world.image.initrd}"\narguments = "{self.workload.kernel_arguments()}"\n[[nic]]\nbridge = "br0"\n'
        )

    @property
    def host(self) -> str:
        """Where it is, by what the agents say."""
        places = {host: self.world.vm(host, self.name) for host in HOSTS}
        here = [host for host, view in places.items() if view is not None and view.state != "moved"]
        assert len(here) == 1, places
        return here[0]

    def view(self) -> VmView:
        view = self.world.vm(self.host, self.name)
        assert view is not None
        return view

    def ensure_running(self, first: str = "A") -> str:
        """Start it if it does not run (on `first` unless it is elsewhere), bring its load to the usual; its host."""
        places = {host: self.world.vm(host, self.name) for host in HOSTS}
        known = [host for host, view in places.items() if view is not None and view.state != "moved"]
        host = known[0] if known else first
        if not known:
            self.world.ask(host, lambda agent: agent.define_vm(self.definition))
        if self.world.ask(host, lambda agent: agent.vm(self.name)).state != "running":
            self.world.ask(host, lambda agent: agent.stop_vm(self.name, force=True))
            self.world.ask(host, lambda agent: agent.start_vm(self.name))
        self.wait_ready()
        self.load(self.workload.rate_pages_per_s, self.workload.working_set_mib)
        return host

    def restart(self) -> None:
        """End its QEMU and start it anew where it is."""
        host = self.host
        self.world.ask(host, lambda agent: agent.stop_vm(self.name, force=True))
        self.ensure_running()

    def wait_ready(self) -> None:
        # a VM that was defined anew has another MAC address
        self.world.run("client", "ip", "neigh", "flush", "dev", "gst-client")

        def answers() -> bool:
            try:
                return "pages" in self.world.guest(self.address, "stat", timeout_s=2)
            except LinkError:
                return False

        self.world.wait(answers, f"{self.name} answers", timeout_s=40)

    def load(self, rate_pages_per_s: int, working_set_mib: int) -> None:
        """How fast it writes, and where."""
        self.world.guest(self.address, f"ws {working_set_mib}")
        self.world.guest(self.address, f"rate {rate_pages_per_s}")

    def pages_per_s(self) -> float:
        """How many pages it rewrites, by its own clock."""
        first = self.world.guest(self.address, "stat")

        def later() -> bool:
            return int(self.world.guest(self.address, "stat")["t_ms"]) - int(first["t_ms"]) > 700

        self.world.wait(later, "a moment", pause_s=0.2)
        last = self.world.guest(self.address, "stat")
        pages = int(last["rewritten"]) - int(first["rewritten"])
        return pages / (int(last["t_ms"]) - int(first["t_ms"])) * 1e3

    def check(self) -> None:
        """Every page holds what it must, and none was ever seen that did not."""
        checked = self.world.guest(self.address, "check")
        assert int(checked["checked"]) > 0 and int(checked["bad"]) == 0, checked
        seen = self.world.guest(self.address, "stat")
        assert int(seen["bad"]) == 0, seen

    def pause(self) -> None:
        self.world.ask(self.host, lambda agent: agent.pause_vm(self.name))

    def resume(self) -> None:
        self.world.ask(self.host, lambda agent: agent.resume_vm(self.name))

    def move(self) -> ReportView:
        """A journey to the other host, which must complete."""
        source = self.host
        report = self.world.report(source, self.world.start_journey(self.name, source))
        assert report.outcome == "completed", report
        self.exactly_one(other(source))
        self.check()
        return report

    def ticks(self, *, timeout_s: float = 30.0) -> None:
        """Return when its clock has gone on."""

        def goes_on() -> bool:
            try:
                before = self.world.guest(self.address, "stat", timeout_s=3)
                return int(self.world.guest(self.address, "stat", timeout_s=3)["t_ms"]) > int(before["t_ms"])
            except LinkError:
                return False

        self.world.wait(goes_on, f"{self.name} runs", timeout_s=timeout_s)

    def runs(self) -> bool:
        """Whether its clock goes on."""
        before = self.world.guest(self.address, "stat")
        after = self.world.guest(self.address, "stat")
        return int(after["t_ms"]) > int(before["t_ms"]) or self.runs()

    def exactly_one(self, host: str | None = None, *, state: str = "running", timeout_s: float = 15.0) -> str:
        """The guest is in exactly one place (at `host` if one is named) in `state`; nothing of it or of a journey elsewhere.

        Waits for what is cleaned up a moment after a journey's end. Returns where it is.
        """
        world = self.world

        def differences() -> list[str]:
            wrong = [f"{h} has an open journey {j.id} {j.phase}" for h in HOSTS for j in world.journeys(h)]
            views = {h: world.vm(h, self.name) for h in HOSTS}
            here = [h for h, view in views.items() if view is not None and view.state not in ("moved", "stopped")]
            if len(here) != 1 or (host is not None and here != [host]):
                return [*wrong, f"it is at {here}, not at {host or 'one host'}"]
            view = views[here[0]]
            assert view is not None
            if view.state != state:
                wrong.append(f"it is {view.state} at {here[0]}, not {state}")
            processes = {h: world.qemu(h, self.name) for h in HOSTS}
            pids = {h: process.pid for h, process in processes.items() if process is not None}
            if pids != {here[0]: view.pid}:
                wrong.append(f"its QEMUs are {pids}, the agent says {view.pid} at {here[0]}")
            wrong += [f"left at {other(here[0])}: {trace}" for trace in world.traces(other(here[0]))]
            expected = [f"file vms/{self.name}/{name}" for name in ("console.sock", "qmp.sock")]
            expected.append(f"file leases/{view.uuid}.lease")
            mine = [trace for trace in world.traces(here[0]) if not trace.startswith(("process", "tap"))]
            wrong += [f"left at {here[0]}: {trace}" for trace in mine if trace not in expected]
            groups = sorted(path.name for path in CGROUPS.glob(f"vm-{self.name}-*"))
            if len(groups) > 1:
                wrong.append(f"cgroups {groups}")
            return wrong

        found: list[str] = []

        def none() -> bool:
            found[:] = differences()
            return not found

        try:
            world.wait(none, "one VM, and nothing elsewhere", timeout_s=timeout_s, pause_s=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}: {'; '.join(found)}") from None
        return self.host
