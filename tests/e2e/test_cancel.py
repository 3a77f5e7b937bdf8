"""A journey that its user ends: by command, by Ctrl-C, while it waits, and in each of its early steps."""

from __future__ import annotations

import asyncio
import signal

import pytest

from livemove.base.errors import UnknownJourney
from livemove.lab import faults

from .world import SLOW, STEADY, Guest, World, other

pytestmark = pytest.mark.qemu


def test_cancelled_in_mid_copy_it_runs_on_and_moves_at_the_next_try(world: World, guest: Guest) -> None:
    source = guest.host
    pid = guest.view().pid
    journey = world.start_journey(guest.name, source, SLOW)
    world.wait_copying(source, journey)
    assert "is being cancelled" in world.livemove("cancel", guest.name).out
    report = world.report(source, journey)
    assert (report.outcome, report.code, report.owner) == ("cancelled", "journey-cancelled", "source")
    assert report.reason == "Cancelled by admin."
    guest.exactly_one(source)
    assert guest.view().pid == pid
    guest.check()
    late = world.livemove("cancel", journey, "--json", expect=18).json
    assert "has ended already" in late["message"]
    guest.move()


def test_ctrl_c_ends_the_journey_and_the_command_waits_for_its_end(world: World, guest: Guest) -> None:
    source = guest.host
    command = world.typed("migrate", guest.name, "--to", other(source), "--max-bandwidth", SLOW)
    journey = world.wait(lambda: [view.id for view in world.journeys(source)], "the journey begins")[0]
    world.wait_copying(source, journey)
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=20)
    assert command.returncode == 61, (out, err)
    assert "Cancelling; press Ctrl-C again to leave the journey running." in out + err
    # ended already when the command is
    assert world.report(source, journey, timeout_s=0).outcome == "cancelled"
    guest.exactly_one(source)
    guest.check()


def test_a_second_ctrl_c_leaves_a_journey_that_goes_on(world: World, guest: Guest) -> None:
    source, destination = guest.host, other(guest.host)
    command = world.typed("migrate", guest.name, "--to", destination, "--max-bandwidth", STEADY)
    journey = world.wait(lambda: [view.id for view in world.journeys(source)], "the journey begins")[0]
    world.wait_copying(source, journey)
    # closing the terminal counts as two
    command.send_signal(signal.SIGHUP)
    out, err = command.communicate(timeout=20)
    assert command.returncode == 130, (out, err)
    assert f"journey {journey} goes on" in err
    assert world.report(source, journey).outcome == "completed"
    guest.exactly_one(destination)


def test_cancelled_on_a_dead_path_it_ends_at_once(world: World, guest: Guest) -> None:
    """QEMU's own cancel would wait for its connections to time out."""
    source = guest.host
    journey = world.start_journey(guest.name, source, STEADY)
    world.wait_copying(source, journey)
    world.do(faults.black_hole(world.lab, 0))
    try:
        world.do(asyncio.sleep(1.0))
        assert world.phase(source, journey) in ("copying", "converging")
        began_s = world.clock.monotonic_s()
        world.ask(source, lambda agent: agent.cancel_journey(journey))
        assert world.report(source, journey).outcome == "cancelled"
        assert world.clock.monotonic_s() - began_s < 10
        assert guest.runs()
    finally:
        world.do(faults.heal(world.lab, 0))
    guest.exactly_one(source)
    guest.move()


def test_cancelled_as_soon_as_it_began_and_in_every_step_before_the_copy_nothing_is_left(
    world: World, guest: Guest
) -> None:
    source = guest.host
    reached = set()
    for number in range(6):
        journey = world.start_journey(guest.name, source, SLOW)
        # the steps before the copy take some 300 ms here: the cancellations fall into all of them
        for _ in range(number * 6):
            reached.add(world.phase(source, journey))
        try:
            world.ask(source, lambda agent, journey=journey: agent.cancel_journey(journey))
        except UnknownJourney:
            raise AssertionError("the journey ended by itself") from None
        assert world.report(source, journey, timeout_s=10).outcome == "cancelled"
        guest.exactly_one(source)
        _nothing_is_promised(world, other(source))
    assert reached & {"permitting", "checking", "preparing", "connecting"}, reached
    guest.check()


def _nothing_is_promised(world: World, host: str) -> None:
    def given_back() -> bool:
        view = world.ask(host, lambda agent: agent.host())
        return not view.incoming and not view.incoming_waiting and view.memory_promised_bytes == 0

    world.wait(given_back, f"slots and memory of {host} are given back", timeout_s=5)
