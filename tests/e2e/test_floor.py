"""What others were promised stays theirs while VMs move: a competing flow, out of the source and into the destination.

The flow wants all it can get on a link that the journey wants as well; the promise is 40 % of the link. What is checked is the
worst second of the flow, so that a stall of the machine itself, which stops flow and journey alike, is told by the window's
length and not taken for a broken promise.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from livemove.base.units import format_rate
from livemove.lab import agents, faults
from livemove.lab.flow import Flow
from livemove.lab.reference import Workload

from .conftest import _labs
from .world import Guest, World, lab_world, other

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

MINIMUM_BYTES_PER_S = 20_000_000
#: Payload of TCP, of what a link carries.
PAYLOAD = 0.956
WORKLOAD = Workload(
    random_mib=100, text_mib=0, working_set_mib=8, rate_pages_per_s=300, check_pages_per_s=500, address="10.77.0.10/24"
)


@pytest.fixture(scope="module")
def floor_world() -> Iterator[World]:
    """Three hosts, two links shaped in their switches, a minimum for everything that is no migration."""
    settings: dict[str, agents.Setting] = {"simultaneous": 3}
    with lab_world(f"floor{os.getpid()}", ["400Mbit,switched", "400Mbit,switched"], settings, hosts="A,B,C") as made:
        _labs.append(made.lab)
        for host in ("A", "B"):
            made.livemove("bandwidth", "set", "--category", "Default", "--min", "20MB", "--host", host)
        yield made
        _labs.remove(made.lab)


@pytest.fixture(scope="module")
def mover(floor_world: World) -> Iterator[Guest]:
    made = Guest(floor_world, f"{floor_world.lab.spec.name}-db1", "10.77.0.10", WORKLOAD, memory="256MiB")
    made.ensure_running()
    yield made
    made.exactly_one()
    made.check()


@contextlib.contextmanager
def competing(world: World, *, sender: str, receiver: str) -> Iterator[Flow]:
    """A flow that takes all it can get of link 0."""
    flow = Flow(world.lab, sender=sender, receiver=receiver, link=0)
    world.do(flow.start())
    try:
        yield flow
    finally:
        world.do(flow.stop())


def kept(flow: Flow, start_s: float, end_s: float) -> None:
    worst = flow.worst(1.0, start_s, end_s)
    least = 0.95 * MINIMUM_BYTES_PER_S * PAYLOAD
    assert worst.rate_bytes_per_s >= least, f"{format_rate(worst.rate_bytes_per_s)} of {format_rate(least)}: {worst}"


@pytest.mark.parametrize(("direction", "paths"), [("out of the source", "one"), ("into the destination", "all")])
def test_a_flow_keeps_its_minimum(floor_world: World, mover: Guest, direction: str, paths: str) -> None:
    """Steady, in the blackout, and with two paths when the NIC dies that it does not use."""
    world, source = floor_world, mover.host
    ends = (source, "C") if direction == "out of the source" else ("C", other(source))
    with competing(world, sender=ends[0], receiver=ends[1]) as flow:
        start_s = world.clock.monotonic_s()
        world.wait(lambda: world.clock.monotonic_s() > start_s + 1.5, "the flow is in its stride")
        option = "multichannel" if paths == "all" else "tcp"
        journey = world.start_journey(mover.name, source, option=option, paths=paths)
        world.wait_copying(source, journey, bytes_sent=30 << 20)
        if paths == "all":
            world.do(faults.cut(world.lab, 1))
        try:
            report = world.report(source, journey, timeout_s=60)
        finally:
            world.do(faults.heal(world.lab, 1))
        end_s = world.clock.monotonic_s()
    assert report.outcome == "completed", report
    kept(flow, start_s + 1.0, end_s)
    mover.exactly_one(other(source))


def test_three_that_start_at_once_leave_it_too(floor_world: World, mover: Guest) -> None:
    world, source = floor_world, mover.host
    small = Workload(
        random_mib=40, text_mib=0, working_set_mib=2, rate_pages_per_s=50, check_pages_per_s=100, address=""
    )
    more = [
        Guest(world, f"{world.lab.spec.name}-db{n}", f"10.77.0.1{n}", replace(small, address=f"10.77.0.1{n}/24"), memory="128MiB")
        for n in (2, 3)
    ]  # fmt: skip
    try:
        for guest in more:
            guest.ensure_running(source)
        with competing(world, sender=source, receiver="C") as flow:
            start_s = world.clock.monotonic_s()
            world.wait(lambda: world.clock.monotonic_s() > start_s + 1.5, "the flow is in its stride")
            journeys = [world.start_journey(guest.name, source) for guest in (mover, *more)]
            reports = [world.report(source, journey, timeout_s=90) for journey in journeys]
            end_s = world.clock.monotonic_s()
        assert [report.outcome for report in reports] == ["completed"] * 3, reports
        kept(flow, start_s + 1.0, end_s)
    finally:
        for guest in more:
            world.ask(guest.host, lambda agent, name=guest.name: agent.stop_vm(name, force=True))
            world.ask(guest.host, lambda agent, name=guest.name: agent.remove_vm(name))
