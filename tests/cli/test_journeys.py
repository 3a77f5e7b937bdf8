from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from livemove.api.models import EventView
from livemove.base.errors import AgentUnreachable, Conflict, UnknownJourney
from livemove.cli import journeys as journeys_module
from livemove.cli.journeys import event_line

from .conftest import Cli
from .fake_agent import JOURNEY, FakeCluster, completed_journey, copying, journey_view, report_view


def event(number: int, host: str, at: str, **changes: Any) -> EventView:
    fields: dict[str, Any] = {
        "number": number,
        "at": at,
        "host": host,
        "level": "info",
        "event_id": 20413,
        "correlation": JOURNEY,
        "vm": "db1",
        "vm_uuid": "u",
        "source": "A",
        "destination": "B",
        "text": f"event {number}",
    }
    return EventView(**(fields | changes))


# status ---------------------------------------------------------------------------------------------------------------


def test_status_shows_a_journey_once_and_the_slots(cli: Cli, cluster: FakeCluster) -> None:
    cluster["A"].script = [copying(0.4)]
    cluster["B"].script = [journey_view("reserved", 3, role="destination")]
    ended = cli("status")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[1].split()[:4] == ["db1", "A", "B", "copying"]
    assert "614.4 MiB" in lines[1]
    assert len([line for line in lines if "db1" in line]) == 1
    assert "A: 0 of 2 outgoing, 0 of 2 incoming" in lines
    found = cli("status", "--json").json
    assert [journey["role"] for journey in found["journeys"]] == ["source"]
    assert [host["simultaneous"] for host in found["hosts"]] == [2, 2]


def test_status_without_journeys(cli: Cli, cluster: FakeCluster) -> None:
    cluster["A"].script = [completed_journey()[-1]]
    assert cli("status").out.startswith("No journey is under way.\n")
    assert "completed" in cli("status", "--all").out


def test_status_names_a_place_in_the_queue(cli: Cli, cluster: FakeCluster) -> None:
    cluster["A"].script = [journey_view("queued", 1, queue_place=3)]
    assert "queued (3)" in cli("status").out


# cancel ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["db1", JOURNEY])
def test_cancel(cli: Cli, cluster: FakeCluster, which: str) -> None:
    cluster["A"].script = [copying(0.4)]
    ended = cli("cancel", which)
    assert ended.code == 0
    assert ended.out == f"Journey {JOURNEY} of db1 from A to B is being cancelled.\n"
    assert len(cluster["A"].asked(f"POST /journeys/{JOURNEY}/cancel")) == 1


def test_cancel_under_json(cli: Cli, cluster: FakeCluster) -> None:
    cluster["A"].script = [copying(0.4)]
    assert cli("cancel", "db1", "--json").json["phase"] == "cancelled"


def test_cancel_what_has_ended(cli: Cli, cluster: FakeCluster) -> None:
    cluster["A"].script = [completed_journey()[-1]]
    ended = cli("cancel", "db1", "--json")
    assert ended.code == ended.json["exit_code"] == Conflict.exit_code
    assert cluster["A"].asked(f"POST /journeys/{JOURNEY}/cancel") == []


def test_cancel_what_is_not(cli: Cli, cluster: FakeCluster) -> None:
    assert cli("cancel", "db1").code == UnknownJourney.exit_code
    assert cli("cancel", "no/name").code == UnknownJourney.exit_code


def test_only_the_source_can_cancel(cli: Cli, cluster: FakeCluster) -> None:
    cluster["B"].script = [journey_view("armed", 7, role="destination")]
    cluster.silence("A")
    ended = cli("cancel", "db1")
    assert ended.code == AgentUnreachable.exit_code
    assert "the source 'A'" in ended.err
    assert cluster["B"].asked(f"POST /journeys/{JOURNEY}/cancel") == []


# report ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [["db1"], [JOURNEY], []])
def test_report(cli: Cli, cluster: FakeCluster, which: list[str]) -> None:
    cluster["A"].script = [completed_journey()[-1]]
    cluster["A"].reports = [report_view()]
    assert cli("report", *which).out.startswith("db1 moved from A to B in 9.41 s")
    assert cli("report", *which, "--json").json["wire_bytes"] == report_view().wire_bytes


def test_the_newest_report_of_all_hosts(cli: Cli, cluster: FakeCluster) -> None:
    cluster["A"].reports = [report_view()]
    cluster["B"].reports = [report_view(id="j-0002", source="B", destination="A", ended="2026-02-01T00:00:00.000Z")]
    assert cli("report", "--json").json["id"] == "j-0002"
    listed = cli("report", "--list").out.splitlines()
    assert [line.split()[-1] for line in listed] == ["ID", "j-0002", JOURNEY]
    assert len(cli("report", "--list", "--json").json["reports"]) == 2
    cluster.silence("B")
    found = cli("report", "--json")
    assert found.json["id"] == JOURNEY
    assert "B is left out" in found.err


def test_a_report_is_told_as_the_source_has_it(cli: Cli, cluster: FakeCluster) -> None:
    cluster["A"].reports = [report_view(downtime_client_ms=160.0)]
    cluster["B"].reports = [report_view()]
    assert cli("report", "--json").json["downtime_client_ms"] == 160.0


def test_no_report_yet(cli: Cli, cluster: FakeCluster) -> None:
    assert cli("report").code == UnknownJourney.exit_code
    assert cli("report", "db1").code == UnknownJourney.exit_code
    assert cli("report", "--list").out == "No journey has ended yet.\n"
    cluster["A"].script = [copying(0.4)]
    assert cli("report", "db1").code == Conflict.exit_code


# events ---------------------------------------------------------------------------------------------------------------


def test_events_of_both_hosts_in_order(cli: Cli, cluster: FakeCluster) -> None:
    cluster["A"].events = [event(1, "A", "2026-01-31T12:00:00.000Z"), event(2, "A", "2026-01-31T12:00:02.000Z")]
    cluster["B"].events = [event(1, "B", "2026-01-31T12:00:01.000Z", text="event b", event_id=None)]
    lines = cli("events").out.splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["event 1", "event b", "event 2"]
    assert lines[0] == "2026-01-31T12:00:00.000Z A info 20413 db1: event 1"
    assert [found["host"] for found in cli("events", "--json").json["events"]] == ["A", "B", "A"]
    cluster["A"].script = [copying(0.4)]
    assert len(cli("events", "db1").out.splitlines()) == 3
    assert len(cluster["B"].asked(f"GET /journeys/{JOURNEY}/events")) == 1


def test_events_without_a_number(cli: Cli) -> None:
    assert event_line(event(1, "A", "T", event_id=None)) == "T A info db1: event 1"


def test_events_of_nothing(cli: Cli, cluster: FakeCluster) -> None:
    assert cli("events").err == "livemove: warning: there are no events yet\n"
    assert cli("events", "--json").json == {"events": []}
    assert cli("events", "db1").code == UnknownJourney.exit_code


def test_following_tells_new_events_once_until_ctrl_c(
    cli: Cli, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journeys_module, "FOLLOW_PERIOD_S", 0.02)
    host = cluster["A"]
    host.events = [event(1, "A", "2026-01-31T12:00:00.000Z")]
    asked = 0

    async def answer(method: str, path: str, query: dict[str, str], body: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 3:
            host.events.append(event(2, "A", "2026-01-31T12:00:01.000Z"))
        if asked == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return await original(method, path, query, body)

    original = host.answer
    monkeypatch.setattr(host, "answer", answer)
    ended = cli("events", "--follow", "--json")
    assert ended.code == 130
    assert [json.loads(line)["number"] for line in ended.out.splitlines()] == [1, 2]
