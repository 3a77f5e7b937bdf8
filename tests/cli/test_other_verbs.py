"""Verbs that hand over to another part of livemove, which has its own tests: here only what is handed over."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from livemove.base.errors import Conflict, MissingPrerequisite
from livemove.base.settings import DEFAULT_CONFIG

from .conftest import Cli


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)


def test_agent(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configs: list[Path] = []

    def run_agent(config: Path) -> None:
        configs.append(config)
        if config == tmp_path:
            raise Conflict("192.0.2.1:7443 is in use.")

    stand_in(monkeypatch, "livemove.agent.main", run_agent=run_agent)
    assert cli("agent").code == 0
    refused = cli("agent", "--config", str(tmp_path))
    assert refused.code == Conflict.exit_code
    assert refused.err.startswith("livemove: 192.0.2.1:7443 is in use.\n")
    assert configs == [DEFAULT_CONFIG, tmp_path]


def test_demo(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, bool]] = []

    def run_demo(*, as_json: bool, keep: bool, say: Any) -> dict[str, Any]:
        asked.append((as_json, keep))
        say("two hosts are up")
        return {"outcome": "passed", "journeys": [], "guest_checks": {"bad": 0}, "client_blackout_ms": 160.0}

    stand_in(monkeypatch, "livemove.lab.demo", run_demo=run_demo)
    assert cli("demo", "--keep").out == "two hosts are up\n"
    ended = cli("demo", "--json")
    assert ended.json["guest_checks"] == {"bad": 0}
    assert ended.out.count("\n") == 1
    assert ended.err == "two hosts are up\n"
    assert asked == [(False, True), (True, False)]


def test_a_demo_that_cannot_be_run(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_demo(**_: Any) -> dict[str, Any]:
        raise MissingPrerequisite("qemu-system-x86_64 is not installed.")

    stand_in(monkeypatch, "livemove.lab.demo", run_demo=run_demo)
    ended = cli("demo", "--json")
    assert ended.code == ended.json["exit_code"] == MissingPrerequisite.exit_code


def test_bench(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def run_benchmarks(names: list[str], *, json_path: Path | None, pairs: int, say: Any) -> None:
        asked.append((names, json_path, pairs))
        say("journey: 5 pairs")

    stand_in(
        monkeypatch,
        "livemove.bench.main",
        list_benchmarks=lambda: {"journey": "What does livemove cost over stock QEMU?"},
        run_benchmarks=run_benchmarks,
    )
    assert cli("bench", "list").out.splitlines()[1] == "journey  What does livemove cost over stock QEMU?"
    assert cli("bench", "list", "--json").json["benchmarks"][0]["name"] == "journey"
    assert cli("bench", "run", "journey", "--json", str(tmp_path / "x.json"), "--pairs", "7").code == 0
    assert cli("bench", "run", "journey").out == "journey: 5 pairs\n"
    assert asked == [(["journey"], tmp_path / "x.json", 7), (["journey"], None, 5)]
    assert cli("bench", "run", "journey", "--pairs", "0").code == 2
