"""Journeys to and fro without end, each with a fault at a random moment; afterwards every VM is judged."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from tests.e2e import records
from tests.e2e.striking import Strike, begin_unheard
from tests.e2e.world import CGROUPS, HOSTS, Guest, World
from tests.kill_matrix.watching import Watch, monitor_arguments
from tests.soak.faults import Fault, draw

from livemove.api.client import AgentClient
from livemove.api.models import JourneyOptions, VmView
from livemove.base.clock import SystemClock
from livemove.base.errors import LinkError, LivemoveError, UnknownVm
from livemove.base.units import parse_rate
from livemove.lab import agents, processes
from livemove.lab.reference import Workload

T = TypeVar("T")
FIRST_PORT = 4610
#: Waits are for ends that must come, however loaded the machine is; only a hang is longer.
PATIENCE_S = 240.0
JOURNEY_S = 3.5
#: Two sockets and a lease.
FILES_OF_A_VM = 3


class Soak:
    """One lab with its guests, and the counts over all labs of a run."""

    def __init__(self, world: World, random: Random, guests: int) -> None:
        self.world = world
        self.random = random
        self.journeys = self.faults = 0
        self.outcomes: Counter[str] = Counter()
        self.fault: Fault | None = None
        self._clock = SystemClock()
        self._known: set[str] = set()
        namespaces = {host: Path("/run/netns") / world.lab.spec.namespace(host) for host in HOSTS}
        self.guests, self.watches = [], []
        for number in range(guests):
            address, port = f"10.77.0.{10 + number}", FIRST_PORT + number
            workload = Workload(
                random_mib=14, text_mib=6, working_set_mib=4, rate_pages_per_s=250, seed=number + 1,
                check_pages_per_s=1000, address=f"{address}/24",
            )  # fmt: skip
            name = f"{world.lab.spec.name}-db{number + 1}"
            self.guests.append(Guest(world, name, address, workload, extra_arguments=monitor_arguments(port)))
            self.watches.append(Watch(namespaces, port))
        self._ports = [FIRST_PORT + number for number in range(guests)]
        for guest in self.guests:
            guest.ensure_running()
        self._sockets = {host: self._listening(host) for host in HOSTS}

    def close(self) -> None:
        for watch in self.watches:
            watch.close()

    # One turn -------------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Some guests leave where they are, something happens, everything settles. AssertionError: a violation."""
        self.fault = fault = draw(self.random, JOURNEY_S)
        leaving = self.random.sample(self.guests, self.random.randint(1, len(self.guests)))
        source = self._host(leaving[0])
        leaving = [guest for guest in leaving if self._host(guest) == source]
        journeys = [self._begin(guest, source) for guest in leaving]
        self._sleep(fault.after_s)
        self.faults += fault.what != "nothing"
        # a host is lost with every VM on it, a QEMU alone
        names = [guest.name for guest in (self.guests if "host" in fault.what else leaving[:1])]
        lost = names if fault.may_crash else []
        self._inflict(fault, source, leaving[0], names)
        for thread in journeys:
            thread.join(timeout=PATIENCE_S)
        self.settle(lost)

    def _begin(self, guest: Guest, source: str) -> threading.Thread:
        rate = self.random.choice(("400Mbit", "200Mbit", "100Mbit"))
        return begin_unheard(self.world, guest.name, source, JourneyOptions(max_bandwidth_bytes_per_s=parse_rate(rate)))

    def _inflict(self, fault: Fault, source: str, guest: Guest, names: list[str]) -> None:
        def said(host: str, act: Callable[[AgentClient], Coroutine[Any, Any, object]]) -> None:
            # too early, too late or already elsewhere: a user may always try
            with contextlib.suppress(LivemoveError):
                self.world.ask_once(host, act)

        match fault.what:
            case "nothing":
                return
            case "cancel":
                said(source, lambda agent: agent.cancel_journey(guest.name))
            case "pause":
                said(source, lambda agent: agent.pause_vm(guest.name))
                self._sleep(fault.hold_s)
                said(source, lambda agent: agent.resume_vm(guest.name))
            case "reset":
                said(source, lambda agent: agent.reset_vm(guest.name))
            case _:
                strike = Strike(self.world, fault.what, fault.how, source, names, fault.networks)
                strike.begin()
                try:
                    self._sleep(fault.hold_s)
                finally:
                    strike.end()

    def _sleep(self, duration_s: float) -> None:
        self.world.do(asyncio.sleep(duration_s))

    # Settling -------------------------------------------------------------------------------------------------------

    def settle(self, lost: list[str]) -> None:
        """Wait until nothing is under way, then look at every VM; those in `lost` may have crashed and are started again."""
        self.world.ensure_agents()
        found: list[str] = []

        def settled() -> bool:
            found[:] = self._differences(lost)
            return not found

        try:
            self.world.wait(settled, "everything settles", timeout_s=PATIENCE_S, pause_s=0.2)
        except AssertionError as error:
            raise AssertionError(f"{error}: {'; '.join(found)}") from None
        self._count()
        for guest, watch in zip(self.guests, self.watches, strict=True):
            assert not watch.two, watch.two
            if not self._places(guest):
                self.outcomes["crashed with its host or QEMU"] += 1
            elif self._view(guest).state == "paused":
                self._patiently(self._host(guest), lambda agent, name=guest.name: agent.resume_vm(name))
            guest.ensure_running()
            guest.ticks(timeout_s=PATIENCE_S)
            guest.check()

    def _differences(self, lost: list[str]) -> list[str]:
        wrong = [f"{host} has an open journey {j.id} {j.phase}" for host in HOSTS for j in self._open(host)]
        wrong += [f"a journey is {phase} at {host}" for host in HOSTS for phase in self._open_phases(host)]
        expected: dict[str, list[str]] = {host: [] for host in HOSTS}
        for guest in self.guests:
            running = self._places(guest)
            known = [host for host in HOSTS if (view := self._vm(host, guest.name)) and view.state != "moved"]
            if len(known) != 1 or (running != known and guest.name not in lost):
                wrong.append(f"{guest.name} is known at {known}, running at {running}")
                continue
            qemus = {host: process.pid for host in HOSTS if (process := self.world.qemu(host, guest.name))}
            view = self._vm(known[0], guest.name)
            if qemus != ({known[0]: view.pid} if running and view is not None else {}):
                wrong.append(f"{guest.name}: its QEMUs are {qemus}, the agent says {running}")
            groups = len(list(CGROUPS.glob(f"vm-{guest.name}-*")))
            if groups != len(running):
                wrong.append(f"{guest.name} has {groups} cgroups")
            for host in running:
                expected[host] += [f"file vms/{guest.name}/{name}" for name in ("console.sock", "qmp.sock")]
                if view is not None:
                    expected[host].append(f"file leases/{view.uuid}.lease")
        for host in HOSTS:
            left = [trace for trace in self.world.traces(host) if not trace.startswith(("process", "tap"))]
            if left != sorted(expected[host]):
                wrong.append(f"{host} has {left}, not {sorted(expected[host])}")
            taps = sum(trace.startswith("tap") for trace in self.world.traces(host))
            if taps != len(expected[host]) // FILES_OF_A_VM:
                wrong.append(f"{host} has {taps} taps for {len(expected[host]) // FILES_OF_A_VM} VMs")
            more = self._listening(host) - self._sockets[host] if not wrong else set()
            if more:
                wrong.append(f"{host} listens on {sorted(more)}")
        return wrong

    def _listening(self, host: str) -> set[str]:
        lines = self.world.run(host, "ss", "-Hltn").splitlines()
        addresses = {line.split()[3] for line in lines}
        return {address for address in addresses if int(address.rpartition(":")[2]) not in self._ports}

    def _places(self, guest: Guest) -> list[str]:
        """Where it has a QEMU that is its owner's, by what the agents say."""
        views = {host: self._vm(host, guest.name) for host in HOSTS}
        return [host for host, view in views.items() if view is not None and view.state in ("running", "paused")]

    def _host(self, guest: Guest) -> str:
        places = self._places(guest)
        assert len(places) == 1, places
        return places[0]

    def _view(self, guest: Guest) -> VmView:
        view = self._vm(self._host(guest), guest.name)
        assert view is not None
        return view

    def _vm(self, host: str, name: str) -> VmView | None:
        try:
            return self._patiently(host, lambda agent: agent.vm(name))
        except UnknownVm:
            return None

    def _open(self, host: str) -> list[Any]:
        return self._patiently(host, lambda agent: agent.journeys())

    def _patiently(self, host: str, question: Callable[[AgentClient], Coroutine[Any, Any, T]]) -> T:
        """An agent on a loaded machine may be slow; it must answer in the end."""
        until_s = self._clock.monotonic_s() + PATIENCE_S
        while True:
            try:
                return self.world.ask(host, question)
            except (LinkError, TimeoutError):
                if self._clock.monotonic_s() > until_s:
                    raise
                self._sleep(0.5)

    def _state_dir(self, host: str) -> Path:
        return self.world.lab.directory(host) / "state"

    def _open_phases(self, host: str) -> list[str]:
        return [phase for _, phase, is_open in records.all_journeys(self._state_dir(host)) if is_open]

    def _count(self) -> None:
        for host in HOSTS:
            for journey, phase, _ in records.all_journeys(self._state_dir(host), role="source"):
                if journey not in self._known:
                    self._known.add(journey)
                    self.journeys += 1
                    self.outcomes[phase] += 1

    def story(self) -> list[str]:
        """The journals of the last journeys and the ends of the logs, of both hosts."""
        lines = [f"{guest.name}: QEMUs {watch.now}" for guest, watch in zip(self.guests, self.watches, strict=True)]
        for host in HOSTS:
            for journey, _, _ in records.all_journeys(self._state_dir(host))[-3:]:
                lines += [
                    f"journal of {host}, {journey}: {line}"
                    for line in records.journal_lines(self._state_dir(host), journey)
                ]
                lines += [
                    f"events of {host}, {journey}: {line}" for line in records.events(self._state_dir(host), journey)
                ]
            log = agents.log_path(self.world.lab, host).read_text(errors="replace").splitlines()
            lines += [f"log of {host}: {line}" for line in log[-40:]]
        lines += [
            f"process {pid}: {processes.command_of(pid)[:120]}"
            for pid in processes.find(self.world.lab.spec.name, self.world.lab.namespace_ids)
        ]
        return lines
