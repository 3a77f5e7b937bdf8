"""The search for the largest packet and what follows from it, against every kind of network."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemove.policy.mtu import (
    TRIES,
    End,
    MtuSearch,
    OnBlackHole,
    PathMeasure,
    Use,
    Verdict,
    clamp_of_unmeasured,
    end_of,
    judge,
    name_filtered,
    name_unlike,
)
from livemove.policy.paths import HostNetworks, LinkFacts, Path


def rounds(search: MtuSearch, carries: int, own_nic: int = 1 << 16) -> int:
    """Play the search against a path that carries so much; how many flights it took."""
    for flights in range(1000):
        sizes = search.sizes()
        assert bool(sizes) is not search.is_done
        if not sizes:
            return flights
        assert len(sizes) <= 18 and list(sizes) == sorted(set(sizes))
        for size in sizes:
            if size > own_nic:
                search.note_too_large(size)
            elif size <= carries:
                search.note_passed(size)
            else:
                search.note_lost(size)
    raise AssertionError("it does not end")


@pytest.mark.parametrize(
    ("ceiling", "carries", "own_nic", "flights"),
    [
        (1500, 1500, 1500, 1),
        (9000, 9000, 9000, 1),
        (9000, 12000, 9000, 1),
        (9000, 1500, 9000, 2 * TRIES),
        (9216, 9000, 9216, 2 * TRIES),
        (1500, 1450, 1500, 2 * TRIES),
        (9000, 9000, 1500, 2),
        (9000, 59, 9000, 5 * TRIES),
        (40, 59, 9000, TRIES),
    ],
)
def test_usual_networks_are_known_quickly(ceiling: int, carries: int, own_nic: int, flights: int) -> None:
    search = MtuSearch(60, ceiling)
    assert rounds(search, carries, own_nic) <= flights
    assert search.mtu == (min(carries, own_nic, max(60, ceiling)) if carries >= 60 else 0)


@given(st.integers(60, 65535), st.integers(60, 65535), st.integers(60, 65535))
def test_any_size_is_found_to_the_byte(ceiling: int, carries: int, own_nic: int) -> None:
    search = MtuSearch(60, ceiling)
    assert rounds(search, carries, own_nic) <= 8 * TRIES
    assert search.mtu == min(ceiling, carries, own_nic)


@given(st.integers(60, 9000), st.lists(st.booleans(), min_size=1, max_size=40), st.data())
def test_late_and_lost_answers_never_make_it_say_more_than_passed(
    carries: int, luck: list[bool], data: st.DataObject
) -> None:
    search, passed, owed = MtuSearch(60, 9000), 0, list[int]()
    for lucky in luck:
        for size in search.sizes():
            if size <= carries and lucky:
                search.note_passed(size)
                passed = max(passed, size)
            else:
                search.note_lost(size)
                owed += [size] if size <= carries else []
        if owed and data.draw(st.booleans()):
            size = owed.pop(0)
            search.note_passed(size)
            passed = max(passed, size)
        assert search.mtu == passed <= carries
    # what was taken for too large by bad luck alone is found after all when an answer comes late
    search.note_passed(carries)
    rounds(search, carries)
    assert search.mtu == carries


JUMBO_A, JUMBO_B = End("A", "eth1", 9000), End("B", "eth2", 9000)
SMALL_A, SMALL_B = End("A", "eth1", 1500), End("B", "eth2", 1500)


def measured(mtu_out: int, mtu_in: int) -> PathMeasure:
    return PathMeasure(mtu_out, mtu_in, 0.001, True)


@pytest.mark.parametrize(
    ("measure", "source", "destination", "expected"),
    [
        (measured(9000, 9000), JUMBO_A, JUMBO_B, Verdict(Use.USE, 9000)),
        (measured(1500, 1500), SMALL_A, SMALL_B, Verdict(Use.USE, 1500)),
        (
            measured(1500, 1500), JUMBO_A, JUMBO_B,
            Verdict(Use.CLAMP, 1500, "A to B and back carries 1500 bytes, both NICs (eth1, eth2) are set to 9000.",
                    "Set 9000 on every switch between them, or 1500 on the NICs (Windows calls 9000 9014)."),
        ),
        (
            measured(1500, 9000), JUMBO_A, JUMBO_B,
            Verdict(Use.CLAMP, 1500,
                    "A to B carries 1500 bytes, the other direction 9000, both NICs (eth1, eth2) are set to 9000.",
                    "Set 9000 on every switch between them, or 1500 on the NICs (Windows calls 9000 9014)."),
        ),
        (
            measured(9000, 1500), JUMBO_A, JUMBO_B,
            Verdict(Use.CLAMP, 1500,
                    "B to A carries 1500 bytes, the other direction 9000, both NICs (eth1, eth2) are set to 9000.",
                    "Set 9000 on every switch between them, or 1500 on the NICs (Windows calls 9000 9014)."),
        ),
        (
            measured(1400, 1300), JUMBO_A, SMALL_B,
            Verdict(Use.CLAMP, 1300,
                    "A to B carries 1400 bytes, B to A carries 1300 bytes, eth1 is set to 9000 and eth2 to 1500.",
                    "Set 1500 on every switch between them, or 1300 on the NICs."),
        ),
        (
            measured(1500, 1504), JUMBO_A, SMALL_B,
            Verdict(Use.USE, 1500,
                    "eth2 of B is set to 1500 and eth1 of A to 9000, so that packets of 1500 bytes are used.",
                    "Set eth2 of B to 9000 as well (Windows calls 9000 9014), and the switches between."),
        ),
        (
            measured(1500, 1500), SMALL_A, JUMBO_B,
            Verdict(Use.USE, 1500,
                    "eth1 of A is set to 1500 and eth2 of B to 9000, so that packets of 1500 bytes are used.",
                    "Set eth1 of A to 9000 as well (Windows calls 9000 9014), and the switches between."),
        ),
    ],
)  # fmt: skip
def test_verdicts(measure: PathMeasure, source: End, destination: End, expected: Verdict) -> None:
    assert judge(measure, source, destination, OnBlackHole.CLAMP) == expected


@pytest.mark.parametrize(
    ("setting", "ipv6", "carried", "use"),
    [
        (OnBlackHole.CLAMP, False, 576, Use.CLAMP),
        (OnBlackHole.CLAMP, False, 575, Use.LEAVE_OUT),
        (OnBlackHole.CLAMP, True, 1280, Use.CLAMP),
        (OnBlackHole.CLAMP, True, 1279, Use.LEAVE_OUT),
        (OnBlackHole.LEAVE_OUT, False, 1280, Use.LEAVE_OUT),
        (OnBlackHole.REFUSE, False, 1280, Use.REFUSE),
        (OnBlackHole.REFUSE, False, 60, Use.REFUSE),
    ],
)
def test_the_setting_says_what_becomes_of_a_black_hole(
    setting: OnBlackHole, ipv6: bool, carried: int, use: Use
) -> None:
    verdict = judge(measured(9000, carried), JUMBO_A, JUMBO_B, setting, ipv6=ipv6)
    assert (verdict.use, verdict.mtu) == (use, carried)


@pytest.mark.parametrize(
    ("measure", "heard", "sentence"),
    [
        (PathMeasure(), False, "No answer comes between eth1 of A and eth2 of B."),
        (PathMeasure(), True, "What A sends arrives, but B to A nothing does between eth1 of A and eth2 of B."),
        (PathMeasure(1500, 1500, 0.1, False), False, "No answer comes between eth1 of A and eth2 of B."),
        (PathMeasure(reason="Nothing can be sent."), False, "Nothing can be sent."),
    ],
)
def test_a_dead_path_is_left_out_whatever_the_setting(measure: PathMeasure, heard: bool, sentence: str) -> None:
    for setting in OnBlackHole:
        verdict = judge(measure, JUMBO_A, JUMBO_B, setting, heard=heard)
        assert (verdict.use, verdict.mtu, verdict.sentence) == (Use.LEAVE_OUT, 0, sentence)
        assert verdict.remedy


def test_a_journey_s_path_without_jumbo_frames_beside_one_with_them_is_named() -> None:
    one = Path("10.0.0.1", "10.0.0.2", "10.0.0.0/24", "fast", "a0", "b0", 2, 0, 9000)
    two = Path("10.1.0.1", "10.1.0.2", "10.1.0.0/24", "", "a1", "b1", 3, 0, 1500)
    assert name_unlike([two, one], {one: 9000, two: 1500}) == [
        "Network 10.1.0.0/24 (a1, b1) uses packets of 1500 bytes, fast of 9000; set 9000 there too (Windows calls 9000 9014)."
    ]
    assert name_unlike([one, two], {one: 1500, two: 1500}) == name_unlike([], {}) == []


def test_an_end_is_told_by_its_host() -> None:
    links = tuple(
        LinkFacts(name, 2, "physical", 0, mtu, True, "", 1, ()) for name, mtu in (("eth0", 1500), ("eth1", 9000))
    )
    assert end_of(HostNetworks("A", links), "eth1") == End("A", "eth1", 9000)


@pytest.mark.parametrize(("mtu", "clamp"), [(1280, 0), (1500, 0), (1501, 1500), (9000, 1500)])
def test_what_was_not_measured_gets_packets_that_every_network_carries(mtu: int, clamp: int) -> None:
    assert clamp_of_unmeasured(mtu) == clamp


def test_a_filter_of_datagrams_is_named_with_port_and_setting() -> None:
    sentence, remedy = name_filtered("10.1.0.2", 49152)
    assert "UDP port 49152 of 10.1.0.2 does not answer, though TCP port 49152 does" in sentence
    assert "'port_range'" in remedy and "UDP" in remedy
