"""The file of a report: whole, readable, and a named error when it is not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from livemove.base.errors import BadSetting, StateUnwritable
from livemove.bench.report import Bar, HostFacts, Report, ScenarioResult, make_ratio, read_report, write_report
from livemove.bench.scenario import Scenario

HOST = HostFacts("A CPU", 2, 1 << 34, "6.1", "10.0.2", "tcg", "3.11.2", "0.1.0", 0.5)


def a_report(**changes: Any) -> Report:
    results = [ScenarioResult.of(engine, Scenario(engine)) for engine in ("stock", "ours")]
    report = Report("journey", "How?", "2026-01-31T12:00:00.000Z", HOST, 5, results)
    for name, value in changes.items():
        setattr(report, name, value)
    return report


def test_ratio_and_its_bar() -> None:
    ratio = make_ratio([1.2, 1.0, 1.1], bar=Bar(1.1))
    assert (ratio.value, ratio.low, ratio.high, ratio.samples) == (1.1, 1.0, 1.2, [1.2, 1.0, 1.1])
    assert ratio.met is True
    assert make_ratio([1.11], bar=Bar(1.1)).met is False
    assert make_ratio([1.9], bar=Bar(1.93, "least")).met is False
    assert make_ratio([1.94], bar=Bar(1.93, "least")).met is True
    assert make_ratio([1.0]).met is None


def test_written_and_read_again(tmp_path: Path) -> None:
    report = a_report(ratios={"copy_over_stock": make_ratio([1.0, 1.02], bar=Bar(1.05), p=0.5)}, complete=True)
    report.of("ours").samples.append({"pair": 1, "copy_ms": 4.5, "steps_ms": {"1 find": 2.0}})
    path = tmp_path / "journey.json"
    write_report(report, path)
    data = json.loads(path.read_text())
    assert {"name", "host", "scenarios", "ratios", "date"} <= data.keys()
    assert {"key", "name", "fields", "samples"} == data["scenarios"][0].keys()
    assert {"value", "low", "high", "samples", "met"} <= data["ratios"]["copy_over_stock"].keys()
    assert data["ratios"]["copy_over_stock"]["met"] is True
    assert data["scenarios"][0]["fields"]["guest"]["random_mib"] == 200
    assert read_report(path) == report
    assert list(tmp_path.iterdir()) == [path]


def test_keys_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "journey.json"
    path.write_text(json.dumps({**a_report().to_json(), "colour": "red"}))
    assert read_report(path) == a_report()


def test_a_report_of_the_first_version_is_read(tmp_path: Path) -> None:
    """Its scenarios had no key, and its figures only one kind of bar."""
    path = tmp_path / "journey.json"
    old = a_report(ratios={"x": make_ratio([1.0], bar=Bar(1.05))}).to_json()
    del old["ledger_of"], old["ratios"]["x"]["bar_at"]
    for scenario in old["scenarios"]:
        del scenario["key"]
    path.write_text(json.dumps(old))
    report = read_report(path)
    assert report.of("stock").fields["engine"] == "stock" and report.ratios["x"].met is True


def test_whole_pairs() -> None:
    report = a_report()
    for engine, pairs in (("ours", (3, 1)), ("stock", (1, 2, 3))):
        report.of(engine).samples += [{"pair": pair, "of": engine} for pair in pairs]
    assert [[(s["pair"], s["of"]) for s in whole] for whole in report.whole_pairs("ours", "stock")] == [
        [(1, "ours"), (1, "stock")],
        [(3, "ours"), (3, "stock")],
    ]
    assert len(report.whole_pairs("stock")) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b'{"name": "journey", "scena', "damaged"),
        (b"[]", "damaged"),
        (b"{}", "'name'"),
        (b'{"name": "journey", "question": "", "date": "", "host": 5}', "'host'"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    with pytest.raises(BadSetting) as caught:
        read_report(path)
    assert str(path) in caught.value.message and said in caught.value.message


def test_a_file_cut_anywhere_is_an_error_of_ours(tmp_path: Path) -> None:
    whole, path = json.dumps(a_report().to_json()).encode(), tmp_path / "cut.json"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(BadSetting):
            read_report(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match=r"none\.json cannot be read: No such file"):
        read_report(tmp_path / "none.json")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journey.json"
    write_report(a_report(), path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateUnwritable, match="No space left"):
        write_report(a_report(pairs=9), path)
    assert read_report(path).pairs == 5
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StateUnwritable, match="No such file"):
        write_report(a_report(), tmp_path / "none" / "journey.json")
