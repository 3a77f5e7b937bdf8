"""Rules and classes as text and data, and in the kernel of a namespace of the test's own."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping

import pytest

from livemove.base.errors import MissingPrerequisite
from livemove.network import shaping, shaping_rules
from livemove.network.shaping import Shaping, as_commands, class_table, foreign_qdisc, remove_everything
from livemove.network.shaping_rules import MAJOR, TABLE, ShapedJourney, ShapedPath
from livemove.network.traffic_control import INGRESS, ROOT, HtbClass, Qdisc, TrafficControl
from livemove.policy.bandwidth import Category, Selectors
from livemove.policy.governing import NicClasses

from .own_namespace import in_own_namespace, make_cables, tool

LEAVING = ShapedJourney(0, True, (ShapedPath("e0", "10.9.0.2"), ShapedPath("e1", "fd00::2")), 49152)
HEAVY = ShapedJourney(7, True, (ShapedPath("e0", "10.9.0.3"),), 49153, weight=3)
ARRIVING = ShapedJourney(1, False, (ShapedPath("e0", "10.9.0.4"),), 49154)
STORAGE = Selectors(ports=("99",), addresses=("10.1.0.0/16", "fd01::/64"), presets=("ceph",))
CLASSES = NicClasses(
    1e6,
    {Category.VIRTUAL_MACHINE: 1e5, Category.DEFAULT: 2e5, Category.LIVE_MIGRATION: 7e5},
    {Category.VIRTUAL_MACHINE: 5e5, Category.DEFAULT: 1e6, Category.LIVE_MIGRATION: 8e5},
)


def table_of(
    link: str = "e0", journeys: Iterable[ShapedJourney] = (), ceilings: Mapping[int, float] | None = None
) -> dict[int, HtbClass]:
    return class_table(link, CLASSES, journeys, ceilings or {})


# Text and data ----------------------------------------------------------------------------------------------------------


def test_classes_of_a_nic() -> None:
    table = table_of(journeys=[LEAVING, HEAVY, ARRIVING], ceilings={7: 3e5, 0: math.inf})
    rate = {handle - MAJOR: (htb.rate_bytes_per_s, htb.ceil_bytes_per_s) for handle, htb in table.items()}
    assert rate == {
        0x1: (1_000_000, 1_000_000),
        0x10: (10_000, 1_000_000),
        0x20: (100_000, 500_000),
        0x30: (200_000, 1_000_000),
        0x40: (700_000, 800_000),
        0x100: (175_000, 800_000),
        0x107: (300_000, 300_000),
    }
    parents = {handle - MAJOR: htb.parent - MAJOR for handle, htb in table.items()}
    assert parents == {0x1: 0, 0x10: 1, 0x20: 1, 0x30: 1, 0x40: 1, 0x100: 0x40, 0x107: 0x40}
    assert table[MAJOR | 0x107].quantum == 3 * table[MAJOR | 0x100].quantum
    assert MAJOR | 0x107 not in table_of("e1", [LEAVING, HEAVY]), "that journey does not use e1"
    for text in as_commands("e0", table):
        assert text.startswith("tc qdisc add dev e0 root handle 4c4d: htb") or text.startswith(
            "tc class add dev e0 parent 4c4d:"
        )


@pytest.mark.parametrize(
    ("there", "foreign"),
    [
        ([], ""),
        ([Qdisc(1, "noqueue", 0, ROOT)], ""),
        ([Qdisc(1, "mq", 0, ROOT), Qdisc(1, "fq_codel", 0, 1), Qdisc(1, "fq_codel", 0, 2)], ""),
        ([Qdisc(1, "pfifo_fast", 0, ROOT), Qdisc(1, "clsact", 0xFFFF0000, INGRESS)], ""),
        ([Qdisc(1, "fq", 0x80010000, ROOT)], "fq 8001:"),
        ([Qdisc(1, "mq", 0, ROOT), Qdisc(1, "fq", 0x80020000, 1)], "fq 8002:"),
        ([Qdisc(1, "htb", 0x10000, ROOT)], "htb 1:"),
    ],
)
def test_what_somebody_made_is_known_by_its_handle(there: list[Qdisc], foreign: str) -> None:
    assert foreign_qdisc(there) == foreign


def test_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "from livemove.network.shaping import check_rights\ntry: check_rights()\nexcept Exception as e: print(e)"
    bare = subprocess.run(
        ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", program],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert bare.stdout == "The agent has no CAP_NET_ADMIN, which bandwidth limits need.\n"
    monkeypatch.setattr(shaping, "_capabilities", lambda: 1 << 12)
    shaping.check_rights()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingPrerequisite, match="no 'nft' program"):
        shaping.check_rights()


# The kernel -------------------------------------------------------------------------------------------------------------


def everything() -> tuple[str, ...]:
    """All that classes and rules may be made of, without what counts packets."""
    return tool("tc", "qdisc", "show"), tool("tc", "class", "show", "dev", "e0"), tool("nft", "list", "ruleset")


@pytest.mark.qemu
def test_what_was_there_comes_back() -> None:
    async def work() -> None:
        make_cables("e0", "e1")
        before = everything()
        shaped = Shaping(7443)
        await shaped.set_rules([LEAVING, ARRIVING], STORAGE)
        for link in ("e0", "e1"):
            assert shaped.put(link, table_of(link, [LEAVING]), 1e6) == ""
        assert shaped.links == {"e0", "e1"}
        assert "htb 4c4d: dev e0 root" in everything()[0] and TABLE in everything()[2]
        shaped.drop("e1")
        shaped.drop("e1")
        assert "4c4d" not in tool("tc", "qdisc", "show", "dev", "e1")
        await shaped.remove()
        await shaped.remove()
        assert everything() == before

    in_own_namespace(work)


@pytest.mark.qemu
def test_what_a_crash_left_is_found_and_taken_over() -> None:
    async def work() -> None:
        make_cables("e0")
        before = everything()
        crashed = Shaping(7443)
        await crashed.set_rules([LEAVING], None)
        crashed.put("e0", table_of(), 1e6)
        crashed.kernel.close()
        again = Shaping(7443)
        assert again.put("e0", table_of(journeys=[LEAVING]), 1e6) == ""
        assert "class htb 4c4d:100" in tool("tc", "class", "show", "dev", "e0")
        again.kernel.close()
        assert await remove_everything() == ["e0"]
        assert everything() == before
        assert await remove_everything() == []

    in_own_namespace(work)


@pytest.mark.qemu
def test_classes_are_changed_added_and_removed() -> None:
    async def work() -> None:
        make_cables("e0")
        shaped = Shaping(7443)
        shaped.put("e0", table_of(journeys=[LEAVING]), 1e6)
        for htb in table_of(journeys=[LEAVING]).values():
            shown = tool("tc", "class", "show", "dev", "e0", "classid", f"4c4d:{htb.handle & 0xFFFF:x}")
            assert f"rate {htb.rate_bytes_per_s * 8 // 1000}Kbit" in shown.replace("Mbit", "000Kbit"), shown
        shaped.put("e0", table_of(journeys=[LEAVING, HEAVY], ceilings={0: 25_000}), 1e6)
        shown = tool("tc", "class", "show", "dev", "e0")
        assert "4c4d:107 parent 4c4d:40" in shown and "ceil 200Kbit" in shown
        shaped.put("e0", table_of(), 1e6)
        assert "4c4d:10 " in (shown := tool("tc", "class", "show", "dev", "e0")) and "4c4d:100" not in shown
        fast = NicClasses(12.5e9, dict.fromkeys(Category, 4e9), dict.fromkeys(Category, 12.5e9))
        shaped.put("e0", class_table("e0", fast, (), {}), 1e6)
        shown = tool("tc", "class", "show", "dev", "e0", "classid", "4c4d:30")
        assert "rate 32Gbit ceil 100Gbit" in shown, "above what 32 bits hold"
        await shaped.remove()

    in_own_namespace(work)


@pytest.mark.qemu
def test_somebody_else_s_shaping_is_left_as_it_is() -> None:
    async def work() -> None:
        make_cables("e0")
        tool(
            "tc",
            "qdisc",
            "add",
            "dev",
            "e0",
            "root",
            "handle",
            "5:",
            "tbf",
            "rate",
            "1mbit",
            "burst",
            "10k",
            "limit",
            "10k",
        )
        before = everything()
        shaped = Shaping(7443)
        said = shaped.put("e0", table_of(), 1e6)
        assert said == "e0 has a queueing discipline of somebody else's (tbf 5:), which is left as it is."
        assert shaped.links == frozenset()
        await shaped.remove()
        assert everything() == before
        assert await remove_everything() == []
        assert everything() == before

    in_own_namespace(work)


@pytest.mark.qemu
def test_a_nic_that_goes() -> None:
    async def work() -> None:
        make_cables("e0")
        shaped = Shaping(7443)
        assert shaped.put("e9", table_of(), 1e6) == "e9 is gone."
        shaped.put("e0", table_of(), 1e6)
        tool("ip", "link", "del", "e0")
        assert shaped.put("e0", table_of(journeys=[LEAVING]), 1e6) == "e0 is gone."
        shaped.drop("e0")
        await shaped.remove()

    in_own_namespace(work)


@pytest.mark.qemu
def test_refusals_of_the_kernel_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    async def work() -> None:
        make_cables("e0")
        shaped = Shaping(7443)
        monkeypatch.setattr(TrafficControl, "add_htb_root", refuse)
        with pytest.raises(MissingPrerequisite, match="classes of e0 cannot be set: Operation not permitted"):
            shaped.put("e0", table_of(), 1e6)
        with pytest.raises(MissingPrerequisite, match="nft refused the rules"):
            await shaping._nft("table of nonsense")
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(MissingPrerequisite, match="program 'nft'"):
            await shaped.set_rules([], None)
        await shaped.remove()

    in_own_namespace(work)


@pytest.mark.qemu
def test_a_class_that_is_refused_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = TrafficControl.put_class, []

    def refuse_the_third(self: TrafficControl, index: int, htb: HtbClass) -> None:
        made.append(htb)
        if len(made) == 3:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(self, index, htb)

    async def work() -> None:
        make_cables("e0")
        before = everything()
        shaped = Shaping(7443)
        monkeypatch.setattr(TrafficControl, "put_class", refuse_the_third)
        with pytest.raises(MissingPrerequisite, match="Invalid argument"):
            shaped.put("e0", table_of(), 1e6)
        assert everything() == before and shaped.links == frozenset()
        assert shaped.put("e0", table_of(), 1e6) == "", "and the next try begins anew"
        await shaped.remove()
        assert everything() == before

    in_own_namespace(work)


@pytest.mark.qemu
def test_what_somebody_put_in_their_place_stays() -> None:
    async def work() -> None:
        make_cables("e0")
        shaped = Shaping(7443)
        shaped.put("e0", table_of(), 1e6)
        words = "qdisc replace dev e0 root handle 5: tbf rate 1mbit burst 10k limit 10k"
        tool("tc", *words.split())
        with pytest.raises(MissingPrerequisite, match="classes of e0 cannot be set"):
            shaped.put("e0", table_of(journeys=[LEAVING]), 1e6)
        assert "tbf 5:" in shaped.put("e0", table_of(journeys=[LEAVING]), 1e6)
        shaped.drop("e0")
        await shaped.remove()
        assert "tbf 5:" in tool("tc", "qdisc", "show", "dev", "e0")

    in_own_namespace(work)


@pytest.mark.qemu
def test_rules_that_were_cut_off_are_taken_away_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    real = shaping._nft

    async def cut_off(text: str) -> None:
        await real(text)
        raise asyncio.CancelledError

    async def work() -> None:
        make_cables("e0")
        shaped = Shaping(7443)
        with monkeypatch.context() as slow:
            slow.setattr(shaping, "_nft", cut_off)
            with pytest.raises(asyncio.CancelledError):
                await shaped.set_rules([LEAVING], None)
        assert shaped.counted(), "they are there"
        await shaped.remove()
        assert tool("nft", "list", "ruleset") == ""

    in_own_namespace(work)


@pytest.mark.qemu
def test_real_packets_go_through_their_classes_and_are_counted() -> None:
    async def work() -> None:
        make_cables("e0")
        tool("ip", "neigh", "add", "10.9.0.2", "lladdr", "02:00:00:00:00:01", "dev", "e0")
        shaped = Shaping(7443)
        await shaped.set_rules([LEAVING], STORAGE)
        shaped.put("e0", table_of(journeys=[LEAVING]), 1e6)
        assert shaped.counted() == {"journey0_path0": (0, 0), "journey0_path1": (0, 0)}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for port in (49152, 99, 5000):
                sender.sendto(bytes(200), ("10.9.0.2", port))
        with socket.socket() as stranger, socket.socket() as journey:
            for connection, port in ((stranger, 49153), (journey, 49152)):
                connection.setblocking(False)
                assert connection.connect_ex(("10.9.0.2", port)) == errno.EINPROGRESS
            await asyncio.sleep(0.05)
        sent = {}
        text = tool("tc", "-s", "class", "show", "dev", "e0")
        for part in text.split("class htb ")[1:]:
            sent[part.split()[0]] = int(part.split(" pkt")[0].split()[-1])
        assert (sent["4c4d:10"], sent["4c4d:20"], sent["4c4d:100"]) == (1, 1, 1), text
        assert sent["4c4d:30"] >= 2, "the port that no rule names, and the stranger's connection to another port"
        assert shaped.counted()["journey0_path0"][1] == 1
        await shaped.remove()
        assert shaped.counted() == {}

    in_own_namespace(work)


@pytest.mark.qemu
def test_processes_of_a_cgroup() -> None:
    roots = (shaping_rules._CGROUPS / prefix for prefix in ("", "unified"))
    root = next((root for root in roots if (root / "cgroup.controllers").exists()), None)
    if root is None:
        pytest.skip("no cgroup v2 is mounted")
    cgroup = root / "livemove-test-shaping"
    cgroup.mkdir()

    async def work() -> None:
        make_cables("e0")
        tool("ip", "neigh", "add", "10.9.0.2", "lladdr", "02:00:00:00:00:01", "dev", "e0")
        shaped = Shaping(7443)
        await shaped.set_rules([], Selectors(cgroups=(cgroup.name, "not-there")))
        shaped.put("e0", table_of(), 1e6)
        send = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('10.9.0.2', 5000))"
        tool("sh", "-c", f'echo $$ > {cgroup}/cgroup.procs && exec {sys.executable} -c "{send}"')
        shown = tool("tc", "-s", "class", "show", "dev", "e0", "classid", "4c4d:20")
        assert "1 pkt" in shown, shown
        await shaped.remove()

    try:
        in_own_namespace(work)
    finally:
        cgroup.rmdir()
