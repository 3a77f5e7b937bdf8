"""Paths measured over real wires: two hosts and a switch, which drops what is too large without a word."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from tests.network.wires import Wires, wires

from livemove.base.errors import PortClosed
from livemove.network.mtu import Ear, MtuResponder, probe_path, probe_paths
from livemove.policy.mtu import PathMeasure
from livemove.policy.paths import Path
from livemove.wire.mtu_probe import Kind, Packet, decode, encode

NONCE, PORT = bytes(range(16)), 49200
SO_RCVBUFFORCE = 33
V4 = ("10.0.0.1", "10.0.0.11")
V6 = ("fd00::1", "fd00::11")


@dataclass
class Answering:
    """The destination's side while a test measures."""

    heard: dict[Ear, int]


@contextmanager
def answering(net: Wires, *ears: Ear, before_each: Callable[[], None] = lambda: None) -> Iterator[Answering]:
    """A responder on B.

    :param before_each: called in its loop before every answer.
    """
    ready, over = threading.Event(), threading.Event()
    heard: dict[Ear, int] = {}

    async def work() -> None:
        responder = await MtuResponder.open(ears, NONCE)
        may_answer = responder._may_answer

        def after_a_while() -> bool:
            before_each()
            return may_answer()

        responder._may_answer = after_a_while  # type: ignore[method-assign]  # where a loop that is busy would stand
        ready.set()
        try:
            await asyncio.to_thread(over.wait)
        finally:
            heard.update(responder.heard)
            await responder.close()
            await responder.close()

    done = net.inside("B", work)
    done.add_done_callback(lambda _: ready.set())
    assert ready.wait(10)
    said = Answering(heard)
    try:
        yield said
    finally:
        over.set()
        done.result(10)


def measure(net: Wires, pair: tuple[str, str] = V4, mtu: int = 1500, **how: object) -> PathMeasure:
    return net.inside("A", lambda: probe_path(*pair, PORT, NONCE, mtu, **how)).result(30)  # type: ignore[arg-type]  # by name


def join(net: Wires, a: int, b: int, middle_a: int = 9000, middle_b: int = 9000) -> None:
    """eth0 of both hosts on one network, with the MTUs given."""
    for member, own, middle, (v4, v6) in (("A", a, middle_a, (V4[0], V6[0])), ("B", b, middle_b, (V4[1], V6[1]))):
        net.cable(member, "eth0", "s0", mtu=own, middle=middle)
        net.ip(member, f"addr add {v4}/24 dev eth0", f"addr add {v6}/64 dev eth0 nodad")


@pytest.mark.qemu
@pytest.mark.parametrize("pair", [V4, V6])
@pytest.mark.parametrize(
    ("a", "b", "middle_a", "middle_b", "expected"),
    [
        (1500, 1500, 9000, 9000, (1500, 1500)),
        (9000, 9000, 9000, 9000, (9000, 9000)),
        (9000, 9000, 1500, 1500, (1500, 1500)),
        # what comes into a port of the switch may be larger by a VLAN tag, which is not there (is_skb_forwardable)
        (9000, 9000, 9000, 1500, (1500, 1504)),
        (9000, 9000, 4711, 9000, (4715, 4711)),
        (9000, 1500, 9000, 9000, (1500, 1500)),
        (1500, 1500, 1400, 9000, (1404, 1400)),
    ],
)
def test_the_largest_packet_to_the_byte(
    pair: tuple[str, str], a: int, b: int, middle_a: int, middle_b: int, expected: tuple[int, int]
) -> None:
    with wires("A", "B", bridges=["s0"]) as net:
        join(net, a, b, middle_a, middle_b)
        with answering(net, Ear(pair[1], PORT, peer=pair[0], link="eth0")) as said:
            found = measure(net, pair, min(a, b), link="eth0")
        assert (found.mtu_out, found.mtu_in) == expected and found.alive
        assert found.round_trip_s is not None and 0 < found.round_trip_s < 1
        assert list(said.heard.values()) == [expected[0]]


