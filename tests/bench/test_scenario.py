"""Names come from fields, and every scenario of a comparison finds its links in one lab."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from livemove.base.errors import BadDefinition, BadQuantity, BadSetting
from livemove.bench.main import BENCHMARKS, list_benchmarks
from livemove.bench.scenario import Comparison, GuestMix, LabLink, Scenario, against_stock, capacity_bytes_per_s

OTHER_VALUES: dict[str, Any] = {
    "engine": "stock",
    "links": ("10Gbit",),
    "multichannel": True,
    "channels": 4,
    "tls": False,
    "compression": "zstd",
    "populate": False,
    "guest": GuestMix(memory_mib=512),
}


@pytest.mark.parametrize(
    ("links", "words"),
    [
        (("1Gbit",), "1gbit"),
        (("1Gbit", "1Gbit"), "2x1gbit-mptcp"),
        (("1Gbit", "250Mbit"), "1gbit-and-250mbit-mptcp"),
        (("1Gbit,mtu=9000", "1Gbit", "1Gbit"), "1gbit+mtu=9000-and-2x1gbit-mptcp"),
    ],
)
def test_name(links: tuple[str, ...], words: str) -> None:
    scenario = Scenario("ours", links, multichannel=len(links) > 1)
    assert scenario.name == f"ours-{words}-2ch-tls-raw-populated-1024m-200r-200t-16w-1000p"


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
        ({"links": ()}, BadSetting),
        ({"links": ("1Gbit", "1Gbit")}, BadSetting),
        ({"engine": "stock", "multichannel": True}, BadSetting),
        ({"links": ("fast",)}, BadQuantity),
        ({"links": ("1Gbit,colour=red",)}, BadDefinition),
        ({"guest": GuestMix(working_set_mib=401)}, BadSetting),
    ],
)
def test_a_scenario_that_could_not_be_run(changes: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        replace(Scenario("ours"), **changes)


@pytest.mark.parametrize(
    ("links", "expected"),
    [(("1Gbit", "250Mbit"), 156_250_000), (("1Gbit", "unshaped"), None), (("1MB",), 1_000_000)],
)
def test_capacity(links: tuple[str, ...], expected: int | None) -> None:
    assert capacity_bytes_per_s(links) == expected


def test_against_stock_differs_in_the_engine_only() -> None:
    ours = Scenario("ours", channels=4)
    comparison = against_stock("x", "?", ours)
    assert comparison == against_stock("x", "?", replace(ours, engine="stock"))
    assert comparison.scenarios == {"stock": replace(ours, engine="stock"), "ours": ours}
    assert comparison.engines == ("stock", "ours")


def test_a_comparison_moves_one_guest() -> None:
    with pytest.raises(BadSetting, match="no scenario"):
        Comparison("x", "?", {})
    for other in (replace(Scenario("ours"), guest=GuestMix(512)), replace(Scenario("ours"), populate=False)):
        with pytest.raises(BadSetting, match="different guests"):
            Comparison("x", "?", {"one": Scenario("ours"), "other": other})


def test_links_of_the_lab() -> None:
    """As many of a kind as one scenario needs; what is encrypted and what is not never share one."""
    two, one = Scenario("ours", ("1Gbit",) * 2, multichannel=True), Scenario("ours", ("1Gbit",))
    mixed = Scenario("ours", ("250Mbit", "1Gbit", "250Mbit"), multichannel=True)
    plain = Scenario("ours", ("1Gbit",), tls=False)
    comparison = Comparison("x", "?", {"one": one, "mixed": mixed, "two": two, "plain": plain})
    tls_1g, tls_250m, plain_1g = LabLink("1Gbit", True), LabLink("250Mbit", True), LabLink("1Gbit", False)
    assert comparison.lab_links == (tls_1g, tls_1g, tls_250m, tls_250m, plain_1g)
    assert [comparison.links_of(scenario) for scenario in (one, two, mixed, plain)] == [(0,), (0, 1), (2, 0, 3), (4,)]


def test_every_other_round_goes_backwards() -> None:
    comparison = against_stock("x", "?", Scenario("ours"))
    assert [comparison.order_of(pair) for pair in (1, 2, 3)] == [
        ("stock", "ours"),
        ("ours", "stock"),
        ("stock", "ours"),
    ]


def test_the_journey_is_what_was_promised() -> None:
    journey = BENCHMARKS["journey"].comparison.scenarios["ours"]
    assert (journey.links, journey.tls, journey.guest.memory_mib) == (("1Gbit",), True, 1024)
    assert journey.guest.random_mib + journey.guest.text_mib == 400
    assert list_benchmarks()["journey"] == BENCHMARKS["journey"].comparison.question
