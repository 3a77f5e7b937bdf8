"""The governor with real counters, rules and classes, in a namespace of the test's own; only the clock is ours."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pytest
from tests.network.own_namespace import in_own_namespace, make_cables, tool

from livemove.agent.governor import HEARD_S, TICK_S, GovernedPath, Governor
from livemove.base.clock import ManualClock
from livemove.base.errors import MissingPrerequisite
from livemove.network.shaping import Shaping
from livemove.policy.bandwidth import Category, Limit, Limits, Nic
from livemove.policy.governing import Direction
from livemove.policy.qos import Marking

SPEED = 1_250_000
MINIMUM: Limits = {Category.DEFAULT: Limit(Category.DEFAULT, min_share=0.4)}
CAP: Limits = {Category.LIVE_MIGRATION: Limit(Category.LIVE_MIGRATION, max_bytes_per_s=500_000)}
OUT = (GovernedPath("e0", "10.9.0.1", "10.9.0.2"), GovernedPath("e1", "10.9.1.1", "10.9.1.2"))
PORT = 49152


async def until(done: Callable[[], bool]) -> None:
    for _ in range(500):
        if done():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("it did not come to that")


class World:
    """A governor of two NICs whose peers are not there, and what it told."""

    def __init__(self, limits: Limits) -> None:
        make_cables("e0", "e1")
        for number in (0, 1):
            tool("ip", "neigh", "add", f"10.9.{number}.2", "lladdr", "02:00:00:00:00:01", "dev", f"e{number}")
        self.limits = limits
        self.marking = Marking()
        self.clock = ManualClock()
        self.shaping = Shaping(7443)
        self.rates: list[tuple[str, int]] = []
        self.allowances: list[tuple[str, dict[str, int]]] = []
        self.governor = Governor(
            lambda: self.limits,
            self._nics,
            self.clock,
            self.shaping,
            read_marking=lambda: self.marking,
            on_rate=lambda journey, rate: self.rates.append((journey, rate)),
            on_allowance=self._allowed,
        )

    async def _nics(self) -> list[Nic]:
        return [Nic("e0", SPEED), Nic("e1", SPEED)]

    def _allowed(self, journey: str, allowances: Mapping[str, int]) -> None:
        self.allowances.append((journey, dict(allowances)))

    async def leave(self, journey: str = "out") -> None:
        await self.governor.join(journey, role="source", paths=OUT, port=PORT)
        await asyncio.sleep(0)

    async def arrive(self, journey: str = "in") -> None:
        paths = [GovernedPath("e0", "10.9.0.1", "10.9.0.2")]
        await self.governor.join(journey, role="destination", paths=paths, port=PORT + 1)
        await asyncio.sleep(0)

    def tick(self, times: int = 1, elapsed_s: float = TICK_S) -> None:
        for _ in range(times):
            self.clock.advance(elapsed_s)
            self.governor.tick()

    def send(self, size_bytes: int, port: int = 5000, link: int = 0) -> None:
        """Somebody else's packets, out of a NIC."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(size_bytes // 1000):
                sender.sendto(bytes(1000), (f"10.9.{link}.2", port))


