"""Wall clocks that jump, each host's its own way: nothing that decides about a VM looks at them.

The kernel has one wall clock for all namespaces, so it is Python's that is moved, in the agents: a ``sitecustomize`` adds
to it what a file says. Their monotonic clocks go on as they do when an administrator or NTP sets the time.
"""

from __future__ import annotations

import datetime
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .conftest import LINK, WORKLOAD
from .world import Guest, World, lab_world

pytestmark = pytest.mark.qemu

HOUR_S = 3600.0
#: A copy of some four seconds.
RATE = "100Mbit"

SITECUSTOMIZE = """
import os, time

def _move(path, real=time.time):
    seen = [None, 0.0]
    def moved():
        try:
            found = os.stat(path)
        except OSError:
            return real()
        stamp = found.st_mtime_ns, found.st_ino
        if stamp != seen[0]:
            with open(path) as file:
                seen[:] = stamp, float(file.read())
        return real() + seen[1]
    time.time = moved

if os.environ.get("LIVEMOVE_LAB_HOST"):
    _move(os.path.join(os.path.dirname(__file__), os.environ["LIVEMOVE_LAB_HOST"] + ".offset"))
"""


@dataclass(frozen=True)
class Clocks:
    """The wall clocks of the hosts."""

    directory: Path

    def set(self, host: str, ahead_s: float) -> None:
        """From now on `ahead_s` ahead of the true time."""
        new = self.directory / "new"
        new.write_text(str(ahead_s))
        new.replace(self.directory / f"{host}.offset")


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory) -> Clocks:
    directory = tmp_path_factory.mktemp("clocks")
    (directory / "sitecustomize.py").write_text(SITECUSTOMIZE)
    return Clocks(directory)


@pytest.fixture(scope="module")
def moved(clocks: Clocks) -> Iterator[Guest]:
    """A guest of a lab whose agents' clocks can be moved."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", f"{clocks.directory}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        with lab_world(f"clocks-{os.getpid()}", LINK) as world:
            guest = Guest(world, f"clocks-{os.getpid()}-db1", "10.77.0.10", WORKLOAD)
            guest.ensure_running()
            yield guest


def copied_on(world: World, host: str, journey: str) -> None:
    """Return when some more has been copied, so that both agents have lived with their clocks for a while."""
    view = world.ask(host, lambda agent: agent.journey(journey))
    before = view.progress.transferred_bytes if view.progress is not None else 0
    world.wait_copying(host, journey, bytes_sent=before + (6 << 20))


def test_they_jump_to_and_fro_in_the_middle_of_a_copy(moved: Guest, clocks: Clocks) -> None:
    world = moved.world
    journey = world.start_journey(moved.name, "A", RATE)
    world.wait_copying("A", journey)
    for ahead_s in (HOUR_S, -HOUR_S):
        clocks.set("A", ahead_s)
        clocks.set("B", -ahead_s)
        copied_on(world, "A", journey)
    report = world.report("A", journey)
    assert (report.outcome, report.owner) == ("completed", "destination"), report
    moved.exactly_one("B")
    moved.check()
    # the jumps were seen where people read the time, and measured nothing
    started, ended = (datetime.datetime.fromisoformat(text) for text in (report.started, report.ended))
    assert -3700 < (ended - started).total_seconds() < -3500
    assert report.total_ms is not None and 1000 < report.total_ms < 60_000
    assert report.downtime_ms is not None and 0 < report.downtime_ms < 10_000


@pytest.mark.parametrize("moment", ["copy", "hand-over"])
def test_an_agent_that_is_killed_between_two_clocks(moved: Guest, clocks: Clocks, moment: str) -> None:
    world = moved.world
    moved.ensure_running()
    # a journey from the host whose clock is behind, whose agent comes back with one that is ahead
    source = moved.host
    destination = "B" if source == "A" else "A"
    clocks.set(source, -HOUR_S)
    clocks.set(destination, 0)
    if moment == "hand-over":
        moved.load(0, 0)
    journey = world.start_journey(moved.name, source, RATE)
    world.wait_copying(source, journey)
    if moment == "hand-over":
        world.wait(lambda: [v for v in world.journeys(destination) if v.phase == "armed"], "both journals are armed")
        world.signal_agent(destination, signal.SIGSTOP)
        world.wait(lambda: world.phase(source, journey) == "handing-over", "the GO is sent", timeout_s=20)
    world.signal_agent(source, signal.SIGKILL)
    clocks.set(source, HOUR_S)
    clocks.set(destination, -HOUR_S)
    world.signal_agent(destination, signal.SIGCONT)
    world.start_agent(source)
    report = world.report(source, journey)
    if moment == "hand-over":
        assert (report.outcome, report.owner) == ("completed", "destination"), report
        moved.exactly_one(destination)
    else:
        assert report.outcome in ("failed", "cancelled") and report.owner == "source", report
        moved.exactly_one(source)
    moved.check()
