"""Dead and healed paths: two hosts judge the same cables, each by what it hears, while cables and hosts fail."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livemove.policy.liveness import (
    Change,
    Liveness,
    LivenessLimits,
    PathFacts,
    Reason,
    Verdict,
    begin,
    judge,
)

LIMITS = LivenessLimits()
ROUND_MS = 50
NOTHING = (0, float("-inf"))
SIDES = ("source", "destination")
OTHER = {"source": "destination", "destination": "source"}


@dataclass
class Host:
    """One side: its judgement and what its heartbeats told it."""

    liveness: Liveness
    phase_ms: int
    round_number: int = 0
    heard: dict[int, tuple[int, float]] = field(default_factory=dict)
    answered: dict[int, tuple[int, float]] = field(default_factory=dict)
    peer_round: int = 0
    peer_dead: tuple[int, ...] = ()
    #: when it arrives, path, round, answered round, paths called dead
    under_way: list[tuple[int, int, int, int, tuple[int, ...]]] = field(default_factory=list)
    verdicts: list[tuple[float, Verdict]] = field(default_factory=list)


class Cables:
    """Two hosts, `count` paths, and time in steps of 10 ms. Faults are attributes to set between :meth:`run` calls."""

    def __init__(self, count: int = 2, dead: frozenset[int] = frozenset(), offset_ms: int = 20) -> None:
        self.paths = tuple(range(count))
        self.now_ms = 0
        self.limits = LIMITS
        self.hosts = {
            "source": Host(begin(self.paths, 0.0, dead=dead), 0),
            "destination": Host(begin(self.paths, 0.0, dead=dead), offset_ms),
        }
        #: (path, sender) whose heartbeats vanish
        self.lost: set[tuple[int, str]] = set()
        self.paused: set[str] = set()
        self.without_carrier: set[tuple[int, str]] = set()
        #: since when the subflows of a path stand still; None: it has none; missing: they move
        self.still_since_s: dict[int, float | None] = dict.fromkeys(self.paths, 0.0)
        self.latency_ms = dict.fromkeys(self.paths, 0)

    def cut(self, *paths: int) -> None:
        self.lost |= {(path, side) for path in paths for side in SIDES}

    def mend(self, *paths: int) -> None:
        self.lost -= {(path, side) for path in paths for side in SIDES}

    def run(self, duration_s: float) -> None:
        end_ms = self.now_ms + round(duration_s * 1000)
        while self.now_ms < end_ms:
            self.now_ms += 10
            for side, host in self.hosts.items():
                if side not in self.paused:
                    self._read(host)
                    if self.now_ms % ROUND_MS == host.phase_ms:
                        self._round(side, host)

    def _read(self, host: Host) -> None:
        now_s = self.now_ms / 1000
        for arrival in [arrival for arrival in host.under_way if arrival[0] <= self.now_ms]:
            host.under_way.remove(arrival)
            _, path, number, answered, dead = arrival
            if number > host.heard.get(path, NOTHING)[0]:
                host.heard[path] = number, now_s
            if answered > host.answered.get(path, NOTHING)[0]:
                host.answered[path] = answered, now_s
            if number > host.peer_round:
                host.peer_round, host.peer_dead = number, dead

    def _round(self, side: str, host: Host) -> None:
        now_s = self.now_ms / 1000
        facts = [self._facts(side, host, path, now_s) for path in self.paths]
        before = host.liveness
        host.liveness, verdicts = judge(before, facts, now_s, self.limits)
        check(before, host.liveness, verdicts)
        host.verdicts += [(now_s, verdict) for verdict in verdicts]
        host.round_number += 1
        for path in self.paths:
            if (path, side) not in self.lost:
                answered, due_ms = host.heard.get(path, NOTHING)[0], self.now_ms + self.latency_ms[path]
                beat = (due_ms, path, host.round_number, answered, host.liveness.called_dead)
                self.hosts[OTHER[side]].under_way.append(beat)

    def _facts(self, side: str, host: Host, path: int, now_s: float) -> PathFacts:
        since_s = self.still_since_s.get(path, now_s)
        return PathFacts(
            path,
            *host.heard.get(path, NOTHING),
            *host.answered.get(path, NOTHING),
            None if since_s is None else now_s - since_s,
            (path, side) not in self.without_carrier,
            path in host.peer_dead,
        )

    def changes(self, side: str, *kinds: Change) -> list[tuple[Change, int]]:
        return [(verdict.change, verdict.path) for _, verdict in self.hosts[side].verdicts if verdict.change in kinds]

    def living(self, side: str) -> tuple[int, ...]:
        return self.hosts[side].liveness.living


def check(before: Liveness, after: Liveness, verdicts: tuple[Verdict, ...]) -> None:
    """What holds of every judgement."""
    assert after.living
    assert set(after.called_dead) <= {life.path for life in after.paths} - set(after.living)
    assert [life.path for life in before.paths] == [life.path for life in after.paths]
    assert len({verdict.path for verdict in verdicts}) == len(verdicts)
    assert not any(life.dead and life.stalled for life in after.paths)
    expected = set(before.living)
    for verdict in verdicts:
        assert verdict.silence_s >= 0
        match verdict.change:
            case Change.DIED:
                expected.remove(verdict.path)
            case Change.HEALED:
                assert verdict.path not in expected
                expected.add(verdict.path)
            case Change.STALLED | Change.REVIVED:
                assert verdict.path in after.living
    assert expected == set(after.living)


def working(count: int = 2) -> Cables:
    cables = Cables(count)
    cables.run(1.0)
    assert all(host.verdicts == [] for host in cables.hosts.values())
    return cables


@pytest.mark.parametrize("path", [0, 1])
@pytest.mark.parametrize("deaf", [("source",), ("destination",), SIDES])
def test_a_black_hole_in_one_direction_or_both(path: int, deaf: tuple[str, ...]) -> None:
    cables = working()
    cables.lost |= {(path, OTHER[side]) for side in deaf}
    cables.run(0.10)
    assert cables.living("source") == cables.living("destination") == (0, 1)
    cables.run(0.20)
    for side in SIDES:
        assert cables.living(side) == (1 - path,)
        [(_, verdict)] = cables.hosts[side].verdicts
        assert verdict.change is Change.DIED and 0.15 <= verdict.silence_s <= 0.25
    if deaf != SIDES:
        reasons = {side: cables.hosts[side].verdicts[0][1].reason for side in SIDES}
        assert reasons[deaf[0]] is Reason.NOT_HEARD
        assert reasons[OTHER[deaf[0]]] in (Reason.NOT_ANSWERED, Reason.PEER)


def test_two_of_four_paths() -> None:
    cables = working(4)
    cables.cut(1, 2)
    cables.run(0.4)
    assert cables.living("source") == cables.living("destination") == (0, 3)


def test_the_silence_that_is_borne_is_a_setting() -> None:
    cables = working()
    cables.limits = replace(LIMITS, dead_after_s=1.0)
    cables.cut(0)
    cables.run(0.9)
    assert cables.living("source") == cables.living("destination") == (0, 1)
    cables.run(0.3)
    assert cables.living("source") == cables.living("destination") == (1,)


def test_lost_heartbeats_while_the_subflows_move_remove_nothing() -> None:
    cables = working()
    del cables.still_since_s[0]
    cables.cut(0)
    cables.run(5)
    assert cables.living("source") == cables.living("destination") == (0, 1)
    cables.still_since_s[0] = cables.now_ms / 1000
    cables.run(0.15)
    assert cables.living("source") == cables.living("destination") == (1,)


def test_data_that_moves_is_no_stall_though_the_other_keeper_says_nothing() -> None:
    cables = working()
    cables.still_since_s = {}
    cables.paused = {"destination"}
    cables.run(3.0)
    cables.paused = set()
    cables.run(1.0)
    assert all(cables.changes(side, *Change) == [] for side in SIDES)


def test_a_path_without_subflows_is_judged_by_its_heartbeats() -> None:
    cables = working()
    cables.still_since_s[0] = None
    cables.cut(0)
    cables.run(0.4)
    assert cables.living("source") == cables.living("destination") == (1,)


def test_two_lost_heartbeats_are_no_death() -> None:
    cables = working()
    for _ in range(20):
        cables.cut(0)
        cables.run(0.10)
        cables.mend(0)
        cables.run(0.10)
    assert cables.living("source") == cables.living("destination") == (0, 1)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("pause_s", [0.13, 0.2, 1.0, 5.0])
@pytest.mark.parametrize("offset_ms", [0, 10, 20, 30, 40])
@pytest.mark.parametrize("latency_ms", [0, 30, 60, 100])
def test_a_stopped_host_costs_no_path(side: str, pause_s: float, offset_ms: int, latency_ms: int) -> None:
    cables = Cables(offset_ms=offset_ms)
    cables.latency_ms[1] = latency_ms
    cables.run(1.0)
    cables.paused = {side}
    cables.run(pause_s)
    cables.paused = set()
    cables.run(2.0)
    assert cables.changes(side, *Change) == []
    assert cables.changes(OTHER[side], Change.DIED) == []


def test_rounds_of_before_the_start_prove_nothing() -> None:
    """The other keeper has run for long, is stopped when ours starts, and then answers on one path first."""
    cables = Cables()
    cables.latency_ms[1] = 60
    cables.hosts["source"].round_number = 500
    cables.run(0.10)
    cables.paused = {"source"}
    cables.run(1.0)
    cables.paused = set()
    cables.run(1.0)
    assert all(cables.changes(side, Change.DIED) == [] for side in SIDES)


def test_a_path_that_dies_while_a_host_is_stopped_is_found_dead_after_it() -> None:
    cables = working()
    cables.paused = {"destination"}
    cables.run(1.0)
    cables.cut(0)
    cables.run(1.0)
    assert cables.living("source") == (0, 1)
    cables.paused = set()
    cables.run(0.4)
    assert cables.living("source") == cables.living("destination") == (1,)


def test_all_paths_silent_together_and_the_first_one_back_is_used() -> None:
    cables = working()
    cables.cut(0, 1)
    cables.run(3.0)
    for side in SIDES:
        assert cables.living(side) == (0, 1)
        assert sorted(cables.changes(side, *Change), key=lambda item: item[1]) == [
            (Change.STALLED, 0),
            (Change.STALLED, 1),
        ]
    cables.mend(1)
    cables.run(0.5)
    for side in SIDES:
        assert cables.living(side) == (1,)
        assert cables.changes(side, Change.REVIVED) == [(Change.REVIVED, 1)]
        [silence_s] = [v.silence_s for _, v in cables.hosts[side].verdicts if v.change is Change.REVIVED]
        assert 2.9 <= silence_s <= 3.2


def test_all_paths_back_nearly_together_are_all_kept() -> None:
    cables = working(3)
    cables.cut(0, 1, 2)
    cables.run(3.0)
    for path in (1, 0, 2):
        cables.mend(path)
        cables.run(0.03)
    cables.run(1.0)
    for side in SIDES:
        assert cables.changes(side, Change.DIED) == []
        assert len(cables.changes(side, Change.REVIVED)) == 3


def test_the_last_path_stays_and_is_replaced_by_one_that_heals() -> None:
    cables = working()
    cables.cut(0)
    cables.run(0.5)
    cables.cut(1)
    cables.run(3.0)
    assert cables.living("source") == cables.living("destination") == (1,)
    cables.mend(0)
    cables.run(0.3)  # not the usual time of healing: there is nothing else
    assert 0 in cables.living("source") and 0 in cables.living("destination")
    cables.run(0.4)
    assert cables.living("source") == cables.living("destination") == (0,)


def test_opposite_one_way_losses_end_well() -> None:
    cables = working()
    cables.lost = {(0, "source"), (1, "destination")}  # no path works in both directions
    cables.run(5.0)
    cables.lost = set()
    cables.run(2.0)
    assert cables.living("source") == cables.living("destination") == (0, 1)


@pytest.mark.parametrize("side", SIDES)
def test_a_lost_carrier_counts_at_once(side: str) -> None:
    cables = working()
    del cables.still_since_s[0]
    cables.without_carrier = {(0, side)}
    cables.run(0.05)
    [(_, verdict)] = cables.hosts[side].verdicts
    assert (verdict.change, verdict.reason) == (Change.DIED, Reason.NO_CARRIER)
    cables.run(0.1)
    [(_, verdict)] = cables.hosts[OTHER[side]].verdicts
    assert (verdict.change, verdict.reason) == (Change.DIED, Reason.PEER)
    cables.run(2.0)
    assert cables.living("source") == cables.living("destination") == (1,)
    cables.without_carrier = set()
    cables.run(0.6)
    assert cables.living("source") == cables.living("destination") == (0, 1)


def test_both_carriers_lost_remove_nothing() -> None:
    cables = working()
    cables.without_carrier = {(0, "source"), (1, "source")}
    cables.cut(0, 1)
    cables.run(1.0)
    assert cables.living("source") == cables.living("destination") == (0, 1)


def test_healing_takes_its_time_and_longer_with_each_death() -> None:
    cables = working()
    down_s = []
    for _ in range(4):
        cables.cut(0)
        cables.run(0.3)
        cables.mend(0)
        mended_ms = cables.now_ms
        while 0 not in cables.living("source"):
            cables.run(0.05)
        down_s.append((cables.now_ms - mended_ms) / 1000)
    assert down_s[0] == pytest.approx(0.45, abs=0.11)
    assert all(1.5 < later / earlier < 2.5 for earlier, later in itertools.pairwise(down_s))
    cables.run(LIMITS.flap_window_s)
    cables.cut(0)
    cables.run(0.3)
    cables.mend(0)
    cables.run(0.6)
    assert cables.living("source") == cables.living("destination") == (0, 1)


def test_a_gap_begins_the_healing_anew() -> None:
    cables = working()
    cables.cut(0)
    cables.run(0.3)
    for _ in range(10):
        cables.mend(0)
        cables.run(0.25)
        cables.cut(0)
        cables.run(0.15)
    assert cables.living("source") == cables.living("destination") == (1,)


def test_dead_at_the_start() -> None:
    cables = Cables(dead=frozenset({0}))
    cables.cut(0)
    cables.run(2.0)
    assert cables.living("source") == cables.living("destination") == (1,)
    assert not cables.hosts["source"].verdicts
    cables.mend(0)
    cables.run(0.6)
    assert cables.changes("source", *Change) == cables.changes("destination", *Change) == [(Change.HEALED, 0)]


def test_a_path_that_never_worked() -> None:
    cables = Cables()
    cables.cut(0)
    cables.run(0.5)
    assert cables.living("source") == cables.living("destination") == (1,)


def test_limits_for_rounds_of_the_usual_length_are_the_usual_ones() -> None:
    assert asdict(LivenessLimits.for_rounds(0.05, 0.15, 0.4)) == pytest.approx(asdict(LIMITS))
    assert LivenessLimits.for_rounds(0.1, 0.3, 0.8).fresh_s == 2 * LIMITS.fresh_s


def test_all_dead_at_the_start_means_the_first_is_tried() -> None:
    assert begin((3, 5), 0.0, dead=frozenset({3, 5})).living == (3,)


def test_a_late_start_of_the_other_host_is_no_silence() -> None:
    cables = Cables()
    cables.paused = {"destination"}
    cables.run(3.0)
    cables.paused = set()
    cables.run(1.0)
    assert all(host.verdicts == [] for host in cables.hosts.values())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("works_for_s", [0.0, 1.0])
def test_the_other_keeper_started_again(side: str, works_for_s: float) -> None:
    cables = working()
    cables.run(2.0)
    restarted, stayed = cables.hosts[side], cables.hosts[OTHER[side]]
    cables.hosts[side] = Host(begin(cables.paths, cables.now_ms / 1000), restarted.phase_ms)
    stayed.peer_round = 0
    stayed.heard = {path: (0, at_s) for path, (_, at_s) in stayed.heard.items()}
    stayed.under_way.clear()
    cables.run(works_for_s)
    assert cables.living("source") == cables.living("destination") == (0, 1)
    cables.cut(1)
    cables.run(0.6)
    assert cables.living("source") == cables.living("destination") == (0,)


def test_a_path_that_falls_silent_while_the_other_host_makes_up_its_mind_is_called_dead_again() -> None:
    liveness = begin((0, 1), 0.0, dead=frozenset({1}))
    for tick in range(1, 12):
        facts = [PathFacts(path, tick, tick / 20, tick, tick / 20, peer_says_dead=path == 1) for path in (0, 1)]
        liveness, verdicts = judge(liveness, facts, tick / 20, LIMITS)
        assert verdicts == ()
    assert liveness.called_dead == () and liveness.living == (0,)
    silent = PathFacts(1, 11, 0.55, 11, 0.55, peer_says_dead=True)
    for tick in range(12, 16):
        liveness, _ = judge(liveness, [PathFacts(0, tick, tick / 20, tick, tick / 20), silent], tick / 20, LIMITS)
    assert liveness.called_dead == (1,)


def test_nothing_goes_for_a_path_that_the_other_host_calls_dead() -> None:
    facts = (
        PathFacts(0, 10, 0.99, 10, 0.99, carrier=False),
        PathFacts(1, 10, 0.99, 10, 0.99, peer_says_dead=True),
    )
    after, verdicts = judge(begin((0, 1), 0.95), facts, 1.0, LIMITS)
    assert after.living == (0, 1) and verdicts == ()


# Section: what holds whatever happens

fault = st.sampled_from(["cut", "mend", "deafen", "pause", "go on", "unplug", "plug", "stand still", "move"])
schedule = st.lists(
    st.tuples(fault, st.integers(0, 3), st.sampled_from(SIDES), st.integers(1, 120).map(lambda tens: tens / 100)),
    max_size=25,
)


def apply(cables: Cables, what: str, path: int, side: str) -> None:
    path %= len(cables.paths)
    match what:
        case "cut":
            cables.cut(path)
        case "mend":
            cables.mend(path)
        case "deafen":
            cables.lost.add((path, OTHER[side]))
        case "pause":
            cables.paused.add(side)
        case "go on":
            cables.paused.discard(side)
        case "unplug":
            cables.without_carrier.add((path, side))
            cables.cut(path)
        case "plug":
            cables.without_carrier.discard((path, side))
        case "stand still":
            cables.still_since_s[path] = cables.now_ms / 1000
        case "move":
            cables.still_since_s.pop(path, None)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 4), st.integers(0, 4), schedule)
def test_whatever_happens_one_path_lives_and_in_the_end_all_do(
    count: int, offset: int, faults: list[tuple[str, int, str, float]]
) -> None:
    cables = Cables(count, offset_ms=offset * 10)
    for what, path, side, then_s in faults:
        apply(cables, what, path, side)
        cables.run(then_s)  # check() looks at every judgement
    cables.lost, cables.paused, cables.without_carrier = set(), set(), set()
    cables.run(LIMITS.heal_at_most_s + 2.0)
    for side in SIDES:
        assert cables.living(side) == cables.paths
        assert not cables.hosts[side].liveness.called_dead
        assert not any(life.stalled for life in cables.hosts[side].liveness.paths)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(2, 4),
    st.integers(0, 4),
    st.lists(st.tuples(st.sampled_from(["cut all", "mend all", "pause", "go on"]), st.sampled_from(SIDES), st.integers(1, 60))),
)  # fmt: skip
def test_what_befalls_all_paths_alike_removes_none(count: int, offset: int, events: list[tuple[str, str, int]]) -> None:
    cables = Cables(count, offset_ms=offset * 10)
    for what, side, tens_ms in events:
        match what:
            case "cut all":
                cables.cut(*cables.paths)
            case "mend all":
                cables.mend(*cables.paths)
            case "pause":
                cables.paused.add(side)
            case "go on":
                cables.paused.discard(side)
        cables.run(tens_ms / 100)
    for side in SIDES:
        assert not cables.changes(side, Change.DIED)


@settings(max_examples=60, deadline=None)
@given(schedule)
def test_paths_that_move_die_of_their_carrier_only(faults: list[tuple[str, int, str, float]]) -> None:
    cables = Cables(3)
    cables.still_since_s = {}
    for what, path, side, then_s in faults:
        if what != "stand still":
            apply(cables, what, path, side)
            cables.run(then_s)
    for host in cables.hosts.values():
        assert {v.reason for _, v in host.verdicts if v.change is Change.DIED} <= {Reason.NO_CARRIER, Reason.PEER}
