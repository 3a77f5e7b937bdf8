from __future__ import annotations

import re
from typing import Any

import pytest

from livemove.api.models import LeftOutView, VerificationView
from livemove.cli.report_text import outcome_line, plan_lines, report_lines, verification_lines

from .fake_agent import cancelled_report, plan_view, report_view


def test_outcome_in_plain_words_comes_first() -> None:
    lines = report_lines(report_view(downtime_client_ms=160.0))
    assert lines[0] == "db1 moved from A to B in 9.41 s, downtime 131 ms (QEMU 98 ms, client 160 ms)"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"downtime_qemu_ms": None}, "db1 moved from A to B in 9.41 s, downtime 131 ms"),
        (
            {"arrived_as": "paused", "downtime_ms": None, "downtime_qemu_ms": None},
            "db1 moved from A to B in 9.41 s, downtime not measured, and is paused as it was",
        ),
        (
            {"outcome": "failed", "owner": "source"},
            "db1 was not moved from A to B: failed after 9.41 s; it belongs to A",
        ),
        (
            {"outcome": "failed", "owner": "destination"},
            "db1 was not moved from A to B: failed after 9.41 s; it belongs to B",
        ),
        (
            {"outcome": "failed", "owner": "unknown"},
            "db1: whether it moved from A to B is not known; nobody may start it until both hosts answer",
        ),
        (
            {"outcome": "ended", "owner": "source"},
            "db1 was not moved from A to B: its guest ended after 9.41 s; it belongs to A",
        ),
        (
            {"outcome": "cancelled", "owner": "source"},
            "db1 was not moved from A to B: cancelled after 9.41 s; it belongs to A",
        ),
    ],
)
def test_outcomes(changes: dict[str, Any], line: str) -> None:
    assert outcome_line(report_view(**changes)) == line


def test_reason_and_remedy_follow_a_failure() -> None:
    lines = report_lines(cancelled_report())
    assert lines[1:3] == [
        "  reason: ann cancelled the journey.",
        "  remedy: Repeat the command when you want to move the VM.",
    ]


def test_numbers_with_units() -> None:
    text = "\n".join(report_lines(report_view()))
    for part in (
        r"on the wire: +450\.0 MiB \(0\.50 bytes on the wire a byte of RAM\)",
        r"RAM sent: +900\.0 MiB",
        r"pages: +115000 copied, 150000 zero, of 4\.0 KiB each",
        r"copy: +9\.27 s at 0\.94 Gbit/s",
        r"CPU at the source: +0\.72 s, 0\.76 s per GB of RAM",
        r"blackout: last pages 90 ms, journal 3 ms",
        r"zstd: B's QEMU lacks it",
        r"switched over: 98 ms forecast, 300 ms allowed",
        r"to the first byte: +640 ms after the command",
    ):
        assert re.search(part, text), part
    assert len([line for line in text.splitlines() if re.match(r"\d+ +\S.*done +\d+ ms$", line)]) == 10
    assert "multifd" not in text.partition("negotiated away")[2].partition("decisions")[0]


def test_a_journey_that_ended_before_any_step() -> None:
    nothing = report_view(
        outcome="failed", steps=[], ram_bytes=0, wire_bytes=0, copy_ms=None, destination_cpu_seconds=None, negotiated=[]
    )
    text = "\n".join(report_lines(nothing))
    assert "no step was begun" in text
    assert "CPU at the destination:  not known" in text
    assert "negotiated away" not in text


def test_plan_has_the_whole_table() -> None:
    text = "\n".join(plan_lines(plan_view()))
    assert text.startswith("db1 would move from A to B; nothing was changed.")
    assert re.search(r"zstd +yes +no +no +B's QEMU lacks it", text)
    assert re.search(r"multifd +yes +yes +yes", text)
    assert re.search(r"bandwidth: +10 Gbit/s at most", text)


def test_what_was_verified_and_what_it_cost() -> None:
    full = VerificationView(
        mode="full", result="same", blocks={"ram0": 128 << 20, "pc.bios": 256 << 10}, compared_bytes=(128 << 20) + (256 << 10),
        left_out=[LeftOutView(name="odd", size_bytes=4096, reason="it cannot be read: Input/output error")], ms=57.6,
    )  # fmt: skip
    lines = report_lines(report_view(verification=full))
    start = lines.index("verification (full): the same on both hosts")
    assert lines[start + 1 : start + 4] == [
        "  compared: 128.2 MiB, in 58 ms of downtime",
        "  blocks: ram0 128.0 MiB, pc.bios 256.0 KiB",
        "  left out: odd, 4.0 KiB: it cannot be read: Input/output error",
    ]
    assert not [line for line in report_lines(report_view()) if "verification" in line]


def test_a_sample_says_of_how_much_and_a_difference_says_where() -> None:
    sample = VerificationView(
        mode="sample", result="different", blocks={"ram0": 1 << 30}, compared_bytes=3 << 20, different_pages=["ram0 at 0x5000"]
    )  # fmt: skip
    assert verification_lines(sample) == [
        "verification (sample): NOT the same on both hosts",
        "  compared: 3.0 MiB of 1.0 GiB, drawn at random",
        "  blocks: ram0 1.0 GiB",
        "  differs: ram0 at 0x5000",
    ]
    explained = sample.model_copy(update={"explained": ["ram0 at 0x7c0: KVM's wall clock"], "different_pages": []})
    assert verification_lines(explained)[-1] == "  differs as it must: ram0 at 0x7c0: KVM's wall clock"


def test_the_plan_says_what_would_be_verified() -> None:
    assert re.search(r"verify: +off\n", "\n".join(plan_lines(plan_view())) + "\n")
    text = "\n".join(plan_lines(plan_view().model_copy(update={"verify": "full"})))
    assert re.search(r"verify: +all of the memory", text)
