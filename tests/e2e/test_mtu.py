"""Wrong jumbo settings under real journeys: found before the copy, named, and dealt with as the setting says (#117-#122, N6).

The hosts' NICs are set to 9000 and the switches drop in silence what they do not take. The agents' own network is such a
black hole as well: whatever is tried here, they must find each other and say what is wrong.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import pytest
from tests.network.kernel_snapshot import differences, snapshot

from livemove.api.models import ReportView
from livemove.base.errors import MtuBlackHole, PortClosed
from livemove.lab import faults

from .conftest import WORKLOAD
from .plain_tcp import transfer
from .world import HOSTS, Guest, World, lab_world, other

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(120)]

JUMBO, USUAL = 9000, 1500
#: The two healthy networks, one of which gets every fault, and one whose switch was bought for less.
FAULTY, HEALTHY, SMALL = 0, 1, 2
LINKS = (
    f"1Gbit,mtu={JUMBO},offloads=off,switched",
    f"1Gbit,mtu={JUMBO},offloads=off,switched",
    f"1Gbit,mtu={JUMBO},switched,switch-mtu={USUAL}",
)
#: A VM's tap comes and goes with it.
_TAP = re.compile(r"lm[0-9a-f]{9}")
#: More than QEMU's greeting and the probes, less than any copy.
NOTHING_COPIED_BYTES = 1 << 20


@pytest.fixture(scope="module")
def jumbo() -> Iterator[World]:
    with lab_world(f"mtu-{os.getpid()}", LINKS) as made:
        for host in HOSTS:
            made.do(faults.set_mtu(made.lab, "control", host, JUMBO))
        made.do(faults.drop_large(made.lab, "control", USUAL))
        # what a lab's faults leave in the hosts themselves: an empty table
        made.do(faults.restore(made.lab, FAULTY))
        yield made


@pytest.fixture(scope="module")
def mover(jumbo: World) -> Iterator[Guest]:
    made = Guest(jumbo, f"{jumbo.lab.spec.name}-db1", "10.77.0.10", WORKLOAD)
    made.ensure_running()
    yield made
    made.check()


@pytest.fixture(scope="module")
def kernels(jumbo: World, mover: Guest) -> dict[str, dict[str, str]]:
    """What the hosts' kernels hold before all tests."""
    return _kernels(jumbo)


@pytest.fixture(autouse=True)
def healthy(jumbo: World, mover: Guest, kernels: dict[str, dict[str, str]]) -> Iterator[None]:
    """After every test the networks are whole again, and nothing on the hosts is other than it was."""
    yield
    mover.exactly_one()
    assert int(jumbo.guest(mover.address, "stat")["bad"]) == 0
    jumbo.do(faults.restore(jumbo.lab, FAULTY))
    jumbo.wait(lambda: not _changed(jumbo, kernels), "the kernels are as before", timeout_s=5)


def _kernels(world: World) -> dict[str, dict[str, str]]:
    return {host: snapshot(world.lab.spec.namespace(host)) for host in HOSTS}


def _changed(world: World, before: dict[str, dict[str, str]]) -> list[str]:
    now = _kernels(world)
    return [line for host in HOSTS for line in differences(before[host], now[host]) if not _TAP.search(line)]


# What a journey did ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    """What a host's NIC sent."""

    packets: int
    bytes: int

    @property
    def mean_bytes(self) -> float:
        return self.bytes / self.packets


def sent(world: World, host: str, link: int) -> Sent:
    nic = world.lab.spec.network(link).end_of(host).interface
    (found,) = json.loads(world.run(host, "ip", "-s", "-j", "link", "show", nic))
    return Sent(found["stats64"]["tx"]["packets"], found["stats64"]["tx"]["bytes"])


@dataclass(frozen=True)
class Moved:
    """A journey that has ended, and what the source's NICs sent meanwhile."""

    report: ReportView
    events: str
    sent: dict[int, Sent]

    def packets(self, link: int) -> Literal["jumbo", "usual", "none"]:
        """What the link carried; a copy's packets are full, but for the last of each write."""
        found = self.sent[link]
        if found.bytes < NOTHING_COPIED_BYTES:
            return "none"
        return "jumbo" if found.mean_bytes > 2 * USUAL else "usual"


