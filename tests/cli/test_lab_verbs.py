"""``livemove lab`` without a lab (errors, words), and, with root, a real one."""

from __future__ import annotations

import pytest

from livemove.base.errors import BadDefinition, BadQuantity, Conflict
from livemove.cli.lab_verbs import link_text
from livemove.lab.link_spec import parse_link

from .conftest import Cli, Ended

NAME = "clitest"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("unshaped", "unshaped, MTU 1500 B"),
        ("1Gbit", "1 Gbit/s, queue 2.4 MiB, MTU 1500 B"),
        ("250Mbit,queue=512KiB,mtu=9000,offloads=off", "250 Mbit/s, queue 512.0 KiB, MTU 9000 B, no offloads"),
        ("unshaped,switched,mtu=9000/1500", "unshaped, MTU 9000/1500 B, no offloads, switched"),
        (
            "unshaped,switched,switch-mtu=1500,subnet=0",
            "unshaped, MTU 1500 B, no offloads, switched, MTU of the switch 1500 B, in the subnet of link0",
        ),
    ],
)
def test_links_in_words(text: str, said: str) -> None:
    assert link_text(parse_link(text)) == said


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["lab", "up", "--link", "fast", "--name", NAME], BadQuantity.exit_code),
        (["lab", "up", "--hosts", "A", "--name", NAME], BadDefinition.exit_code),
        (["lab", "run", "A", "--"], 2),
        (["lab", "status", "--name", "No Name"], BadDefinition.exit_code),
        (["lab", "fault", "cut", "link0", "5", "--name", NAME], 2),
        (["lab", "fault", "lose", "link0", "--name", NAME], 2),
    ],
)
def test_bad_input(cli: Cli, words: list[str], code: int) -> None:
    ended = cli(*words)
    assert ended.code == code
    assert ended.err.startswith("livemove: ") and "\n  remedy: " in ended.err


def test_a_lab_that_is_not_there(cli: Cli) -> None:
    assert cli("lab", "status", "--name", NAME).out == f"There is no lab '{NAME}'.\n"
    assert cli("lab", "status", "--name", NAME, "--json").json["phase"] is None
    assert cli("lab", "run", "--name", NAME, "A", "--", "true").code == Conflict.exit_code


@pytest.mark.qemu
def test_a_lab_from_up_to_down(cli: Cli) -> None:
    up = cli("lab", "up", "--name", NAME, "--link", "1Gbit", "--link", "unshaped", "--no-agents", "--json")
    try:
        assert up.code == 0, up.err
        assert [host["name"] for host in up.json["hosts"]] == ["A", "B"]
        assert len(up.json["links"]) == 2
        text = cli("lab", "status", "--name", NAME).out
        assert "link0: 1 Gbit/s, queue 2.4 MiB, MTU 1500 B" in text
        assert cli("lab", "up", "--name", NAME, "--no-agents").code == Conflict.exit_code
        assert cli("lab", "run", "--name", NAME, "A", "--", "sh", "-c", "exit 7").code == 7
        assert cli("lab", "run", "--name", NAME, "A", "sh", "-c", "kill -9 $$").code == 128 + 9
        identity = 'case "$LIVEMOVE_IDENTITY" in */admin) exit 0;; esac; exit 1'
        assert cli("lab", "run", "--name", NAME, "client", "--", "sh", "-c", identity).code == 0
        assert cli("lab", "run", "--name", NAME, "Z", "--", "true").code == BadDefinition.exit_code
    finally:
        down = cli("lab", "down", "--name", NAME, "--json")
    assert down.json == {"name": NAME, "removed": True}
    assert cli("lab", "down", "--name", NAME).code == 0


@pytest.mark.qemu
def test_a_network_is_broken_and_healed_by_hand(cli: Cli) -> None:
    def lab(*words: str) -> Ended:
        return cli("lab", words[0], "--name", NAME, *words[1:])

    assert lab("fault", "cut", "link0").code == lab("heal", "link0").code == Conflict.exit_code
    assert lab("up", "--link", "1Gbit", "--link", "unshaped,switched", "--no-agents").code == 0
    try:
        assert lab("fault", "cut", "link1", "--host", "B").out == "link1, B: cut off\n"
        assert lab("fault", "black-hole", "0", "--host", "A").code == 0
        assert lab("fault", "lose", "0", "0.5%").code == 0
        assert lab("fault", "drop-large", "link0", "1400", "--host", "B").code == 0
        assert lab("fault", "rate", "link0", "250Mbit").code == 0
        ended = lab("fault", "mtu", "link1", "9000", "--host", "A", "--json")
        assert ended.json["faults"][-1] == {"network": "link1", "hosts": ["B"], "what": "cut off"}
        status = lab("status")
        assert status.out.splitlines()[-7:] == [
            "link0, A: all that it sends vanishes",
            "link0, A: 0.5 % of what it sends is lost",
            "link0, B: 0.5 % of what it sends is lost",
            "link0, B: packets over 1400 B that it sends vanish",
            "link0, A and B: rate 250 Mbit/s",
            "link1, A: MTU 9000 B",
            "link1, B: cut off",
        ]
        assert lab("status", "--json").json["faults"] == ended.json["faults"]
        for words, code in (
            (["fault", "mtu", "link1", "9000"], 2),
            (["fault", "mtu", "link1", "many", "--host", "A"], 2),
            (["fault", "lose", "link0", "some"], 2),
            (["fault", "lose", "link0", "101"], BadQuantity.exit_code),
            (["fault", "rate", "link0", "5"], BadQuantity.exit_code),
            (["fault", "cut", "link7"], BadDefinition.exit_code),
            (["fault", "cut", "link0", "--host", "C"], BadDefinition.exit_code),
            (["heal", "7"], BadDefinition.exit_code),
        ):
            ended = lab(*words)
            assert ended.code == code, words
            assert ended.err.startswith("livemove: ") and "\n  remedy: " in ended.err
        assert "link0" not in lab("heal", "link0").out
        assert lab("heal", "1", "--json").json["faults"] == []
        assert lab("heal", "1").out == f"Nothing is broken in lab '{NAME}'.\n"
    finally:
        lab("down")
