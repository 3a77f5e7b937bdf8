"""A VM arrives in the run state that it had; what its guest and its user do in mid-copy has a defined outcome."""

from __future__ import annotations

import pytest

from livemove.base.errors import LinkError

from .world import CGROUPS, SLOW, STEADY, Guest, World, other

pytestmark = pytest.mark.qemu


def test_a_paused_guest_arrives_paused_and_runs_on_there_when_it_is_resumed(world: World, guest: Guest) -> None:
    source, destination = guest.host, other(guest.host)
    clock_ms = int(world.guest(guest.address, "stat")["t_ms"])
    guest.pause()
    assert guest.view().state == "paused"
    report = world.livemove("migrate", guest.name, "--to", destination, "--json").json
    assert (report["outcome"], report["arrived_as"]) == ("completed", "paused")
    guest.exactly_one(destination, state="paused")
    assert not _answers(world, guest)
    guest.resume()
    guest.exactly_one(destination)
    # its clock stood still from the pause on
    assert clock_ms < int(world.guest(guest.address, "stat")["t_ms"]) < clock_ms + 10_000
    guest.check()
    events = world.livemove("events", report["id"], "--json").json["events"]
    assert any(f"arrived from {source} and is paused" in event["text"] for event in events), events


def test_a_pause_in_mid_copy_is_kept_at_the_destination(world: World, guest: Guest) -> None:
    source, destination = guest.host, other(guest.host)
    journey = world.start_journey(guest.name, source, STEADY)
    world.wait_copying(source, journey)
    guest.pause()
    report = world.report(source, journey)
    assert (report.outcome, report.arrived_as) == ("completed", "paused")
    guest.exactly_one(destination, state="paused")
    guest.resume()
    guest.exactly_one(destination)
    guest.check()


def test_a_paused_guest_is_not_resumed_by_hand_in_mid_copy(world: World, guest: Guest) -> None:
    """The order could reach QEMU just after the last page has left."""
    source, destination = guest.host, other(guest.host)
    guest.pause()
    # a copy of seconds, so that a command typed on a busy machine comes before its end
    journey = world.start_journey(guest.name, source, "60Mbit")
    world.wait_copying(source, journey)
    assert world.livemove("vm", "resume", guest.name, "--json", expect=13).json["code"] == "already-moving"
    report = world.report(source, journey)
    assert (report.outcome, report.arrived_as) == ("completed", "paused")
    guest.resume()
    guest.exactly_one(destination)
    guest.check()


def test_a_guest_that_powers_off_in_mid_copy_ends_the_journey_and_is_stopped_at_the_source(
    world: World, guest: Guest
) -> None:
    source, destination = guest.host, other(guest.host)
    command = world.typed("migrate", guest.name, "--to", destination, "--max-bandwidth", SLOW, "--json")
    journey = world.wait(lambda: [view.id for view in world.journeys(source)], "the journey begins")[0]
    world.wait_copying(source, journey)
    _tell(world, guest, "poweroff")
    out, err = command.communicate(timeout=30)
    assert command.returncode == 63, (out, err)
    assert "guest-ended" in out
    report = world.report(source, journey)
    assert (report.outcome, report.code, report.owner) == ("ended", "guest-ended", "source")
    _is_stopped(world, guest, source)
    # nothing forbids its next start
    guest.ensure_running()
    guest.exactly_one(source)


def test_a_guest_that_powers_off_by_itself_is_stopped(world: World, guest: Guest) -> None:
    host = guest.host
    _tell(world, guest, "poweroff")
    _is_stopped(world, guest, host)
    assert world.livemove("migrate", guest.name, "--to", other(host), "--json", expect=14).json["code"] == "not-running"


def test_a_forced_stop_leaves_a_definition_and_nothing_else(world: World, guest: Guest) -> None:
    host = guest.host
    assert world.livemove("vm", "stop", guest.name, "--force", "--json").json["state"] == "stopped"
    _is_stopped(world, guest, host)


def test_a_guest_that_reboots_in_mid_copy_arrives_running(world: World, guest: Guest) -> None:
    source, destination = guest.host, other(guest.host)
    journey = world.start_journey(guest.name, source, STEADY)
    world.wait_copying(source, journey)
    _tell(world, guest, "reboot")
    report = world.report(source, journey)
    assert (report.outcome, report.arrived_as) == ("completed", "running")
    assert any("reset" in decision for decision in report.decisions), report.decisions
    guest.exactly_one(destination)
    guest.wait_ready()
    assert int(world.guest(guest.address, "stat")["t_ms"]) < 60_000
    guest.check()


def test_a_guest_that_panics_in_mid_copy_arrives_as_it_is(world: World, guest: Guest) -> None:
    source, destination = guest.host, other(guest.host)
    journey = world.start_journey(guest.name, source, STEADY)
    world.wait_copying(source, journey)
    _tell(world, guest, "panic")
    report = world.report(source, journey)
    assert (report.outcome, report.arrived_as) == ("completed", "guest-panicked")
    guest.exactly_one(destination, state="guest-panicked")
    assert not _answers(world, guest)


def _tell(world: World, guest: Guest, line: str) -> None:
    """A command after which the guest may be too far gone to answer."""
    try:
        world.guest(guest.address, line, timeout_s=3)
    except LinkError:
        return


def _answers(world: World, guest: Guest) -> bool:
    try:
        return bool(world.guest(guest.address, "stat", timeout_s=0.7))
    except LinkError:
        return False


def _is_stopped(world: World, guest: Guest, host: str) -> None:
    """Known at `host` and stopped, and nothing of it runs anywhere."""
    world.wait(lambda: guest.view().state == "stopped" and not any(map(world.traces, "AB")), "it is stopped everywhere")
    assert not list(CGROUPS.glob(f"vm-{guest.name}-*"))
    assert guest.host == host
    assert (guest.view().pid, guest.view().journey) == (None, "")
