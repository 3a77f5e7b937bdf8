"""One decision of a governor: promises, room, the maximum, journeys' shares, and the classes of NICs."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemove.policy.bandwidth import LEAST_MIGRATION, Category, Limit, Limits, Nic, Selectors
from livemove.policy.governing import Counted, Direction, Member, NicClasses, decide
from livemove.policy.room import STEP, USABLE, Room

IN, OUT = Direction.IN, Direction.OUT
LIVE, VMS, REST = Category.LIVE_MIGRATION, Category.VIRTUAL_MACHINE, Category.DEFAULT
ONE = (Nic("eth1", 1000),)
TWO = (Nic("eth1", 1000), Nic("eth2", 1000))
MINIMUM = {REST: Limit(REST, min_share=0.4, buffer=0.1)}
CAP = {LIVE: Limit(LIVE, max_bytes_per_s=800)}


def counted(nics: tuple[Nic, ...] = ONE, **changes: Any) -> Counted:
    return Counted(**{"elapsed_s": 0.1, "nics": nics, "members": {}, **changes})


def member(way: Direction = IN, *links: str, weight: float = 1.0, **changes: Any) -> Member:
    return Member(way, weight, links or ("eth1",), **changes)


def test_alone_an_arriving_journey_may_use_the_whole() -> None:
    decision = decide(MINIMUM, counted(members={"j": member()}))
    assert decision.shares == {"j": {"eth1": USABLE * 1000}}
    assert decision.rates == {}, "an allowance is no rate of this host's QEMUs"


def test_others_that_come_in_are_given_room() -> None:
    decision = decide(MINIMUM, counted(members={"j": member()}, others={("eth1", IN): 300, ("eth1", OUT): 900}))
    assert decision.rooms["eth1", IN].kept_bytes_per_s == pytest.approx(440)
    assert decision.shares["j"]["eth1"] == pytest.approx(975 - 440)


def test_before_anything_was_counted_others_are_taken_to_want_what_they_are_promised() -> None:
    decision = decide(MINIMUM, counted(members={"j": member()}, elapsed_s=0.0))
    assert decision.shares["j"]["eth1"] == pytest.approx(975 - 440)


def test_room_is_kept_from_one_decision_to_the_next() -> None:
    decision = decide(MINIMUM, counted(members={"j": member()}, rooms={("eth1", IN): Room(440)}))
    assert decision.shares["j"]["eth1"] == pytest.approx(975 - 440)


def test_going_out_room_counts_only_where_there_are_no_classes() -> None:
    others = {("eth1", OUT): 300}
    plain = decide(MINIMUM, counted(members={"j": member(OUT)}, others=others))
    assert plain.rates == pytest.approx({"j": 975 - 440})
    shaped = decide(MINIMUM, counted(members={"j": member(OUT)}, others=others, shaped=frozenset({"eth1"})))
    assert shaped.rates == pytest.approx({"j": 975})


def test_the_smaller_of_source_and_destination_counts() -> None:
    heard = member(OUT, heard={"eth1": 200.0})
    assert decide({}, counted(members={"j": heard})).rates == {"j": 200}
    assert decide({LIVE: Limit(LIVE, max_bytes_per_s=100)}, counted(members={"j": heard})).rates == {"j": 100}


def test_what_a_destination_does_not_allow_one_journey_is_anothers() -> None:
    members = {"a": member(OUT, heard={"eth1": 200.0}), "b": member(OUT)}
    assert decide({}, counted(members=members)).rates == pytest.approx({"a": 200, "b": 775})


def test_the_maximum_is_one_total_of_the_host() -> None:
    """#84: over all journeys and NICs, each direction by itself."""
    members = {"a": member(OUT, "eth1", "eth2"), "b": member(OUT, "eth1", "eth2", weight=3), "c": member(IN, "eth1")}
    decision = decide(CAP, counted(TWO, members=members))
    assert decision.rates == pytest.approx({"a": 200, "b": 600})
    assert decision.shares["c"] == pytest.approx({"eth1": 800})
    assert [of.ceiling[LIVE] for of in decision.classes.values()] == [400, 400]


def test_the_maximum_follows_the_nics_that_live() -> None:
    """#92."""
    nics = (TWO[0], Nic("eth2", 1000, living=False))
    decision = decide(CAP, counted(nics, members={"a": member(OUT, "eth1", "eth2")}))
    assert decision.rates == {"a": 400}
    assert decision.classes.keys() == {"eth1"}
    assert decision.classes["eth1"].ceiling[LIVE] == 400


def test_a_promise_in_bytes_stays_whole_when_a_nic_dies() -> None:
    promise = {REST: Limit(REST, min_bytes_per_s=600, buffer=0)}
    nics = (TWO[0], Nic("eth2", 1000, living=False))
    members = {"a": member(IN, "eth1", "eth2")}
    others = {("eth1", IN): 300.0, ("eth2", IN): 300.0}
    both = decide(promise, counted(TWO, members=members, others=others))
    assert both.shares["a"] == pytest.approx({"eth1": 675, "eth2": 675})
    assert decide(promise, counted(nics, members=members, others=others)).shares["a"] == pytest.approx({"eth1": 375})


def test_migration_is_never_stopped_altogether() -> None:
    promise = {
        REST: Limit(REST, min_bytes_per_s=1000, buffer=1),
        VMS: Limit(VMS, min_bytes_per_s=1000, selectors=Selectors(ports=("1",))),
    }
    decision = decide(promise, counted(members={"j": member()}, others={("eth1", IN): 900.0}))
    assert decision.shares["j"]["eth1"] == pytest.approx(LEAST_MIGRATION * 1000)
    assert decision.classes["eth1"].assured[LIVE] == pytest.approx(LEAST_MIGRATION * 1000)