@pytest.mark.qemu
@pytest.mark.parametrize(("deaf", "expected"), [("B", (3000, 9000)), ("A", (9000, 3000))])
def test_directions_are_told_apart(deaf: str, expected: tuple[int, int]) -> None:
    with wires("A", "B", bridges=["s0"]) as net:
        join(net, 9000, 9000)
        net.nft(
            deaf,
            "add table ip t; add chain ip t c { type filter hook input priority 0; }; add rule ip t c meta length > 3000 drop",
        )
        with answering(net, Ear(V4[1], PORT)):
            found = measure(net, mtu=9000)
        assert (found.mtu_out, found.mtu_in, found.alive) == (*expected, True)


@pytest.mark.qemu
def test_a_nic_that_is_smaller_than_it_was_said_to_be_is_known_at_once_on_either_side() -> None:
    with wires("A", "B", bridges=["s0"]) as net:
        join(net, 9000, 2000)
        with answering(net, Ear(V4[1], PORT)):
            found = measure(net, mtu=9000)
            assert (found.mtu_out, found.mtu_in) == (2004, 2000)
        net.ip("A", "link set eth0 mtu 1800")
        with answering(net, Ear(V4[1], PORT)):
            found = measure(net, mtu=9000)
            assert (found.mtu_out, found.mtu_in) == (1800, 1804)


@pytest.mark.qemu
@pytest.mark.parametrize(
    "rule",
    ["numgen random mod 100 < 5 drop", "meta length > 1000 numgen random mod 100 < 30 drop"],
)
def test_packets_lost_by_chance_change_nothing(rule: str) -> None:
    with wires("A", "B", bridges=["s0"]) as net:
        join(net, 9000, 9000, 1500, 1500)
        for member in ("A", "B"):
            net.nft(
                member,
                f"add table ip t; add chain ip t c {{ type filter hook input priority 0; }}; add rule ip t c {rule}",
            )
        with answering(net, Ear(V4[1], PORT)):
            assert {(found.mtu_out, found.mtu_in) for found in (measure(net, mtu=9000) for _ in range(5))} == {
                (1500, 1500)
            }
            net.ip("switch", "link set s0Aeth0 mtu 9000", "link set s0Beth0 mtu 9000")
            assert {(found.mtu_out, found.mtu_in) for found in (measure(net, mtu=9000) for _ in range(5))} == {
                (9000, 9000)
            }


@pytest.mark.qemu
@pytest.mark.parametrize(("deaf", "heard"), [("B", False), ("A", True)])
def test_a_dead_path_and_which_direction_it_is(deaf: str, heard: bool) -> None:
    with wires("A", "B", bridges=["s0"]) as net:
        join(net, 1500, 1500)
        net.nft(deaf, "add table ip t; add chain ip t c { type filter hook input priority 0; policy drop; }")
        with answering(net, Ear(V4[1], PORT)) as said:
            found = measure(net)
        assert found == PathMeasure()
        assert bool(said.heard) is heard


@pytest.mark.qemu
def test_an_address_or_nic_that_is_not_ours() -> None:
    with wires("A", "B", bridges=["s0"]) as net:
        join(net, 1500, 1500)
        for pair, link in ((("10.0.0.7", V4[1]), ""), (V4, "eth7")):
            found = measure(net, pair, link=link)
            assert not found.alive and found.reason.startswith(f"Nothing can be sent from {pair[0]}: ")
        with (
            pytest.raises(PortClosed, match=r"UDP port 49200 of 10\.0\.0\.7: Cannot assign"),
            answering(net, Ear("10.0.0.7", PORT)),
        ):
            pass
        with answering(net, Ear(V4[1], PORT)):
            second = [Ear("127.0.0.1", PORT), Ear(V4[1], PORT)]
            with pytest.raises(PortClosed, match="already in use"), answering(net, *second):
                pass
        # the one that it had taken is free, and so are all after a close
        with answering(net, *second):
            pass


