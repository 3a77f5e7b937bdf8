from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from livemove.base.errors import AgentUnreachable, BadDefinition, Conflict, NotPermitted, UnknownHost, UnknownVm

from .conftest import Cli
from .fake_agent import FakeCluster, vm_view


def test_list_of_all_hosts(cli: Cli, cluster: FakeCluster) -> None:
    cluster["B"].vms["web"] = vm_view("web", "B", state="paused", edited=True)
    cluster["B"].vms["db1"] = vm_view("db1", "B", state="moved", moved_to="A")
    plain = cli("vm", "list")
    assert plain.code == 0
    assert [line.split()[:3] for line in plain.out.splitlines()] == [
        ["VM", "HOST", "STATE"],
        ["db1", "A", "running"],
        ["web", "B", "paused"],
    ]
    found = cli("vm", "list", "--json").json
    assert [(vm["name"], vm["host"]) for vm in found["vms"]] == [("db1", "A"), ("web", "B")]
    assert found["silent"] == {}
    assert "moved" in cli("vm", "list", "--all").out
    assert [vm["name"] for vm in cli("vm", "list", "--host", "A", "--json").json["vms"]] == ["db1"]


def test_list_without_vms(cli: Cli, cluster: FakeCluster) -> None:
    cluster["A"].vms.clear()
    assert cli("vm", "list").out == "There are no VMs. Define one with 'livemove vm define FILE'.\n"


def test_a_silent_host_is_named_and_the_rest_is_listed(cli: Cli, cluster: FakeCluster) -> None:
    cluster.silence("B")
    ended = cli("vm", "list", "--json")
    assert ended.code == 0
    assert [vm["name"] for vm in ended.json["vms"]] == ["db1"]
    assert list(ended.json["silent"]) == ["B"]
    assert "warning: B is left out" in ended.err
    cluster.silence("A")
    dead = cli("vm", "list")
    assert dead.code == AgentUnreachable.exit_code
    assert dead.out == ""


@pytest.mark.parametrize(
    ("verb", "state", "before"),
    [
        (["start"], "running", "stopped"),
        (["stop"], "stopped", "running"),
        (["stop", "--force"], "stopped", "running"),
        (["pause"], "paused", "running"),
        (["resume"], "running", "paused"),
        (["reset"], "running", "running"),
    ],
)
def test_actions_say_the_state_that_follows(
    cli: Cli, cluster: FakeCluster, verb: list[str], state: str, before: str
) -> None:
    cluster["A"].vms["db1"] = vm_view("db1", "A", state=before)
    ended = cli("vm", verb[0], "db1", *verb[1:])
    assert ended.code == 0
    assert ended.out.startswith(f"db1 on A is {state}")
    assert len(cluster["A"].asked(f"POST /vms/db1/{verb[0]}")) == 1
    assert cluster["B"].asked(f"POST /vms/db1/{verb[0]}") == []
    assert cli("vm", verb[0], "db1", "--json").json["state"] == state


def test_show(cli: Cli, cluster: FakeCluster) -> None:
    cluster["A"].vms["db1"] = vm_view("db1", "A", edited=True)
    text = cli("vm", "show", "db1").out
    assert "memory:       1.0 GiB memfd" in text
    assert "edited since the start" in text
    assert 'name = "db1"' in text
    assert cli("vm", "show", "db1", "--json").json["uuid"] == cluster["A"].vms["db1"].uuid


def test_remove(cli: Cli, cluster: FakeCluster) -> None:
    refused = cli("vm", "remove", "db1", "--json")
    assert refused.code == refused.json["exit_code"] == Conflict.exit_code
    assert refused.json["where"] == "A"
    cluster["A"].vms["db1"] = vm_view("db1", "A", state="stopped")
    assert cli("vm", "remove", "db1", "--json").json == {"removed": "db1", "host": "A"}
    assert cluster["A"].vms == {}


def test_define(cli: Cli, cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new.toml"
    file.write_text('name = "new"\n')
    ended = cli("vm", "define", str(file), "--host", "B")
    assert ended.out == "new is defined on B. Start it with 'livemove vm start new'.\n"
    assert cluster["B"].asked("POST /vms") == [{"text": 'name = "new"\n'}]

    class Input:
        buffer = io.BytesIO(b'name = "new"\nnonsense = 1\n')

    monkeypatch.setattr(sys, "stdin", Input())
    refused = cli("vm", "define", "-", "--host", "B", "--json")
    assert refused.code == BadDefinition.exit_code
    assert "nonsense" in refused.json["message"]


def test_define_needs_to_know_where(cli: Cli, cluster: FakeCluster, tmp_path: Path) -> None:
    file = tmp_path / "new.toml"
    file.write_text('name = "new"\n')
    # both fake agents are on this machine's loopback, so neither is the own one
    ended = cli("vm", "define", str(file))
    assert ended.code == 2
    assert "--host" in ended.err
    assert cli("vm", "define", str(file), "--host", "Z").code == UnknownHost.exit_code
    assert cluster["A"].asked("POST /vms") == cluster["B"].asked("POST /vms") == []


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"#" * 262_145])
def test_definitions_that_cannot_be_read(cli: Cli, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "x.toml"
    if content is not None:
        file.write_bytes(content)
    ended = cli("vm", "define", str(file))
    assert ended.code == BadDefinition.exit_code
    assert str(file) in ended.err


def test_a_vm_that_is_nowhere(cli: Cli, cluster: FakeCluster) -> None:
    ended = cli("vm", "start", "nix", "--json")
    assert ended.code == UnknownVm.exit_code
    assert ended.json["message"] == "None of the hosts A, B has a VM 'nix'."
    assert cli("vm", "start", "../host").code == UnknownVm.exit_code
    cluster["A"].vms["db1"] = vm_view("db1", "A", state="moved", moved_to="B")
    assert "moved from A to B" in cli("vm", "start", "db1").err


def test_a_vm_that_may_be_on_a_silent_host(cli: Cli, cluster: FakeCluster) -> None:
    cluster.silence("B")
    assert cli("vm", "start", "db1").code == 0
    ended = cli("vm", "start", "web", "--json")
    assert ended.code == AgentUnreachable.exit_code
    assert ended.json["details"]["silent"] == ["B"]


def test_two_vms_of_one_name(cli: Cli, cluster: FakeCluster) -> None:
    cluster["B"].vms["db1"] = vm_view("db1", "B", state="stopped")
    ended = cli("vm", "start", "db1")
    assert ended.code == Conflict.exit_code
    assert "A and B have a VM 'db1' each" in ended.err
    assert cli("vm", "start", "db1", "--host", "B").code == 0
    cluster["B"].vms["db1"] = vm_view("db1", "B", state="arriving")
    assert cli("vm", "show", "db1", "--json").json["host"] == "A"


def test_permission_refused(cli: Cli, cluster: FakeCluster) -> None:
    cluster["A"].refusals["POST /vms/db1/start"] = NotPermitted("viewer 'ann' may not start VMs.")
    ended = cli("vm", "start", "db1")
    assert ended.code == NotPermitted.exit_code
    assert ended.err.startswith("livemove: A: viewer 'ann' may not start VMs.\n  remedy: Use a certificate")
