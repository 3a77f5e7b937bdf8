"""The links of a host: real ones in a namespace, and bonds and VLANs, which the tests' kernel may lack, from messages."""

from __future__ import annotations

from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from livemove.network import links
from livemove.network.links import LinkRow, addresses_of, row_of, speed_of

from .in_namespace import in_a_namespace

GBIT = 125_000_000
_UP = 0x1 | 0x40 | 0x10000

_READ = """
from dataclasses import asdict
from livemove.network.links import read_links
def read(speeds=None): return [asdict(link) for link in asyncio.run(read_links(speeds))]
"""


@pytest.mark.qemu
def test_links_with_addresses_and_no_others() -> None:
    found = in_a_namespace(
        _READ
        + """
ip("link", "set", "lo", "up")
for number, mtu in ((1, 9000), (2, 1500), (3, 1500)):
    ip("link", "add", f"eth{number}", "mtu", str(mtu), "type", "veth", "peer", "name", f"far{number}", "mtu", str(mtu))
    ip("link", "set", f"eth{number}", "up")
ip("link", "set", "far1", "up")
ip("addr", "add", "10.1.0.1/24", "dev", "eth1")
ip("addr", "add", "10.1.0.9/24", "dev", "eth1")
ip("addr", "add", "fd00::1/64", "dev", "eth1", "nodad")
ip("addr", "add", "169.254.3.4/16", "dev", "eth1")
ip("addr", "add", "10.2.0.1/24", "dev", "eth2")
ip("link", "add", "br0", "type", "bridge")
ip("link", "set", "eth3", "master", "br0")
ip("link", "set", "far3", "up")
ip("link", "set", "br0", "up")
ip("addr", "add", "10.3.0.1/24", "dev", "br0")
result = [read(), read({"eth1": 5, "eth3": 7, "nosuch": 1})]
"""
    )
    plain, told = ({link["name"]: link for link in each} for each in found)
    assert list(plain) == ["eth1", "eth2", "br0"], "neither loopback nor NICs without addresses"
    first = plain["eth1"]
    assert first["addresses"] == ["10.1.0.1/24", "10.1.0.9/24", "fd00::1/64"]
    assert (first["kind"], first["driver"], first["mtu"], first["carrier"]) == ("veth", "veth", 9000, True)
    assert (first["speed_bytes_per_s"], first["queues"] >= 1, first["index"] > 1) == (10 * GBIT, True, True)
    assert "jumbo" in first["capabilities"] and "tso" in first["capabilities"]
    assert (plain["eth2"]["carrier"], plain["eth2"]["addresses"]) == (False, ["10.2.0.1/24"])
    assert (plain["br0"]["kind"], plain["br0"]["members"], plain["br0"]["carrier"]) == ("bridge", ["eth3"], True)
    assert (told["eth1"]["speed_bytes_per_s"], told["br0"]["speed_bytes_per_s"]) == (5, 7)


@pytest.mark.qemu
def test_links_that_come_and_go_while_they_are_read() -> None:
    """A NIC that vanishes between two questions is left out, and nothing fails."""
    rounds, steady = in_a_namespace(
        _READ
        + """
import threading
ip("link", "add", "keep", "type", "veth", "peer", "name", "kept")
ip("addr", "add", "10.9.0.1/24", "dev", "keep")
ended = threading.Event()
rounds = 0
def churn():
    global rounds
    while not ended.is_set():
        batch = "".join(f"link add v{n} type veth peer name w{n}\\naddr add 10.8.{n}.1/24 dev v{n}\\n" for n in range(8))
        batch += "".join(f"link del v{n}\\n" for n in range(8))
        subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True, capture_output=True)
        rounds += 1
churning = threading.Thread(target=churn)
churning.start()
steady = [[link["name"] for link in read() if link["name"] == "keep"] for _ in range(60)]
ended.set()
churning.join()
result = [rounds, steady]
"""
    )
    assert rounds > 0
    assert steady == [["keep"]] * 60


# Messages that were not made here: bonds, VLANs, addresses on probation -------------------------------------------------


def message(**fields: Any) -> Any:
    """A link as netlink sends it: encoded, and read again."""
    made = ifinfmsg()
    made["index"], made["flags"] = fields.pop("index"), fields.pop("flags", _UP)
    made["attrs"] = [[name, value] for name, value in fields.items()]
    made.encode()
    read = ifinfmsg(made.data)
    read.decode()
    return read


def test_a_bonds_members_from_messages() -> None:
    def member(index: int, state: int) -> LinkRow:
        info = {
            "attrs": [
                ["IFLA_INFO_SLAVE_KIND", "bond"],
                ["IFLA_INFO_SLAVE_DATA", {"attrs": [["IFLA_BOND_SLAVE_STATE", state]]}],
            ]
        }
        return row_of(message(index=index, IFLA_IFNAME=f"eth{index}", IFLA_MASTER=9, IFLA_LINKINFO=info, IFLA_MTU=9000))

    active, backup = member(2, 0), member(3, 1)
    assert active == LinkRow(2, "eth2", "physical", 9000, 0, True, master=9)
    assert (backup.standby, backup.master) == (True, 9)
    bond = row_of(message(index=9, IFLA_IFNAME="bond0", IFLA_LINKINFO={"attrs": [["IFLA_INFO_KIND", "bond"]]}))
    assert (bond.kind, bond.carrier) == ("bond", True)
    assert speed_of(bond, [bond, active, backup], {"eth3": 5 * GBIT}, lambda name: GBIT) == GBIT


