"""Names come from fields, and comparisons compare engines only."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from livemove.base.errors import BadDefinition, BadQuantity, BadSetting
from livemove.bench.main import COMPARISONS, list_benchmarks
from livemove.bench.scenario import Comparison, GuestMix, Scenario, against_stock

OTHER_VALUES: dict[str, Any] = {
    "engine": "stock",
    "link": "10Gbit",
    "channels": 4,
    "tls": False,
    "compression": "zstd",
    "populate": False,
    "guest": GuestMix(memory_mib=512),
}


def test_name() -> None:
    assert Scenario("ours").name == "ours-1gbit-2ch-tls-raw-populated-1024m-200r-200t-16w-1000p"


def test_every_field_is_in_the_name() -> None:
    base = Scenario("ours")
    assert set(OTHER_VALUES) == {field.name for field in fields(Scenario)}
    names = {replace(base, **{name: value}).name for name, value in OTHER_VALUES.items()}
    assert len(names | {base.name}) == len(OTHER_VALUES) + 1


def test_every_field_of_the_guest_is_in_the_name() -> None:
    base = GuestMix()
    names = {replace(base, **{field.name: getattr(base, field.name) + 1}).name for field in fields(GuestMix)}
    assert len(names | {base.name}) == len(fields(GuestMix)) + 1


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"engine": "theirs"}, BadSetting),
        ({"compression": "lzma"}, BadSetting),
        ({"channels": 0}, BadSetting),
        ({"channels": 65}, BadSetting),
        ({"link": "fast"}, BadQuantity),
        ({"link": "1Gbit,colour=red"}, BadDefinition),
        ({"guest": GuestMix(working_set_mib=401)}, BadSetting),
    ],
)
def test_a_scenario_that_could_not_be_run(changes: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        replace(Scenario("ours"), **changes)


def test_a_comparison_is_between_engines_only() -> None:
    ours, stock = Scenario("ours"), Scenario("stock")
    assert Comparison("x", "?", (stock, ours)) == against_stock("x", "?", ours) == against_stock("x", "?", stock)
    assert Comparison("x", "?", (stock, ours)).of("ours") is ours
    with pytest.raises(BadSetting, match=r"differ in channels, tls too"):
        Comparison("x", "?", (stock, replace(ours, channels=4, tls=False)))
    for scenarios in ((ours,), (ours, ours), (stock, ours, ours)):
        with pytest.raises(BadSetting, match="one scenario of stock"):
            Comparison("x", "?", scenarios)


def test_the_journey_is_what_was_promised() -> None:
    journey = COMPARISONS["journey"].of("ours")
    assert (journey.link, journey.tls, journey.guest.memory_mib) == ("1Gbit", True, 1024)
    assert journey.guest.random_mib + journey.guest.text_mib == 400
    assert list_benchmarks() == {"journey": COMPARISONS["journey"].question}
