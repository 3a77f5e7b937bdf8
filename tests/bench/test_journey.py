"""What the samples of the journey's benchmark say."""

from __future__ import annotations

from tests.bench.test_report import a_report

from livemove.bench.journey import BARS, JOURNEY, ratios_of
from livemove.bench.report import Bar, Report, Sample
from livemove.bench.run import keep, ledger_of, progress_line
from livemove.bench.text import report_lines, verdict_line


def stock_of(pair: int, copy_ms: float, downtime_ms: float) -> Sample:
    return {
        "pair": pair, "copy_ms": copy_ms, "first_round_ms": copy_ms - 50, "downtime_ms": downtime_ms, "downtime_qemu_ms": downtime_ms - 1,
        "client_gap_ms": downtime_ms + 5, "rounds": 3, "wire_bytes": 2_000_000, "normal_pages": 500, "busy_cores": 1.26, "others_cores": 0.1,
    }  # fmt: skip


def ours_of(pair: int, copy_ms: float, downtime_ms: float, first_byte_ms: float = 500) -> Sample:
    ours = {
        "command_to_first_byte_ms": first_byte_ms, "before_steps_ms": first_byte_ms - 70,
        "steps_ms": {"1 find": 10.0, "5 connection": 60.0, "6 first round": copy_ms, "10 clean-up": 5.0},
        "blackout_ms": {"hand_over": downtime_ms / 2},
    }  # fmt: skip
    return stock_of(pair, copy_ms, downtime_ms) | ours


def report_of(ours: list[Sample], stock: list[Sample]) -> Report:
    report = a_report()
    report.of("ours").samples += ours
    report.of("stock").samples += stock
    return report


def test_ratios_are_made_pair_by_pair() -> None:
    report = report_of(
        [ours_of(1, 1100, 60, 400), ours_of(2, 2100, 50, 700), ours_of(3, 3000, 90, 500)],
        # taken in another order, and with a pair that has no partner yet
        [stock_of(2, 2000, 45), stock_of(1, 1000, 40), stock_of(3, 3000, 80), stock_of(4, 9, 9)],
    )
    found = ratios_of(report)
    assert found["copy_over_stock"].samples == [1.1, 1.05, 1.0]
    assert (found["copy_over_stock"].value, found["copy_over_stock"].p) == (1.05, 0.5)
    assert found["downtime_extra_ms"].samples == [20, 5, 10]
    assert (found["downtime_extra_ms"].value, found["downtime_extra_ms"].low, found["downtime_extra_ms"].high) == (
        10,
        5,
        20,
    )
    assert found["command_to_first_byte_ms"].samples == [400, 700, 500]
    assert found["client_gap_extra_ms"].value == 10
    assert {name: ratio.met for name, ratio in found.items() if ratio.bar is not None} == {
        "copy_over_stock": True, "downtime_extra_ms": True, "command_to_first_byte_ms": True,
    }  # fmt: skip
    assert {
        "copy_over_stock": Bar(1.05), "downtime_extra_ms": Bar(20), "command_to_first_byte_ms": Bar(1500),
    } == BARS  # fmt: skip


def test_there_are_no_ratios_without_a_whole_pair() -> None:
    assert ratios_of(report_of([ours_of(1, 1, 1)], [])) == {}
    assert ratios_of(report_of([ours_of(1, 1, 1)], [stock_of(2, 1, 1)])) == {}


def test_ledger() -> None:
    assert ledger_of([]) == {}
    ledger = ledger_of([ours_of(1, 100, 20, 400), ours_of(2, 300, 40, 600), ours_of(3, 200, 30, 500)])
    assert ledger["to_first_byte_ms"] == {
        "0 command, until the journey begins": 430, "1 find": 10, "5 connection": 60,
    }  # fmt: skip
    assert ledger["steps_ms"]["6 first round"] == 200
    assert ledger["blackout_ms"] == {"hand_over": 15}


def test_progress_line() -> None:
    line = progress_line(2, 5, "ours", ours_of(2, 4321, 43.6))
    assert line == (
        "pair 2 of 5, ours: copy 4.32 s, downtime 44 ms (the client waited 49 ms), 3 rounds, 1.3 cores at work, 0.1 of them for other programs,"
        " first byte after 500 ms"
    )
    assert "first byte" not in progress_line(2, 5, "stock", stock_of(2, 4321, 43.6))


def test_report_as_text() -> None:
    report = report_of([ours_of(1, 1100, 70)], [stock_of(1, 1000, 40)])
    keep(JOURNEY, report, None)
    text = "\n".join(report_lines(report))
    assert "INCOMPLETE, 5 pairs were asked for" in text
    assert "A CPU, 2 cores" in text
    assert "copy_over_stock: 1.100 [1.100 to 1.100, 0 %], p = 1; at most 1.05: NOT MET" in text
    assert "downtime_extra_ms: 30.0 ms [30.0 to 30.0, 0 %], p = 1; at most 20 ms: NOT MET" in text
    assert "command_to_first_byte_ms: 500.0 ms [500.0 to 500.0, 0 %]; at most 1500 ms: met" in text
    row = next(line.split() for line in text.splitlines() if line.startswith("copy (ms)"))
    assert row == ["copy", "(ms)", "1100", "[1100", "to", "1100]", "1000", "[1000", "to", "1000]"]
    assert "  0 command, until the journey begins  430.0" in text
    assert "quiet machine" not in text
    for result in report.scenarios:
        result.samples[0]["others_cores"] = 0.8
    assert "Other programs took 0.8 cores" in "\n".join(report_lines(report))
    report.complete = True
    assert "INCOMPLETE" not in "\n".join(report_lines(report))
    no_bar = next(ratio for name, ratio in report.ratios.items() if name == "client_gap_extra_ms")
    assert verdict_line("x", no_bar) == "x: 30.0 ms [30.0 to 30.0, 0 %], p = 1"


def test_a_report_without_samples_can_be_told() -> None:
    assert report_lines(a_report())[-1].endswith("0 of stock; INCOMPLETE, 5 pairs were asked for")
