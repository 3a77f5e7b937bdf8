"""Plays one cell of the matrix on real agents and QEMUs, and compares what came of it with what is written in the table."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e import records
from tests.e2e.striking import NETWORKS, Strike, begin_unheard
from tests.e2e.world import CGROUPS, HOSTS, SLOW, Guest, World, lab_world, other
from tests.kill_matrix.cells import Cell
from tests.kill_matrix.remains import remains
from tests.kill_matrix.watching import Watch, monitor_arguments

from livemove.api.models import JourneyOptions
from livemove.base import fault_points
from livemove.base.errors import LivemoveError
from livemove.base.units import parse_rate
from livemove.lab import agents, faults
from livemove.lab.reference import Workload

#: 20 MiB of content in 128 MiB; 4 MiB of it are rewritten at 1 MB/s.
WORKLOAD = Workload(
    random_mib=14, text_mib=6, working_set_mib=4, rate_pages_per_s=250, check_pages_per_s=1000, address="10.77.0.10/24"
)
MONITOR_PORT = 4600
RATE = "400Mbit"
#: How long a stop or a break lasts: much longer than an answer takes, shorter than the patience for the answer to a GO.
HOLD_S = 2.0
REACH_S = 60.0
#: A destination that was not told of the end gives a silent source up after a minute.
RESOLUTION_S = 100.0
#: How the journey may have ended, by the table's letters.
PHASES = {
    "S": ("failed",),
    "C": ("cancelled",),
    "D": ("completed",),
    "X": ("failed",),
    "Y": ("completed",),
    "Z": ("failed", "cancelled"),
}


class Violation(AssertionError):
    """Something else came of it than what is written in the table."""


@contextmanager
def matrix(name: str) -> Iterator[Matrix]:
    """A lab whose agents have their fault points armed, with one guest that runs."""
    before = os.environ.get(fault_points.VARIABLE)
    os.environ[fault_points.VARIABLE] = "1"
    try:
        with lab_world(name, "1Gbit", {"allow_extra_arguments": True}) as world:
            made = Matrix(world)
            try:
                yield made
            finally:
                made.close()
    finally:
        if before is None:
            del os.environ[fault_points.VARIABLE]
        else:
            os.environ[fault_points.VARIABLE] = before


class Matrix:
    """A world in which cells are played one after another."""

    def __init__(self, world: World) -> None:
        self.world = world
        name = f"{world.lab.spec.name}-db1"
        self.guest = Guest(world, name, "10.77.0.10", WORKLOAD, extra_arguments=monitor_arguments(MONITOR_PORT))
        namespaces = {host: Path("/run/netns") / world.lab.spec.namespace(host) for host in HOSTS}
        self.watch = Watch(namespaces, MONITOR_PORT)
        self._journeys: set[str] = set()
        self._journey = ""
        self._baseline: list[str] | None = None
        self._reached: set[str] = set()

    def close(self) -> None:
        self.watch.close()

    def state_dir(self, host: str) -> Path:
        return self.world.lab.directory(host) / "state"

    def points_reached(self) -> set[str]:
        """All fault points that the agents have ever come by, by their logs."""
        found = set()
        for host in HOSTS:
            for line in agents.log_path(self.world.lab, host).read_text(errors="replace").splitlines():
                _, marker, point = line.partition(": fault point ")
                if marker:
                    found.add(point.strip())
        return found

    def restore(self) -> None:
        """After a violation: networks, agents and QEMUs are mended, so that the next cell is judged by itself."""
        for network in NETWORKS:
            self.world.do(faults.heal(self.world.lab, network))
        for host in HOSTS:
            (self.world.run_dir(host) / fault_points.FILE_NAME).unlink(missing_ok=True)
            qemu = self.world.qemu(host, self.guest.name)
            if qemu is not None:
                faults.kill(self.world.lab, qemu.pid, signal.SIGCONT)
        self.world.ensure_agents()
        self.watch.two.clear()

    # One cell -------------------------------------------------------------------------------------------------------

    def play(self, cell: Cell) -> None:
        """Raises Violation, with the journals of both hosts, when anything is not as the cell says."""
        self._journey = ""
        try:
            self._play(cell)
        except (AssertionError, LivemoveError, TimeoutError) as error:
            raise Violation("\n".join([f"{cell.name}: {type(error).__name__}: {error}", *self._story()])) from error

    def _play(self, cell: Cell) -> None:
        world, guest = self.world, self.guest
        source = guest.ensure_running()
        destination = other(source)
        if self._baseline is None:
            self._baseline = remains(world, guest, source)
        at = source if cell.point.startswith("source") else destination
        (world.run_dir(at) / fault_points.FILE_NAME).write_text(cell.point)
        begun = self._begin(source, cell)
        try:
            if cell.kind == "cancelled":
                world.wait_copying(source, self._find_journey(source), bytes_sent=1 << 16)
                world.ask(source, lambda agent: agent.cancel_journey(self._journey))
            self._wait_reached(at, cell)
            self._find_journey(source)
            self._strike(cell, source, at)
        finally:
            (world.run_dir(at) / fault_points.FILE_NAME).unlink(missing_ok=True)
            begun.join(timeout=30)
        self._compare(cell, source)

    def _begin(self, source: str, cell: Cell) -> threading.Thread:
        options = JourneyOptions(
            max_bandwidth_bytes_per_s=parse_rate(SLOW if cell.kind == "cancelled" else RATE),
            verify="full" if cell.kind == "verified" else "off",
        )
        return begin_unheard(self.world, self.guest.name, source, options)

    def _find_journey(self, source: str) -> str:
        if not self._journey:
            found = self.world.wait(
                lambda: records.newest_journey(self.state_dir(source), self.guest.name, self._journeys),
                "the journey is on record",
            )
            assert found is not None
            self._journey = found
            self._journeys.add(found)
        return self._journey

    def _wait_reached(self, at: str, cell: Cell) -> None:
        pid = self.world.agent_pid(at)
        path = self.world.run_dir(at) / fault_points.FILE_NAME
        self.world.wait(
            lambda: not path.exists() and _state(pid) == "T",
            f"{cell.point} is reached",
            timeout_s=REACH_S,
            pause_s=0.01,
        )

    # Striking and healing -------------------------------------------------------------------------------------------

    def _strike(self, cell: Cell, source: str, at: str) -> None:
        strike = Strike(self.world, cell.victim, cell.how, source, [self.guest.name])
        # of a host the QEMU may be gone already while its agent stands before the next line
        assert strike.qemus or not cell.victim.endswith("QEMU"), f"there is no {cell.victim} to strike"
        strike.begin()
        if at not in strike.agents:
            self.world.signal_agent(at, signal.SIGCONT)
        self._hold(cell, source)
        strike.end()

    def _hold(self, cell: Cell, source: str) -> None:
        """While the victim is away: if the owner is unknown then, nobody lets the VM run who does not own it."""
        world = self.world
        if not cell.unknown:
            if cell.how != "kill":
                world.do(asyncio.sleep(HOLD_S))
            return
        world.wait(lambda: self._phase(source) == "unresolved", "the source knows that it does not know", timeout_s=40)
        view = world.vm(source, self.guest.name)
        assert view is not None and view.state == "unknown", view
        asked = self.watch.asked
        world.wait(lambda: self.watch.asked >= asked + 2, "the QEMUs are asked", timeout_s=20)
        assert self.watch.now[source] != "running", self.watch.now

    def _phase(self, host: str, role: str = "source") -> str:
        return records.phase(self.state_dir(host), self._journey, role)

    # What came of it ------------------------------------------------------------------------------------------------

    def _compare(self, cell: Cell, source: str) -> None:
        world, guest = self.world, self.guest
        destination = other(source)
        ended = ("completed", "failed", "cancelled", "ended")
        world.wait(lambda: self._phase(source) in ended, "the journey ends", timeout_s=RESOLUTION_S)
        phase = self._phase(source)
        end = {"completed": "D", "failed": "S"}[phase] if cell.end == "E" else cell.end
        assert phase in PHASES[end], f"the journey is {phase}, not as in {cell.end}"
        host = destination if end in ("D", "Y") else source
        if end in ("X", "Y", "Z"):
            self._crashed(end, host, source)
        else:
            guest.exactly_one(host, timeout_s=RESOLUTION_S)
            asked = self.watch.asked
            world.wait(lambda: self.watch.asked >= asked + 2, "the QEMUs are asked", timeout_s=20)
            assert self.watch.now == {host: "running", other(host): "none"}, self.watch.now
            guest.ticks()
            guest.check()
            self._nothing_left(host)
        assert not self.watch.two, self.watch.two

    def _nothing_left(self, host: str) -> None:
        """The same is on the hosts as before the first cell, with the guest at `host`."""
        before, now = set(self._baseline or ()), set[str]()

        def same() -> bool:
            now.clear()
            now.update(remains(self.world, self.guest, host))
            return now == before

        try:
            self.world.wait(same, "all is as before", timeout_s=20, pause_s=0.2)
        except AssertionError:
            raise AssertionError(f"too much: {sorted(now - before)}; missing: {sorted(before - now)}") from None

    def _crashed(self, end: str, host: str, source: str) -> None:
        """The VM is stopped at `host`, nothing of it is left anywhere, and it was said that it crashed."""
        world, name = self.world, self.guest.name

        def stopped() -> bool:
            views = {place: world.vm(place, name) for place in HOSTS}
            at = [place for place, view in views.items() if view is not None and view.state != "moved"]
            view = views[host]
            return (
                at == [host] and view is not None and view.state == "stopped"
                and not any(map(world.traces, HOSTS)) and not any(map(world.journeys, HOSTS))
                and not list(CGROUPS.glob(f"vm-{name}-*"))
            )  # fmt: skip

        world.wait(stopped, f"it is stopped at {host}, and nothing is left", timeout_s=RESOLUTION_S, pause_s=0.1)
        if end == "X":
            world.wait(
                lambda: any("crashed on the source" in text for text in records.events(self.state_dir(source), self._journey)),
                "it is reported as a crash",
            )  # fmt: skip

    def _story(self) -> list[str]:
        lines = [f"QEMUs: {self.watch.now}, two at once: {self.watch.two}"]
        for host in HOSTS:
            if self._journey:
                lines += [
                    f"journal of {host}: {line}" for line in records.journal_lines(self.state_dir(host), self._journey)
                ]
                lines += [f"events of {host}: {line}" for line in records.events(self.state_dir(host), self._journey)]
            log = agents.log_path(self.world.lab, host).read_text(errors="replace").splitlines()
            lines += [f"log of {host}: {line}" for line in log[-40:] if "fault point" not in line]
        return lines


def _state(pid: int) -> str:
    """The state letter of a process in /proc; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
