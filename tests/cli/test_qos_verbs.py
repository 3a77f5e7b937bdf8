"""``livemove qos`` against scripted agents A and B."""

from __future__ import annotations

from typing import Any

import pytest

from livemove.api.qos_models import dcb_body, wish_body
from livemove.base.errors import BadSetting
from livemove.policy.qos import DcbState, QosWish, TrafficClass, wanted_state

from .conftest import Cli
from .fake_agent import FakeCluster

FACTORY = DcbState(
    willing=True, classes=8, lossless=8, share=(0,) * 8, served=("strict",) * 8, class_of=(0,) * 8, pauses=(False,) * 8
)  # fmt: skip
WISH = QosWish(dscp=8, priority=4, classes=(TrafficClass(4, 40), TrafficClass(3, 30, lossless=True)))


def view(host: str, wish: QosWish | None = WISH, **changes: Any) -> dict[str, Any]:
    state = wanted_state(wish, FACTORY, "eth1") if wish else FACTORY
    return {
        "host": host,
        "wish": wish_body(wish).model_dump(mode="json") if wish else None,
        "nics": [
            {"name": "eth1", "networks": ["10.1.0.0/24"], "dcb": dcb_body(state).model_dump(mode="json")},
            {"name": "vlan10", "networks": ["10.5.0.0/24"], "vlan_marks": {"4": 4, "2": 0}},
        ],
        **changes,
    }


def test_show_of_hosts_that_agree(cli: Cli, cluster: FakeCluster) -> None:
    for name in ("A", "B"):
        cluster[name].answers["GET /qos"] = view(name)
    ended = cli("qos", "show")
    assert ended.code == 0 and ended.err == ""
    assert "A: migration has DSCP CS1, 802.1p priority 4" in ended.out
    assert "A     eth1    10.1.0.0/24  DCB                   0,1,2,5,6,7: 30 %; 3: 30 %; 4: 40 %  3" in ended.out
    assert "B     vlan10  10.5.0.0/24  no DCB; VLAN marks 4" in ended.out
    assert "The hosts agree." in ended.out


def test_show_tells_what_differs(cli: Cli, cluster: FakeCluster) -> None:
    cluster["A"].answers["GET /qos"] = view("A")
    cluster["B"].answers["GET /qos"] = view("B", None, notes=["eth1 is not set as was asked for."])
    ended = cli("qos", "show")
    assert "livemove: warning: A gives migration DSCP CS1, B none." in ended.err
    assert "livemove: warning: On 10.1.0.0/24 eth1 of B takes its settings from the switch (willing)." in ended.err
    assert "livemove: warning: B: eth1 is not set as was asked for." in ended.err
    assert "agree" not in ended.out
    shown = cli("qos", "show", "--json").json
    assert [of["host"] for of in shown["hosts"]] == ["A", "B"]
    assert any("priority 3 is lossless at eth1 of A" in line for line in shown["differences"])
    assert cli("qos", "show", "--host", "B", "--json").json["differences"] == []


def test_apply_sends_what_was_said(cli: Cli, cluster: FakeCluster) -> None:
    cluster["A"].answers["PUT /qos"] = view("A", commands=["dcb ets set dev eth1 willing off"])
    words = ("--dscp", "cs1", "--priority", "4", "--class", "4=40", "--class", "3=30,lossless", "--nic", "eth1")
    ended = cli("qos", "apply", *words, "--host", "A")
    assert ended.code == 0, ended.err
    assert cluster["A"].asked("PUT /qos") == [
        {
            "dscp": 8, "priority": 4, "nics": ["eth1"],
            "classes": [{"priority": 4, "share": 40, "lossless": False}, {"priority": 3, "share": 30, "lossless": True}],
        }
    ]  # fmt: skip
    assert ended.out.startswith("dcb ets set dev eth1 willing off\nA: migration has DSCP CS1")
    planned = cli("qos", "apply", *words, "--host", "A", "--dry-run")
    assert planned.out == "Nothing was changed. On NICs, this would be run:\ndcb ets set dev eth1 willing off\n"
    assert cluster["A"].queries["PUT /qos"] == {"dry_run": "true"}
    assert cli("qos", "apply", *words, "--host", "A", "--json").json["host"] == "A"


def test_a_dry_run_of_nothing(cli: Cli, cluster: FakeCluster) -> None:
    cluster["A"].answers["DELETE /qos"] = view("A", None, notes=["odd."])
    ended = cli("qos", "remove", "--host", "A", "--dry-run")
    assert (ended.out, ended.err) == ("No NIC would be changed.\n", "livemove: warning: A: odd.\n")


def test_remove(cli: Cli, cluster: FakeCluster) -> None:
    cluster["B"].answers["DELETE /qos"] = view("B", None)
    assert "B: migration has DSCP none, 802.1p priority none" in cli("qos", "remove", "--host", "B").out


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--dscp", "CS9"),
        ("--priority", "8"),
        ("--class", "4=91"),
        ("--class", "9=1"),
        ("--class", "4=1,lossless", "--class", "3=1,lossless", "--class", "2=1,lossless"),
        ("--dscp", "CS1", "--nic", "a-name-that-no-nic-can-have"),
    ],
)
def test_what_makes_no_sense_is_not_sent(cli: Cli, cluster: FakeCluster, words: tuple[str, ...]) -> None:
    ended = cli("qos", "apply", *words, "--host", "A")
    assert ended.code == BadSetting.exit_code
    assert cluster["A"].asked("PUT /qos") == []
