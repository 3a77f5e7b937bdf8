"""Cutting the path while the guest stands still, which is a second or two on a slow link."""

from __future__ import annotations

from livemove.lab import faults

from .world import Guest, World

#: bytes per second: what is left after the rounds takes a second or two
SLOW_LINK = 5_000_000
FULL_LINK = 125_000_000
TRIES = 4


def cut_in_the_blackout(world: World, guest: Guest) -> str:
    """Begin a journey whose path loses everything in its blackout; the journey. The caller heals link 0 and its rate.

    On a machine that does something else the cut may come when the blackout is over: then it is tried again, from where
    the guest has arrived.
    """
    for _ in range(TRIES):
        source = guest.host
        world.do(faults.set_rate(world.lab, 0, SLOW_LINK))
        guest.load(600, 6)
        journey = world.start_journey(guest.name, source, downtime_s=2.5)
        world.wait(
            lambda source=source, journey=journey: world.phase(source, journey) in ("blackout", "completed"),
            "the guest stands still",
            pause_s=0.005,
        )
        world.do(faults.black_hole(world.lab, 0))
        if world.phase(source, journey) == "blackout":
            return journey
        world.do(faults.heal(world.lab, 0))
        world.do(faults.set_rate(world.lab, 0, FULL_LINK))
        assert world.report(source, journey).outcome == "completed"
        guest.exactly_one()
    raise AssertionError(f"the blackout was missed {TRIES} times")
