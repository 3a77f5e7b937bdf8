"""Whatever is killed, whenever: afterwards the VM runs in exactly one place, whole, and can be moved.

SIGSTOP before SIGKILL makes the moment certain: an agent that is stopped hears what is said to it and does not answer.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from livemove.lab import faults

from .world import HOSTS, SLOW, STEADY, Guest, World, other

pytestmark = pytest.mark.qemu

KILL, STOP, CONTINUE = signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT


def test_destination_s_qemu(world: World, guest: Guest) -> None:
    source, destination = guest.host, other(guest.host)
    command = world.typed("migrate", guest.name, "--to", destination, "--max-bandwidth", SLOW, "--json")
    journey = world.wait(lambda: [view.id for view in world.journeys(source)], "the journey begins")[0]
    world.wait_copying(source, journey)
    arriving = world.qemu(destination, guest.name)
    assert arriving is not None
    faults.kill(world.lab, arriving.pid)
    out, err = command.communicate(timeout=30)
    assert command.returncode == 51, (out, err)
    report = world.report(source, journey)
    assert (report.outcome, report.owner, report.code) == ("failed", "source", "qemu-gone")
    guest.exactly_one(source)
    guest.check()
    events = world.livemove("events", journey, "--json").json["events"]
    numbers = {(event["host"], event["event_id"]) for event in events}
    assert {(source, 21024), (destination, 22040)} <= numbers, events
    guest.move()


def test_source_s_qemu(world: World, guest: Guest) -> None:
    """The VM is gone, as it would be without a journey; it is stopped, nowhere half, and starts again."""
    source, destination = guest.host, other(guest.host)
    journey = world.start_journey(guest.name, source, SLOW)
    world.wait_copying(source, journey)
    qemu = world.qemu(source, guest.name)
    assert qemu is not None
    faults.kill(world.lab, qemu.pid)
    report = world.report(source, journey)
    assert (report.outcome, report.code) == ("failed", "qemu-gone")
    assert "crashed on the source" in report.reason
    world.wait(
        lambda: guest.view().state == "stopped" and not any(map(world.traces, HOSTS)), "it is stopped everywhere"
    )
    assert guest.host == source
    guest.ensure_running()
    guest.exactly_one(source)
    assert world.vm(destination, guest.name) is None or world.vm(destination, guest.name).state == "moved"


def test_source_s_agent_in_mid_copy(world: World, guest: Guest) -> None:
    source = guest.host
    journey = world.start_journey(guest.name, source, SLOW)
    world.wait_copying(source, journey)
    world.restart_agent(source, KILL)
    report = world.report(source, journey)
    assert (report.outcome, report.owner) == ("failed", "source")
    assert "agent was restarted" in report.reason
    guest.exactly_one(source)
    guest.check()
    guest.move()


def test_destination_s_agent_in_mid_copy(world: World, guest: Guest) -> None:
    source, destination = guest.host, other(guest.host)
    journey = world.start_journey(guest.name, source, SLOW)
    world.wait_copying(source, journey)
    world.signal_agent(destination, KILL)
    assert guest.runs()
    world.start_agent(destination)
    report = world.report(source, journey)
    assert (report.outcome, report.owner) == ("failed", "source")
    guest.exactly_one(source)
    guest.check()
    guest.move()


def test_both_agents_in_mid_copy(world: World, guest: Guest) -> None:
    source, destination = guest.host, other(guest.host)
    journey = world.start_journey(guest.name, source, SLOW)
    world.wait_copying(source, journey)
    for host in HOSTS:
        world.signal_agent(host, KILL)
    assert guest.runs()
    # the source comes first and finds nobody to ask; it needs nobody, because no GO can have been sent
    world.start_agent(source)
    assert world.report(source, journey).outcome == "failed"
    world.start_agent(destination)
    guest.exactly_one(source)
    guest.check()


def _into_the_hand_over(world: World, guest: Guest) -> str:
    """A journey whose GO is out and unanswered: the destination's agent is stopped; returns the journey."""
    source, destination = guest.host, other(guest.host)
    journey = world.start_journey(guest.name, source, STEADY)
    world.wait_copying(source, journey)
    world.wait(lambda: [v for v in world.journeys(destination) if v.phase == "armed"], "both journals are armed")
    world.signal_agent(destination, STOP)
    world.wait(lambda: world.phase(source, journey) == "handing-over", "the GO is sent", timeout_s=20)
    return journey


