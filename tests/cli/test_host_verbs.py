from __future__ import annotations

import pytest

from livemove.base.errors import BadSetting, UnknownHost
from livemove.cli.host_verbs import parse_changes, value_text

from .conftest import Cli
from .fake_agent import FakeCluster


def test_show_all(cli: Cli, cluster: FakeCluster) -> None:
    lines = cli("host", "show").out.splitlines()
    assert [line.split()[0] for line in lines] == ["HOST", "A", "B"]
    assert "10.0.2" in lines[1]
    assert [host["name"] for host in cli("host", "show", "--json").json["hosts"]] == ["A", "B"]


def test_show_one_with_every_setting(cli: Cli, cluster: FakeCluster) -> None:
    text = cli("host", "show", "--host", "A").out
    for name in cluster["A"].settings:
        assert f"\n  {name} " in text
    assert cli("host", "show", "--host", "Z").code == UnknownHost.exit_code


def test_set(cli: Cli, cluster: FakeCluster) -> None:
    ended = cli("host", "set", "simultaneous=4", "allowed_bridges=br0,br1", "--host", "B")
    assert ended.code == 0
    assert ended.out.splitlines() == ["simultaneous     =  4", "allowed_bridges  =  br0,br1"]
    assert cluster["B"].asked("PATCH /host") == [{"changes": {"simultaneous": "4", "allowed_bridges": "br0,br1"}}]
    assert cli("host", "set", "simultaneous=5", "--host", "B", "--json").json["settings"]["simultaneous"] == "5"


def test_set_what_is_not(cli: Cli, cluster: FakeCluster) -> None:
    ended = cli("host", "set", "colour=red", "--host", "B", "--json")
    assert ended.code == BadSetting.exit_code
    assert "'colour'" in ended.json["message"]
    for words in (["simultaneous"], ["=4"], ["a=1", "a=2"]):
        assert cli("host", "set", *words, "--host", "B").code == BadSetting.exit_code
    assert len(cluster["B"].asked("PATCH /host")) == 1


def test_changes_keep_further_equals_signs() -> None:
    assert parse_changes(["qemu=/opt/a=b/qemu", "deadline="]) == {"qemu": "/opt/a=b/qemu", "deadline": ""}


@pytest.mark.parametrize(
    ("value", "text"), [(True, "true"), ([], '""'), (["a", "b"], "a,b"), ("", '""'), (0, "0"), (None, '""')]
)
def test_values_are_shown_as_they_are_typed(value: object, text: str) -> None:
    assert value_text(value) == text