@pytest.mark.parametrize(
    ("flags", "state", "carrier"),
    [
        (_UP, "UP", True),
        (_UP, "UNKNOWN", True),
        (_UP, "LOWERLAYERDOWN", False),
        (_UP, "DOWN", False),
        (_UP | 0x20000, "DORMANT", False),
        (0x1, "UP", False),
        (0x10000, "UP", False),
    ],
)
def test_carrier(flags: int, state: str, carrier: bool) -> None:
    assert row_of(message(index=2, flags=flags, IFLA_IFNAME="eth0", IFLA_OPERSTATE=state)).carrier is carrier


def test_a_vlan_lies_on_its_nic_and_a_veths_peer_is_no_such_thing() -> None:
    def row(kind: str) -> LinkRow:
        info = {"attrs": [["IFLA_INFO_KIND", kind]]}
        return row_of(message(index=5, IFLA_IFNAME="eth0.7", IFLA_LINK=2, IFLA_LINKINFO=info))

    assert (row("vlan").below, row("veth").below) == (2, 0)


def rows(*each: tuple[int, str, str, int, int]) -> list[LinkRow]:
    """Index, name, kind, master, below."""
    return [LinkRow(index, name, kind, 1500, 0, True, master=up, below=down) for index, name, kind, up, down in each]


@pytest.mark.parametrize(
    ("name", "told", "speed"),
    [
        ("bond0", {}, 2 * GBIT),
        ("bond0", {"eth1": 10 * GBIT}, 11 * GBIT),
        ("bond0", {"bond0": 3}, 3),
        ("bond0.7", {}, 2 * GBIT),
        ("eth3", {}, GBIT),
        ("br0", {}, GBIT),
        ("br0", {"tap0": 9 * GBIT}, 9 * GBIT),
        ("br1", {}, GBIT),
        ("loop0", {}, 0),
    ],
)
def test_speed(name: str, told: dict[str, int], speed: int) -> None:
    every = rows(
        (1, "eth1", "physical", 9, 0),
        (2, "eth2", "physical", 9, 0),
        (3, "eth3", "physical", 10, 0),
        (4, "tap0", "tun", 10, 0),
        (5, "tap1", "tun", 11, 0),
        (9, "bond0", "bond", 0, 0),
        (10, "br0", "bridge", 0, 0),
        (11, "br1", "bridge", 0, 0),
        (12, "bond0.7", "vlan", 0, 9),
        (13, "loop0", "vlan", 0, 14),
        (14, "loop1", "vlan", 0, 13),
    )
    row = next(row for row in every if row.name == name)
    assert speed_of(row, every, told, lambda nic: 10 * GBIT if nic.startswith("tap") else GBIT) == speed


def test_a_bond_is_as_fast_as_the_members_that_carry() -> None:
    bond, one, two = rows((9, "bond0", "bond", 0, 0), (1, "eth1", "physical", 9, 0), (2, "eth2", "physical", 9, 0))
    dead = LinkRow(2, "eth2", "physical", 1500, 0, False, master=9)
    assert speed_of(bond, [bond, one, two], {}, lambda name: GBIT) == 2 * GBIT
    assert speed_of(bond, [bond, one, dead], {}, lambda name: GBIT) == GBIT


@pytest.mark.parametrize(
    ("address", "flags", "kept"),
    [
        ("10.1.0.1", 0x80, True),
        ("10.1.0.1", 0x81, True),
        ("10.1.0.1", 0x20, False),
        ("fd00::1", 0x80, True),
        ("fd00::1", 0x40, False),
        ("fd00::1", 0x44, True),
        ("fd00::1", 0x48, False),
        ("fd00::1", 0x20, False),
        ("fd00::1", 0x101, False),
        ("fe80::1", 0x80, False),
        ("169.254.1.1", 0x80, False),
        ("127.0.0.1", 0x80, False),
    ],
)
def test_addresses_that_others_can_use(address: str, flags: int, kept: bool) -> None:
    made = ifaddrmsg()
    made["family"], made["prefixlen"], made["index"] = (10 if ":" in address else 2), 24, 3
    made["flags"] = flags & 0xFF
    made["attrs"] = [["IFA_ADDRESS", address], ["IFA_FLAGS", flags]]
    made.encode()
    read = ifaddrmsg(made.data)
    read.decode()
    assert addresses_of([read]) == ({3: (f"{address}/24",)} if kept else {})


def test_a_list_that_never_comes_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyroute2.netlink.exceptions import NetlinkError

    from livemove.base.errors import MissingPrerequisite

    class Restless:
        def __enter__(self) -> Restless:
            raise NetlinkError(19)

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(links, "IPRoute", Restless)
    with pytest.raises(MissingPrerequisite, match="change too fast"):
        links._read({})
