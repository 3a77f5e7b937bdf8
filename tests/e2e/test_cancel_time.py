"""How soon a cancelled VM is back: running at full speed at the source, its destination gone.

The bound is the promise of the documentation, 2 s. A machine that does something else at that moment is not what is
tested, so the best of three counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from livemove.lab import faults

from .blackout import FULL_LINK, cut_in_the_blackout
from .world import HOSTS, SLOW, STEADY, Guest, World

pytestmark = pytest.mark.qemu

BOUND_S = 2.0
TRIES = 3


@contextmanager
def _in_the_copy(world: World, guest: Guest) -> Iterator[str]:
    journey = world.start_journey(guest.name, guest.host, SLOW)
    world.wait_copying(guest.host, journey)
    yield journey


@contextmanager
def _on_a_dead_path(world: World, guest: Guest) -> Iterator[str]:
    """QEMU's own cancel would wait for its connections."""
    journey = world.start_journey(guest.name, guest.host, STEADY)
    world.wait_copying(guest.host, journey)
    world.do(faults.black_hole(world.lab, 0))
    try:
        world.do(asyncio.sleep(0.5))
        yield journey
    finally:
        world.do(faults.heal(world.lab, 0))


@contextmanager
def _in_the_blackout(world: World, guest: Guest) -> Iterator[str]:
    """The guest stands still, and its rest is lost on the way."""
    journey = cut_in_the_blackout(world, guest)
    try:
        yield journey
    finally:
        world.do(faults.heal(world.lab, 0))
        world.do(faults.set_rate(world.lab, 0, FULL_LINK))


@contextmanager
def _slowed_down(world: World, guest: Guest) -> Iterator[str]:
    source = guest.host
    for host in HOSTS:
        world.settings(host, {"max_throttle": "95"})
    world.do(faults.set_rate(world.lab, 0, 15_000_000))
    guest.load(20_000, 16)
    try:
        journey = world.start_journey(guest.name, source, "100Mbit", downtime_s=0.05, throttle=True)
        world.wait(lambda: _throttle(world, source, journey) >= 50, "the guest is slowed down", timeout_s=60)
        yield journey
    finally:
        world.do(faults.set_rate(world.lab, 0, FULL_LINK))
        for host in HOSTS:
            world.settings(host, {"max_throttle": "80"})


CASES: dict[str, Callable[[World, Guest], AbstractContextManager[str]]] = {
    "in the copy": _in_the_copy,
    "on a dead path": _on_a_dead_path,
    "in the blackout": _in_the_blackout,
    "slowed down": _slowed_down,
}


@pytest.mark.parametrize("case", CASES)
def test_a_cancelled_vm_is_back_within_two_seconds(world: World, guest: Guest, case: str) -> None:
    took: list[float] = []
    while not took or (took[-1] > BOUND_S and len(took) < TRIES):
        guest.load(20_000, 16)
        usual = guest.pages_per_s()
        with CASES[case](world, guest) as journey:
            source = guest.host
            began_s = world.clock.monotonic_s()
            world.ask(source, lambda agent, journey=journey: agent.cancel_journey(journey))
            report = world.report(source, journey)
            assert (report.outcome, report.owner) == ("cancelled", "source"), report
            world.wait(lambda: guest.view().state == "running", "the guest runs", pause_s=0.01)
            took.append(world.clock.monotonic_s() - began_s)
        guest.load(20_000, 16)
        assert guest.pages_per_s() > usual / 2, "at full speed"
        guest.exactly_one(source)
    print(f"{case}: cancelled after {', '.join(f'{seconds * 1e3:.0f} ms' for seconds in took)}")
    assert took[-1] <= BOUND_S, took


def _throttle(world: World, source: str, journey: str) -> int:
    progress = world.ask(source, lambda agent: agent.journey(journey)).progress
    return progress.throttle_percent if progress is not None else 0