def test_a_nic_of_unknown_speed_limits_nothing_but_the_maximum_does() -> None:
    unknown = (Nic("veth0", 0),)
    members = {"a": member(OUT, "veth0"), "b": member(OUT, "veth0", weight=3), "c": member(IN, "veth0")}
    decision = decide(MINIMUM, counted(unknown, members=members))
    assert (decision.rates, decision.shares, decision.classes) == ({"a": math.inf, "b": math.inf}, {}, {})
    assert decide(CAP, counted(unknown, members=members)).rates == {"a": 200, "b": 600}
    heard = {"a": member(OUT, "veth0", heard={"veth0": 50.0})}
    assert decide(CAP, counted(unknown, members=heard)).rates == {"a": 50}


def test_a_journey_without_a_living_nic_is_told_nothing() -> None:
    assert decide(CAP, counted((Nic("eth1", 1000, living=False),), members={"a": member(OUT)})).rates == {}


def classes(limits: Limits, cap: float | None = None) -> NicClasses:
    members = {"j": member(OUT)}
    if cap is not None:
        limits = {**limits, LIVE: Limit(LIVE, max_bytes_per_s=int(cap))}
    return decide(limits, counted(members=members)).classes["eth1"]


@pytest.mark.parametrize(
    ("limits", "cap", "assured", "ceiling"),
    [
        # without minimums migration and the rest are equals, and nothing is the VMs'
        ({}, None, (20, 487.5, 487.5), (975, 975, 975)),
        (MINIMUM, None, (20, 440, 535), (975, 975, 975)),
        (MINIMUM, 300, (20, 440, 300), (975, 975, 300)),
        (
            {VMS: Limit(VMS, min_share=0.4, buffer=0, selectors=Selectors(presets=("nfs",)))},
            None,
            (400, 287.5, 287.5),
            (975, 975, 975),
        ),
        (
            {VMS: Limit(VMS, max_bytes_per_s=100, selectors=Selectors(presets=("nfs",)))},
            None,
            (100, 325, 325),
            (100, 975, 975),
        ),
        ({LIVE: Limit(LIVE, min_share=0.5)}, None, (20, 475, 500), (975, 975, 975)),
        ({LIVE: Limit(LIVE, min_share=0.9), **MINIMUM}, None, (20, 440, 535), (975, 975, 975)),
    ],
)
def test_classes(limits: Limits, cap: float | None, assured: tuple[float, ...], ceiling: tuple[float, ...]) -> None:
    found = classes(limits, cap)
    assert tuple(found.assured[name] for name in (VMS, REST, LIVE)) == pytest.approx(assured)
    assert tuple(found.ceiling[name] for name in (VMS, REST, LIVE)) == pytest.approx(ceiling)


LIMIT = st.builds(
    lambda category, most, least, buffer: Limit(category, most, min_share=least, buffer=buffer),
    st.sampled_from(Category), st.integers(0, 3000), st.floats(0, 1), st.floats(0, 1),
)  # fmt: skip
RATE = st.floats(0, 2000)
NICS = st.lists(
    st.builds(Nic, st.sampled_from(["eth1", "eth2", "eth3"]), st.integers(0, 2000), st.booleans()),
    max_size=3,
    unique_by=lambda nic: nic.name,
)
BY_NIC = st.dictionaries(st.sampled_from(["eth1", "eth2", "eth3"]), RATE)
MEMBER = st.builds(
    Member,
    st.sampled_from(Direction),
    st.floats(0.1, 9),
    st.lists(st.sampled_from(["eth1", "eth2", "eth3"]), min_size=1, unique=True).map(tuple),
    BY_NIC,
    BY_NIC,
    BY_NIC,
)
KEYS = st.tuples(st.sampled_from(["eth1", "eth2", "eth3"]), st.sampled_from(Direction))


@given(
    st.lists(LIMIT, max_size=3).map(lambda of: {limit.category: limit for limit in of}),
    NICS,
    st.dictionaries(st.sampled_from("abc"), MEMBER),
    st.dictionaries(KEYS, RATE),
    st.dictionaries(KEYS, RATE.map(Room)),
    st.frozensets(st.sampled_from(["eth1", "eth2"])),
    st.floats(0, 5),
)
def test_whatever_is_counted(
    limits: Limits,
    nics: list[Nic],
    members: dict[str, Member],
    others: dict[tuple[str, Direction], float],
    rooms: dict[tuple[str, Direction], Room],
    shaped: frozenset[str],
    elapsed_s: float,
) -> None:
    """Shares of a NIC are together no more than it has, and classes are assured no more than the NIC can give."""
    decision = decide(limits, Counted(elapsed_s, nics, members, others, rooms, shaped))
    for nic in nics:
        for way in Direction:
            given_out = sum(
                shares.get(nic.name, 0.0) for name, shares in decision.shares.items() if members[name].way is way
            )
            assert given_out <= max(USABLE, STEP) * nic.capacity_bytes_per_s * (1 + 1e-6)
        if found := decision.classes.get(nic.name):
            assert nic.living and nic.capacity_bytes_per_s
            assert sum(found.assured.values()) <= found.usable * (1 + 3 * LEAST_MIGRATION + 1e-6)
            assert all(0 <= found.assured[name] <= found.ceiling[name] <= found.usable for name in Category)
    assert all(rate >= 0 for rate in decision.rates.values())
