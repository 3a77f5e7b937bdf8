"""The networks of two hosts A and B, as commands show and change them; A holds the cluster's authority."""

from __future__ import annotations

from typing import Any

import pytest

from livemove.base.errors import AgentUnreachable, BadSetting, Conflict, UnknownHost
from livemove.policy.paths import LinkFacts

from .conftest import Cli
from .fake_agent import FakeCluster

GBIT = 125_000_000
NET1, NET2 = "10.1.0.0/24", "10.2.0.0/24"


def link(name: str, address: str, **more: Any) -> LinkFacts:
    fields = {
        "kind": "physical",
        "speed_bytes_per_s": 10 * GBIT,
        "mtu": 9000,
        "carrier": True,
        "driver": "ixgbe",
        "queues": 8,
    }
    return LinkFacts(name=name, index=2, addresses=(address,), **{**fields, **more})


@pytest.fixture
def two(cluster: FakeCluster) -> FakeCluster:
    """Both hosts are on NET1 and NET2; A's NIC on NET2 is a bond without carrier."""
    bond = {"kind": "bond", "members": ("eth2", "eth3"), "carrier": False, "speed_bytes_per_s": 0, "driver": "bonding"}
    cluster["A"].links = (
        link("eth1", "10.1.0.1/24", capabilities=("rss", "tso")),
        link("bond0", "10.2.0.1/24", **bond),
    )
    cluster["B"].links = (link("eth1", "10.1.0.2/24", mtu=1500), link("eth2", "10.2.0.2/24"))
    return cluster


def rules_of(cluster: FakeCluster) -> list[tuple[str, int, bool, str]]:
    return [(rule["subnet"], rule["metric"], rule["allowed"], rule["name"]) for rule in cluster["A"].rules]


def test_list_shows_every_nic_by_network(cli: Cli, two: FakeCluster) -> None:
    two["A"].rules = [{"subnet": NET2, "metric": 5, "allowed": True, "name": "fast"}]
    two["B"].settings["incoming"] = ["10.2.0.2"]
    ended = cli("network", "list")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0] == f"{NET2} (fast): allowed, metric 5"
    assert lines[1].split() == [
        "HOST",
        "NIC",
        "ADDRESS",
        "SPEED",
        "MTU",
        "CARRIER",
        "KIND",
        "DRIVER",
        "QUEUES",
        "CAN",
        "INCOMING",
    ]
    assert lines[2].split() == [
        "A",
        "bond0",
        "10.2.0.1",
        "unknown",
        "9000",
        "no",
        "bond",
        "of",
        "eth2+eth3",
        "bonding",
        "8",
        "-",
        "yes",
    ]
    assert lines[3].split() == [
        "B",
        "eth2",
        "10.2.0.2",
        "10",
        "Gbit/s",
        "9000",
        "yes",
        "physical",
        "ixgbe",
        "8",
        "-",
        "yes",
    ]
    assert lines[4:6] == ["", f"{NET1}: not in the cluster's list of networks"]
    assert lines[7].split() == [
        "A",
        "eth1",
        "10.1.0.1",
        "10",
        "Gbit/s",
        "9000",
        "yes",
        "physical",
        "ixgbe",
        "8",
        "rss,tso",
        "yes",
    ]
    assert lines[8].split()[-1] == "no", "B's incoming leaves it out"
    assert lines[9] == "  the MTU is not the same on all of these NICs"


def test_list_as_json_names_silent_hosts(cli: Cli, two: FakeCluster) -> None:
    two["A"].rules = [{"subnet": "10.9.0.0/24", "metric": 1, "allowed": False, "name": ""}]
    two.silence("B")
    ended = cli("network", "list", "--json")
    assert ended.code == 0
    first, second, denied = ended.json["networks"]
    assert (first["subnet"], first["allowed"], first["metric"]) == (NET1, True, None)
    assert first["ends"][0]["link"]["name"] == "eth1" and second["ends"][0]["incoming"] is True
    assert (denied["allowed"], denied["reason"], denied["ends"]) == (False, "denied in the cluster's list", [])
    assert set(ended.json["silent"]) == {"B"}
    assert "B is left out" in ended.err


def test_list_of_nothing(cli: Cli, cluster: FakeCluster) -> None:
    assert cli("network", "list").out == "No host has an address that others could reach.\n"


def test_prefer_allow_deny_forget(cli: Cli, two: FakeCluster) -> None:
    ended = cli("network", "prefer", NET2, NET1)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[0] == "It is so now."
    assert rules_of(two) == [(NET2, 10, True, ""), (NET1, 20, True, "")]
    assert cli("network", "allow", NET1, "--name", "slow", "--metric", "50", "--json").json["changed"] is True
    assert rules_of(two) == [(NET2, 10, True, ""), (NET1, 50, True, "slow")]
    assert cli("network", "deny", "slow").code == 0
    assert rules_of(two)[1] == (NET1, 50, False, "slow")
    assert cli("network", "forget", "slow").code == 0
    assert rules_of(two) == [(NET2, 10, True, "")]
    assert two["B"].asked("PUT /cluster/networks") == [], "only the authority's host is asked"


