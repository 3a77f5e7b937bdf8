"""Paths that are dead at the start, that come, and that are all gone; what dies in mid-copy is in tests/failover_matrix."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from livemove.api.models import ReportView
from livemove.api.network_models import PathReport
from livemove.lab import faults
from livemove.lab.reference import Workload

from .world import Guest, World, lab_world, other

pytestmark = pytest.mark.qemu

SUBNETS = "10.80.0.0/24,10.81.0.0/24"
WORKLOAD = Workload(
    random_mib=40, text_mib=0, working_set_mib=4, rate_pages_per_s=500, check_pages_per_s=1000, address="10.77.0.10/24"
)
#: Whatever dies, the copy lasts for seconds.
LINKS = ("80Mbit", "120Mbit")
SOME_BYTES = 4 << 20


@pytest.fixture(scope="module")
def two_links() -> Iterator[World]:
    name = f"fo-{os.getpid()}"
    with lab_world(name, LINKS, {"incoming": ["any"], "trusted_networks": ["10.80.0.0/14"]}) as world:
        yield world


@pytest.fixture(scope="module")
def resident(two_links: World) -> Guest:
    return Guest(two_links, f"{two_links.lab.spec.name}-db1", "10.77.0.10", WORKLOAD)


@pytest.fixture
def guest(two_links: World, resident: Guest) -> Iterator[Guest]:
    resident.ensure_running()
    yield resident
    for network in (0, 1, "control"):
        two_links.do(faults.heal(two_links.lab, network))
    resident.exactly_one(timeout_s=40)
    resident.check()


def begin(world: World, guest: Guest, deadline_s: float | None = None) -> tuple[str, str]:
    """The journey and its source."""
    source = guest.host
    journey = world.start_journey(guest.name, source, option="multichannel", paths=SUBNETS, deadline_s=deadline_s)
    return journey, source


def texts(world: World, host: str, journey: str) -> list[str]:
    return [event.text for event in world.ask(host, lambda agent: agent.journey_events(journey)).events]


def path_of(report: ReportView, link: int) -> PathReport:
    (found,) = (path for path in report.paths if path.source_address.startswith(f"10.{80 + link}."))
    return found


@pytest.mark.parametrize("how", ["swallows all", "unplugged"])
def test_a_primary_that_is_dead_at_the_start_is_used_once_it_works(two_links: World, guest: Guest, how: str) -> None:
    world = two_links
    world.do((faults.cut if how == "unplugged" else faults.black_hole)(world.lab, 0))
    journey, source = begin(world, guest)
    world.wait_copying(source, journey, bytes_sent=SOME_BYTES)
    world.do(faults.heal(world.lab, 0))
    report = world.report(source, journey)
    assert report.outcome == "completed", report
    guest.exactly_one(other(source))
    late, first = path_of(report, 0), path_of(report, 1)
    assert first.destination_bytes > SOME_BYTES and not first.removed, report.paths
    assert late.destination_bytes > SOME_BYTES // 4, report.paths
    assert any("works again" in text and "10.80." in text for text in texts(world, source, journey))


def test_without_a_deadline_the_copy_waits_for_any_path(two_links: World, guest: Guest) -> None:
    world = two_links
    journey, source = begin(world, guest)
    world.wait_copying(source, journey, bytes_sent=SOME_BYTES)
    for link in (0, 1):
        world.do(faults.black_hole(world.lab, link))
    world.do(asyncio.sleep(5))
    assert world.phase(source, journey) in ("copying", "converging")
    assert guest.runs()
    world.do(faults.heal(world.lab, 1))
    report = world.report(source, journey)
    assert report.outcome == "completed", report
    guest.exactly_one(other(source))


def test_the_deadline_ends_the_wait_and_the_vm_runs_on_at_the_source(two_links: World, guest: Guest) -> None:
    """The destination cannot be told at first: it is cleaned up when it can be reached again."""
    world = two_links
    journey, source = begin(world, guest, deadline_s=4)
    world.wait_copying(source, journey, bytes_sent=SOME_BYTES)
    pid = guest.view().pid
    for network in (0, 1, "control"):
        world.do(faults.black_hole(world.lab, network))
    report = world.report(source, journey, timeout_s=30)
    assert (report.outcome, report.owner, report.code) == ("failed", "source", "deadline-passed"), report
    view = world.vm(source, guest.name)
    assert view is not None and (view.state, view.pid) == ("running", pid)
    assert guest.runs()
    assert world.qemu(other(source), guest.name) is not None, "the destination knew without being told"
    for network in (0, 1, "control"):
        world.do(faults.heal(world.lab, network))
    guest.exactly_one(source, timeout_s=40)
