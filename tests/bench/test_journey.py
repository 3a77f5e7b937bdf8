"""What the samples of a journey's benchmark say; and the benchmark itself, small, for the shape of its results."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.bench.test_report import a_report

from livemove.base.errors import BadSetting, Conflict, StateUnwritable
from livemove.bench import main
from livemove.bench.journey import BARS, JOURNEY, keep, ledger_of, order_of, progress_line, ratios_of
from livemove.bench.report import Report, Sample, read_report
from livemove.bench.scenario import GuestMix, Scenario, against_stock
from livemove.bench.text import report_lines, verdict_line
from livemove.lab.lab import Lab, down, leftovers
from livemove.lab.registry import RUN_ROOT
from livemove.lab.topology import LabSpec

SMALL = against_stock(
    "journey", "How?", Scenario("ours", link="unshaped", guest=GuestMix(128, 16, 16, 4, 500))
)  # fmt: skip


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
    assert {bar.ratio: bar.at_most for bar in BARS} == {
        "copy_over_stock": 1.05, "downtime_extra_ms": 20, "command_to_first_byte_ms": 1500,
    }  # fmt: skip


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


def test_who_goes_first_alternates() -> None:
    assert [order_of(pair)[0] for pair in range(1, 5)] == ["stock", "ours", "stock", "ours"]
    assert all(sorted(order_of(pair)) == ["ours", "stock"] for pair in range(1, 3))


def test_progress_line() -> None:
    line = progress_line(2, 5, "ours", ours_of(2, 4321, 43.6))
    assert line == (
        "pair 2 of 5, ours: copy 4.32 s, downtime 44 ms (the client waited 49 ms), 3 rounds, 1.3 cores at work, 0.1 of them for other programs,"
        " first byte after 500 ms"
    )
    assert "first byte" not in progress_line(2, 5, "stock", stock_of(2, 4321, 43.6))


def test_report_as_text() -> None:
    report = report_of([ours_of(1, 1100, 70)], [stock_of(1, 1000, 40)])
    keep(report, None)
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


def test_names_are_checked_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="no benchmark 'voyage'"):
        main.run_benchmarks(["journey", "voyage"], json_path=None, pairs=1, say=print)
    with pytest.raises(BadSetting, match="one benchmark"):
        main.run_benchmarks(["journey", "journey"], json_path=tmp_path / "f", pairs=1, say=print)


# With real QEMUs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def lab_name() -> Iterator[str]:
    name = f"bt{time.monotonic_ns() % 10**8}"
    yield name
    asyncio.run(down(name))
    assert leftovers(name) == []


@pytest.mark.qemu
def test_a_small_run_has_the_promised_shape(tmp_path: Path, lab_name: str) -> None:
    path, said = tmp_path / "journey.json", []
    main.run_one(SMALL, json_path=path, pairs=1, say=lambda text="": said.append(text), lab=lab_name, settle_s=0.3)
    assert leftovers(lab_name) == []
    data = json.loads(path.read_text())
    assert data["name"] == "journey" and data["complete"] is True and data["host"]["qemu"]
    assert [len(scenario["samples"]) for scenario in data["scenarios"]] == [1, 1]
    stock, ours = (scenario["samples"][0] for scenario in data["scenarios"])
    common = {
        "pair",
        "way",
        "copy_ms",
        "downtime_ms",
        "client_gap_ms",
        "rounds",
        "wire_bytes",
        "normal_pages",
        "busy_cores",
    }
    assert common <= stock.keys() and common | {"steps_ms", "blackout_ms", "command_to_first_byte_ms"} <= ours.keys()
    # both moved the same guest: what differs a lot was not measured alike
    pages_mib = [sample["normal_pages"] / 256 for sample in (stock, ours)]
    assert all(32 < mib < 128 for mib in pages_mib) and 0.7 < pages_mib[0] / pages_mib[1] < 1.4
    assert all(0 < sample["downtime_ms"] < sample["copy_ms"] + 1000 for sample in (stock, ours))
    assert {bar.ratio for bar in BARS} <= data["ratios"].keys()
    for ratio in data["ratios"].values():
        assert ratio["low"] <= ratio["value"] <= ratio["high"] and len(ratio["samples"]) == 1
    before = data["ledger"]["to_first_byte_ms"]
    assert sum(before.values()) == pytest.approx(ours["command_to_first_byte_ms"], abs=1)
    # Python's start is in it: less would mean that the clock was started later
    assert before["0 command, until the journey begins"] > 50
    assert data["guest_checks"] == {engine: {"checked": 8192, "bad": 0} for engine in ("stock", "ours")}
    assert read_report(path).to_json() == data
    assert any(line.startswith("pair 1 of 1, stock: copy") for line in said)
    assert any(line.startswith("copy_over_stock: ") for line in said)


_RUN = """
import sys
from pathlib import Path
from livemove.bench.main import run_one
from tests.bench.test_journey import SMALL
run_one(SMALL, json_path=Path(sys.argv[1]), pairs=50, lab=sys.argv[2], settle_s=0.3, say=lambda text="": print(text, flush=True))
"""


@pytest.mark.qemu
@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_cut_short_it_leaves_results_and_nothing_else(tmp_path: Path, lab_name: str, number: signal.Signals) -> None:
    path = tmp_path / "journey.json"
    with subprocess.Popen(
        [sys.executable, "-c", _RUN, str(path), lab_name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if line.startswith("pair 1 of 50"):
                break
        else:
            pytest.fail(process.stderr.read())
        time.sleep(2.5)  # somewhere in the middle of the next move
        process.send_signal(number)
        time.sleep(0.1)
        process.send_signal(number)  # an impatient user
        said, complaint = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in complaint and process.returncode != 0
    assert leftovers(lab_name) == []
    digests = tuple(control_group_digest(lab_name, host) for host in "AB")
    assert not [group for group in Path("/sys/fs/cgroup").glob("**/livemove/vm-*") if group.name.endswith(digests)]
    report = read_report(path)
    assert not report.complete and report.of("stock").samples
    assert "INCOMPLETE" in said


def control_group_digest(lab_name: str, host: str) -> str:
    """What ends the name of the control group of our guest's QEMU; see hypervisor.launch."""
    return hashlib.sha256(os.fsencode(RUN_ROOT / lab_name / "hosts" / host / "run" / "vms" / "ours")).hexdigest()[:8]


@pytest.mark.qemu
def test_a_lab_that_is_up_is_left_alone(lab_name: str, tmp_path: Path) -> None:
    async def make() -> None:
        await Lab.up(LabSpec(lab_name))

    asyncio.run(make())
    with pytest.raises(Conflict, match="up already"):
        main.run_one(SMALL, json_path=tmp_path / "f", pairs=1, say=lambda text="": None, lab=lab_name)
    assert leftovers(lab_name)


def test_a_file_that_cannot_be_written_is_found_before_the_measuring(tmp_path: Path) -> None:
    for path in (tmp_path / "no" / "f", tmp_path):
        with pytest.raises(StateUnwritable, match=f"{path} cannot be written"):
            main.run_one(SMALL, json_path=path, pairs=1, say=print, lab="never-made")
    assert list(tmp_path.iterdir()) == []


def test_the_comparison_that_the_command_runs() -> None:
    found: Any = main.COMPARISONS["journey"]
    assert found is JOURNEY
