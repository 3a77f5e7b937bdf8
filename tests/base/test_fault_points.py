"""Fault points: a process that stands still exactly there, and one that cannot be made to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from livemove.base import fault_points

PROGRAM = """
import os, sys
from pathlib import Path
from livemove.base import fault_points
fault_points.arm(Path(sys.argv[1]), os.environ)
for what in ("one", "two", "two"):
    with fault_points.around("here", what):
        print(what, flush=True)
"""


@pytest.fixture(autouse=True)
def unarmed() -> Iterator[None]:
    yield
    fault_points.arm(Path("/nonexistent"), {})


def start(run_dir: Path, variable: str | None) -> subprocess.Popen[str]:
    environment = {**os.environ, fault_points.VARIABLE: variable} if variable is not None else dict(os.environ)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(run_dir)], env=environment, stdout=subprocess.PIPE, text=True
    )


def test_it_stops_at_the_named_point_once_and_goes_on(tmp_path: Path):
    (tmp_path / fault_points.FILE_NAME).write_text("here.before.two\n")
    with start(tmp_path, "1") as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGSTOP
        assert not (tmp_path / fault_points.FILE_NAME).exists()
        assert process.stdout is not None
        assert process.stdout.readline() == "one\n"
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdout.read() == "two\ntwo\n"
    assert process.returncode == 0


@pytest.mark.parametrize("variable", [None, "", "0", "yes"])
def test_without_the_variable_the_file_means_nothing(tmp_path: Path, variable: str | None):
    (tmp_path / fault_points.FILE_NAME).write_text("here.before.one")
    with start(tmp_path, variable) as process:
        assert process.communicate(timeout=20)[0] == "one\ntwo\ntwo\n"
    assert (tmp_path / fault_points.FILE_NAME).exists()


def test_another_point_s_name_leaves_the_file(tmp_path: Path):
    (tmp_path / fault_points.FILE_NAME).write_text("somewhere.else")
    assert fault_points.arm(tmp_path, {fault_points.VARIABLE: "1"})
    fault_points.reach("here.before.one")
    assert (tmp_path / fault_points.FILE_NAME).exists()


def test_the_point_after_is_reached_when_what_is_between_fails(monkeypatch: pytest.MonkeyPatch):
    reached: list[str] = []
    monkeypatch.setattr(fault_points, "_reached", reached.append)
    with pytest.raises(ZeroDivisionError), fault_points.around("here", "x"):
        raise ZeroDivisionError
    assert reached == ["here.before.x", "here.after.x"]
