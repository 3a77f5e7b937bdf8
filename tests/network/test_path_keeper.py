"""Path keepers on two hosts, started and heard as agents do, with MPTCP connections that carry traffic."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from livemove.base.errors import MissingPrerequisite
from livemove.network.keeper_words import (
    AllowanceHeard,
    Counters,
    FellBack,
    KeeperConfig,
    KeeperTotals,
    KeeperTrouble,
    KeptPath,
    PathDied,
    PathHealed,
    PathRevived,
    PathStalled,
    Refused,
    Report,
    SubflowsMissing,
    SubflowsVerified,
    UnplannedPair,
    config_line,
    report_of,
)
from livemove.network.mptcp import Mptcp
from livemove.network.path_keeper import PathKeeper
from livemove.network.sockets import ESTABLISHED, SocketDiag, SocketFacts

from .two_hosts import PORT, Traffic, TwoHosts, run

pytestmark = pytest.mark.qemu
R = TypeVar("R", bound=Report)
KEY = "5a" * 16
SIDES = ("destination", "source")


def config(hosts: TwoHosts, role: str, **changes: object) -> KeeperConfig:
    other = "destination" if role == "source" else "source"
    paths = tuple(
        KeptPath(number, hosts.address(role, number), hosts.address(other, number), hosts.link(role, number))
        for number in range(hosts.count)
    )
    return replace(KeeperConfig(role, "journey", PORT, KEY, paths), **changes)  # type: ignore[arg-type]


class Kept:
    """Two hosts with a keeper each, what the keepers said, and traffic."""

    def __init__(self, hosts: TwoHosts) -> None:
        self.hosts = hosts
        self.said: dict[str, list[Report]] = {side: [] for side in SIDES}
        self.keepers: dict[str, PathKeeper] = {}
        self.traffic: Traffic | None = None

    async def start(self, role: str, **changes: object) -> PathKeeper:
        with self.hosts.inside(role):
            keeper = await PathKeeper.start(config(self.hosts, role, **changes), self.said[role].append)
        self.keepers[role] = keeper
        return keeper

    async def fill(self, connections: int = 3, **how: object) -> Traffic:
        """Connections, and all their subflows."""
        for keeper in self.keepers.values():
            keeper.expect(connections)
        self.traffic = await asyncio.to_thread(Traffic, self.hosts, connections, **how)  # type: ignore[arg-type]
        for side in SIDES:
            await self.until(side, SubflowsVerified)
        return self.traffic

    async def empty(self) -> Traffic:
        """All arrived that was sent."""
        assert self.traffic is not None
        await asyncio.to_thread(self.traffic.stop)
        assert self.traffic.errors == []
        assert self.traffic.sent == self.traffic.received > 0 and self.traffic.returned == self.traffic.got_back
        return self.traffic

    async def totals(self, side: str) -> KeeperTotals:
        totals = await self.keepers[side].finish()
        assert totals is not None
        assert not self.keepers[side].running
        return totals

    def heard(self, side: str, kind: type[R]) -> list[R]:
        return [report for report in self.said[side] if isinstance(report, kind)]

    async def until(self, side: str, kind: type[R], count: int = 1, limit_s: float = 15.0) -> R:
        def what() -> str:
            return f"{side}: {count} {kind.__name__}: {[r for r in self.said[side] if not isinstance(r, Counters)]}"

        await eventually(lambda: len(self.heard(side, kind)) >= count, what, limit_s)
        return self.heard(side, kind)[count - 1]

    def sockets_on(self, side: str, path: int) -> list[SocketFacts]:
        """The kernel's own word on the path's subflows."""
        with self.hosts.inside(side):
            diag = SocketDiag()
        try:
            found = diag.dump(**{"local_port" if side == "destination" else "remote_port": PORT})
        finally:
            diag.close()
        return [facts for facts in found if facts.local == self.hosts.address(side, path)]

    async def open_on(self, side: str, path: int, subflows: int) -> None:
        """So many subflows use the path now."""
        await eventually(
            lambda: [facts.state for facts in self.sockets_on(side, path)] == [ESTABLISHED] * subflows,
            lambda: f"{side}: {self.sockets_on(side, path)}",
        )

    async def carries(self, path: int) -> None:
        """The copy uses it."""
        await eventually(
            lambda: sum(facts.bytes_received for facts in self.sockets_on("destination", path)) > 1 << 20,
            lambda: f"path {path} carries nothing: {self.sockets_on('destination', path)}",
        )

    async def moves(self) -> None:
        """The copy goes on."""
        assert self.traffic is not None
        traffic, before = self.traffic, self.traffic.received
        await eventually(lambda: traffic.received > before + (1 << 20), lambda: "nothing arrives any more")

    def changed(self, side: str) -> list[tuple[type[Report], int]]:
        kinds = PathDied | PathHealed | PathStalled | PathRevived
        return [(type(report), report.path) for report in self.said[side] if isinstance(report, kinds)]


async def eventually(true: Callable[[], bool], what: Callable[[], str], limit_s: float = 15.0) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, what()
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def kept(hosts: TwoHosts, **changes: object) -> AsyncIterator[Kept]:
    world = Kept(hosts)
    try:
        for role in SIDES:
            await world.start(role, **changes)
        yield world
    finally:
        if world.traffic is not None:
            await asyncio.to_thread(world.traffic.stop)
        for keeper in world.keepers.values():
            await keeper.close()
        hosts.close()


def cut(hosts: TwoHosts, path: int, how: str) -> None:
    match how:
        case "black hole":
            hosts.black_hole(path)
        case "one way out" | "one way in":
            hosts.deafen("destination" if how == "one way out" else "source", path)
        case _:
            hosts.pull(path, how)


@pytest.mark.parametrize(
    ("path", "how"),
    [
        (0, "black hole"),
        (1, "black hole"),
        (0, "one way out"),
        (1, "one way in"),
        (0, "destination"),
        (1, "source"),
    ],
)
async def test_a_dead_path_goes_on_both_hosts_and_comes_back(path: int, how: str) -> None:
    async with kept(TwoHosts(rate="400mbit")) as world:
        traffic = await world.fill()
        cut(world.hosts, path, how)
        for side in SIDES:
            died = await world.until(side, PathDied)
            assert died.path == path
        await world.moves()
        print(f"{how} of path {path}: the longest gap of the stream was {traffic.longest_gap_s * 1000:.0f} ms")
        world.hosts.heal(path)
        for side in SIDES:
            assert (await world.until(side, PathHealed)).path == path
        await world.carries(path)
        await world.empty()
        for side in SIDES:
            assert world.changed(side) == [(PathDied, path), (PathHealed, path)]
            assert world.heard(side, KeeperTrouble) == world.heard(side, FellBack) == []


@pytest.mark.parametrize("side", SIDES)
async def test_a_nic_that_is_removed_and_made_again_is_taken_up(side: str) -> None:
    hosts = TwoHosts()
    async with kept(hosts) as world:
        await world.fill(2)
        run("ip", "-n", hosts.namespace(side), "link", "del", hosts.link(side, 1))
        for each in SIDES:
            assert (await world.until(each, PathDied)).path == 1
        hosts.lay(1, "")
        for each in SIDES:
            assert (await world.until(each, PathHealed)).path == 1
        await world.carries(1)
        before_s = {each: cpu_s(keeper) for each, keeper in world.keepers.items()}
        await asyncio.sleep(0.5)
        # neither looks at the descriptor of the lost NIC all the time
        assert all(cpu_s(keeper) - before_s[each] < 0.25 for each, keeper in world.keepers.items())
        await world.empty()


def cpu_s(keeper: PathKeeper) -> float:
    fields = Path(f"/proc/{keeper.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_totals_are_what_was_sent() -> None:
    async with kept(TwoHosts(3, rate="300mbit"), connections=4) as world:
        traffic = await world.fill(4, both_ways=True)
        await asyncio.sleep(1.0)
        await world.empty()
        totals = {side: await world.totals(side) for side in SIDES}
        source, destination = totals["source"].paths, totals["destination"].paths
        assert [path.path for path in source] == [path.path for path in destination] == [0, 1, 2]
        assert totals["source"].unplanned == totals["destination"].unplanned == ()
        for here, there in zip(source, destination, strict=True):
            assert (here.local, here.remote) == (there.remote, there.local)
            assert here.subflows == there.subflows == 4 and here.open_subflows == here.plain == here.removed == 0
            # SYN and FIN count as a byte each, where they are sent
            assert abs(here.bytes_acked - there.bytes_received) <= 2 * 4
            assert abs(there.bytes_acked - here.bytes_received) <= 2 * 4
            assert here.bytes_acked > 1 << 20
        for carried, sent in (
            (sum(path.bytes_received for path in destination), traffic.sent),
            (sum(path.bytes_received for path in source), traffic.returned),
        ):
            # a little is sent on two paths now and then, when one of them is late
            assert sent <= carried <= sent * 1.05 + 64


async def test_all_paths_silent_is_waited_out() -> None:
    async with kept(TwoHosts(rate="400mbit")) as world:
        await world.fill()
        for path in (0, 1):
            world.hosts.black_hole(path)
        for side in SIDES:
            await world.until(side, PathStalled, 2)
        await asyncio.sleep(1.0)
        assert all(world.heard(side, PathDied) == [] for side in SIDES)
        world.hosts.heal(1)
        for side in SIDES:
            assert (await world.until(side, PathRevived)).path == 1
        await world.moves()
        world.hosts.heal(0)
        for side in SIDES:
            died, healed = await world.until(side, PathDied), await world.until(side, PathHealed)
            assert (died.path, healed.path) == (0, 0)
        await world.empty()


async def test_the_survivor_dies_too_and_the_first_one_comes_back() -> None:
    async with kept(TwoHosts(rate="400mbit")) as world:
        await world.fill()
        world.hosts.black_hole(0)
        for side in SIDES:
            await world.until(side, PathDied)
        world.hosts.black_hole(1)
        for side in SIDES:
            await world.until(side, PathStalled)
        world.hosts.heal(0)
        for side in SIDES:
            assert (await world.until(side, PathHealed)).path == 0
            assert (await world.until(side, PathDied, 2)).path == 1
        await world.moves()
        await world.empty()


@pytest.mark.parametrize("side", SIDES)
async def test_a_stopped_keeper_under_full_load_costs_no_path(side: str) -> None:
    async with kept(TwoHosts(rate="300mbit")) as world:
        await world.fill()
        for pause_s in (0.2, 1.0):
            world.keepers[side]._process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(pause_s)
            world.keepers[side]._process.send_signal(signal.SIGCONT)
            await asyncio.sleep(0.3)
        await world.moves()
        assert all(not world.heard(each, PathDied) for each in SIDES)
        # and it has not gone blind
        world.hosts.black_hole(1)
        for each in SIDES:
            await world.until(each, PathDied)
        await world.empty()


async def test_heartbeats_that_a_full_link_drops_cost_no_path() -> None:
    """They are lost, data is not: what a switch without priorities may do."""
    async with kept(TwoHosts(rate="200mbit")) as world:
        await world.fill()
        for side in SIDES:
            world.hosts.drop_udp(side, 0)
        await asyncio.sleep(2.0)
        assert all(not world.heard(side, PathDied) for side in SIDES)
        await world.empty()
        # now nothing moves there any more
        for side in SIDES:
            assert (await world.until(side, PathDied)).path == 0


async def test_many_deaths_leave_no_limit_used_up() -> None:
    """Subflows that were ended give back their place at the destination, which admits two more for each connection."""
    hosts = TwoHosts()
    # the first subflow that is made again counts as one more, so this is the least that works
    run("ip", "-n", hosts.destination, "mptcp", "limits", "set", "subflow", "2", "add_addr_accepted", "0")
    async with kept(hosts, heal_after_s=0.1) as world:
        await world.fill(2)
        for count in range(1, 4):
            hosts.black_hole(0)
            await world.until("source", PathDied, count)
            hosts.heal(0)
            await world.until("source", PathHealed, count, limit_s=20)
        await world.open_on("destination", 0, 2)
        assert world.heard("source", SubflowsMissing) == []
        await world.empty()


async def test_dead_at_the_start() -> None:
    hosts = TwoHosts()
    hosts.black_hole(1)
    paths = {side: config(hosts, side).paths for side in SIDES}
    world = Kept(hosts)
    try:
        for side in SIDES:
            await world.start(side, paths=(paths[side][0], replace(paths[side][1], dead=True)))
        await world.fill()
        assert world.heard("source", SubflowsVerified)[0].paths == (0,)
        hosts.heal(1)
        assert (await world.until("source", PathHealed)).path == 1
        for side in SIDES:
            await world.open_on(side, 1, 3)
        await world.empty()
        assert all(world.heard(side, PathDied) == [] for side in SIDES)
    finally:
        for keeper in world.keepers.values():
            await keeper.close()
        hosts.close()


async def test_a_listener_that_is_slow_to_accept_delays_no_subflow() -> None:
    """It drops joins without a word, and TCP would ask again a second later."""
    hosts = TwoHosts()
    before = overflows(hosts)
    async with kept(hosts) as world:
        ends = await asyncio.to_thread(connect_unheard, hosts, 3, backlog=2)
        try:
            await eventually(lambda: overflows(hosts) > before, lambda: "no join was dropped")
            for _ in range(3):
                ends.append(ends[0].accept()[0])
            world.keepers["source"].expect(3)
            assert (await world.until("source", SubflowsVerified)).paths == (0, 1)
            assert repeated_syns(hosts) == 0
        finally:
            for end in ends:
                end.close()


def connect_unheard(hosts: TwoHosts, connections: int, *, backlog: int) -> list[socket.socket]:
    """A listener, and connections to it that it has not accepted, with something sent on each so that they may be joined."""
    with hosts.inside("destination"):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
    listener.bind(("0.0.0.0", PORT))
    listener.listen(backlog)
    ends = [listener]
    for _ in range(connections):
        with hosts.inside("source"):
            ends.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP))
        ends[-1].connect((hosts.address("destination", 0), PORT))
        ends[-1].send(b"it")
    return ends


def overflows(hosts: TwoHosts) -> int:
    return kernel_counter(hosts, "destination", "TcpExtListenOverflows")


def repeated_syns(hosts: TwoHosts) -> int:
    return kernel_counter(hosts, "source", "TcpExtTCPSynRetrans")


def kernel_counter(hosts: TwoHosts, side: str, name: str) -> int:
    said = run("ip", "netns", "exec", hosts.namespace(side), "nstat", "-asz", name)
    return int(said.split(name)[1].split()[0])


async def test_ipv6() -> None:
    async with kept(TwoHosts(ipv6=True)) as world:
        await world.fill()
        world.hosts.black_hole(0)
        for side in SIDES:
            assert (await world.until(side, PathDied)).destroyed == 3
        await world.moves()
        await world.empty()


async def test_a_destination_that_is_a_source_of_other_journeys() -> None:
    """There the path manager is user space's as well."""
    hosts = TwoHosts()
    hosts.set("destination", "pm_type", "1")
    async with kept(hosts) as world:
        await world.fill()
        hosts.black_hole(0)
        for side in SIDES:
            assert (await world.until(side, PathDied)).destroyed == 3
        hosts.heal(0)
        await world.until("source", PathHealed)
        await world.open_on("source", 0, 3)
        await world.empty()