def test_destination_s_agent_before_it_takes_the_vm(world: World, guest: Guest) -> None:
    source, destination = guest.host, other(guest.host)
    journey = _into_the_hand_over(world, guest)
    world.signal_agent(destination, KILL)
    world.wait(lambda: world.phase(source, journey) == "unresolved", "the source does not know")
    # UNKNOWN starts nobody
    assert world.vm(source, guest.name).state == "unknown"
    assert world.livemove("vm", "resume", guest.name, "--json", expect=13).json["code"] == "already-moving"
    world.start_agent(destination)
    report = world.report(source, journey)
    assert (report.outcome, report.owner) == ("failed", "source")
    guest.exactly_one(source)
    guest.check()


def test_source_s_agent_after_its_go(world: World, guest: Guest) -> None:
    source, destination = guest.host, other(guest.host)
    journey = _into_the_hand_over(world, guest)
    world.signal_agent(source, KILL)
    world.signal_agent(destination, CONTINUE)
    world.start_agent(source)
    report = world.report(source, journey)
    assert (report.outcome, report.owner) in (("completed", "destination"), ("failed", "source"))
    guest.exactly_one(destination if report.outcome == "completed" else source)
    guest.check()


def test_a_destination_that_hangs_in_the_hand_over_and_comes_back(world: World, guest: Guest) -> None:
    source, destination = guest.host, other(guest.host)
    journey = _into_the_hand_over(world, guest)
    world.do(asyncio.sleep(1.0))
    world.signal_agent(destination, CONTINUE)
    report = world.report(source, journey)
    assert (report.outcome, report.owner) == ("completed", "destination")
    assert report.downtime_ms is not None and report.downtime_ms > 1000
    guest.exactly_one(destination)
    guest.check()


def test_both_agents_in_the_hand_over(world: World, guest: Guest) -> None:
    source, destination = guest.host, other(guest.host)
    journey = _into_the_hand_over(world, guest)
    for host in (source, destination):
        world.signal_agent(host, KILL)
    # both QEMUs are there, and neither guest runs: each agent that comes back alone starts nobody by guessing
    assert all(world.qemu(host, guest.name) is not None for host in HOSTS)
    world.start_agent(source)
    assert world.phase(source, journey) == "unresolved"
    assert world.vm(source, guest.name).state == "unknown"
    world.start_agent(destination)
    assert world.report(source, journey).owner == "source"
    guest.exactly_one(source)
    guest.check()


def test_source_s_agent_between_the_end_of_the_copy_and_its_go(world: World, guest: Guest) -> None:
    """QEMU completes while the agent is stopped: the guest stands still at both ends and nobody owns up, until it is back."""
    source = guest.host
    guest.load(0, 0)
    journey = world.start_journey(guest.name, source, STEADY)
    world.wait_copying(source, journey)
    world.wait(lambda: [v for v in world.journeys(other(source)) if v.phase == "armed"], "both journals are armed")
    world.signal_agent(source, STOP)
    world.do(asyncio.sleep(5.0))
    world.restart_agent(source, KILL)
    report = world.report(source, journey)
    assert (report.outcome, report.owner) == ("failed", "source")
    guest.exactly_one(source)
    guest.check()


@pytest.mark.parametrize("side", ["source", "destination", "both"])
def test_an_agent_at_an_unforeseen_moment_near_the_hand_over(world: World, guest: Guest, side: str) -> None:
    source, destination = guest.host, other(guest.host)
    journey = world.start_journey(guest.name, source, STEADY)
    world.wait_copying(source, journey)
    near = ("converging", "blackout", "handing-over", "cleaning", "completed")
    world.wait(lambda: world.phase(source, journey) in near, "the hand-over is near", pause_s=0.001)
    victims = {"source": [source], "destination": [destination], "both": [source, destination]}[side]
    pids = {host: world.agent_pid(host) for host in victims}
    for pid in pids.values():
        faults.kill(world.lab, pid)
    for host, pid in pids.items():
        world.wait_ended(pid)
        world.start_agent(host)
    guest.exactly_one()
    guest.check()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_restarted_agent_finds_its_vm_again(world: World, guest: Guest, number: signal.Signals) -> None:
    host, pid = guest.host, guest.view().pid
    world.signal_agent(host, number)
    assert guest.runs()
    assert pid is not None and Path(f"/proc/{pid}").exists()
    world.start_agent(host)
    guest.exactly_one(host)
    assert guest.view().pid == pid
    guest.move()