def play(limits: Limits, scene: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    """Play a scene; afterwards the kernel must be as before, and the governor idle."""

    async def work() -> None:
        world = World(limits)
        before = tool("tc", "qdisc", "show"), tool("nft", "list", "ruleset")
        await scene(world)
        await world.governor.close()
        await world.governor.close()
        for extra in {"e2"} & {name for _, name in socket.if_nameindex()}:
            tool("ip", "link", "del", extra)
        assert (tool("tc", "qdisc", "show"), tool("nft", "list", "ruleset")) == before
        assert world.governor.shares() == [] and world.governor.shaped == frozenset()

    in_own_namespace(work)


pytestmark = pytest.mark.qemu


def test_without_limits_nothing_is_touched() -> None:
    async def scene(world: World) -> None:
        before = tool("tc", "qdisc", "show"), tool("nft", "list", "ruleset")
        await world.leave()
        await world.arrive()
        assert (tool("tc", "qdisc", "show"), tool("nft", "list", "ruleset")) == before
        assert world.rates == world.allowances == []

    play({}, scene)


def test_classes_are_there_before_the_first_byte_and_gone_after_the_last_journey() -> None:
    async def scene(world: World) -> None:
        await world.leave("a")
        await world.leave("b")
        assert world.governor.shaped == {"e0", "e1"}
        await world.governor.leave("a")
        await world.governor.leave("nobody")
        assert world.governor.shaped == {"e0", "e1"}
        await world.governor.leave("b")
        assert "4c4d" not in tool("tc", "qdisc", "show")

    play(MINIMUM, scene)


def test_a_maximum_is_told_once_and_shared_by_weight() -> None:
    async def scene(world: World) -> None:
        await world.leave("a")
        assert world.rates == [("a", 500_000)]
        world.tick(3)
        assert world.rates == [("a", 500_000)], "the same rate is not told again"
        await world.governor.join("b", role="source", paths=OUT, port=PORT + 5, weight=3.0)
        world.tick()
        assert ("b", 468_750) in world.rates, "the first sends nothing, and keeps a quarter of its quarter"
        assert sum(rate for _, role, rate in world.governor.shares() if role == "source") == pytest.approx(500_000)
        assert "ceil 2Mbit" in tool("tc", "class", "show", "dev", "e0", "classid", "4c4d:40"), "half on each NIC"

    play(CAP, scene)


def test_an_arriving_journey_is_allowed_all_until_others_come() -> None:
    async def scene(world: World) -> None:
        await world.arrive()
        world.tick(2)
        whole = int(SPEED * 0.975)
        assert world.allowances[-1] == ("in", {"10.9.0.1": whole})
        arriving = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        with arriving:
            # what the far end sends comes in here: somebody else's, 1000 bytes a packet
            arriving.bind(("e0-far", 0))
            for _ in range(5):
                for _ in range(100):
                    arriving.send(bytes.fromhex("020000000009") + bytes(6) + b"\x08\x00" + bytes(1000))
                world.tick()
        assert world.governor.others["e0", Direction.IN] > 0.5 * SPEED
        assert world.allowances[-1] == ("in", {"10.9.0.1": pytest.approx(SPEED * (0.975 - 0.44), abs=1)})
        world.limits = {}
        await world.governor.limits_changed()
        assert world.allowances[-1] == ("in", {}), "and then it is told that nothing limits it"

    play(MINIMUM, scene)


def test_others_that_go_out_are_counted_and_the_journey_s_own_bytes_are_not() -> None:
    async def scene(world: World) -> None:
        await world.leave()
        world.tick(2)
        for _ in range(4):
            world.send(100_000)
            world.tick()
        assert world.governor.others["e0", Direction.OUT] > 0.5 * SPEED

        def calm() -> bool:
            world.send(1000)
            world.tick()
            return world.governor.others["e0", Direction.OUT] < 0.05 * SPEED

        await until(calm)  # what waited in the classes' queues leaves at the speed of the NIC

    play(MINIMUM, scene)


def test_a_journey_that_joins_makes_nobody_up() -> None:
    """Bytes that are counted between two readings are not lost when the rules change in between."""

    async def scene(world: World) -> None:
        await world.leave("a")
        world.tick(2)
        before = world.shaping.counted()["journey0_path0"]
        with socket.socket() as connection:
            connection.setblocking(False)
            connection.connect_ex(("10.9.0.2", PORT))
            await until(lambda: world.shaping.counted()["journey0_path0"] > before)
        counted = world.shaping.counted()["journey0_path0"]
        await world.leave("b")
        assert world.shaping.counted()["journey0_path0"] >= counted
        await world.governor.leave("a")
        await world.leave("c")
        assert world.shaping.counted()["journey0_path0"] >= counted, "its slot was taken again"
        world.tick()
        assert ("c", "source") in [(name, role) for name, role, _ in world.governor.shares()]

    play(MINIMUM, scene)


def test_paths_that_share_an_end_share_its_allowance() -> None:
    async def scene(world: World) -> None:
        both = [GovernedPath("e0", "10.9.0.1", "10.9.0.2"), GovernedPath("e1", "10.9.1.1", "10.9.0.2")]
        await world.governor.join("out", role="source", paths=both, port=PORT)
        world.governor.heard("out", {"10.9.0.2": 400_000})
        await until(lambda: world.rates == [("out", 400_000)])
        world.limits = MINIMUM
        one = [GovernedPath("e0", "10.9.0.1", "10.9.0.2"), GovernedPath("e0", "10.9.0.9", "10.9.0.3")]
        await world.governor.join("in", role="destination", paths=one, port=PORT + 1)
        world.tick(2)
        name, allowed = world.allowances[-1]
        assert name == "in" and allowed["10.9.0.1"] == allowed["10.9.0.9"]
        assert sum(allowed.values()) <= SPEED

    play({}, scene)


def test_a_destination_s_allowance_counts_on_its_path_and_ends() -> None:
    async def scene(world: World) -> None:
        await world.leave()
        assert world.rates == []
        world.governor.heard("out", {"10.9.0.2": 200_000, "10.9.9.9": 1})
        world.governor.heard("nobody", {"10.9.0.2": 1})
        await until(lambda: bool(world.rates))
        assert world.rates == [("out", 200_000 + int(SPEED * 0.975))]
        assert "ceil 1600Kbit" in tool("tc", "class", "show", "dev", "e0", "classid", "4c4d:100")
        assert "ceil 9750Kbit" in tool("tc", "class", "show", "dev", "e1", "classid", "4c4d:100")
        world.clock.advance(HEARD_S + 1)
        await until(lambda: world.rates[-1] == ("out", 0))
        assert world.governor.shaped == frozenset()

    play({}, scene)


def test_a_destination_that_limits_nothing_any_more_is_heard() -> None:
    async def scene(world: World) -> None:
        await world.leave()
        world.governor.heard("out", {"10.9.0.2": 100_000})
        await until(lambda: bool(world.governor.shaped))
        world.governor.heard("out", {})
        await until(lambda: world.rates[-1] == ("out", 0))
        assert world.governor.shaped == frozenset()

    play({}, scene)


def test_a_speed_that_nobody_knows_is_a_note() -> None:
    async def scene(world: World) -> None:
        tool("ip", "link", "add", "e2", "type", "veth", "peer", "name", "e2-far")
        await world.governor.join("out", role="source", paths=[GovernedPath("e2", "10.9.2.1", "10.9.2.2")], port=PORT)
        assert "nic_speeds" in world.governor.notes["e2"]
        assert world.governor.shaped == frozenset()

    play(MINIMUM, scene)


def test_marks_need_no_limits() -> None:
    async def scene(world: World) -> None:
        world.marking = Marking(dscp=8, hardware=frozenset({"e1"}))
        await world.leave()
        await world.arrive()
        text = tool("nft", "list", "ruleset")
        assert text.count("ip dscp set cs1") == 3 and "4c4d" not in text
        assert world.governor.shaped == frozenset() and world.rates == []
        world.limits = MINIMUM
        await world.governor.limits_changed()
        await until(lambda: bool(world.governor.shaped))
        assert world.governor.shaped == {"e0"}, "e1 has classes of its own"
        assert "4c4d:100" in tool("nft", "list", "ruleset")
        world.marking, world.limits = Marking(), {}
        await world.governor.limits_changed()
        assert tool("nft", "list", "ruleset") == ""

    play({}, scene)


def test_an_arriving_journey_hears_nothing() -> None:
    async def scene(world: World) -> None:
        await world.arrive()
        world.governor.heard("in", {"10.9.0.2": 1})
        assert world.governor.shares()[0][2] > 1000

    play(MINIMUM, scene)


def test_a_nic_that_dies_takes_its_part_of_the_maximum_along() -> None:
    """#92."""

    async def scene(world: World) -> None:
        await world.leave()
        assert world.rates == [("out", 500_000)]
        tool("ip", "link", "set", "e1-far", "down")
        world.tick()
        assert world.rates[-1] == ("out", 250_000)
        tool("ip", "link", "set", "e1-far", "up")
        world.tick()
        await until(lambda: world.rates[-1] == ("out", 500_000))

    play(CAP, scene)


def test_somebody_else_s_shaping_is_told_and_the_rate_does_what_it_can() -> None:
    async def scene(world: World) -> None:
        words = "qdisc add dev e0 root handle 5: tbf rate 100mbit burst 100k limit 1m"
        tool("tc", *words.split())
        await world.leave()
        assert "tbf 5:" in world.governor.notes["e0"]
        assert world.governor.shaped == {"e1"}
        world.tick()
        world.send(900_000)
        world.tick()
        assert world.rates[-1][1] < 2 * SPEED * 0.975 * 0.8, "without classes the journey itself gives way"
        await world.governor.leave("out")
        assert "tbf 5: dev e0" in tool("tc", "qdisc", "show")
        tool("tc", "qdisc", "del", "dev", "e0", "root")

    play(MINIMUM, scene)


def test_what_cannot_be_done_is_a_note_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise MissingPrerequisite("There is no 'nft' program to tell packets apart.")

    def refuse_classes(*_: object) -> str:
        raise MissingPrerequisite("The classes of e0 cannot be set: Operation not permitted.")

    monkeypatch.setattr(Shaping, "set_rules", refuse)
    monkeypatch.setattr(Shaping, "put", refuse_classes)

    async def scene(world: World) -> None:
        await world.leave()
        assert world.governor.notes[""].startswith("There is no 'nft'")
        assert world.governor.notes["e0"].startswith("The classes of e0")
        assert world.rates == [("out", 500_000)]

    play(CAP, scene)


def test_a_decision_that_fails_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(world: World) -> None:
        with monkeypatch.context() as broken:
            broken.setattr("livemove.agent.governor.read_counts", lambda: 1 / 0)
            await world.leave()
            assert world.rates == []
        await until(lambda: bool(world.rates))

    play(CAP, scene)