async def test_plain_tcp_is_told_with_the_setting_that_makes_it_so() -> None:
    hosts = TwoHosts()
    async with kept(hosts, connections=2) as world:
        world.traffic = await asyncio.to_thread(lambda: Traffic(hosts, 2, mptcp=False))
        fell = await world.until("source", FellBack)
        assert (fell.plain, fell.connections) == (2, 2)
        hosts.black_hole(0)
        for side in SIDES:
            # plain connections are nobody's to end
            assert (await world.until(side, PathDied)).destroyed == 0
        hosts.heal(0)
        await world.empty()
        totals = await world.totals("source")
        assert (totals.paths[0].subflows, totals.paths[0].plain) == (2, 2)


async def test_mptcp_switched_off_at_the_source_is_named() -> None:
    hosts = TwoHosts()
    async with kept(hosts, connections=1) as world:
        hosts.set("source", "enabled", "0")
        world.traffic = await asyncio.to_thread(lambda: Traffic(hosts, 1, mptcp=False))
        assert "net.mptcp.enabled" in (await world.until("source", FellBack)).reason
        await world.empty()


@pytest.mark.parametrize(("setting", "words"), [("pm_type", "net.mptcp.pm_type"), ("limits", "ip mptcp limits")])
async def test_subflows_that_cannot_be_made_are_told_with_the_setting(setting: str, words: str) -> None:
    hosts = TwoHosts()
    if setting == "pm_type":
        hosts.set("source", "pm_type", "0")
    else:
        run("ip", "-n", hosts.destination, "mptcp", "limits", "set", "subflow", "0", "add_addr_accepted", "0")
    async with kept(hosts, connections=2) as world:
        world.traffic = await asyncio.to_thread(lambda: Traffic(hosts, 2))
        lacking = await world.until("source", SubflowsMissing)
        assert (lacking.path, lacking.missing, lacking.connections) == (1, 2, 2)
        assert words in lacking.reason or setting == "limits"
        if setting == "limits":
            assert words in (await world.until("destination", SubflowsMissing)).reason
        await world.empty()


