"""A benchmark run, small, for the shape of its results and for what is left of it."""

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
from dataclasses import replace
from pathlib import Path

import pytest

from livemove.base.errors import BadSetting, Conflict, StateUnwritable
from livemove.bench import main
from livemove.bench.journey import BARS, JOURNEY
from livemove.bench.multichannel import MULTICHANNEL
from livemove.bench.report import read_report
from livemove.bench.scenario import Comparison, GuestMix, Scenario, against_stock
from livemove.lab.lab import Lab, down, leftovers
from livemove.lab.registry import RUN_ROOT
from livemove.lab.topology import LabSpec

GUEST = GuestMix(128, 16, 16, 4, 500)
SMALL = replace(JOURNEY, comparison=against_stock("journey", "How?", Scenario("ours", ("unshaped",), guest=GUEST)))
ONE = Scenario("ours", ("300Mbit",), tls=False, guest=GUEST)
SMALL_MULTICHANNEL = replace(
    MULTICHANNEL,
    comparison=Comparison(
        "multichannel",
        "How?",
        {
            "stock_one": replace(ONE, engine="stock"),
            "one": ONE,
            "two": replace(ONE, links=("300Mbit",) * 2, multichannel=True),
            "two_zstd": replace(ONE, links=("300Mbit",) * 2, multichannel=True, compression="zstd", tls=True),
        },
    ),
)


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
        "bulk_ms",
        "link_bytes",
    }
    assert common <= stock.keys() and common | {"steps_ms", "blackout_ms", "command_to_first_byte_ms"} <= ours.keys()
    # both moved the same guest: what differs a lot was not measured alike
    pages_mib = [sample["normal_pages"] / 256 for sample in (stock, ours)]
    assert all(32 < mib < 128 for mib in pages_mib) and 0.7 < pages_mib[0] / pages_mib[1] < 1.4
    assert all(0 < sample["downtime_ms"] < sample["copy_ms"] + 1000 for sample in (stock, ours))
    assert BARS.keys() <= data["ratios"].keys()
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


@pytest.mark.qemu
def test_a_small_run_over_several_links(lab_name: str) -> None:
    report = main.run_one(SMALL_MULTICHANNEL, json_path=None, pairs=1, say=print, lab=lab_name, settle_s=0.3)
    assert leftovers(lab_name) == []
    assert report.complete and {check["bad"] for check in report.guest_checks.values()} == {0}
    samples = {result.key: result.samples[0] for result in report.scenarios}
    # link0 and link1 are not encrypted, link2 and link3 are
    used = {"stock_one": {"link0"}, "one": {"link0"}, "two": {"link0", "link1"}, "two_zstd": {"link2", "link3"}}
    for key, links in used.items():
        carried = samples[key]["link_bytes"]
        assert {link for link, number in carried.items() if number > 0.25 * sum(carried.values())} == links
    assert samples["two_zstd"]["wire_bytes"] < 0.8 * samples["two"]["wire_bytes"]
    assert {path["network"] for path in samples["two"]["paths"]} == {"10.80.0.0/24", "10.81.0.0/24"}
    assert report.ratios.keys() == {"two_over_one", "two_share_of_sum", "two_over_stock"}
    assert report.ledger["steps_ms"]["6 first round"] == samples["two"]["steps_ms"]["6 first round"]


_RUN = """
import sys
from pathlib import Path
from livemove.bench.main import run_one
from tests.bench.test_run import SMALL
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


def test_the_benchmarks_that_the_command_runs() -> None:
    assert main.BENCHMARKS == {"journey": JOURNEY, "multichannel": MULTICHANNEL}
