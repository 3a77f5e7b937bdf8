"""A path that dies while the guest stands still: the worst moment, because QEMU itself then waits for TCP, a quarter of an hour."""

from __future__ import annotations

import signal

import pytest

from livemove.lab import faults

from .blackout import FULL_LINK, cut_in_the_blackout
from .world import SLOW, Guest, World, other

pytestmark = pytest.mark.qemu


@pytest.mark.timeout(300)
def test_a_path_that_stays_dead_gives_the_vm_back(world: World, guest: Guest) -> None:
    journey = cut_in_the_blackout(world, guest)
    source, destination = guest.host, other(guest.host)
    try:
        report = world.report(source, journey, timeout_s=60)
        assert (report.outcome, report.owner, report.code) == ("failed", "source", "link-lost")
        assert "nothing was sent" in report.reason
        assert guest.view().state == "running"
        assert guest.runs()
    finally:
        world.do(faults.heal(world.lab, 0))
    # the destination could not be told, and is told now
    guest.exactly_one(source)
    assert world.vm(destination, guest.name) is None or world.vm(destination, guest.name).state == "moved"
    guest.check()
    world.do(faults.set_rate(world.lab, 0, FULL_LINK))
    guest.move()


@pytest.mark.timeout(300)
def test_a_path_that_is_back_after_seconds_ends_the_journey_well(world: World, guest: Guest) -> None:
    """What rebooted other people's guests."""
    journey = cut_in_the_blackout(world, guest)
    source, destination = guest.host, other(guest.host)
    until_s = world.clock.monotonic_s() + 5
    world.wait(lambda: world.clock.monotonic_s() > until_s, "five seconds pass")
    world.do(faults.heal(world.lab, 0))
    report = world.report(source, journey, timeout_s=60)
    assert (report.outcome, report.owner) == ("completed", "destination"), report
    assert report.downtime_ms is not None and report.downtime_ms > 5000
    guest.exactly_one(destination)
    guest.check()


def test_a_source_s_qemu_that_hangs_is_not_taken_for_dead(world: World, guest: Guest) -> None:
    source = guest.host
    journey = world.start_journey(guest.name, source, SLOW)
    world.wait_copying(source, journey)
    process = world.qemu(source, guest.name)
    assert process is not None
    faults.kill(world.lab, process.pid, signal.SIGSTOP)
    try:
        world.ask(source, lambda agent: agent.cancel_journey(journey))
        until_s = world.clock.monotonic_s() + 10
        world.wait(lambda: world.clock.monotonic_s() > until_s, "ten seconds pass")
        assert world.phase(source, journey) == "aborting"
    finally:
        faults.kill(world.lab, process.pid, signal.SIGCONT)
    assert world.report(source, journey).outcome == "cancelled"
    assert guest.view().pid == process.pid
    guest.exactly_one(source)
    guest.check()