def journey(world: World, guest: Guest, *links: int) -> Moved:
    """Move the guest over these links and no others, all at once."""
    source = guest.host
    subnets = ",".join(str(world.lab.spec.link_subnet(link)) for link in links)
    before = {link: sent(world, source, link) for link in (FAULTY, HEALTHY, SMALL)}
    begun = world.start_journey(guest.name, source, paths=subnets, option="multichannel" if len(links) > 1 else None)
    report = world.report(source, begun)
    after = {link: sent(world, source, link) for link in before}
    events = world.ask(source, lambda agent: agent.journey_events(begun)).events
    return Moved(
        report, "\n".join(event.text for event in events),
        {
            link: Sent(after[link].packets - first.packets, after[link].bytes - first.bytes)
            for link, first in before.items()
        },
    )  # fmt: skip


def assert_moved(moved: Moved, guest: Guest, source: str) -> None:
    assert moved.report.outcome == "completed", moved.report
    guest.exactly_one(other(source))


# The matrix -----------------------------------------------------------------------------------------------------------

#: What large packets meet on the way: where it is, and in which direction of the journey.
Hole = Literal["in the middle", "there", "back"]
HOLES: tuple[Hole, ...] = ("in the middle", "there", "back")


def dig(world: World, source: str, hole: Hole) -> int:
    """Make it; the link that has it."""
    if hole == "in the middle":
        return SMALL
    sender = source if hole == "there" else other(source)
    world.do(faults.drop_large(world.lab, FAULTY, USUAL, sender=sender))
    return FAULTY


def assert_named(text: str, source: str, hole: Hole, link: int) -> None:
    """The sentence has both hosts, both NICs, both sizes, the direction, and what Windows calls the size."""
    destination = other(source)
    there, back = f"{source} to {destination}", f"{destination} to {source}"
    says = {
        "in the middle": f"{there} and back carries {USUAL} bytes",
        "there": f"{there} carries {USUAL} bytes, the other direction {JUMBO}",
        "back": f"{back} carries {USUAL} bytes, the other direction {JUMBO}",
    }
    nics = f"both NICs (link{link}-{source}, link{link}-{destination}) are set to {JUMBO}"
    assert f"{says[hole]}, {nics}." in text, text


REMEDY = f"Set {JUMBO} on every switch between them, or {USUAL} on the NICs (Windows calls {JUMBO} {JUMBO + 14})."


@pytest.mark.parametrize("hole", HOLES)
def test_a_black_hole_is_refused_before_anything_is_copied(jumbo: World, mover: Guest, hole: Hole) -> None:
    source = mover.host
    jumbo.settings(source, {"mtu_fault": "refuse"})
    link = dig(jumbo, source, hole)
    for links in ((link,), (HEALTHY, link)):
        refused = journey(jumbo, mover, *links)
        report = refused.report
        assert (report.outcome, report.code, report.owner) == ("failed", MtuBlackHole.code, "source"), report
        assert_named(report.reason, source, hole, link)
        assert REMEDY in report.remedy
        assert_named(refused.events, source, hole, link)
        assert all(found.bytes < NOTHING_COPIED_BYTES for found in refused.sent.values())
        mover.exactly_one(source)


@pytest.mark.parametrize("paths", ["one", "two"])
@pytest.mark.parametrize("hole", HOLES)
def test_a_black_hole_is_used_with_smaller_packets(jumbo: World, mover: Guest, hole: Hole, paths: str) -> None:
    source = mover.host
    jumbo.settings(source, {"mtu_fault": "clamp"})
    link = dig(jumbo, source, hole)
    moved = journey(jumbo, mover, *((link,) if paths == "one" else (HEALTHY, link)))
    assert_moved(moved, mover, source)
    assert_named(moved.events, source, hole, link)
    assert REMEDY in moved.events
    assert moved.packets(link) == "usual"
    # two unequal paths are both used, each with what it carries
    assert moved.packets(HEALTHY) == ("none" if paths == "one" else "jumbo")


@pytest.mark.parametrize("hole", HOLES)
def test_a_black_hole_is_left_out(jumbo: World, mover: Guest, hole: Hole) -> None:
    source = mover.host
    jumbo.settings(source, {"mtu_fault": "avoid"})
    link = dig(jumbo, source, hole)
    alone = journey(jumbo, mover, link)
    assert (alone.report.outcome, alone.report.code) == ("failed", MtuBlackHole.code), alone.report
    assert_named(alone.report.reason, source, hole, link)
    assert REMEDY in alone.report.remedy and "'mtu_fault'" in alone.report.remedy
    mover.exactly_one(source)
    moved = journey(jumbo, mover, link, HEALTHY)
    assert_moved(moved, mover, source)
    assert (moved.packets(link), moved.packets(HEALTHY)) == ("none", "jumbo")
    (left_out,) = [each for each in moved.report.paths_left_out if "carries" in each.reason]
    assert_named(left_out.reason, source, hole, link)


