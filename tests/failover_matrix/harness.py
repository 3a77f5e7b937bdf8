"""Plays one cell of the failover matrix on real agents and QEMUs, and measures what it cost."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from tests.e2e.inside import enter
from tests.e2e.world import HOSTS, Guest, World, lab_world, other
from tests.failover_matrix.arriving import Arriving, longest_stall
from tests.failover_matrix.cells import COMPRESSED, DOWNTIME_S, HEAL_S, PLAIN, STALL_S, Cell
from tests.kill_matrix.remains import remains
from tests.kill_matrix.watching import monitor_arguments
from tests.network.kernel_snapshot import differences, snapshot

from livemove.api.models import ReportView
from livemove.base.errors import LivemoveError
from livemove.lab import agents, faults
from livemove.lab.client_probe import ClientProbe
from livemove.lab.reference import Workload

LINKS = ("300Mbit", "300Mbit")
TRUSTED = "10.80.0.0/14"
SUBNETS = "10.80.0.0/24,10.81.0.0/24"
#: What is rewritten takes two such links a tenth of a second, so that there is a blackout to be struck in.
WORKLOAD = Workload(
    random_mib=96, text_mib=0, working_set_mib=8, rate_pages_per_s=8000, check_pages_per_s=500, address="10.77.0.10/24"
)
MEMORY = "224MiB"
MONITOR_PORT = 4700
#: So much more must have arrived for the copy not to stand still: a millisecond of one link.
STEP_BYTES = 64 << 10
#: A fault that comes a moment too late for the blackout is tried again.
TRIES = 3


class Violation(AssertionError):
    """Something else came of it than must."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One play of a cell.

    :param stall_ms: the longest time in which nothing arrived while the guest ran at the source.
    :param stalled_from_ms: when that time began, counted from the fault.
    :param told_ms: from the fault to the first host's word that the path is dead; None: none said so.
    :param downtime_ms: the report's.
    :param client_gap_ms: the longest time for which the guest's client had no answer.
    :param struck_ms: from the guest's stop to the fault; None where it was not to be there.
    """

    stall_ms: float
    stalled_from_ms: float
    told_ms: float | None
    downtime_ms: float
    client_gap_ms: float
    copy_ms: float
    struck_ms: float | None = None

    @property
    def too_long(self) -> list[str]:
        """What took longer than it may."""
        found = []
        if self.stall_ms >= STALL_S * 1e3:
            found.append(f"the copy stood still for {self.stall_ms:.0f} ms")
        if self.downtime_ms >= DOWNTIME_S * 1e3:
            found.append(f"the guest stood still for {self.downtime_ms:.0f} ms")
        return found

    def __str__(self) -> str:
        said = f"stall {self.stall_ms:.0f}, downtime {self.downtime_ms:.0f}, client {self.client_gap_ms:.0f} ms"
        told = "" if self.told_ms is None else f", told after {self.told_ms:.0f} ms"
        struck = "" if self.struck_ms is None else f", struck {self.struck_ms:.0f} ms after the stop"
        return said + told + struck


class StopWatch:
    """Hears on a monitor of the tests' own when the guest stops at its source."""

    def __init__(self, namespace: Path) -> None:
        self.stopped_s: float | None = None
        self.stopped = threading.Event()
        self._connected = threading.Event()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._live, args=(namespace,), name="stop watch", daemon=True)

    def __enter__(self) -> StopWatch:
        self._thread.start()
        assert self._connected.wait(10), "no monitor"
        return self

    def _live(self, namespace: Path) -> None:
        enter(namespace)
        self._socket = socket.create_connection(("127.0.0.1", MONITOR_PORT), timeout=120)
        self._socket.sendall(b'{"execute": "qmp_capabilities"}\n')
        self._connected.set()
        with contextlib.suppress(OSError), self._socket.makefile("rb") as lines:
            for line in lines:
                if json.loads(line).get("event") == "STOP" and not self.stopped.is_set():
                    self.stopped_s = time.monotonic()
                    self.stopped.set()

    def __exit__(self, *_: object) -> None:
        assert self._socket is not None
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


@contextmanager
def matrix(name: str) -> Iterator[Matrix]:
    """A lab of two hosts with two links, one guest that runs, and its client."""
    settings: dict[str, agents.Setting] = {
        "allow_extra_arguments": True,
        "incoming": ["any"],
        "trusted_networks": [TRUSTED],
    }
    with lab_world(name, LINKS, settings) as world:
        made = Matrix(world)
        try:
            yield made
        finally:
            made.close()


