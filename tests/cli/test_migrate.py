from __future__ import annotations

import os
import signal

import pytest

from livemove.base.errors import (
    AgentUnreachable,
    AlreadyMoving,
    BadQuantity,
    BadSetting,
    DeadlinePassed,
    JourneyCancelled,
    JourneyFailed,
    NotPermitted,
    NotRunning,
    SameHost,
    UnknownHost,
    UnknownVm,
)
from livemove.cli import follow as follow_module
from livemove.cli.migrate import LEFT_EXIT_CODE

from .conftest import Cli
from .fake_agent import (
    JOURNEY,
    UUID,
    FakeCluster,
    cancelled_report,
    completed_journey,
    copying,
    journey_view,
    report_view,
    vm_view,
)


@pytest.fixture
def ready(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """A cluster in which db1 can move from A to B."""
    monkeypatch.setattr(follow_module, "POLL_S", 0.01)
    cluster["A"].script = completed_journey()
    cluster["A"].reports = [report_view()]
    return cluster


def test_a_journey_to_its_end(cli: Cli, ready: FakeCluster) -> None:
    ended = cli("migrate", "db1", "--to", "B")
    assert ended.code == 0
    assert ended.err == ""
    lines = ended.out.splitlines()
    assert lines[0] == "step 1 of 10: find source and destination: done, 10 ms"
    assert any(line.startswith("round 1: 614.4 MiB remain, 940 Mbit/s") for line in lines)
    assert "db1 moved from A to B in 9.41 s, downtime 131 ms (QEMU 98 ms)" in lines
    assert ready["B"].asked("POST /grants") == [{"vm": "db1", "vm_uuid": UUID, "source": "A"}]
    (body,) = ready["A"].asked("POST /journeys")
    assert body["grant"] == "granted"
    assert (body["vm"], body["destination"], body["dry_run"]) == ("db1", "B", False)


def test_under_json_the_report_is_all_there_is(cli: Cli, ready: FakeCluster) -> None:
    ended = cli("migrate", "db1", "--to", "B", "--json")
    assert ended.code == 0
    assert ended.json["outcome"] == "completed"
    assert ended.out.count("\n") == 1


def test_options_arrive_with_their_units(cli: Cli, ready: FakeCluster) -> None:
    words = [
        "--option",
        "compression",
        "--paths",
        "10.80.0.0/24,fast",
        "--downtime",
        "50ms",
        "--deadline",
        "10m",
        "--throttle",
        "--channels",
        "4",
        "--max-bandwidth",
        "8Gbit",
        "--verify",
        "sample",
    ]
    assert cli("migrate", "db1", "--to", "B", *words).code == 0
    (body,) = ready["A"].asked("POST /journeys")
    assert body["options"] == {
        "option": "compression",
        "paths": "10.80.0.0/24,fast",
        "downtime_s": 0.05,
        "deadline_s": 600.0,
        "throttle": True,
        "channels": 4,
        "max_bandwidth_bytes_per_s": 10**9,
        "verify": "sample",
    }


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["db1", "--to", "C"], UnknownHost.exit_code),
        (["nix", "--to", "B"], UnknownVm.exit_code),
        (["db1", "--to", "A"], SameHost.exit_code),
        (["db1", "--to", "B", "--downtime", "300"], BadQuantity.exit_code),
        (["db1", "--to", "B", "--downtime", "0ms"], BadQuantity.exit_code),
        (["db1", "--to", "B", "--deadline", "soon"], BadQuantity.exit_code),
        (["db1", "--to", "B", "--max-bandwidth", "8"], BadQuantity.exit_code),
        (["db1", "--to", "B", "--channels", "65"], 2),
        (["db1", "--to", "B", "--option", "rdma"], 2),
        (["db1", "--to", "B", "--paths", "fast,fast"], BadSetting.exit_code),
        (["db1", "--to", "B", "--probe", "10.0.0.1:7", "--detach"], 2),
        (["db1", "--to", "B", "--probe", "10.0.0.1"], 16),
    ],
)
def test_bad_input_changes_nothing(cli: Cli, ready: FakeCluster, words: list[str], code: int) -> None:
    ended = cli("migrate", *words, "--json")
    assert ended.code == ended.json["exit_code"] == code
    assert ended.json["message"] and ended.json["remedy"]
    for host in ("A", "B"):
        assert not [call for call, _ in ready[host].calls if call.startswith("POST")]


def test_a_stopped_vm(cli: Cli, ready: FakeCluster) -> None:
    ready["A"].vms["db1"] = vm_view("db1", "A", state="stopped", pid=None)
    assert cli("migrate", "db1", "--to", "B").code == NotRunning.exit_code
    assert ready["B"].asked("POST /grants") == []


def test_refusals_of_either_host_are_told(cli: Cli, ready: FakeCluster) -> None:
    ready["A"].refusals["POST /journeys"] = AlreadyMoving("db1 is on its way to B.")
    ended = cli("migrate", "db1", "--to", "B", "--json")
    assert (ended.code, ended.json["where"]) == (AlreadyMoving.exit_code, "A")
    ready["B"].refusals["POST /grants"] = NotPermitted("viewer 'ann' may not move VMs here.")
    ended = cli("migrate", "db1", "--to", "B", "--json")
    assert (ended.code, ended.json["where"]) == (NotPermitted.exit_code, "B")