@pytest.mark.parametrize("paths", ["one", "two"])
def test_jumbo_frames_that_work_are_used(jumbo: World, mover: Guest, paths: str) -> None:
    source = mover.host
    jumbo.settings(source, {"mtu_fault": "refuse"})
    moved = journey(jumbo, mover, *((FAULTY,) if paths == "one" else (FAULTY, HEALTHY)))
    assert_moved(moved, mover, source)
    assert [path.measured.mtu_out for path in moved.report.paths if path.measured] == [JUMBO] * len(moved.report.paths)
    assert moved.packets(FAULTY) == "jumbo"
    assert moved.packets(HEALTHY) == ("none" if paths == "one" else "jumbo")
    assert "Windows" not in moved.events


@pytest.mark.parametrize("paths", ["one", "two"])
def test_one_end_jumbo_works_with_usual_packets_and_names_the_odd_nic(jumbo: World, mover: Guest, paths: str) -> None:
    """No black hole, since TCP tells each end the other's size, so that nothing is refused (#53, #150)."""
    source = mover.host
    jumbo.settings(source, {"mtu_fault": "refuse"})
    jumbo.do(faults.set_mtu(jumbo.lab, FAULTY, "B", USUAL))
    moved = journey(jumbo, mover, *((FAULTY,) if paths == "one" else (FAULTY, HEALTHY)))
    assert_moved(moved, mover, source)
    assert f"link{FAULTY}-B of B is set to {USUAL} and link{FAULTY}-A of A to {JUMBO}" in moved.events
    assert f"Set link{FAULTY}-B of B to {JUMBO} as well (Windows calls {JUMBO} {JUMBO + 14})" in moved.events
    assert moved.packets(FAULTY) == "usual"
    assert moved.packets(HEALTHY) == ("none" if paths == "one" else "jumbo")
    slow = f"uses packets of {USUAL} bytes, {jumbo.lab.spec.link_subnet(HEALTHY)} of {JUMBO}"
    assert (slow in moved.events) is (paths == "two")


# What is not known ----------------------------------------------------------------------------------------------------


@contextmanager
def datagrams_filtered(world: World, host: str, *links: int) -> Iterator[None]:
    """A site's packet filter on that host that knows of migrations' TCP ports and not of their UDP ports."""
    nics = ", ".join(f'"link{link}-{host}"' for link in links)
    world.run(
        host, "nft", "add table inet site; add chain inet site in { type filter hook input priority 0; }; "
        f"add rule inet site in iifname {{ {nics} }} udp dport 49152-49215 drop",
    )  # fmt: skip
    try:
        yield
    finally:
        world.run(host, "nft", "delete table inet site")


@pytest.mark.parametrize("filtered", [(FAULTY,), (FAULTY, HEALTHY)])
def test_a_filter_that_drops_datagrams_only_is_named(jumbo: World, mover: Guest, filtered: tuple[int, ...]) -> None:
    source = mover.host
    with datagrams_filtered(jumbo, other(source), *filtered):
        moved = journey(jumbo, mover, FAULTY, HEALTHY)
    assert_moved(moved, mover, source)
    address = jumbo.lab.spec.link_address(other(source), FAULTY)
    (said,) = [line for line in moved.events.splitlines() if re.search(rf"UDP port \d+ of {address} ", line)]
    assert "though TCP port" in said and "'port_range'" in said
    others = [each.reason for each in moved.report.paths_left_out if "UDP port" in each.reason]
    assert len(others) == 1 and "'port_range'" in others[0] and "could not be watched" in others[0]
    if filtered == (FAULTY,):
        assert (moved.packets(FAULTY), moved.packets(HEALTHY)) == ("none", "jumbo")
    else:
        # the first, alone; what it carries is not known, so the packets are those that every network carries
        assert f"Whether packets of {JUMBO} bytes pass is not known, so {USUAL} are used." in said
        assert (moved.packets(FAULTY), moved.packets(HEALTHY)) == ("usual", "none")


