from __future__ import annotations

import pytest

from livemove.api.models import LeftoverView
from livemove.base.errors import Conflict, UnknownHost

from .conftest import Cli
from .fake_agent import FakeCluster

TAP = LeftoverView(
    kind="tap", name="lm12345678", owner="db1", reason="VM 'db1' does not run.", since="2026-01-31T12:00Z"
)


@pytest.fixture(autouse=True)
def with_leftovers(cluster: FakeCluster) -> None:
    cluster["B"].leftovers = [TAP]


def test_a_dry_run_shows_and_removes_nothing(cli: Cli, cluster: FakeCluster) -> None:
    ended = cli("gc", "--all", "--dry-run")
    assert ended.code == 0
    assert "lm12345678" in ended.out and "VM 'db1' does not run." in ended.out and "2026-01-31" in ended.out
    assert ended.out.endswith("Nothing was touched.\n")
    assert not cluster["A"].asked("DELETE /leftovers") and not cluster["B"].asked("DELETE /leftovers")


def test_it_is_removed_and_then_there_is_nothing(cli: Cli, cluster: FakeCluster) -> None:
    ended = cli("gc", "--host", "B")
    assert ended.code == 0 and "lm12345678" in ended.out and ended.out.endswith("1 removed.\n")
    assert not cluster["A"].asked("DELETE /leftovers") and not cluster["A"].asked("GET /leftovers")
    assert cli("gc", "--host", "B").out == "Nothing is left over on B.\n"
    assert cli("gc", "--all").out == "Nothing is left over on A, B.\n"


def test_json(cli: Cli, cluster: FakeCluster) -> None:
    said = cli("gc", "--all", "--dry-run", "--json").json
    assert said == {"hosts": {"A": [], "B": [TAP.model_dump()]}, "dry_run": True, "silent": {}}


def test_what_cannot_be_removed_is_said_and_ends_with_an_error(cli: Cli, cluster: FakeCluster) -> None:
    cluster["B"].leftovers = [TAP.model_copy(update={"kept": "It is in use."})]
    ended = cli("gc", "--host", "B")
    assert ended.code == Conflict.exit_code
    assert "tap lm12345678 on B is still there: It is in use." in ended.err


def test_hosts(cli: Cli, cluster: FakeCluster) -> None:
    assert cli("gc", "--host", "Z").code == UnknownHost.exit_code
    assert cli("gc", "--host", "A", "--all").code != 0