def test_the_destinations_agent_is_down(cli: Cli, ready: FakeCluster) -> None:
    ready.silence("B")
    ended = cli("migrate", "db1", "--to", "B")
    assert ended.code == AgentUnreachable.exit_code
    assert "The agent of 'B'" in ended.err
    assert ready["A"].asked("POST /journeys") == []


def test_dry_run(cli: Cli, ready: FakeCluster) -> None:
    ended = cli("migrate", "db1", "--to", "B", "--dry-run")
    assert ended.code == 0
    assert ended.out.startswith("db1 would move from A to B; nothing was changed.")
    assert "zstd" in ended.out
    (body,) = ready["A"].asked("POST /plans")
    assert body["dry_run"] is True
    assert ready["A"].asked("POST /journeys") == []
    assert cli("migrate", "db1", "--to", "B", "--dry-run", "--json").json["negotiated"]


def test_plan_is_a_dry_run_with_the_same_options(cli: Cli, ready: FakeCluster) -> None:
    words = ("db1", "--to", "B", "--paths", "10.1.0.0/24", "--downtime", "50ms")
    planned, dry = cli("plan", *words), cli("migrate", *words, "--dry-run")
    assert (planned.code, planned.out) == (0, dry.out)
    first, second = ready["A"].asked("POST /plans")
    assert (first["options"], first["dry_run"]) == (second["options"], True)
    assert ready["A"].asked("POST /journeys") == []
    assert cli("plan", *words, "--json").json["vm"] == "db1"
    assert cli("plan", "db1", "--to", "B", "--paths", "one,two", "--json").code == BadSetting.exit_code


def test_detach(cli: Cli, ready: FakeCluster) -> None:
    ended = cli("migrate", "db1", "--to", "B", "--detach")
    assert ended.code == 0
    assert f"livemove cancel {JOURNEY}" in ended.out
    assert ready["A"].asked(f"GET /journeys/{JOURNEY}") == []
    assert cli("migrate", "db1", "--to", "B", "--detach", "--json").json["id"] == JOURNEY


@pytest.mark.parametrize(
    ("code", "expected"),
    [("deadline-passed", DeadlinePassed), ("journey-failed", JourneyFailed), ("not-heard-of", JourneyFailed)],
)
def test_the_exit_code_tells_how_a_journey_failed(
    cli: Cli, ready: FakeCluster, code: str, expected: type[JourneyFailed]
) -> None:
    ready["A"].script = [copying(0.5), journey_view("failed", 7, terminal=True)]
    ready["A"].reports = [
        report_view(outcome="failed", owner="source", code=code, reason="It took too long.", remedy="Wait.")
    ]
    ended = cli("migrate", "db1", "--to", "B")
    assert ended.code == expected.exit_code
    assert ended.err == "livemove: It took too long.\n  remedy: Wait.\n"
    assert "db1 was not moved from A to B: failed after 9.41 s; it belongs to A" in ended.out
    failed = cli("migrate", "db1", "--to", "B", "--json").json
    assert failed["exit_code"] == expected.exit_code
    assert failed["details"]["report"]["outcome"] == "failed"


def send_sigint_at(host_polls: int) -> object:
    def on_poll(polls: int) -> None:
        if polls == host_polls:
            os.kill(os.getpid(), signal.SIGINT)

    return on_poll


def test_ctrl_c_cancels_and_waits_for_the_end(cli: Cli, ready: FakeCluster) -> None:
    host = ready["A"]
    host.script = [copying(0.5)]
    host.after_cancel = [copying(0.5), copying(0.5), journey_view("cancelled", 6, terminal=True)]
    host.reports = [cancelled_report()]
    host.on_poll = send_sigint_at(3)  # type: ignore[assignment]
    ended = cli("migrate", "db1", "--to", "B")
    assert ended.code == JourneyCancelled.exit_code
    assert len(host.asked(f"POST /journeys/{JOURNEY}/cancel")) == 1
    assert "Cancelling; press Ctrl-C again to leave the journey running." in ended.out
    assert "cancelled after" in ended.out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_leaves_the_journey_running(cli: Cli, ready: FakeCluster) -> None:
    host = ready["A"]
    host.script = host.after_cancel = [copying(0.5)]

    def on_poll(polls: int) -> None:
        if polls in (2, 5):
            os.kill(os.getpid(), signal.SIGINT)

    host.on_poll = on_poll
    ended = cli("migrate", "db1", "--to", "B", "--json")
    assert ended.code == LEFT_EXIT_CODE
    assert ended.json["terminal"] is False
    assert f"journey {JOURNEY} goes on" in ended.err
    assert "livemove status" in ended.err


def test_too_late_to_cancel(cli: Cli, ready: FakeCluster) -> None:
    host = ready["A"]
    host.script = [*[copying(0.99)] * 5, completed_journey()[-1]]
    host.refusals[f"POST /journeys/{JOURNEY}/cancel"] = NotPermitted("The VM is being handed over.")
    host.on_poll = send_sigint_at(2)  # type: ignore[assignment]
    ended = cli("migrate", "db1", "--to", "B")
    assert ended.code == 0
    assert "It cannot be cancelled: The VM is being handed over." in ended.out
    assert "db1 moved from A to B" in ended.out
