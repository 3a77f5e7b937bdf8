"""What the samples of the multichannel benchmark say, and what it promises to measure."""

from __future__ import annotations

import pytest
from tests.bench.test_report import HOST

from livemove.bench.multichannel import BARS, MULTICHANNEL, SCENARIOS, ratios_of, share_of_sum
from livemove.bench.ours import option_of
from livemove.bench.report import Bar, Report, Sample, ScenarioResult
from livemove.bench.run import keep
from livemove.bench.scenario import Scenario
from livemove.bench.text import report_lines

# seconds of a whole copy, of 800 MB but for zstd
COPIES_S = {
    "stock_one": 6.9, "one": 7.0, "one_mptcp": 7.07, "two": 3.5, "unequal": 5.5, "one_of_four": 14.0, "four": 3.6,
    "one_zstd": 13.0, "two_raw": 12.0, "two_zstd": 7.5,
}  # fmt: skip


def a_report() -> Report:
    comparison = MULTICHANNEL.comparison
    results = [ScenarioResult.of(key, scenario) for key, scenario in comparison.scenarios.items()]
    return Report(comparison.name, comparison.question, "2026-01-31T12:00:00.000Z", HOST, 3, results, ledger_of="two")


def a_sample(pair: int, copy_s: float) -> Sample:
    return {
        "pair": pair, "copy_ms": copy_s * 1e3, "bulk_ms": copy_s * 900, "wire_bytes": 800_000_000, "downtime_ms": 60, "busy_cores": 1.5, "others_cores": 0.1,
        "before_steps_ms": 500, "steps_ms": {"1 find": 10, "6 first round": 3000}, "blackout_ms": {"hand_over": 5},
    }  # fmt: skip


def test_figures_and_bars() -> None:
    report = a_report()
    for pair, slower in ((1, 1.0), (2, 1.1), (3, 1.2)):
        for key, copy_s in COPIES_S.items():
            report.of(key).samples.append(a_sample(pair, copy_s * slower))
    found = ratios_of(report)
    assert found.keys() == BARS.keys() | {"two_over_stock"}
    assert found["two_over_one"].samples == [2.0, 2.0, 2.0] and found["two_over_one"].met
    assert found["two_share_of_sum"].samples[0] == pytest.approx(800 / 3.5 / 250, abs=1e-4)
    assert found["two_share_of_sum"].value == pytest.approx(800 / 3.85 / 250, abs=1e-4)
    assert found["two_share_of_sum"].met is False
    assert found["unequal_share_of_sum"].samples[0] == pytest.approx(800 / 5.5 / 156.25, abs=1e-4)
    assert found["four_over_one"].value == pytest.approx(14 / 3.6, abs=1e-4) and found["four_over_one"].met
    assert found["all_over_best_single"].value == pytest.approx(7.5 / 12, abs=1e-4)
    assert found["mptcp_cost"].value == 1.01 and found["mptcp_cost"].met
    assert found["two_over_stock"].value == pytest.approx(6.9 / 3.5, abs=1e-4) and found["two_over_stock"].met is None


def test_the_better_single_is_chosen_in_each_round() -> None:
    report = a_report()
    for pair, raw_s, zstd_s in ((1, 12.0, 10.0), (2, 8.0, 10.0)):
        for key, copy_s in (("two_zstd", 6.0), ("two_raw", raw_s), ("one_zstd", zstd_s)):
            report.of(key).samples.append(a_sample(pair, copy_s))
    assert ratios_of(report)["all_over_best_single"].samples == [0.6, 0.75]


def test_a_figure_waits_for_its_scenarios_only() -> None:
    report = a_report()
    assert ratios_of(report) == {}
    report.of("two").samples.append(a_sample(1, 3.5))
    assert ratios_of(report).keys() == {"two_share_of_sum"}
    report.scenarios = [report.of("two")]
    assert ratios_of(report).keys() == {"two_share_of_sum"}


def test_what_was_promised() -> None:
    assert {
        "two_over_one": Bar(1.93, "least"), "two_share_of_sum": Bar(0.93, "least"), "unequal_share_of_sum": Bar(0.9, "least"),
        "four_over_one": Bar(3.6, "least"), "all_over_best_single": Bar(0.8), "mptcp_cost": Bar(1.03),
    } == BARS  # fmt: skip
    links = {key: scenario.links for key, scenario in SCENARIOS.items()}
    assert (links["one"], links["two"]) == (("1Gbit",), ("1Gbit", "1Gbit"))
    assert (links["unequal"], links["four"]) == (("1Gbit", "250Mbit"), ("500Mbit",) * 4)
    for one, other in (("one", "one_mptcp"), ("one", "stock_one")):
        assert {SCENARIOS[one].links, SCENARIOS[one].tls} == {SCENARIOS[other].links, SCENARIOS[other].tls}
    for key in ("two_zstd", "two_raw", "one_zstd"):
        assert SCENARIOS[key].tls and set(links[key]) == {"300Mbit"}
    assert [link.link for link in MULTICHANNEL.comparison.lab_links] == [
        "1Gbit", "1Gbit", "250Mbit", "500Mbit", "500Mbit", "500Mbit", "500Mbit", "300Mbit", "300Mbit",
    ]  # fmt: skip


def test_share_of_links_without_a_rate() -> None:
    with pytest.raises(ValueError, match="without a rate"):
        share_of_sum(a_sample(1, 1), ["1Gbit", "unshaped"])


@pytest.mark.parametrize(
    ("scenario", "option"),
    [
        (Scenario("ours"), "tcp"),
        (Scenario("ours", multichannel=True), "multichannel"),
        (Scenario("ours", compression="zstd"), "compression"),
        (Scenario("ours", ("1Gbit",) * 2, multichannel=True, compression="zstd"), "compression"),
    ],
)
def test_option(scenario: Scenario, option: str) -> None:
    assert option_of(scenario) == option


def test_report_as_text() -> None:
    report = a_report()
    assert report_lines(report)[-1] == "  samples:  0 of each; INCOMPLETE, 3 pairs were asked for"
    for key in ("one", "two"):
        report.of(key).samples.append(a_sample(1, COPIES_S[key]))
    keep(MULTICHANNEL, report, None)
    lines = report_lines(report)
    assert "  all:      populated-1024m-350r-350t-16w-500p" in lines
    rows = {words[0]: words[1:] for line in lines if (words := line.split())}
    assert rows["one"] == ["ours-1gbit-2ch-plain-raw", "7.00", "[7.00", "to", "7.00]", "914", "60", "1.50"]
    assert rows["two"][0] == "ours-2x1gbit-mptcp-2ch-plain-raw" and "four" not in rows
    assert "The journey's steps of 'two' (medians, ms)" in lines
    assert "two_over_one: 2.000 [2.000 to 2.000, 0 %]; at least 1.93: met" in lines
    assert "two_share_of_sum: 0.914 [0.914 to 0.914, 0 %]; at least 0.93: NOT MET" in lines
