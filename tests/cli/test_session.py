"""Finding hosts, VMs and journeys among agents that answer late, wrongly or not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from livemove.api.client_identity import load_identity
from livemove.api.cluster_map import load_map, save_map
from livemove.base.clock import SystemClock
from livemove.base.errors import NotPermitted
from livemove.cli import session as session_module
from livemove.cli.verb import complete_hosts

from .conftest import Cli
from .fake_agent import FakeCluster, vm_view


def test_a_slow_host_does_not_hold_up_a_vm_that_was_found(
    cli: Cli, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = cluster["B"].answer

    async def late(*request: Any) -> Any:
        await asyncio.sleep(1.2)
        return await answer(*request)

    monkeypatch.setattr(cluster["B"], "answer", late)
    clock = SystemClock()
    start_s = clock.monotonic_s()
    ended = cli("vm", "show", "db1", "--json")
    assert clock.monotonic_s() - start_s < 1.0
    assert ended.json["host"] == "A"
    assert "B is left out: The agent of 'B' did not answer as soon as the others." in ended.err


def test_a_host_that_joined_since_our_map_was_written_is_found(cli: Cli, cluster: FakeCluster) -> None:
    cluster["B"].vms["web"] = vm_view("web", "B")
    known = load_map(load_identity(cluster.identity_dir).map_path)
    old = {"authority": known.authority, "serial": 1, "hosts": {"A": known.hosts["A"]}}
    save_map(load_identity(cluster.identity_dir).map_path, session_module.ClusterMap(**old))
    assert cli("vm", "show", "web", "--json").json["host"] == "B"
    assert cli("host", "show", "--host", "B", "--json").json["hosts"][0]["name"] == "B"


def test_a_view_is_of_the_host_that_gave_it(cli: Cli, cluster: FakeCluster) -> None:
    cluster["A"].vms["db1"] = vm_view("db1", "B")
    assert cli("vm", "show", "db1", "--json").json["host"] == "A"


def test_a_vm_that_neither_host_may_start_is_shown_as_that(cli: Cli, cluster: FakeCluster) -> None:
    for name in ("A", "B"):
        cluster[name].vms["db1"] = vm_view("db1", name, state="unknown")
    assert cli("vm", "show", "db1", "--json").json["state"] == "unknown"


def test_a_refusal_is_told_rather_than_not_found(cli: Cli, cluster: FakeCluster) -> None:
    cluster["B"].refusals["GET /vms/nix"] = NotPermitted("The certificate was revoked.")
    assert cli("vm", "show", "nix").code == NotPermitted.exit_code


def test_the_only_host_need_not_be_named(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeCluster(tmp_path, ("A",)) as single:
        monkeypatch.setenv("LIVEMOVE_IDENTITY", str(single.identity_dir))
        assert cli("host", "set", "simultaneous=3").out == "simultaneous  =  3\n"


def test_the_shell_completes_hosts(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    assert complete_hosts("") == ["A", "B"]
    assert complete_hosts("B") == ["B"]
    monkeypatch.setenv("LIVEMOVE_IDENTITY", "/nowhere")
    assert complete_hosts("") == []
