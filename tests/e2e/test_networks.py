"""The networks of two real hosts, and a list that reaches the other host by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from livemove.agent.join import issue_person
from livemove.api.client_identity import Role
from livemove.api.network_models import NetworkRuleBody, NetworksView, SetNetworks
from livemove.base.clock import SystemClock
from livemove.base.errors import BadSetting, Conflict, NoIdentity, NotPermitted

from .world import HOSTS, World

pytestmark = pytest.mark.qemu


def networks(world: World, host: str) -> NetworksView:
    return world.ask(host, lambda agent: agent.networks())


def test_what_the_list_says_is_known_on_every_host_within_seconds(world: World, tmp_path: Path) -> None:
    world.ensure_agents()
    subnet = str(world.lab.spec.link_subnet(0))
    shown = {each["subnet"]: each for each in world.livemove("network", "list", "--json").json["networks"]}
    ends = {end["host"]: end for end in shown[subnet]["ends"]}
    for host in HOSTS:
        assert ends[host]["address"] == str(world.lab.spec.link_address(host, 0))
        assert ends[host]["link"]["carrier"] and ends[host]["incoming"]
    before = networks(world, "A").serial
    try:
        done = world.livemove("network", "allow", subnet, "--name", "lab", "--json", host="B")
        assert done.json["changed"] and done.json["serial"] == before + 1
        # B's agent asks every 5 s
        world.wait(lambda: networks(world, "B").serial == before + 1, "B has the new list", timeout_s=6)
        (rule,) = networks(world, "B").rules
        assert (rule.subnet, rule.name, rule.metric) == (subnet, "lab", 10)
        denied = world.livemove("network", "deny", "lab")
        assert f"{subnet} (lab): denied in the cluster's list" in denied.out
        assert "the list allows no network by name any more" in denied.err
        world.livemove("network", "incoming", "10.99.99.99", "--host", "B", expect=BadSetting.exit_code)
        vic = issue_person(
            world.lab.directory("A") / "state",
            name="vic",
            role=Role.VIEWER,
            directory=tmp_path / "vic",
            clock=SystemClock(),
        )
        assert world.livemove("network", "list", identity=vic.directory).code == 0
        world.livemove("network", "forget", "lab", identity=vic.directory, expect=NotPermitted.exit_code)
    finally:
        world.livemove("network", "forget", subnet)
    world.wait(lambda: not networks(world, "B").rules, "B has forgotten it", timeout_s=6)


def test_a_list_is_refused_where_it_is_not_kept_or_from_an_old_map(world: World) -> None:
    world.ensure_agents()
    serial = networks(world, "A").serial
    body = SetNetworks(serial=serial - 1, rules=(NetworkRuleBody(subnet="10.99.0.0/24", metric=1),))
    with pytest.raises(Conflict, match="was changed meanwhile"):
        world.ask("A", lambda agent: agent.set_networks(body))
    with pytest.raises(NoIdentity, match="does not hold the cluster's authority"):
        world.ask("B", lambda agent: agent.set_networks(body))
    assert networks(world, "A").serial == serial