class Matrix:
    """A world in which cells are played one after another."""

    def __init__(self, world: World) -> None:
        self.world = world
        arguments = monitor_arguments(MONITOR_PORT)
        self.guest = Guest(world, f"{world.lab.spec.name}-db1", "10.77.0.10", WORKLOAD, MEMORY, arguments)
        self.guest.ensure_running()
        self._probe = ClientProbe(world.lab, "10.77.0.10")
        world.do(self._probe.__aenter__())
        world.do(self._probe.answered())
        #: what is on the hosts, and what each host's network holds, with the guest at a host
        self._before: dict[str, list[str]] = {}
        self._kernels: dict[str, dict[str, dict[str, str]]] = {}
        self._trusted = True
        self._journey = ""
        # a first fault leaves the lab's own empty tables
        for link in range(len(LINKS)):
            world.do(faults.black_hole(world.lab, link))
            world.do(faults.cut(world.lab, link))
        self._heal()
        # there and back, so that what everything looks like is known for both places
        for _ in HOSTS:
            self.guest.exactly_one()
            self._note(self.guest.host)
            report = self._move()
            assert report.outcome == "completed", report

    def close(self) -> None:
        with contextlib.suppress(LivemoveError):
            self.world.do(self._probe.stop())

    def restore(self) -> None:
        """After a violation: links and guest are mended, so that the next cell is judged by itself."""
        self._heal()
        self.world.ensure_agents()
        for host in HOSTS:
            for journey in self.world.journeys(host):
                with contextlib.suppress(LivemoveError):
                    self.world.ask(host, lambda agent, journey=journey: agent.cancel_journey(journey.id))

    # One cell -------------------------------------------------------------------------------------------------------

    def play(self, cell: Cell) -> Sample:
        """Raises Violation, with what both agents said, when anything is not as it must be."""
        self._journey = ""
        try:
            for _ in range(TRIES):
                sample = self._play(cell)
                if sample is not None:
                    return sample
            raise AssertionError(f"the blackout was missed {TRIES} times")
        except (AssertionError, LivemoveError, TimeoutError) as error:
            raise Violation("\n".join([f"{cell.name}: {type(error).__name__}: {error}", *self._story()])) from error

    def _play(self, cell: Cell) -> Sample | None:
        """None when the blackout was over before the fault came; everything is as it must be all the same."""
        source = self.guest.ensure_running()
        self._trust(cell.mode == PLAIN)
        if cell.fault == "added":
            self._strike(cell, source, "cut")
        with Arriving(self._namespace(other(source))) as arriving, StopWatch(self._namespace(source)) as watch:
            began_s = time.monotonic()
            self._journey = self._start(source, cell.mode)
            if cell.share is None:
                assert watch.stopped.wait(60), "the guest was not stopped"
            else:
                share_bytes = int(cell.share * (WORKLOAD.content_mib << 20))
                assert arriving.wait_for(share_bytes, given_up=watch.stopped.is_set), "the copy ended too early"
            struck_s, struck_wall_s = self._befall(cell, source), self.world.clock.wall_s()
            healing = self._heal_later(cell)
            report = self._report(source, timeout_s=90)
            healing.join()
            stopped_s = watch.stopped_s
        ended_s = time.monotonic()
        assert report.outcome == "completed", report
        assert stopped_s is not None and report.downtime_ms is not None and report.copy_ms is not None, report
        self.guest.ticks()
        self._heal()
        self._whole(other(source))
        after_stop_ms = (struck_s - stopped_s) * 1e3
        if cell.share is None and after_stop_ms > report.downtime_ms:
            return None
        gap = self._probe.longest_gap(began_s, ended_s)
        stall = longest_stall(arriving.readings, stopped_s, STEP_BYTES)
        sample = Sample(
            stall_ms=round(stall.length_s * 1e3, 1),
            stalled_from_ms=round((stall.start_s - struck_s) * 1e3, 1),
            told_ms=self._told_ms(struck_wall_s),
            downtime_ms=report.downtime_ms,
            client_gap_ms=round(gap.length_s * 1e3, 1) if gap is not None else 0.0,
            copy_ms=report.copy_ms,
            struck_ms=round(after_stop_ms, 1) if cell.share is None else None,
        )
        self._judge(cell, report)
        return sample

    def _start(self, source: str, mode: str) -> str:
        option: Literal["multichannel", "compression"] = "multichannel" if mode == PLAIN else "compression"
        return self.world.start_journey(self.guest.name, source, option=option, paths=SUBNETS)

    def _move(self) -> ReportView:
        source = self.guest.host
        report = self.world.report(source, self._start(source, PLAIN))
        self.guest.exactly_one(other(source))
        return report

    def _report(self, source: str, *, timeout_s: float) -> ReportView:
        """The report as soon as the journey has ended; asked for seldom, because answers cost the copy processor time."""
        world = self.world
        world.wait(
            lambda: all(journey.id != self._journey for journey in world.journeys(source)),
            "the journey ends", timeout_s=timeout_s, pause_s=0.2,
        )  # fmt: skip
        return world.report(source, self._journey)

    # Faults ---------------------------------------------------------------------------------------------------------

    def _befall(self, cell: Cell, source: str) -> float:
        """What the cell says befalls its path; when that was done."""
        if cell.fault == "added":
            self.world.do(faults.heal(self.world.lab, cell.link))
        else:
            self._strike(cell, source, cell.fault.partition(",")[0])
        return time.monotonic()

    def _strike(self, cell: Cell, source: str, what: str) -> None:
        lab, link = self.world.lab, cell.link
        match what:
            case "cut":
                self.world.do(faults.cut(lab, link))
            case "hole":
                self.world.do(faults.black_hole(lab, link))
            case "hole out":
                self.world.do(faults.black_hole(lab, link, sender=source))
            case "hole in":
                self.world.do(faults.black_hole(lab, link, sender=other(source)))

    def _heal_later(self, cell: Cell) -> threading.Thread:
        def heal() -> None:
            if cell.fault.endswith("healed"):
                time.sleep(HEAL_S)
                self.world.do(faults.heal(self.world.lab, cell.link))

        thread = threading.Thread(target=heal, name="heal")
        thread.start()
        return thread

    def _heal(self) -> None:
        for link in range(len(LINKS)):
            self.world.do(faults.heal(self.world.lab, link))

    def _trust(self, trusted: bool) -> None:
        """Journeys are encrypted where the network is not trusted."""
        if trusted is not self._trusted:
            for host in HOSTS:
                self.world.settings(host, {"trusted_networks": TRUSTED if trusted else ""})
            self._trusted = trusted

    def _told_ms(self, struck_wall_s: float) -> float | None:
        """When the first host said that the path is dead."""
        told_s = [
            datetime.fromisoformat(event.at).timestamp()
            for host in HOSTS
            for event in self.world.ask(host, lambda agent: agent.journey_events(self._journey)).events
            if " is dead (" in event.text
        ]
        return round((min(told_s) - struck_wall_s) * 1e3, 1) if told_s else None

    # What came of it ------------------------------------------------------------------------------------------------

    def _judge(self, cell: Cell, report: ReportView) -> None:
        compressed = cell.mode == COMPRESSED
        assert (report.tls, report.compression == "zstd") == (compressed, compressed), report
        planned = [path for path in report.paths if path.planned]
        assert len(planned) == len(report.paths) == len(LINKS), report.paths
        if cell.share is not None and cell.share <= 0.5:
            struck = next(path for path in planned if path.source_address.startswith(f"10.{80 + cell.link}."))
            if cell.fault == "added":
                assert struck.share > 0.05 and not struck.removed, f"the new path was not used: {report.paths}"
            else:
                assert struck.removed == 1, f"the path was not taken for dead once: {report.paths}"
            if cell.fault.endswith("healed") and cell.share <= 0.1:
                assert struck.subflows > report.channels + 1, f"the path was not used again: {report.paths}"

    def _whole(self, host: str) -> None:
        """One guest, all its pages right, and nothing of the journey left."""
        self.guest.exactly_one(host)
        self.guest.check()
        found: list[str] = []

        def as_before() -> bool:
            now = remains(self.world, self.guest, host)
            found[:] = [f"+ {line}" for line in now if line not in self._before[host]]
            found.extend(f"- {line}" for line in self._before[host] if line not in now)
            for place, kernel in self._kernels_now().items():
                found.extend(f"{place}: {line}" for line in differences(self._kernels[host][place], kernel))
            return not found

        try:
            self.world.wait(as_before, "all is as before", timeout_s=10, pause_s=0.2)
        except AssertionError as error:
            raise AssertionError(f"{error}: {found}") from None

    def _note(self, host: str) -> None:
        self._before[host] = remains(self.world, self.guest, host)
        self._kernels[host] = self._kernels_now()

    def _kernels_now(self) -> dict[str, dict[str, str]]:
        return {place: snapshot(self.world.lab.spec.namespace(place)) for place in HOSTS}

    def _namespace(self, host: str) -> Path:
        return Path("/run/netns") / self.world.lab.spec.namespace(host)

    def _story(self) -> list[str]:
        lines = []
        for host in HOSTS:
            with contextlib.suppress(LivemoveError, TimeoutError):
                events = self.world.ask(host, lambda agent: agent.journey_events(self._journey)).events
                lines += [f"events of {host}: {event.at} {event.text}" for event in events]
            log = agents.log_path(self.world.lab, host).read_text(errors="replace").splitlines()
            told = [line for line in log if "unknown-journey" not in line]
            lines += [f"log of {host}: {line}" for line in told[-20:]]
        return lines
