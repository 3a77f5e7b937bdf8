"""A host that died in a hand-over and was taken out of the cluster: it can be resolved, and the other host lives on."""

from __future__ import annotations

import os
import signal

import pytest

from livemove.agent.identity import host_identity_dir
from livemove.api.client_identity import MAP_FILE
from livemove.api.cluster_map import load_map, save_map
from livemove.lab import agents, faults

from .conftest import LINK, WORKLOAD
from .world import STEADY, Guest, lab_world

pytestmark = pytest.mark.qemu


def test_a_dead_destination_that_was_removed_before_it_was_resolved() -> None:
    with lab_world(f"gone-{os.getpid()}", LINK) as world:
        guest = Guest(world, f"gone-{os.getpid()}-db1", "10.77.0.10", WORKLOAD)
        assert guest.ensure_running() == "A"
        guest.load(0, 0)
        journey = world.start_journey(guest.name, "A", STEADY)
        world.wait_copying("A", journey)
        world.wait(lambda: [v for v in world.journeys("B") if v.phase == "armed"], "both journals are armed")
        world.signal_agent("B", signal.SIGSTOP)
        world.wait(lambda: world.phase("A", journey) == "handing-over", "the GO is sent", timeout_s=20)
        qemu = world.qemu("B", guest.name)
        assert qemu is not None
        world.signal_agent("B", signal.SIGKILL)
        faults.kill(world.lab, qemu.pid)
        world.wait(lambda: world.phase("A", journey) == "unresolved", "the source does not know")

        config = str(agents.config_path(world.lab, "A"))
        assert world.livemove("cluster", "remove", "B", "--config", config, "--json").json["host"] == "B"
        cluster = load_map(host_identity_dir(world.lab.directory("A") / "state") / MAP_FILE)
        assert "B" not in cluster.hosts
        # the administrator's own map is as new
        save_map(agents.admin_dir(world.lab) / MAP_FILE, cluster)

        # the agent of the source starts with the journey open, and has not forgotten it
        world.restart_agent("A", signal.SIGKILL)
        world.wait(lambda: world.phase("A", journey) == "unresolved", "it is known again")
        evidence = world.livemove("resolve", guest.name, "--json").json["evidence"]
        assert [(each["host"], each["other_answers"], each["has_all"]) for each in evidence] == [("A", False, True)]
        assert world.livemove("resolve", guest.name, "--host-is-dead", "X", "--json", expect=11).json["code"]
        done = world.livemove("resolve", guest.name, "--host-is-dead", "B", "--yes", "--json").json["done"]
        assert done == f"VM {guest.name} is A's again."
        report = world.report("A", journey)
        assert (report.outcome, report.owner) == ("failed", "source")
        view = world.vm("A", guest.name)
        assert view is not None and view.state == "running"
        # the one that was not dead for good, or is powered on again, takes nothing back
        world.start_agent("B")
        guest.exactly_one("A")
        guest.check()
