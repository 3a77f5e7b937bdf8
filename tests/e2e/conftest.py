"""One lab for all: two hosts with agents, a link, and a resident guest that every test leaves whole."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from livemove.lab import agents, faults
from livemove.lab.lab import Lab
from livemove.lab.reference import Workload

from .world import Guest, World, lab_world

LINK = "1Gbit"
#: 32 MiB of content in 128 MiB; 8 MiB of it are rewritten at 2 MB/s.
WORKLOAD = Workload(
    random_mib=20, text_mib=12, working_set_mib=8, rate_pages_per_s=500, check_pages_per_s=1000, address="10.77.0.10/24"
)


_labs: list[Lab] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure comes with what the agents said last."""
    report = yield
    if report.failed:
        for lab in _labs:
            for host in lab.spec.hosts:
                log = agents.log_path(lab, host)
                text = log.read_text(errors="replace")[-4000:] if log.exists() else "there is none"
                report.sections.append((f"log of agent {host}", text))
    return report


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """The lab with its agents."""
    with lab_world(f"e2e-{os.getpid()}", LINK) as made:
        _labs.append(made.lab)
        yield made
        _labs.remove(made.lab)


@pytest.fixture(scope="session")
def resident(world: World) -> Guest:
    return Guest(world, f"e2e-{os.getpid()}-db1", "10.77.0.10", WORKLOAD)


@pytest.fixture
def guest(world: World, resident: Guest) -> Iterator[Guest]:
    """A guest that runs, on either host, with its usual load. Afterwards: one, whole, and the link as it was."""
    world.ensure_agents()
    resident.ensure_running()
    yield resident
    world.ensure_agents()
    world.do(faults.set_rate(world.lab, 0, 125_000_000))
    view = resident.view()
    if view.state == "running":
        resident.exactly_one()
        resident.check()