def test_a_path_that_comes_up_in_the_copy_is_not_trusted_with_jumbo_frames(jumbo: World, mover: Guest) -> None:
    """Nobody has measured it: it was dead at the start, and what comes up has a switch that drops large packets."""
    source = mover.host
    jumbo.do(faults.black_hole(jumbo.lab, SMALL))
    try:
        subnets = ",".join(str(jumbo.lab.spec.link_subnet(link)) for link in (HEALTHY, SMALL))
        begun = jumbo.start_journey(mover.name, source, "200Mbit", option="multichannel", paths=subnets)
        jumbo.wait_copying(source, begun)
    finally:
        jumbo.do(faults.heal(jumbo.lab, SMALL))
    before = sent(jumbo, source, SMALL)
    report = jumbo.report(source, begun)
    assert report.outcome == "completed", report
    mover.exactly_one(other(source))
    after = sent(jumbo, source, SMALL)
    count, carried = after.packets - before.packets, after.bytes - before.bytes
    assert carried > NOTHING_COPIED_BYTES and carried / count < USUAL + 14
    (path,) = [each for each in report.paths if each.network == str(jumbo.lab.spec.link_subnet(SMALL))]
    assert path.destination_bytes > NOTHING_COPIED_BYTES


# Outside of journeys --------------------------------------------------------------------------------------------------


def test_the_network_is_tested_without_a_migration(jumbo: World, mover: Guest) -> None:
    assert "livemove network test" in jumbo.livemove("plan", mover.name, "--to", other(mover.host)).out
    jumbo.do(faults.drop_large(jumbo.lab, FAULTY, USUAL, sender="A"))
    shown = jumbo.livemove("network", "test", "--json", expect=MtuBlackHole.exit_code).json
    assert shown["failed"] == []
    tests = {(each["source"], each["destination"]): each["paths"] for each in shown["tests"]}
    assert set(tests) == {("A", "B"), ("B", "A")}
    for (source, _), paths in tests.items():
        assert [each["source_link"] for each in paths] == [f"link{link}-{source}" for link in (FAULTY, HEALTHY, SMALL)]
        assert [each["level"] for each in paths] == ["fault", "fine", "fault"]
        assert_named(paths[FAULTY]["verdict"], source, "there" if source == "A" else "back", FAULTY)
        assert_named(paths[SMALL]["verdict"], source, "in the middle", SMALL)
        assert {each["remedy"] for each in paths} == {REMEDY, ""}
        for each in paths:
            assert each["port_open"] and each["measured"]["round_trip_ms"] > 0
    with datagrams_filtered(jumbo, "B", HEALTHY):
        said = jumbo.livemove("network", "test", "--from", "A", "--to", "B", expect=PortClosed.exit_code).out
    assert said.startswith("A to B, port ") and "B to A" not in said
    (verdict,) = [line for line in said.splitlines() if "UDP port" in line]
    assert "though TCP port" in verdict
    assert not [trace for host in HOSTS for trace in jumbo.traces(host) if "test-" in trace]


# The lab's black holes are ones, and jumbo frames are worth it ---------------------------------------------------------


def test_plain_tcp_hangs_in_the_lab_s_black_hole(jumbo: World, mover: Guest) -> None:
    """What a migration would do without the probes: it connects, what is small passes, and then nothing happens (#118)."""
    small, large = 1000, 1 << 20
    assert transfer(jumbo, SMALL, small, patience_s=5)[0] == small
    assert transfer(jumbo, SMALL, large, patience_s=1.5)[0] == 0
    assert transfer(jumbo, SMALL, large, patience_s=5, segment_bytes=USUAL - 52)[0] == large
    assert transfer(jumbo, HEALTHY, large, patience_s=5)[0] == large


def test_what_jumbo_frames_gain(jumbo: World, mover: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    """A ratio within one run, for people to read (#99): of 1 Gbit/s it is the headers, unshaped the work of both hosts."""
    gains = []
    for rate, size_bytes in ((125_000_000, 16 << 20), (None, 64 << 20)):
        jumbo.do(faults.set_rate(jumbo.lab, FAULTY, rate))
        took_s = {JUMBO: 0.0, USUAL: 0.0}
        for mtu in (JUMBO, USUAL) * 3:
            for host in HOSTS:
                jumbo.do(faults.set_mtu(jumbo.lab, FAULTY, host, mtu))
            before = sent(jumbo, "A", FAULTY)
            arrived, seconds = transfer(jumbo, FAULTY, size_bytes, patience_s=20)
            after = sent(jumbo, "A", FAULTY)
            assert arrived == size_bytes
            mean = (after.bytes - before.bytes) / (after.packets - before.packets)
            assert 0.9 * mtu < mean <= mtu + 14
            took_s[mtu] += seconds
        gains.append(f"{took_s[USUAL] / took_s[JUMBO]:.2f}")
    with capsys.disabled():
        sys.stdout.write(f"\njumbo frames carry {gains[0]} times as much at 1 Gbit/s, {gains[1]} times unshaped\n")
