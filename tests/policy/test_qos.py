"""Marks and classes: which wishes make sense, what they make of a NIC, and how two hosts differ."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemove.base.errors import BadSetting
from livemove.policy.qos import (
    DcbState,
    HostQos,
    Marking,
    QosWish,
    TrafficClass,
    check_wish,
    differences,
    dscp_name,
    parse_class,
    parse_dscp,
    wanted_state,
)

FACTORY = DcbState(
    willing=True, classes=8, lossless=8, share=(100, 0, 0, 0, 0, 0, 0, 0), served=("strict",) * 8, class_of=(0,) * 8,
    pauses=(False,) * 8,
)  # fmt: skip
#: As in the policy that is customary for SMB: 40 % for migration on priority 4, storage lossless on 3.
WISH = QosWish(dscp=8, priority=4, classes=(TrafficClass(4, 40), TrafficClass(3, 30, lossless=True)))


@pytest.mark.parametrize(
    ("text", "dscp"), [("CS1", 8), ("af11", 10), ("AF43", 38), ("EF", 46), ("LE", 1), ("0", 0), ("63", 63)]
)
def test_dscp(text: str, dscp: int) -> None:
    assert parse_dscp(text) == dscp
    assert parse_dscp(dscp_name(dscp)) == dscp


@pytest.mark.parametrize("text", ["64", "CS8", "AF44", "-1", "", "1.5", "0x8", "٣"])
def test_no_dscp(text: str) -> None:
    with pytest.raises(BadSetting, match="is no DSCP"):
        parse_dscp(text)


def test_classes_as_they_are_typed() -> None:
    assert parse_class("4=40") == TrafficClass(4, 40)
    assert parse_class("3=30,lossless") == TrafficClass(3, 30, lossless=True)
    for text in ("8=1", "4", "4=", "4=40%", "4=1000", "4=40,Lossless", ""):
        with pytest.raises(BadSetting, match="is no class"):
            parse_class(text)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (QosWish(), "Nothing is asked for"),
        (QosWish(nics=("eth1",)), "Nothing is asked for"),
        (QosWish(priority=8), "no priority 8"),
        (QosWish(priority=-1), "no priority -1"),
        (QosWish(dscp=64), "no DSCP 64"),
        (QosWish(classes=(TrafficClass(4, 1), TrafficClass(4, 2))), "Priority 4 has two classes"),
        (QosWish(classes=(TrafficClass(4, 0),)), "1 to 100 percent"),
        (QosWish(classes=(TrafficClass(4, 50), TrafficClass(3, 41))), "91 % together"),
        (QosWish(classes=tuple(TrafficClass(number, 5, True) for number in (3, 4, 5))), "3 classes shall be lossless"),
        (QosWish(priority=5, classes=(TrafficClass(4, 40),)), "priority 5 has no class"),
    ],
)
def test_wishes_that_make_no_sense(wish: QosWish, said: str) -> None:
    with pytest.raises(BadSetting, match=said) as caught:
        check_wish(wish)
    assert caught.value.remedy


@pytest.mark.parametrize("wish", [WISH, QosWish(dscp=0), QosWish(priority=0), QosWish(classes=(TrafficClass(3, 90),))])
def test_wishes_that_do(wish: QosWish) -> None:
    check_wish(wish)


def test_what_a_nic_is_set_to() -> None:
    state = wanted_state(WISH, FACTORY, "eth1")
    assert state == DcbState(
        willing=False, classes=8, lossless=8, share=(30, 30, 40, 0, 0, 0, 0, 0),
        served=("ets", "ets", "ets", "strict", "strict", "strict", "strict", "strict"),
        class_of=(0, 0, 0, 1, 2, 0, 0, 0),
        pauses=(False, False, False, True, False, False, False, False), dscp_priority=((8, 4),),
    )  # fmt: skip
    assert wanted_state(WISH, state, "eth1") == state
    trusting = replace(FACTORY, dscp_priority=((8, 1), (46, 5)))
    assert wanted_state(WISH, trusting, "eth1").dscp_priority == ((8, 4), (46, 5))
    assert wanted_state(replace(WISH, dscp=None), trusting, "eth1").dscp_priority == ((8, 1), (46, 5))


def test_a_nic_with_too_few_classes() -> None:
    with pytest.raises(BadSetting, match="eth1 has 2 traffic classes, and 3 are needed"):
        wanted_state(WISH, replace(FACTORY, classes=2), "eth1")
    with pytest.raises(BadSetting, match="eth1 can keep 0 classes lossless, and 1 are wanted"):
        wanted_state(WISH, replace(FACTORY, lossless=0), "eth1")


CLASSES = st.lists(
    st.builds(TrafficClass, st.integers(0, 7), st.integers(1, 11), st.booleans()),
    max_size=7,
    unique_by=lambda of: of.priority,
)


@given(CLASSES)
def test_shares_are_always_the_whole(classes: list[TrafficClass]) -> None:
    """802.1Q wants the shares to be 100 together, and a priority's class to be its own."""
    state = wanted_state(QosWish(classes=tuple(classes)), FACTORY, "eth1")
    assert sum(state.share) == 100 and not state.willing
    for of in classes:
        number = state.class_of[of.priority]
        assert (state.share[number], state.served[number], state.pauses[of.priority]) == (of.share, "ets", of.lossless)
        assert state.class_of.count(number) == 1