async def test_unplanned_pairs_are_told_and_extra_subflows_between_them_ended() -> None:
    """The kernel's own path manager makes a subflow to an address that the plan leaves out."""
    hosts = TwoHosts(3)
    hosts.set("source", "pm_type", "0")
    run("ip", "-n", hosts.source, "mptcp", "limits", "set", "subflow", "8", "add_addr_accepted", "8")
    signal_it = ("ip", "-n", hosts.destination, "mptcp", "endpoint", "add", hosts.address("destination", 2), "signal")
    run(*signal_it, "dev", hosts.link("destination", 2))
    world = Kept(hosts)
    try:
        for side in SIDES:
            await world.start(side, paths=config(hosts, side).paths[:2])
        world.traffic = await asyncio.to_thread(lambda: Traffic(hosts, 1))
        told = await world.until("source", UnplannedPair)
        assert told == UnplannedPair(hosts.address("source", 2), hosts.address("destination", 2), True)
        await world.until("destination", UnplannedPair)
        await world.empty()
        totals = await world.totals("source")
        [unplanned] = totals.unplanned
        assert (unplanned.path, unplanned.local) == (-1, hosts.address("source", 2)) and unplanned.subflows >= 1
    finally:
        for keeper in world.keepers.values():
            await keeper.close()
        hosts.close()


