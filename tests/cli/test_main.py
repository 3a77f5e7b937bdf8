"""What all verbs have in common: how errors look, exit codes, what is imported when."""

from __future__ import annotations

import subprocess
import sys

import pytest

from livemove import __version__
from livemove.base.errors import by_code
from livemove.cli import main as main_module
from livemove.cli import vm_verbs
from livemove.cli.reference import verbs

from .conftest import Cli
from .fake_agent import FakeCluster

HEAVY = ["httpx", "rich", "pydantic", "fastapi", "uvicorn", "pyroute2", "matplotlib", "cryptography", "asyncio", "ssl"]


def test_version(cli: Cli) -> None:
    assert cli("--version").out == f"livemove {__version__}\n"


def test_without_a_verb_the_help_is_printed(cli: Cli) -> None:
    ended = cli()
    assert ended.code == 0
    assert "migrate" in ended.out


@pytest.mark.parametrize(
    "words", [("frobnicate",), ("vm",), ("migrate", "db1"), ("migrate", "db1", "--to", "B", "--option", "smb"), ("-x",)]
)
def test_a_wrong_command_line_is_told_in_our_form(cli: Cli, words: tuple[str, ...]) -> None:
    ended = cli(*words)
    assert ended.code == 2
    assert ended.out == ""
    first, second = ended.err.splitlines()
    assert first.startswith("livemove: ")
    assert second.startswith("  remedy: 'livemove")


def test_a_wrong_command_line_under_json(cli: Cli) -> None:
    ended = cli("migrate", "db1", "--json")
    assert ended.code == 2
    assert ended.json["code"] == "usage"


def test_without_identity_every_verb_that_asks_agents_says_what_to_do(cli: Cli) -> None:
    kind = by_code()["no-identity"]
    for words in (
        ["vm", "list"],
        ["status"],
        ["migrate", "db1", "--to", "B"],
        ["host", "show"],
        ["events"],
        ["report"],
    ):
        ended = cli(*words, "--json")
        assert ended.code == ended.json["exit_code"] == kind.exit_code
        assert "livemove: " in ended.err and "  remedy: " in ended.err


def test_identity_option_wins(cli: Cli, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVEMOVE_IDENTITY", "/nowhere")
    assert cli("vm", "list").code == by_code()["no-identity"].exit_code
    assert cli("--identity", str(cluster.identity_dir), "vm", "list").code == 0


def test_a_bug_is_told_as_one(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> str:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(vm_verbs, "_read_definition", fail)
    ended = cli("vm", "define", "x.toml", "--json")
    assert ended.code == 1
    assert ended.json["code"] == "bug"
    assert "ZeroDivisionError: oops" in ended.json["message"]
    assert "Traceback" in ended.err


def test_ctrl_c_is_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(vm_verbs, "_read_definition", interrupt)
    assert cli("vm", "define", "x.toml").code == main_module.INTERRUPTED


def test_starting_imports_nothing_heavy() -> None:
    code = f"import sys, livemove.cli.main; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_verb_has_help(cli: Cli) -> None:
    for verb in verbs():
        ended = cli(*verb.split()[1:], "--help")
        assert ended.code == 0
        assert "--help" in ended.out