def host(name: str, wish: QosWish | None, **networks: DcbState | None) -> HostQos:
    return HostQos(name, wish, {network: (f"{name}-eth1", state) for network, state in networks.items()})


def test_hosts_that_agree() -> None:
    state = wanted_state(WISH, FACTORY, "eth1")
    assert differences([host("A", WISH, net1=state), host("B", WISH, net1=state)]) == []
    assert differences([host("A", None, net1=None), host("B", None, net1=None)]) == []
    assert differences([host("A", WISH, net1=state), host("B", WISH, net2=None)]) == []
    # what lossless and shares are made of may differ
    assert differences([host("A", WISH, net1=replace(state, lossless=4)), host("B", WISH, net1=state)]) == []


def test_every_difference_is_a_sentence() -> None:
    state = wanted_state(WISH, FACTORY, "eth1")
    other = wanted_state(replace(WISH, classes=(TrafficClass(4, 50),)), FACTORY, "eth1")
    found = differences(
        [host("B", None, net1=other, net2=None), host("A", WISH, net1=replace(state, willing=True), net2=state)]
    )
    assert found == [
        "A gives migration DSCP CS1, B none.",
        "A gives migration priority 4, B none.",
        "On net1 A-eth1 of A takes its settings from the switch (willing).",
        "On net1 priority 0 has 30 % at A-eth1 of A and 50 % at B-eth1 of B.",
        "On net1 priority 1 has 30 % at A-eth1 of A and 50 % at B-eth1 of B.",
        "On net1 priority 2 has 30 % at A-eth1 of A and 50 % at B-eth1 of B.",
        "On net1 priority 3 has 30 % at A-eth1 of A and 50 % at B-eth1 of B.",
        "On net1 priority 3 is lossless at A-eth1 of A and not lossless at B-eth1 of B.",
        "On net1 priority 4 has 40 % at A-eth1 of A and 50 % at B-eth1 of B.",
        "On net1 priority 5 has 30 % at A-eth1 of A and 50 % at B-eth1 of B.",
        "On net1 priority 6 has 30 % at A-eth1 of A and 50 % at B-eth1 of B.",
        "On net1 priority 7 has 30 % at A-eth1 of A and 50 % at B-eth1 of B.",
        "On net2 A-eth1 of A has classes in hardware, and B-eth1 of B has none.",
    ]
    assert differences([host("A", None, net2=None), host("B", None, net2=state)]) == [
        "On net2 B-eth1 of B has classes in hardware, and A-eth1 of A has none."
    ]


def test_what_marks_anything() -> None:
    assert not Marking().any and Marking(dscp=0).any and Marking(priority=0).any