@pytest.mark.qemu
def test_several_paths_at_once_one_of_them_dead() -> None:
    with wires("A", "B", bridges=["s0", "s1", "s2"]) as net:
        join(net, 9000, 9000)
        paths = [Path(*V4, "10.0.0.0/24", "", "eth0", "eth0", 2, 0, 9000)]
        for index, middle in ((1, 1500), (2, 9000)):
            for member, host in (("A", 1), ("B", 11)):
                net.cable(member, f"eth{index}", f"s{index}", mtu=9000, middle=middle)
                net.ip(member, f"addr add 10.{index}.0.{host}/24 dev eth{index}")
            pair = (f"10.{index}.0.1", f"10.{index}.0.11")
            paths.append(Path(*pair, f"10.{index}.0.0/24", "", f"eth{index}", f"eth{index}", 2 + index, 0, 9000))
        net.ip("switch", "link set s2Beth2 down")
        ears = [Ear(path.destination_address, PORT, path.source_address, path.destination_link) for path in paths]
        with answering(net, *ears):
            found = net.inside("A", lambda: probe_paths(paths, PORT, NONCE)).result(30)
            assert [(one.mtu_out, one.mtu_in, one.alive) for one in found.values()] == [
                (9000, 9000, True), (1500, 1500, True), (0, 0, False),
            ]  # fmt: skip
            assert list(found) == paths
            dead = net.inside("A", lambda: probe_paths(paths[2:], PORT, NONCE)).result(30)
            assert dead == {paths[2]: PathMeasure()}


@pytest.mark.qemu
def test_a_responder_that_stands_still_for_a_moment_teaches_nothing_wrong() -> None:
    with wires("A", "B", bridges=["s0"]) as net:
        join(net, 9000, 9000)
        path = Path(*V4, "10.0.0.0/24", "", "eth0", "eth0", 2, 0, 9000)
        stalls = iter([False, True, False, False, True, False, False, False, True])
        with answering(net, Ear(V4[1], PORT), before_each=lambda: time.sleep(0.4 if next(stalls, False) else 0)):
            for _ in range(3):
                found = net.inside("A", lambda: probe_paths([path], PORT, NONCE)).result(30)[path]
                assert (found.mtu_out, found.mtu_in, found.alive) == (9000, 9000, True)
        assert not list(stalls)


def exchange(net: Wires, address: str, work: Callable[[socket.socket], object]) -> object:
    """What a socket on A gets out of the responder."""

    async def run() -> object:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
            handle.bind((address, 0))
            handle.settimeout(0.2)
            handle.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
            return await asyncio.to_thread(work, handle)

    return net.inside("A", run).result(30)


@pytest.mark.qemu
def test_strangers_get_no_answer_and_nobody_gets_more_than_his_share() -> None:
    with wires("A", "B", bridges=["s0"]) as net:
        join(net, 1500, 1500)
        net.ip("A", "addr add 10.0.0.2/24 dev eth0")

        def answers(*sent: bytes) -> Callable[[socket.socket], list[Packet]]:
            def work(handle: socket.socket) -> list[Packet]:
                for data in sent:
                    handle.sendto(data, (V4[1], PORT))
                got: list[Packet] = []
                try:
                    while True:
                        got.append(decode(handle.recv(65535), NONCE, 28))
                except TimeoutError:
                    return got

            return work

        probe = encode(Packet(Kind.PROBE, 7, 60), NONCE, 28)
        request = encode(Packet(Kind.REQUEST, 8, 1000), NONCE, 28)
        with answering(net, Ear(V4[1], PORT, peer=V4[0])):
            assert exchange(net, V4[0], answers(probe, request)) == [
                Packet(Kind.ACK, 7, 60),
                Packet(Kind.PADDED, 8, 1000),
            ]
            too_large = encode(Packet(Kind.REQUEST, 9, 1501), NONCE, 28)
            assert exchange(net, V4[0], answers(too_large)) == [Packet(Kind.TOO_LARGE, 9, 1501)]
            assert exchange(net, "10.0.0.2", answers(probe, request)) == []
            wrong = encode(Packet(Kind.PROBE, 7, 60), bytes(16), 28)
            answer = encode(Packet(Kind.ACK, 7, 60), NONCE, 28)
            assert exchange(net, V4[0], answers(wrong, answer, b"", b"x" * 1400, probe[:-1], probe + b"\0")) == []
            got = exchange(net, V4[0], answers(*[request] * 20_000))
            assert isinstance(got, list) and 100 < len(got) < 10_000
