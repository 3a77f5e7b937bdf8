"""A test of the network between hosts A and B, as a command shows it, and how it ends."""

from __future__ import annotations

from typing import Any

import pytest

from livemove.api.network_models import LeftOutPath, NetworkTestView, PathMeasured, ProbedPath
from livemove.base.errors import AgentBusy, AgentUnreachable, MtuBlackHole, NoCommonNetwork, PortClosed, UnknownHost
from livemove.cli.network_test_view import lines_of, rounds, worst

from .conftest import Cli
from .fake_agent import FakeCluster

FINE: dict[str, Any] = {"measured": PathMeasured(mtu_out=9000, mtu_in=9000, round_trip_ms=0.42)}
HOLE: dict[str, Any] = {
    "measured": PathMeasured(mtu_out=1500, mtu_in=9000, round_trip_ms=0.42), "level": "fault",
    "verdict": "A to B carries 1500 bytes.", "remedy": "Set 9000 on every switch.",
}  # fmt: skip
DEAD: dict[str, Any] = {"port_open": False, "level": "fault", "verdict": "No answer.", "remedy": "Check the cables."}
ODD: dict[str, Any] = {
    **FINE,
    "destination_mtu": 1500,
    "level": "warning",
    "verdict": "eth1 is odd.",
    "remedy": "Mend.",
}


def path(number: int, **changes: Any) -> ProbedPath:
    fields = {
        "source_address": f"10.{number}.0.1", "destination_address": f"10.{number}.0.2", "network": f"10.{number}.0.0/24",
        "name": "", "source_link": "eth1", "destination_link": "bond0", "source_mtu": 9000, "destination_mtu": 9000,
        "port_open": True, "level": "fine",
    }  # fmt: skip
    return ProbedPath(**{**fields, **changes})


def view(*paths: ProbedPath, source: str = "A", destination: str = "B", **changes: Any) -> NetworkTestView:
    return NetworkTestView(source=source, destination=destination, port=49152, paths=paths, **changes)


def test_every_path_has_a_row_and_every_fault_its_remedy() -> None:
    left_out = (LeftOutPath(what="A eth3 10.3.0.1", reason="no carrier on A's eth3"),)
    lines = lines_of(
        view(path(1, **FINE, name="fast"), path(2, **HOLE), path(3, **DEAD), path(4, **ODD), left_out=left_out, notes=("Unlike.",))
    )  # fmt: skip
    assert lines[0] == "A to B, port 49152:"
    rows = [" ".join(line.split()) for line in lines[2:6]]
    assert rows[0] == "10.1.0.1 to 10.1.0.2 eth1, bond0 fast 9000 9000 9000 420 us open fine"
    assert rows[1].endswith(" 10.2.0.0/24 9000 1500 9000 420 us open FAULT")
    assert rows[2].endswith(" 10.3.0.0/24 9000 - - - closed FAULT")
    assert rows[3].endswith(" 9000, 1500 9000 9000 420 us open warning")
    assert lines[6:] == [
        "  10.2.0.1 to 10.2.0.2: A to B carries 1500 bytes.",
        "    remedy: Set 9000 on every switch.",
        "  10.3.0.1 to 10.3.0.2: No answer.",
        "    remedy: Check the cables.",
        "  10.4.0.1 to 10.4.0.2: eth1 is odd.",
        "    remedy: Mend.",
        "  Unlike.",
        "  not tested: A eth3 10.3.0.1: no carrier on A's eth3",
    ]


@pytest.mark.parametrize(
    ("paths", "code"),
    [
        ([], 0),
        ([path(1, **FINE), path(2, **ODD)], 0),
        ([path(1, **FINE), path(2, **HOLE)], MtuBlackHole.exit_code),
        ([path(1, **HOLE), path(2, **DEAD)], PortClosed.exit_code),
        ([path(1, level="fault")], PortClosed.exit_code),
        ([path(1, **{**HOLE, "port_open": False})], PortClosed.exit_code),
    ],
)
def test_the_worst_fault_is_the_exit_code(paths: list[ProbedPath], code: int) -> None:
    assert worst([view(*paths)], []) == code
    assert worst([view(*paths)], [AgentBusy("x"), PortClosed("y")]) == AgentBusy.exit_code


@pytest.mark.parametrize(
    ("sources", "destinations", "count"),
    [("A", "A", 0), ("A", "B", 1), ("AB", "AB", 1), ("A", "ABCD", 3), ("ABCD", "A", 3), ("ABCD", "ABCD", 3)],
)
def test_nobody_is_tested_twice_at_a_time(sources: str, destinations: str, count: int) -> None:
    found = rounds(sources, destinations)
    assert len(found) == count
    for pairs in found:
        assert len({source for source, _ in pairs}) == len({destination for _, destination in pairs}) == len(pairs)
    expected = {(one, other) for one in sources for other in destinations if one != other}
    assert sorted(pair for pairs in found for pair in pairs) == sorted(expected)


def test_both_directions_are_tested(cli: Cli, cluster: FakeCluster) -> None:
    cluster["A"].answers["POST /network-tests"] = view(path(1, **FINE))
    cluster["B"].answers["POST /network-tests"] = view(path(1, **HOLE), source="B", destination="A")
    ended = cli("network", "test")
    assert (ended.code, ended.err) == (MtuBlackHole.exit_code, "")
    assert ended.out.index("A to B, port 49152:") < ended.out.index("B to A, port 49152:")
    assert cluster["A"].asked("POST /network-tests") == [{"destination": "B"}]
    assert cluster["B"].asked("POST /network-tests") == [{"destination": "A"}]
    shown = cli("network", "test", "--json")
    assert shown.code == MtuBlackHole.exit_code
    assert [test["paths"][0]["level"] for test in shown.json["tests"]] == ["fine", "fault"]
    assert shown.json["failed"] == []
    assert cli("network", "test", "--from", "A").code == 0
    assert len(cluster["B"].asked("POST /network-tests")) == 2


def test_a_test_that_cannot_be_made_is_told_beside_the_others(cli: Cli, cluster: FakeCluster) -> None:
    cluster["A"].answers["POST /network-tests"] = view(path(1, **FINE))
    cluster["B"].refusals["POST /network-tests"] = NoCommonNetwork("No network in common.", where="B")
    ended = cli("network", "test")
    assert ended.code == NoCommonNetwork.exit_code
    assert "B to A: B: No network in common.\n  remedy: " in ended.out and "A to B, port 49152:" in ended.out
    (failed,) = cli("network", "test", "--json").json["failed"]
    assert (failed["source"], failed["destination"], failed["error"]["code"]) == ("B", "A", NoCommonNetwork.code)


def test_a_host_that_does_not_answer_is_not_asked_again(cli: Cli, cluster: FakeCluster) -> None:
    cluster.silence("B")
    ended = cli("network", "test", "--json")
    assert ended.code == AgentUnreachable.exit_code
    assert [(each["source"], each["destination"]) for each in ended.json["failed"]] == [("A", "B"), ("B", "A")]
    assert cluster["A"].asked("POST /network-tests") == []


def test_nobody_to_test_with(cli: Cli, cluster: FakeCluster) -> None:
    assert cli("network", "test", "--from", "Z").code == UnknownHost.exit_code
    assert cli("network", "test", "--from", "A", "--to", "A").code == 2
