"""What the changes of a journey do to real connections: the planned NICs carry them, with packets of the planned size."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path as FilePath

import pytest
from tests.network.kernel_snapshot import differences, snapshot
from tests.network.wires import Wires, wires

from livemove.network.host_changes import HostChanges
from livemove.network.links import read_links
from livemove.network.mtu import Ear, MtuResponder, probe_paths
from livemove.policy.host_setup import Side, changes_for
from livemove.policy.mtu import PathMeasure
from livemove.policy.paths import Path

BULK = 300_000
PORT = 9000


def apply(net: Wires, directory: FilePath, paths: Sequence[Path], clamp: dict[Path, int], *, multipath: bool) -> None:
    """The changes of journey j1 on both hosts, in the order in which a journey makes them."""
    for member, side in (("B", Side.DESTINATION), ("A", Side.SOURCE), ("B", Side.DESTINATION)):
        links = net.inside(member, read_links).result(10)
        changes = changes_for(paths, side, clamp=clamp, multipath=multipath, links=links)
        host = HostChanges(directory / f"{member}.json")
        assert net.inside(member, lambda: host.apply("j1", changes)).result(10) == []  # noqa: B023  (it ends here)


def take_back(net: Wires, directory: FilePath) -> None:
    for member in ("A", "B"):
        assert net.inside(member, HostChanges(directory / f"{member}.json").take_back_all).result(10) == []


def carries(net: Wires, path: Path, timeout_s: float = 5.0) -> bool:
    """Whether a new TCP connection carries BULK bytes there and as many back."""
    family = socket.AF_INET6 if ":" in path.source_address else socket.AF_INET
    ready: Future[None] = Future()

    def serve() -> None:
        with socket.create_server((path.destination_address, PORT), family=family) as server:
            server.settimeout(timeout_s)
            ready.set_result(None)
            with contextlib.suppress(OSError), server.accept()[0] as peer:
                peer.settimeout(timeout_s)
                peer.sendall(receive(peer))

    def ask() -> bool:
        with contextlib.suppress(OSError), socket.socket(family) as peer:
            peer.settimeout(timeout_s)
            peer.bind((path.source_address, 0))
            peer.connect((path.destination_address, PORT))
            peer.sendall(bytes(BULK))
            return len(receive(peer)) == BULK
        return False

    serving = net.call("B", serve)
    ready.result(10)
    carried = net.call("A", ask).result(timeout_s + 10)
    serving.result(timeout_s + 10)
    return carried


def receive(peer: socket.socket) -> bytes:
    """BULK bytes, or fewer when the other end has closed. Raises TimeoutError when nothing comes for long."""
    got = bytearray()
    while len(got) < BULK and (piece := peer.recv(1 << 16)):
        got += piece
    return bytes(got)


def bytes_of(net: Wires) -> dict[str, tuple[int, int]]:
    """What each NIC of both hosts has received and sent."""
    found = {}
    for member in ("A", "B"):
        for link in json.loads(net.run(member, "ip", "-s", "-j", "link")):
            counted = link["stats64"]
            found[f"{member}.{link['ifname']}"] = (counted["rx"]["bytes"], counted["tx"]["bytes"])
    return found


def carriers(net: Wires, path: Path) -> set[str]:
    """The NICs that carried the bulk of a connection over the path, with ``<`` for received and ``>`` for sent."""
    before = bytes_of(net)
    assert carries(net, path)
    return {
        f"{nic}{sign}"
        for nic, after in bytes_of(net).items()
        for sign, old, new in zip("<>", before[nic], after, strict=True)
        if new - old > BULK // 2
    }


def planned(path: Path) -> set[str]:
    return {f"{nic}{sign}" for nic in (f"A.{path.source_link}", f"B.{path.destination_link}") for sign in "<>"}


@pytest.mark.qemu
@pytest.mark.parametrize("sixth", [False, True])
@pytest.mark.parametrize("crossed", [False, True])
def test_two_nics_of_each_host_in_one_subnet_carry_what_is_planned_in_both_directions(
    tmp_path: FilePath, sixth: bool, crossed: bool
) -> None:
    net_of, length = ("fd00::{}", 64) if sixth else ("10.0.0.{}", 24)
    subnet = net_of.format(0) + f"/{length}"
    with wires("A", "B", bridges=["s0"]) as net:
        for member, first in (("A", 1), ("B", 11)):
            net.run(member, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter")
            for index in range(2):
                net.cable(member, f"eth{index}", "s0")
                nodad = " nodad" if sixth else ""
                net.ip(member, f"addr add {net_of.format(first + index)}/{length} dev eth{index}{nodad}")
        before = {member: snapshot(net.namespace(member)) for member in ("A", "B")}
        paths = [
            Path(
                net_of.format(1 + index), net_of.format(11 + other), subnet, "", f"eth{index}", f"eth{other}", 2 + index, 0, 1500,
                shared_subnet=True,
            )
            for index, other in ((0, 1 if crossed else 0), (1, 0 if crossed else 1))
        ]  # fmt: skip
        # without the routes it is not as planned, whatever carries it: else this test would prove nothing
        assert [carries(net, path, 1.0) and carriers(net, path) == planned(path) for path in paths] != [True, True]
        apply(net, tmp_path, paths, {}, multipath=False)
        for path in (*paths, *paths):
            assert carriers(net, path) == planned(path)
        take_back(net, tmp_path)
        assert {member: differences(before[member], snapshot(net.namespace(member))) for member in before} == {
            "A": [],
            "B": [],
        }


@pytest.mark.qemu
def test_a_nic_that_no_path_uses_gets_nothing_that_is_meant_for_the_one_beside_it(tmp_path: FilePath) -> None:
    with wires("A", "B", bridges=["s0"]) as net:
        for member, first in (("A", 1), ("B", 11)):
            for index in range(2):
                net.cable(member, f"eth{index}", "s0")
                net.ip(member, f"addr add 10.0.0.{first + index}/24 dev eth{index}")
        path = Path("10.0.0.2", "10.0.0.11", "10.0.0.0/24", "", "eth1", "eth0", 3, 0, 1500, shared_subnet=True)
        macs = {
            (member, link["ifname"]): link["address"]
            for member in ("A", "B")
            for link in json.loads(net.run(member, "ip", "-j", "link"))
        }
        # what a host may have learned when the other one's NICs answered for each other
        net.ip("A", f"neigh replace 10.0.0.11 lladdr {macs['B', 'eth1']} dev eth1 nud reachable")
        net.ip("B", f"neigh replace 10.0.0.2 lladdr {macs['A', 'eth0']} dev eth0 nud reachable")
        apply(net, tmp_path, [path], {}, multipath=False)
        assert carriers(net, path) == planned(path)
        take_back(net, tmp_path)
        # an administrator's entry is theirs
        net.ip("A", f"neigh replace 10.0.0.11 lladdr {macs['B', 'eth0']} dev eth1 nud permanent")
        apply(net, tmp_path, [path], {}, multipath=False)
        assert "PERMANENT" in net.run("A", "ip", "neigh", "show", "10.0.0.11", "dev", "eth1")
        take_back(net, tmp_path)


@pytest.mark.qemu
def test_one_nic_of_the_peer_for_two_of_ours(tmp_path: FilePath) -> None:
    with wires("A", "B", bridges=["s0"]) as net:
        for member, names in (("A", ("eth0", "eth1")), ("B", ("eth0",))):
            net.run(member, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter")
            for index, name in enumerate(names):
                net.cable(member, name, "s0")
                net.ip(member, f"addr add 10.0.0.{(1 if member == 'A' else 11) + index}/24 dev {name}")
        paths = [
            Path(
                f"10.0.0.{1 + index}",
                "10.0.0.11",
                "",
                "",
                f"eth{index}",
                "eth0",
                2 + index,
                0,
                1500,
                shared_subnet=True,
            )
            for index in range(2)
        ]
        # a probe is bound to its NIC, as a subflow is; the host's routes lead through one of the two
        assert [one.alive for one in measured(net, paths)] != [True, True]
        apply(net, tmp_path, paths, {}, multipath=True)
        assert [(one.mtu_out, one.mtu_in, one.alive) for one in measured(net, paths)] == [(1500, 1500, True)] * 2
        take_back(net, tmp_path)


def measured(net: Wires, paths: Sequence[Path]) -> list[PathMeasure]:
    """The paths, all of which end at one address, measured."""
    nonce, ready, over = bytes(16), Future[None](), Future[None]()

    async def answer() -> None:
        responder = await MtuResponder.open(
            [Ear(paths[0].destination_address, PORT, link=paths[0].destination_link)], nonce
        )
        ready.set_result(None)
        await asyncio.wrap_future(over)
        await responder.close()

    answering = net.inside("B", answer)
    ready.result(10)
    found = net.inside("A", lambda: probe_paths(paths, PORT, nonce)).result(30)
    over.set_result(None)
    answering.result(10)
    return list(found.values())


@pytest.mark.qemu
@pytest.mark.parametrize("sixth", [False, True])
def test_a_black_hole_carries_with_smaller_packets(tmp_path: FilePath, sixth: bool) -> None:
    ends = ("fd00::1", "fd00::11") if sixth else ("10.0.0.1", "10.0.0.11")
    with wires("A", "B", bridges=["s0"]) as net:
        for member, address in zip(("A", "B"), ends, strict=True):
            net.cable(member, "eth0", "s0", mtu=9000, middle=1500)
            net.ip(member, f"addr add {address}/64 dev eth0 nodad" if sixth else f"addr add {address}/24 dev eth0")
        path = Path(*ends, "", "", "eth0", "eth0", 2, 0, 9000)
        assert not carries(net, path, 1.0)
        apply(net, tmp_path, [path], {path: 1500}, multipath=False)
        assert carries(net, path)
        take_back(net, tmp_path)
        assert not carries(net, path, 1.0)


@pytest.mark.qemu
def test_connections_over_a_route_of_a_journey_use_its_congestion_control_at_both_ends(tmp_path: FilePath) -> None:
    with wires("A", "B", bridges=["s0"]) as net:
        for member, address in (("A", "10.0.0.1"), ("B", "10.0.0.11")):
            net.cable(member, "eth0", "s0")
            net.ip(member, f"addr add {address}/24 dev eth0")
        path = Path("10.0.0.1", "10.0.0.11", "", "", "eth0", "eth0", 2, 0, 1500)
        apply(net, tmp_path, [path], {}, multipath=True)

        def accepted() -> bytes:
            with socket.create_server(("10.0.0.11", PORT)) as server:
                ready.set_result(None)
                with server.accept()[0] as peer:
                    return peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)

        def connected() -> bytes:
            with socket.create_connection(("10.0.0.11", PORT), timeout=5) as peer:
                return peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)

        ready: Future[None] = Future()
        accepting = net.call("B", accepted)
        ready.result(10)
        both = [net.call("A", connected).result(10), accepting.result(10)]
        assert [one.rstrip(b"\0") for one in both] == [b"cubic", b"cubic"]
        take_back(net, tmp_path)