async def test_the_allowance_of_each_path_reaches_the_source() -> None:
    hosts = TwoHosts()
    async with kept(hosts) as world:
        destination = world.keepers["destination"]
        one, other = (hosts.address("destination", number) for number in (0, 1))

        async def hears(expected: dict[str, int]) -> None:
            heard = world.said["source"]
            await eventually(lambda: AllowanceHeard(expected) in heard[-3:], lambda: f"no {expected}: {heard}")

        assert (await world.until("source", AllowanceHeard)).by_address == {}
        destination.allow({one: 125_000_000, "192.0.2.1": 1})
        await hears({one: 125_000_000})
        count = len(world.heard("source", AllowanceHeard))
        await world.until("source", AllowanceHeard, count + 2)  # it is said again
        destination.allow({one: 0, other: 7})
        await hears({one: 0, other: 7})
        destination.allow({})
        await hears({})
        # a destination that says nothing any more allows nothing either: the source's agent sees the silence
        await destination.close()
        await asyncio.sleep(0.7)
        count = len(world.heard("source", AllowanceHeard))
        await asyncio.sleep(0.8)
        assert len(world.heard("source", AllowanceHeard)) == count
        assert world.heard("destination", AllowanceHeard) == []


async def test_one_path_without_mptcp_is_only_counted() -> None:
    hosts = TwoHosts(1)
    async with kept(hosts, multipath=False, connections=1) as world:
        world.traffic = await asyncio.to_thread(lambda: Traffic(hosts, 1, mptcp=False))
        await asyncio.sleep(0.5)
        hosts.black_hole(0)
        await asyncio.sleep(1.0)
        hosts.heal(0)
        traffic = await world.empty()
        assert world.changed("source") == world.changed("destination") == []
        assert world.heard("source", FellBack) == []
        totals = await world.totals("destination")
        assert traffic.sent <= totals.paths[0].bytes_received <= traffic.sent + 2


