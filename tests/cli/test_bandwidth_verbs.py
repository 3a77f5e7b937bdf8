"""``livemove bandwidth`` against scripted agents A and B."""

from __future__ import annotations

from typing import Any

import pytest

from livemove.base.errors import BadQuantity, BadSetting, UnknownHost

from .conftest import Cli
from .fake_agent import FakeCluster

GBIT = 125_000_000


def view(host: str, **changes: Any) -> dict[str, Any]:
    return {
        "host": host,
        "limits": [
            {"category": "LiveMigration", "max_bytes_per_s": 8 * GBIT},
            {"category": "VirtualMachine", "min_percent": 40, "presets": ["nfs"], "ports": ["99"]},
            {"category": "Default", "min_bytes_per_s": GBIT, "buffer_percent": 25},
        ],
        "nics": [{"name": "eth1", "speed_bytes_per_s": 10 * GBIT, "living": True}],
        **changes,
    }


@pytest.fixture
def limited(cluster: FakeCluster) -> FakeCluster:
    for name in ("A", "B"):
        for call in ("GET /bandwidth", "PUT /bandwidth", "DELETE /bandwidth/Default"):
            cluster[name].answers[call] = view(name)
    return cluster


def test_set_sends_what_was_said(cli: Cli, limited: FakeCluster) -> None:
    ended = cli(
        "bandwidth", "set", "--category", "VirtualMachine", "--min", "4Gbit", "--max", "1000MB", "--buffer", "20",
        "--preset", "nfs,iscsi", "--preset", "nbd", "--ports", "99", "--addresses", "10.0.0.0/8", "--cgroup", "a.slice",
        "--host", "A",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    (body,) = limited["A"].asked("PUT /bandwidth")
    assert body == {
        "category": "VirtualMachine", "max_bytes_per_s": 1_000_000_000, "min_bytes_per_s": 4 * GBIT, "min_percent": 0,
        "buffer_percent": 20, "ports": ["99"], "addresses": ["10.0.0.0/8"], "cgroups": ["a.slice"],
        "presets": ["nfs", "iscsi", "nbd"],
    }  # fmt: skip
    assert ended.out.splitlines()[0].split("  ")[0] == "HOST"
    assert limited["B"].asked("PUT /bandwidth") == []


def test_a_dry_run_shows_the_commands_and_warnings_are_told(cli: Cli, limited: FakeCluster) -> None:
    limited["A"].answers["PUT /bandwidth"] = view("A", commands=["tc qdisc add dev eth1 root"], warnings=["odd"])
    ended = cli("bandwidth", "set", "--category", "Default", "--min-percent", "40", "--dry-run", "--host", "A")
    assert ended.out.splitlines()[-2:] == [
        "Nothing was changed. While a migration runs, this would keep it:", "tc qdisc add dev eth1 root",
    ]  # fmt: skip
    assert ended.err == "livemove: warning: odd\n"
    assert limited["A"].queries["PUT /bandwidth"] == {"dry_run": "true"}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--max", "8"), BadQuantity.exit_code),
        (("--max", "8Apples"), BadQuantity.exit_code),
        (("--min", "0Gbit"), BadQuantity.exit_code),
        (("--min-percent", "101"), BadQuantity.exit_code),
        (("--min-percent", "40", "--buffer", "-1"), BadQuantity.exit_code),
        (("--min-percent", "many"), 2),
        (("--min-percent", "40", "--host", "Z"), UnknownHost.exit_code),
    ],
)
def test_what_makes_no_sense_is_not_sent(cli: Cli, limited: FakeCluster, words: tuple[str, ...], code: int) -> None:
    host = () if "--host" in words else ("--host", "A")
    assert cli("bandwidth", "set", "--category", "Default", *words, *host).code == code
    assert limited["A"].asked("PUT /bandwidth") == []


def test_a_refusal_of_the_host_is_the_command_s(cli: Cli, limited: FakeCluster) -> None:
    limited["A"].refusals["PUT /bandwidth"] = BadSetting("The minimums are 21 Gbit/s together.", remedy="Lower one.")
    ended = cli("bandwidth", "set", "--category", "Default", "--min", "21Gbit", "--host", "A", "--json")
    assert ended.code == BadSetting.exit_code
    assert ended.json["remedy"] == "Lower one."


def test_get_shows_all_hosts(cli: Cli, limited: FakeCluster) -> None:
    ended = cli("bandwidth", "get")
    lines = [line.split() for line in ended.out.splitlines()]
    assert ["A", "LiveMigration", "8", "Gbit/s"] in lines
    assert ["B", "VirtualMachine", "40", "%", "10", "%", "nfs,", "99"] in lines
    assert ["A", "Default", "1", "Gbit/s", "25", "%"] in lines
    assert ["A", "eth1", "10", "Gbit/s"] in lines
    ended = cli("bandwidth", "get", "--category", "default", "--json", "--host", "B")
    (shown,) = ended.json["hosts"]
    assert (shown["host"], [limit["category"] for limit in shown["limits"]]) == ("B", ["Default"])
    assert cli("bandwidth", "get", "--category", "Storage").code == BadSetting.exit_code


def test_get_tells_how_it_is_shared_now(cli: Cli, limited: FakeCluster) -> None:
    limited["A"].answers["GET /bandwidth"] = view(
        "A",
        limits=[],
        nics=[
            {"name": "eth1", "speed_bytes_per_s": 0, "living": False, "others_out_bytes_per_s": GBIT},
        ],
        journeys=[
            {"journey": "j-1", "role": "source", "bytes_per_s": GBIT},
            {"journey": "j-2", "role": "destination", "bytes_per_s": 0},
        ],
        notes=["eth1 has a tbf."],
    )
    ended = cli("bandwidth", "get", "--host", "A")
    assert "No limits" in ended.out
    assert "eth1  unknown  no carrier  1 Gbit/s    0 bit/s" in ended.out
    assert "journey j-1, A is its source: may use 1 Gbit/s" in ended.out
    assert "journey j-2, A is its destination: may use all there is" in ended.out
    assert ended.err == "livemove: warning: A: eth1 has a tbf.\n"


def test_remove(cli: Cli, limited: FakeCluster) -> None:
    ended = cli("bandwidth", "remove", "--category", "Default", "--host", "B", "--json")
    assert ended.json["host"] == "B"
    assert limited["B"].asked("DELETE /bandwidth/Default") == [None]
