"""The destination's own word on the paths that a source asks for."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings

from livemove.base.errors import LivemoveError, NetworkMissing, PeerViolation, PolicyRefused
from livemove.policy.path_check import check_pairs
from livemove.policy.path_choice import MAX_PATHS, choose_paths
from livemove.policy.paths import HostNetworks, NetworkRule, PathWish, UsePaths

from .test_path_choice import _RULES, NET1, NET2, _hosts, two

FIRST, SECOND = ("10.1.0.1", "10.1.0.2"), ("10.2.0.1", "10.2.0.2")


def test_what_is_allowed_is_admitted() -> None:
    check_pairs([FIRST, SECOND], two("B"), ())
    check_pairs([SECOND], two("B", incoming=("10.2.0.2",)), (NetworkRule(NET2, 1),))


@pytest.mark.parametrize(
    ("pair", "incoming", "rules", "says"),
    [
        (
            FIRST,
            ("10.2.0.2",),
            (),
            "10.1.0.1 to 10.1.0.2 is not admitted: 10.1.0.2 is not in B's 'incoming', which has 10.2",
        ),
        (FIRST, (), (NetworkRule(NET2, 1),), "10.1.0.0/24 is not in the cluster's list of networks"),
        (FIRST, (), (NetworkRule(NET1, 1, allowed=False),), "10.1.0.0/24 is denied in the cluster's list"),
        (("10.2.0.1", "10.1.0.2"), (), (), "10.2.0.1 is not on 10.1.0.0/24, as 10.1.0.2 is"),
    ],
)
def test_46_what_the_destination_does_not_allow_is_refused_by_name(
    pair: tuple[str, str], incoming: tuple[str, ...], rules: tuple[NetworkRule, ...], says: str
) -> None:
    with pytest.raises(PolicyRefused, match=re.escape(says)) as caught:
        check_pairs([pair], two("B", incoming=incoming), rules)
    assert caught.value.where == "B"


def test_an_address_that_has_gone() -> None:
    with pytest.raises(NetworkMissing, match=r"B has no address 10\.1\.0\.9") as caught:
        check_pairs([("10.1.0.1", "10.1.0.9")], two("B"), ())
    assert caught.value.where == "B"


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [FIRST, FIRST],
        [FIRST, ("10.1.0.9", "10.1.0.2")],
        [("10.1.0.2", "10.1.0.2")],
        [FIRST, ("fd00::1", "fd00::2")],
        [(f"10.1.0.{10 + number}", f"10.1.0.{100 + number}") for number in range(MAX_PATHS + 1)],
    ],
)
def test_pairs_that_no_plan_has(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(PeerViolation, match="do not go together"):
        check_pairs(pairs, two("B"), ())


@settings(deadline=None)
@given(_hosts("A"), _hosts("B"), _RULES)
def test_every_plan_is_admitted_by_its_destination(
    source: HostNetworks, destination: HostNetworks, rules: list[NetworkRule]
) -> None:
    try:
        plan = choose_paths(source, destination, rules, PathWish(UsePaths.ALL))
    except LivemoveError:
        return
    check_pairs([(path.source_address, path.destination_address) for path in plan.paths], destination, rules)