async def test_two_journeys_share_the_cables_and_not_their_paths() -> None:
    """A path of one is ended; the other's subflows between the same hosts are untouched."""
    hosts = TwoHosts(3)
    async with kept(hosts) as world:
        first = await world.fill(2)
        other = Kept(hosts)
        try:
            for side in SIDES:
                paths = config(hosts, side).paths[1:]
                await other.start(side, port=PORT + 1, key="77" * 16, paths=paths)
            other.traffic = await asyncio.to_thread(lambda: Traffic(hosts, 2, first=1, port=PORT + 1))
            for side in SIDES:
                other.keepers[side].expect(2)
                assert (await other.until(side, SubflowsVerified)).paths == (1, 2)
            hosts.black_hole(0)
            for side in SIDES:
                assert (await world.until(side, PathDied)).path == 0
            await other.moves()
            await other.empty()
            for side in SIDES:
                assert other.changed(side) == []
                totals = await other.totals(side)
                assert [(path.path, path.subflows) for path in totals.paths] == [(1, 2), (2, 2)]
        finally:
            for keeper in other.keepers.values():
                await keeper.close()
        assert first.errors == []
        await world.empty()


async def test_a_journey_to_another_host_on_the_same_port_is_none_of_ours() -> None:
    """Each destination takes its first free port, so the numbers are the same more often than not."""
    hosts = TwoHosts(4)  # the last two cables stand for another destination's
    world = Kept(hosts)
    try:
        for side in SIDES:
            await world.start(side, paths=config(hosts, side).paths[:2])
        with contextlib.ExitStack() as stack:
            with hosts.inside("source"):
                kernel = Mptcp()
            stack.callback(kernel.close)
            other = await asyncio.to_thread(lambda: Traffic(hosts, 1, first=2))
            stack.callback(other.stop)
            with hosts.inside("source"):
                diag = SocketDiag()
            stack.callback(diag.close)
            [first] = diag.dump(remote_port=PORT)
            await eventually(lambda: diag.dump(remote_port=PORT)[0].fully_established, lambda: str(first))
            kernel.create_subflow(first.token, hosts.address("source", 3), hosts.address("destination", 3), PORT)
            await eventually(lambda: len(diag.dump(remote_port=PORT)) == 2, lambda: "no second subflow")
            await asyncio.sleep(0.5)
            assert len(diag.dump(remote_port=PORT)) == 2
            assert world.heard("source", UnplannedPair) == []
            await asyncio.to_thread(other.stop)
        totals = await world.totals("source")
        assert totals.unplanned == () and all(path.subflows == 0 for path in totals.paths)
    finally:
        for keeper in world.keepers.values():
            await keeper.close()
        hosts.close()


