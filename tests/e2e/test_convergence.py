"""A guest that writes faster than the link carries ends by its contract: three cases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from livemove.lab import faults

from .world import HOSTS, Guest, World, other

pytestmark = pytest.mark.qemu

#: The guest goes over 16 MiB again and again, as fast as it can, which is at least twice as fast as this.
LINK_BYTES_PER_S = 37_500_000
RATE_PAGES_PER_S, WORKING_SET_MIB = 20_000, 16


@pytest.fixture
def writer(world: World, guest: Guest) -> Iterator[Guest]:
    """The guest, writing faster than its link carries."""
    world.do(faults.set_rate(world.lab, 0, LINK_BYTES_PER_S))
    guest.load(RATE_PAGES_PER_S, WORKING_SET_MIB)
    assert guest.pages_per_s() * 4096 > LINK_BYTES_PER_S * 1.5
    yield guest
    guest.load(guest.workload.rate_pages_per_s, guest.workload.working_set_mib)
    for host in HOSTS:
        world.settings(host, {"max_throttle": "80"})


def test_it_moves_within_the_downtime_when_enough_of_it_is_allowed(world: World, writer: Guest) -> None:
    source = writer.host
    report = world.livemove("migrate", writer.name, "--to", other(source), "--downtime", "3s", "--json").json
    assert report["outcome"] == "completed"
    assert report["rounds"] > 1
    # far more than an idle guest's, and never more than what was allowed
    assert 300 < report["downtime_ms"] <= 3000
    assert any("switch" in decision and "of 3000 ms" in decision for decision in report["decisions"]), report
    assert report["throttled_percent"] == 0
    writer.exactly_one(other(source))
    writer.check()


def test_at_the_deadline_it_is_at_the_source_at_full_speed(world: World, writer: Guest) -> None:
    source = writer.host
    before = writer.pages_per_s()
    ended = world.livemove(
        "migrate", writer.name, "--to", other(source), "--downtime", "60ms", "--deadline", "6s", "--json", expect=62
    ).json
    assert ended["code"] == "deadline-passed"
    assert "the deadline of 6.0 s has passed" in ended["message"]
    report = ended["details"]["report"]
    assert (report["outcome"], report["owner"], report["downtime_ms"]) == ("failed", "source", None)
    assert any("rounds no longer shrink" in decision for decision in report["decisions"]), report["decisions"]
    writer.exactly_one(source)
    assert writer.pages_per_s() > before / 2
    writer.check()


def test_it_is_slowed_down_where_that_is_allowed_and_runs_at_full_speed_afterwards(world: World, writer: Guest) -> None:
    source = writer.host
    before = writer.pages_per_s()
    world.settings(source, {"max_throttle": "95"})
    ended = world.livemove(
        "migrate",
        writer.name,
        "--to",
        other(source),
        "--downtime",
        "300ms",
        "--deadline",
        "60s",
        "--throttle",
        "--json",
    )
    report = ended.json
    assert report["outcome"] == "completed"
    assert {row["feature"]: row["used"] for row in report["negotiated"]}["auto-converge"]
    assert any("slowed down by up to 95 %" in decision for decision in report["decisions"]), report
    assert 20 <= report["throttled_percent"] <= 95
    writer.exactly_one(other(source))
    assert writer.pages_per_s() > before / 2
    writer.check()
