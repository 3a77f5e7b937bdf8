"""The lock that a VM's QEMU holds: across journeys, against a second start, and when somebody else has it in the hand-over."""

from __future__ import annotations

import fcntl
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from livemove.base import fault_points
from livemove.lab import faults

from .world import HOSTS, Guest, World, other

pytestmark = pytest.mark.qemu


@pytest.fixture
def shared(world: World, guest: Guest, tmp_path: Path) -> Iterator[Path]:
    """A lease directory that both hosts share; the guest was started with its lease there."""
    directory = tmp_path / "leases"
    for host in HOSTS:
        world.settings(host, {"lease_dir": str(directory)})
    guest.restart()
    yield directory
    world.ensure_agents()
    for host in HOSTS:
        world.settings(host, {"lease_dir": ""})
    guest.restart()


def _held(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _stopped_before_it_runs_the_guest(world: World, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """A journey whose destination's agent stands, stopped, between its OWNED and the guest; the journey and that agent."""
    destination = other(guest.host)
    monkeypatch.setenv(fault_points.VARIABLE, "1")
    world.restart_agent(destination)
    monkeypatch.delenv(fault_points.VARIABLE)
    (world.run_dir(destination) / fault_points.FILE_NAME).write_text("destination.before.resume-guest")
    journey = world.start_journey(guest.name, guest.host)
    pid = world.agent_pid(destination)
    world.wait(lambda: " T " in Path(f"/proc/{pid}/stat").read_text(), "the destination stops before it runs the guest")
    return journey, pid


def test_a_vm_takes_its_lease_with_it(world: World, guest: Guest, shared: Path) -> None:
    path = shared / f"{guest.view().uuid}.lease"
    assert _held(path)
    guest.move()
    assert _held(path)
    guest.move()
    assert _held(path)
    world.livemove("vm", "stop", guest.name, "--force")
    assert not _held(path)
    with path.open("rb") as somebody:
        fcntl.flock(somebody, fcntl.LOCK_EX)
        refused = world.livemove("vm", "start", guest.name, "--host", guest.host, "--json", expect=18).json
        assert "lease" in refused["message"]
    guest.ensure_running()


def test_hosts_that_do_not_share_their_leases_move_nothing(world: World, guest: Guest, shared: Path) -> None:
    there = other(guest.host)
    world.settings(there, {"lease_dir": ""})
    refused = world.livemove("migrate", guest.name, "--to", there, "--json", expect=36).json
    assert refused["code"] == "lease-mismatch"
    world.settings(there, {"lease_dir": str(shared)})
    guest.exactly_one()
    guest.check()


def test_a_destination_that_can_do_nothing_any_more_says_whose_the_vm_is_when_it_can(
    world: World, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no descriptor left when the GO has reached its disk: neither for the lease nor to end its QEMU."""
    source, destination = guest.host, other(guest.host)
    journey, pid = _stopped_before_it_runs_the_guest(world, guest, monkeypatch)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (min({*range(1024)} - used), before[1]))
    try:
        faults.kill(world.lab, pid, signal.SIGCONT)
        world.wait(lambda: world.phase(source, journey) == "unresolved", "the source does not know")
        assert world.vm(source, guest.name).state == "unknown"
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    report = world.report(source, journey)
    # given back if its QEMU had been ended by then, else it runs the guest when it is asked
    guest.exactly_one({"failed": source, "completed": destination}[report.outcome])
    guest.check()
    world.restart_agent(destination)
    guest.move()


def test_who_cannot_have_the_lease_does_not_run_the_vm(
    world: World, guest: Guest, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = guest.host, other(guest.host)
    path = shared / f"{guest.view().uuid}.lease"
    journey, pid = _stopped_before_it_runs_the_guest(world, guest, monkeypatch)
    with path.open("rb") as somebody:
        # the source has given it up before its GO
        fcntl.flock(somebody, fcntl.LOCK_EX | fcntl.LOCK_NB)
        faults.kill(world.lab, pid, signal.SIGCONT)
        report = world.report(source, journey)
        assert (report.outcome, report.owner) == ("failed", "source")
        assert any("stays paused" in note for note in report.notes), report.notes
        # nobody has it, so nobody runs: the VM waits at the source, and resuming it by hand is refused too
        guest.exactly_one(source, state="postmigrate")
        assert world.livemove("vm", "resume", guest.name, "--json", expect=18).json["code"] == "conflict"
    world.livemove("vm", "resume", guest.name)
    guest.exactly_one(source)
    guest.check()
    world.restart_agent(destination)
    guest.move()