# Section: the process


async def test_a_keeper_ends_with_its_agent_and_leaves_the_connections() -> None:
    async with kept(TwoHosts()) as world:
        await world.fill()
        for keeper in world.keepers.values():
            assert keeper._process.stdin is not None
            keeper._process.stdin.close()
            assert await keeper._process.wait() == 0
        await world.moves()
        await world.empty()
        assert await world.keepers["source"].finish() is None


async def test_it_cannot_start() -> None:
    hosts = TwoHosts(1)
    try:
        with hosts.inside("destination"):
            taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        taken.bind((hosts.address("destination", 0), PORT))
        wrong = config(hosts, "destination")
        for changes in (
            {},  # the port is taken
            {"paths": (replace(wrong.paths[0], local="192.0.2.1"),)},
            {"paths": (replace(wrong.paths[0], link="nothere0"),)},
            {"key": "xy"},
        ):
            with hosts.inside("destination"), pytest.raises(MissingPrerequisite) as caught:
                await PathKeeper.start(replace(wrong, **changes), lambda report: None)  # type: ignore[arg-type]
            assert "paths of the journey cannot be kept" in caught.value.message
        taken.close()
    finally:
        hosts.close()


def test_without_the_right_to_make_and_end_subflows_it_does_not_start() -> None:
    hosts = TwoHosts(1)
    try:
        with hosts.inside("destination"):
            dropped = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--")
            line = config_line(config(hosts, "destination"))
            command = (*dropped, sys.executable, "-m", "livemove.network.keeper")
            done = subprocess.run(command, input=line, capture_output=True, timeout=30, check=False)
        refused = report_of(done.stdout)
        assert done.returncode == 1 and isinstance(refused, Refused) and "CAP_NET_ADMIN" in refused.reason
    finally:
        hosts.close()


async def test_commands_that_cannot_be_are_told() -> None:
    async with kept(TwoHosts(1)) as world:
        keeper = world.keepers["source"]
        for line in (
            b"{\n",
            b"[]\n",
            b'{"do": "dance"}\n',
            b'{"do": "expect"}\n',
            b'{"do": "allow", "by_address": {"a": "x"}}\n',
        ):
            keeper._send(line)
        await world.until("source", KeeperTrouble, 4)
        assert (await world.totals("source")).paths[0].path == 0


async def test_a_keeper_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livemove.network.path_keeper._FINISH_S", 0.3)
    monkeypatch.setattr("livemove.network.path_keeper._GRACE_S", 0.3)
    async with kept(TwoHosts(1)) as world:
        keeper = world.keepers["source"]
        keeper._process.send_signal(signal.SIGSTOP)
        assert await keeper.finish() is None
        assert not keeper.running and not Path(f"/proc/{keeper.pid}").exists()
        await keeper.close()
