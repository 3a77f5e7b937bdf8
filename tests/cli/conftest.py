"""A command line whose output is caught, and a cluster of fake agents that it finds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from livemove.cli.main import run

from .fake_agent import FakeCluster, vm_view


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of standard output, which must be an object."""
        found = json.loads(self.out.splitlines()[-1])
        assert isinstance(found, dict)
        return found


Cli = Callable[..., Ended]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Runs ``livemove`` with the words given. No identity is found unless a test gives one."""
    # set first, so that what --identity puts there is taken back at the end
    monkeypatch.setenv("LIVEMOVE_IDENTITY", str(tmp_path / "nobody"))

    def invoke(*words: str) -> Ended:
        capsys.readouterr()
        code = run(list(words))
        caught = capsys.readouterr()
        return Ended(code, caught.out, caught.err)

    return invoke


@pytest.fixture
def cluster(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    """Hosts A and B; db1 runs on A."""
    with FakeCluster(tmp_path) as fake:
        fake["A"].vms["db1"] = vm_view("db1", "A")
        monkeypatch.setenv("LIVEMOVE_IDENTITY", str(fake.identity_dir))
        yield fake
