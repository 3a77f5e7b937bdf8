from __future__ import annotations

import io
import json
import sys

import pytest

from livemove.base.errors import AgentUnreachable, UnknownVm
from livemove.cli import output


def test_columns_are_aligned_and_have_no_trailing_blanks() -> None:
    assert output.columns([["VM", "HOST"], ["longer", "A"], ["x", ""]]) == ["VM      HOST", "longer  A", "x"]


def test_control_characters_of_others_do_not_reach_the_terminal() -> None:
    assert output.printable("a\x1b[2Jb\tc\nd\x07") == "a?[2Jb\tc\nd?"
    assert output.printable("Grüße") == "Grüße"


def test_an_error_names_its_host_once(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_error(UnknownVm("There is no such VM.", where="alpha", remedy="Look."), as_json=False)
    assert capsys.readouterr().err == "livemove: alpha: There is no such VM.\n  remedy: Look.\n"
    output.print_error(AgentUnreachable("The agent of 'alpha' is away.", where="alpha", remedy=""), as_json=False)
    assert capsys.readouterr().err == "livemove: The agent of 'alpha' is away.\n"


def test_an_error_under_json_is_one_line_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_error(UnknownVm("no\nVM", details={"a": 1}), as_json=True)
    caught = capsys.readouterr()
    assert json.loads(caught.out) == UnknownVm("no\nVM", details={"a": 1}).to_json()
    assert caught.out.count("\n") == 1


def test_tables_are_plain_in_a_pipe_and_drawn_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output.table(["VM", "STATE"], [["db1", "running"]])
    assert capsys.readouterr().out == "VM   STATE\ndb1  running\n"

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    drawn = {}
    for no_color in (False, True):
        if no_color:
            monkeypatch.setenv("NO_COLOR", "1")
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        output.table(["VM", "STATE"], [["[bold]db1", "running"]])
        drawn[no_color] = terminal.getvalue()
    assert "\x1b[32mrunning" in drawn[False]
    assert "\x1b[32m" not in drawn[True]
    assert "[bold]db1" in drawn[True], "a name is text, not markup"


def test_an_empty_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(["VM"], [], empty="There are no VMs.")
    assert capsys.readouterr().out == "There are no VMs.\n"
