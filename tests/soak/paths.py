"""``python -m tests.soak.paths --minutes 20``, run by ``make path-soak``: is a living path ever taken for a dead one?

A guest goes to and fro over two saturated paths while two programs want all of both processors, and now and then an agent
or a path keeper, of either side, is stopped for a second. Nothing is ever wrong with a path, so none may be removed, and
every journey must complete. The last line counts; the exit code is 1 when either happened.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.e2e.world import HOSTS, Guest, World, lab_world, other

from livemove.api.models import ReportView
from livemove.base.errors import LinkError, LivemoveError
from livemove.hypervisor.process import start_ticks
from livemove.lab import agents, faults, processes
from livemove.lab.reference import Workload

LINKS = ("300Mbit", "300Mbit")
SUBNETS = "10.80.0.0/24,10.81.0.0/24"
WORKLOAD = Workload(
    random_mib=160, text_mib=0, working_set_mib=8, rate_pages_per_s=2000, check_pages_per_s=500, address="10.77.0.10/24"
)
MEMORY = "288MiB"
STOP_S = 1.0
VICTIMS = ("source agent", "destination agent", "both agents", "source keeper", "destination keeper", "both keepers")
KEEPER = "livemove.network.keeper"
PATIENCE_S = 120.0


class Soak:
    """One lab, and the counts over all labs of a run."""

    def __init__(self, world: World, random: Random) -> None:
        self.world = world
        self.random = random
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.guest = Guest(world, f"{world.lab.spec.name}-db1", "10.77.0.10", WORKLOAD, MEMORY)
        self.guest.ensure_running()
        self._journey = ""

    def turn(self) -> None:
        """One journey, in which somebody is stopped now and then. AssertionError: it left something, or broke the guest."""
        world, source = self.world, self.guest.host
        self._journey = journey = world.start_journey(self.guest.name, source, option="multichannel", paths=SUBNETS)
        while not self._has_ended(source, journey):
            time.sleep(self.random.uniform(0.2, 1.5))
            self._stop(self.random.choice(VICTIMS), source)
        report = world.report(source, journey, timeout_s=PATIENCE_S)
        self.counts["journeys"] += 1
        if report.outcome != "completed":
            self.counts["not completed"] += 1
            self.faults.append(f"{journey}: {report.outcome}: {report.reason}")
        removed = self._removed(report, journey)
        self.counts["removed"] += len(removed)
        self.faults += [f"{journey}: {text}" for text in removed]
        self.guest.exactly_one(timeout_s=PATIENCE_S)
        self.guest.check()

    def _has_ended(self, source: str, journey: str) -> bool:
        return all(each.id != journey for each in self.world.journeys(source))

    def _removed(self, report: ReportView, journey: str) -> list[str]:
        """What either host said of dead paths; the report's count where nobody said anything."""
        said = [
            event.text
            for host in HOSTS
            for event in self.world.ask(host, lambda agent: agent.journey_events(journey)).events
            if " is dead (" in event.text
        ]
        return said or [f"{path.source_address} was removed" for path in report.paths for _ in range(path.removed)]

    def _stop(self, victim: str, source: str) -> None:
        side, what = victim.split()
        hosts = {"source": [source], "destination": [other(source)], "both": [*HOSTS]}[side]
        pids = [pid for host in hosts for pid in self._pids(host, what)]
        if not pids:
            return
        self._signal(pids, signal.SIGSTOP)
        try:
            time.sleep(STOP_S)
        finally:
            self._signal(pids, signal.SIGCONT)
        self.counts[f"{what.rstrip('s')}s stopped"] += len(pids)

    def _pids(self, host: str, what: str) -> list[int]:
        if what.startswith("agent"):
            return [self.world.agent_pid(host)]
        spec = self.world.lab.spec
        here = Path("/run/netns", spec.namespace(host)).stat().st_ino
        found = processes.find(spec.name, self.world.lab.namespace_ids)
        return [pid for pid in found if KEEPER in processes.command_of(pid) and _namespace_of(pid) == here]

    def _signal(self, pids: list[int], number: signal.Signals) -> None:
        for pid in pids:
            # the keeper of a journey that has just ended is gone
            if start_ticks(pid) is not None:
                with contextlib.suppress(LivemoveError):
                    faults.kill(self.world.lab, pid, number)

    def story(self) -> list[str]:
        lines = []
        for host in HOSTS:
            with contextlib.suppress(LinkError, TimeoutError, LivemoveError):
                events = self.world.ask(host, lambda agent: agent.journey_events(self._journey)).events
                lines += [f"events of {host}: {event.at} {event.text}" for event in events]
            log = agents.log_path(self.world.lab, host).read_text(errors="replace").splitlines()
            lines += [f"log of {host}: {line}" for line in log[-30:] if "unknown-journey" not in line]
        return lines


def _namespace_of(pid: int) -> int:
    """Number of a process's network namespace; 0 when it has ended."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return 0


@contextlib.contextmanager
def busy_processors() -> Iterator[None]:
    """Two programs that do nothing, as fast as they can."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.paths")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=None, help="of who is stopped when")
    arguments = parser.parse_args()
    seed = secrets.randbelow(1 << 31) if arguments.seed is None else arguments.seed
    print(f"seed {seed}; repeat it with SEED={seed}", flush=True)
    random, counts, violations = Random(seed), Counter[str](), list[str]()
    until_s, labs = time.monotonic() + arguments.minutes * 60, 0
    ended = True
    try:
        while time.monotonic() < until_s and labs < 20:
            labs += 1
            settings = {"incoming": ["any"], "trusted_networks": ["10.80.0.0/14"]}
            with lab_world(f"paths{labs}-{os.getpid()}", LINKS, settings) as world, busy_processors():
                soak = Soak(world, random)
                try:
                    _play(soak, until_s)
                except (AssertionError, LivemoveError, TimeoutError) as error:
                    violations.append(f"{type(error).__name__}: {error}")
                    print("\n".join([f"VIOLATION {violations[-1]}", *soak.story()]), flush=True)
                finally:
                    counts += soak.counts
                    violations += soak.faults
    except KeyboardInterrupt:
        ended = False
        print("interrupted", flush=True)
    for violation in violations:
        print(f"VIOLATION {violation}")
    print(
        f"{counts['journeys']} journeys over two paths, {counts['agents stopped']} agents and {counts['keepers stopped']} "
        f"keepers stopped, {counts['removed']} paths removed by mistake, {counts['not completed']} journeys not completed"
    )
    return 1 if violations or not ended else 0


def _play(soak: Soak, until_s: float) -> None:
    said_s = time.monotonic()
    while time.monotonic() < until_s:
        before = len(soak.faults)
        soak.turn()
        if len(soak.faults) > before:
            print("\n".join([*soak.faults[before:], *soak.story()]), flush=True)
        if time.monotonic() - said_s >= 60:
            said_s = time.monotonic()
            print(", ".join(f"{count} {what}" for what, count in sorted(soak.counts.items())), flush=True)


def _end(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