@pytest.mark.parametrize("words", [("prefer", NET2), ("allow", NET2, "--metric", "10"), ("forget", NET1)])
def test_what_is_so_already_is_not_asked_for(cli: Cli, two: FakeCluster, words: tuple[str, ...]) -> None:
    two["A"].rules = [{"subnet": NET2, "metric": 10, "allowed": True, "name": ""}]
    ended = cli("network", *words)
    assert ended.code == 0
    assert ended.out.startswith("It is so already; nothing was changed.\n")
    assert two["A"].asked("PUT /cluster/networks") == []
    assert cli("network", *words, "--json").json["changed"] is False


def test_a_dry_run_shows_and_changes_nothing(cli: Cli, two: FakeCluster) -> None:
    ended = cli("network", "deny", NET1, "--dry-run")
    assert ended.code == 0
    assert ended.out.startswith("It would be so; nothing was changed.\n")
    assert f"{NET1}: denied in the cluster's list" in ended.out
    assert cli("network", "deny", NET1, "--dry-run", "--json").json["dry_run"] is True
    assert cli("network", "incoming", "10.1.0.2", "--host", "B", "--dry-run", "--json").json["changed"] is True
    assert [call for host in ("A", "B") for call, _ in two[host].calls if not call.startswith("GET")] == []


def test_a_list_that_allows_nothing_by_name_any_more(cli: Cli, two: FakeCluster) -> None:
    """It leaves all other networks in, which somebody who had chosen one may not expect."""
    said = "the list allows no network by name any more"
    assert said not in cli("network", "deny", NET2).err
    assert said not in cli("network", "allow", NET1).err
    assert said in cli("network", "deny", NET1).err
    assert cli("network", "allow", NET1).code == 0
    assert said in cli("network", "forget", NET1).err


def test_who_is_cut_off_is_warned_of(cli: Cli, two: FakeCluster) -> None:
    two["B"].links = two["B"].links[:1]
    ended = cli("network", "prefer", NET2, "10.9.0.0/24")
    assert ended.code == 0
    assert "no migration can leave or reach B" in ended.err and "leave or reach A" not in ended.err
    assert "no host that answered is on 10.9.0.0/24" in ended.err
    ended = cli("network", "incoming", "10.1.0.1", "--host", "A")
    assert ended.code == 0 and "no migration can leave or reach A" in ended.err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("allow", "fast"), BadSetting.exit_code, "'fast' is not a network"),
        (("allow", "10.1.0.1/24"), BadSetting.exit_code, "is an address on 10.1.0.0/24"),
        (("prefer", NET1, NET1), BadSetting.exit_code, "named twice"),
        (("allow", NET1, "--name", "all"), BadSetting.exit_code, "'all' cannot be the name"),
        (
            ("incoming", "10.9.9.9", "--host", "B"),
            BadSetting.exit_code,
            "10.9.9.9 is on no NIC of B, which has 10.1.0.2",
        ),
        (("incoming", "10.1.0.2", "10.1.0.2", "--host", "B"), BadSetting.exit_code, "named twice"),
        (("incoming", "eth1", "--host", "B"), BadSetting.exit_code, "'eth1' does not appear to be an IPv4"),
        (("incoming", "any", "10.1.0.2", "--host", "B"), 2, "'any' stands alone"),
        (("incoming", "any", "--host", "Z"), UnknownHost.exit_code, "no host 'Z'"),
    ],
)
def test_bad_input_changes_nothing(cli: Cli, two: FakeCluster, words: tuple[str, ...], code: int, says: str) -> None:
    ended = cli("network", *words, "--json")
    assert ended.code == ended.json["exit_code"] == code
    assert says in ended.json["message"] and ended.json["remedy"]
    assert [call for host in ("A", "B") for call, _ in two[host].calls if not call.startswith("GET")] == []


def test_incoming(cli: Cli, two: FakeCluster) -> None:
    words = ("network", "incoming", "10.2.0.2", "10.1.0.2", "--host", "B")
    assert cli(*words).out == "It is so now.\nB: 10.2.0.2, 10.1.0.2\n"
    assert two["B"].asked("PATCH /host") == [{"changes": {"incoming": "10.2.0.2,10.1.0.2"}}]
    assert cli(*words).out.startswith("It is so already")
    assert cli("network", "incoming", "any", "--host", "B").out == "It is so now.\nB: any address\n"
    assert [body["changes"]["incoming"] for body in two["B"].asked("PATCH /host")] == ["10.2.0.2,10.1.0.2", "any"]


def test_without_the_authoritys_host_nothing_is_changed(cli: Cli, two: FakeCluster) -> None:
    two.silence("A")
    ended = cli("network", "deny", NET1, "--json")
    assert ended.code == AgentUnreachable.exit_code
    two["B"].refusals["GET /networks"] = Conflict("no.")
    assert cli("network", "list", "--json").code == AgentUnreachable.exit_code


def test_a_change_by_somebody_else_meanwhile(cli: Cli, two: FakeCluster) -> None:
    two["A"].refusals["PUT /cluster/networks"] = Conflict("The cluster's map was changed meanwhile.")
    assert cli("network", "deny", NET1, "--json").code == Conflict.exit_code
