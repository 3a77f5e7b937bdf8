"""What a fault stops and what it leaves alone, by UDP between the hosts of a real lab."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest

from livemove.base.errors import BadDefinition, BadQuantity
from livemove.lab import faults
from livemove.lab.lab import Lab
from livemove.lab.namespaces import socket_in
from livemove.lab.topology import parse_lab

pytestmark = pytest.mark.qemu


@contextlib.contextmanager
def ears(lab: Lab) -> Iterator[dict[tuple[str, int], socket.socket]]:
    """A bound UDP socket for every host and link."""
    with contextlib.ExitStack() as stack:
        found = {}
        for host in lab.spec.hosts:
            for index in range(len(lab.spec.links)):
                ear = stack.enter_context(socket_in(lab.spec.namespace(host), kind=socket.SOCK_DGRAM))
                ear.bind((str(lab.spec.link_address(host, index)), 9))
                ear.setblocking(False)
                found[host, index] = ear
        yield found


async def passes(
    lab: Lab, sockets: dict[tuple[str, int], socket.socket], source: str, destination: str, index: int, tries: int = 100
) -> bool:
    """Whether one of some packets arrives within a short time; the first ones may wait for ARP or for the carrier."""
    ear, mouth = sockets[destination, index], sockets[source, index]
    with contextlib.suppress(OSError):
        while True:
            ear.recv(100)
    for _ in range(tries):
        with contextlib.suppress(OSError):
            mouth.sendto(b"x", (str(lab.spec.link_address(destination, index)), 9))
        await asyncio.sleep(0.02)
        with contextlib.suppress(OSError):
            return bool(ear.recv(100))
    return False


async def carriers(lab: Lab) -> dict[str, dict[str, bool]]:
    return {link.name: dict(link.carrier) for link in (await lab.status()).links}


async def test_a_cut_link_of_two_hosts_loses_its_carrier_and_is_whole_after_healing(lab_name: str) -> None:
    async with Lab(parse_lab(lab_name, "A,B", ["1Gbit", "1Gbit"])) as lab:
        with ears(lab) as sockets:
            for _ in range(2):
                await faults.cut(lab, 0)
                await faults.cut(lab, "link0")
                assert await carriers(lab) == {"link0": {"A": False, "B": False}, "link1": {"A": True, "B": True}}
                assert not await passes(lab, sockets, "A", "B", 0, tries=15)
                assert await passes(lab, sockets, "A", "B", 1)
                await faults.heal(lab, 0)
                assert await passes(lab, sockets, "A", "B", 0) and await passes(lab, sockets, "B", "A", 0)
            assert (await carriers(lab))["link0"] == {"A": True, "B": True}
            for host in "AB":
                routes = (await lab.run_in(host, ["ip", "route", "show", "10.80.0.0/24"])).stdout.decode()
                assert routes.count("\n") == 1 and "congctl cubic" in routes


async def test_behind_a_switch_one_host_can_be_cut_off_alone(lab_name: str) -> None:
    async with Lab(parse_lab(lab_name, "A,B,C", ["unshaped"])) as lab:
        with ears(lab) as sockets:
            await faults.cut(lab, 0, host="C")
            assert (await carriers(lab))["link0"] == {"A": True, "B": True, "C": False}
            assert await passes(lab, sockets, "A", "B", 0)
            assert not await passes(lab, sockets, "A", "C", 0, tries=15)
            await faults.cut(lab, 0)
            assert (await carriers(lab))["link0"] == {"A": False, "B": False, "C": False}
            await faults.heal(lab, 0)
            assert (await carriers(lab))["link0"] == {"A": True, "B": True, "C": True}
            assert await passes(lab, sockets, "A", "C", 0) and await passes(lab, sockets, "C", "B", 0)


@pytest.mark.parametrize("hosts", ["A,B", "A,B,C"])
async def test_a_black_hole_swallows_one_direction_or_both_and_leaves_the_carrier(lab_name: str, hosts: str) -> None:
    async with Lab(parse_lab(lab_name, hosts, ["1Gbit", "1Gbit"])) as lab:
        with ears(lab) as sockets:
            # both know the other's address already, so that one direction can work without an answer
            assert await passes(lab, sockets, "A", "B", 0) and await passes(lab, sockets, "B", "A", 0)
            await faults.black_hole(lab, 0, sender="A")
            await faults.black_hole(lab, 0, sender="A")
            assert not await passes(lab, sockets, "A", "B", 0, tries=15)
            assert await passes(lab, sockets, "B", "A", 0)
            assert await passes(lab, sockets, "A", "B", 1)
            await faults.black_hole(lab, 0)
            assert not await passes(lab, sockets, "A", "B", 0, tries=15)
            assert not await passes(lab, sockets, "B", "A", 0, tries=15)
            assert all((await carriers(lab))["link0"].values())
            await faults.heal(lab, 0)
            await faults.heal(lab, 0)
            assert await passes(lab, sockets, "A", "B", 0) and await passes(lab, sockets, "B", "A", 0)


async def test_a_rate_can_be_changed_taken_away_and_given_again(lab_name: str) -> None:
    async with Lab(parse_lab(lab_name, "A,B", ["1Gbit"])) as lab:

        async def shapers() -> list[str]:
            shown = [(await lab.run_in(host, ["tc", "qdisc"])).stdout.decode() for host in "AB"]
            return [word for text in shown for word in text.split() if word.endswith("bit")]

        assert await shapers() == ["1Gbit", "1Gbit"]
        await faults.set_rate(lab, 0, 31_250_000)
        assert await shapers() == ["250Mbit", "250Mbit"]
        await faults.set_rate(lab, 0, None)
        await faults.set_rate(lab, 0, None)
        assert await shapers() == []
        await faults.set_rate(lab, 0, 125_000_000)
        assert await shapers() == ["1Gbit", "1Gbit"]
        with pytest.raises(BadQuantity):
            await faults.set_rate(lab, 0, 0)


async def test_control_and_guests_networks_can_be_broken_too(lab_name: str) -> None:
    async with Lab(parse_lab(lab_name, "A,B")) as lab:
        for name in ("control", "guests"):
            await faults.cut(lab, name, host="A")
            interface = lab.spec.network(name).end_of("A").interface
            shown = await lab.run_in("A", ["ip", "-br", "link", "show", interface])
            assert b"NO-CARRIER" in shown.stdout
            await faults.heal(lab, name)
            shown = await lab.run_in("A", ["ip", "-br", "link", "show", interface])
            assert b"LOWER_UP" in shown.stdout
        for call in (faults.cut(lab, 1), faults.cut(lab, 0, host="C"), faults.black_hole(lab, 0, sender="client")):
            with pytest.raises(BadDefinition):
                await call
