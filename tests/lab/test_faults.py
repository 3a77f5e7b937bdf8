"""What a fault stops and what it leaves alone, by UDP between the hosts of a real lab."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator

import pytest

from livemove.base.errors import BadDefinition, BadQuantity
from livemove.lab import faults
from livemove.lab.lab import Lab
from livemove.lab.namespaces import socket_in
from livemove.lab.topology import parse_lab

pytestmark = pytest.mark.qemu

# from linux/in.h: sizes are the caller's, nothing is fragmented, and what was learned of the path is not believed
IP_MTU_DISCOVER, IP_PMTUDISC_PROBE = 10, 3


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
    lab: Lab,
    sockets: dict[tuple[str, int], socket.socket],
    source: str,
    destination: str,
    index: int,
    tries: int = 100,
    mtu: int = 29,
) -> bool:
    """Whether one of some packets of `mtu` bytes arrives within a short time, unfragmented.

    The first ones may wait for ARP or for the carrier.
    """
    ear, mouth = sockets[destination, index], sockets[source, index]
    with contextlib.suppress(OSError):
        while True:
            ear.recv(1)
    mouth.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)
    for _ in range(tries):
        with contextlib.suppress(OSError):
            mouth.sendto(bytes(mtu - 28), (str(lab.spec.link_address(destination, index)), 9))
        await asyncio.sleep(0.02)
        with contextlib.suppress(OSError):
            return bool(ear.recv(1))
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


async def test_a_switched_link_of_two_hosts_is_cut_in_the_switch_so_that_both_keep_their_routes(lab_name: str) -> None:
    async with Lab(parse_lab(lab_name, "A,B", ["1Gbit,switched"])) as lab:
        with ears(lab) as sockets:
            for cut_off in ("A", "B", None):
                await faults.cut(lab, 0, host=cut_off)
                expected = {host: cut_off not in (host, None) for host in "AB"}
                assert (await carriers(lab))["link0"] == expected
                assert not await passes(lab, sockets, "A", "B", 0, tries=15)
                for host in "AB":
                    routes = (await lab.run_in(host, ["ip", "route", "show", "10.80.0.0/24"])).stdout.decode()
                    assert routes.count("\n") == 1 and "congctl cubic" in routes
                await faults.heal(lab, 0, host=cut_off)
                assert await passes(lab, sockets, "A", "B", 0) and await passes(lab, sockets, "B", "A", 0)


async def test_a_direct_cable_may_be_pulled_at_either_host(lab_name: str) -> None:
    async with Lab(parse_lab(lab_name, "A,B")) as lab:
        with ears(lab) as sockets:
            for host, other in (("A", "B"), ("B", "A")):
                await faults.cut(lab, 0, host=host)
                assert (await carriers(lab))["link0"] == {"A": False, "B": False}
                # the one that was cut off sees no carrier, the other one an interface that is down
                for member, up in ((host, True), (other, False)):
                    shown = await lab.run_in(member, ["ip", "-j", "link", "show", f"link0-{member}"])
                    flags = json.loads(shown.stdout)[0]["flags"]
                    assert ("UP" in flags, "LOWER_UP" in flags) == (up, False)
                await faults.heal(lab, 0, host=host)
                assert await passes(lab, sockets, "A", "B", 0) and await passes(lab, sockets, "B", "A", 0)


@pytest.mark.parametrize("link", ["1Gbit", "1Gbit,switched"])
async def test_a_link_may_be_plugged_in_only_later(lab_name: str, link: str) -> None:
    async with Lab(parse_lab(lab_name, "A,B", ["1Gbit", link])) as lab:
        await faults.cut(lab, 1)
        with ears(lab) as sockets:
            assert await passes(lab, sockets, "A", "B", 0)
            assert not await passes(lab, sockets, "A", "B", 1, tries=15)
            await faults.heal(lab, 1)
            assert await passes(lab, sockets, "A", "B", 1) and await passes(lab, sockets, "B", "A", 1)


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


@pytest.mark.parametrize(("hosts", "link"), [("A,B", "1Gbit"), ("A,B,C", "1Gbit"), ("A,B", "1Gbit,switched")])
async def test_a_black_hole_swallows_one_direction_or_both_and_leaves_the_carrier(
    lab_name: str, hosts: str, link: str
) -> None:
    async with Lab(parse_lab(lab_name, hosts, [link, link])) as lab:
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


@pytest.mark.parametrize("link", ["unshaped", "unshaped,switched"])
async def test_loss_takes_its_share_of_one_direction(lab_name: str, link: str) -> None:
    async with Lab(parse_lab(lab_name, "A,B", [link])) as lab:
        with ears(lab) as sockets:
            assert await passes(lab, sockets, "A", "B", 0) and await passes(lab, sockets, "B", "A", 0)
            await faults.lose(lab, 0, 90, sender="A")
            await faults.lose(lab, 0, 25, sender="A")
            # of 2000 that pass with a chance of 75 %, outside this range once in a billion runs
            assert 1370 < await arriving(lab, sockets, "A", "B", 2000) < 1630
            assert await arriving(lab, sockets, "B", "A", 2000) == 2000
            await faults.lose(lab, 0, 0)
            assert await arriving(lab, sockets, "A", "B", 2000) == 2000
            await faults.lose(lab, 0, 100)
            assert await arriving(lab, sockets, "A", "B", 50) == await arriving(lab, sockets, "B", "A", 50) == 0
            await faults.heal(lab, 0)
            assert await arriving(lab, sockets, "A", "B", 2000) == 2000
            for percent in (-1, 100.5):
                with pytest.raises(BadQuantity):
                    await faults.lose(lab, 0, percent)


async def arriving(
    lab: Lab, sockets: dict[tuple[str, int], socket.socket], source: str, destination: str, count: int
) -> int:
    """How many of `count` small packets arrive; a few at a time, so that only a fault loses one."""
    arrived, address = 0, (str(lab.spec.link_address(destination, 0)), 9)
    for _ in range(count // 50):
        for _ in range(50):
            sockets[source, 0].sendto(b"x", address)
        await asyncio.sleep(0.005)
        with contextlib.suppress(BlockingIOError):
            while sockets[destination, 0].recv(1):
                arrived += 1
    return arrived


@pytest.mark.parametrize("link", ["1Gbit,mtu=9000", "1Gbit,mtu=9000,switched"])
async def test_large_packets_of_one_direction_vanish_silently(lab_name: str, link: str) -> None:
    async with Lab(parse_lab(lab_name, "A,B", [link])) as lab:
        with ears(lab) as sockets:
            assert await passes(lab, sockets, "A", "B", 0, mtu=9000) and await passes(
                lab, sockets, "B", "A", 0, mtu=9000
            )
            await faults.drop_large(lab, 0, 1500, sender="A")
            assert not await passes(lab, sockets, "A", "B", 0, mtu=1501, tries=15)
            assert await passes(lab, sockets, "A", "B", 0, mtu=1500)
            assert await passes(lab, sockets, "B", "A", 0, mtu=9000)
            await faults.drop_large(lab, 0, 4000)
            assert await passes(lab, sockets, "A", "B", 0, mtu=4000)
            assert not await passes(lab, sockets, "B", "A", 0, mtu=4001, tries=15)
            await faults.heal(lab, 0)
            assert await passes(lab, sockets, "A", "B", 0, mtu=9000) and await passes(
                lab, sockets, "B", "A", 0, mtu=9000
            )
            with pytest.raises(BadQuantity):
                await faults.drop_large(lab, 0, 0)


async def test_a_switch_with_a_smaller_mtu_swallows_what_is_larger_and_healing_does_not_change_it(
    lab_name: str,
) -> None:
    async with Lab(parse_lab(lab_name, "A,B", ["1Gbit,switched,mtu=9000,switch-mtu=1500"])) as lab:
        with ears(lab) as sockets:
            await faults.black_hole(lab, 0)
            await faults.heal(lab, 0)
            for source, destination in (("A", "B"), ("B", "A")):
                assert await passes(lab, sockets, source, destination, 0, mtu=1500)
                assert not await passes(lab, sockets, source, destination, 0, mtu=1501, tries=15)


@pytest.mark.parametrize("link", ["1Gbit,mtu=9000/1500", "1Gbit,mtu=9000/1500,switched"])
async def test_mtus_of_two_hosts_may_differ_and_be_changed(lab_name: str, link: str) -> None:
    async with Lab(parse_lab(lab_name, "A,B", [link])) as lab:
        with ears(lab) as sockets:
            assert await passes(lab, sockets, "B", "A", 0, mtu=1500)
            # as on many NICs there is room for a VLAN's tag of 4 bytes
            assert not await passes(lab, sockets, "A", "B", 0, mtu=1505, tries=15)
            await faults.set_mtu(lab, 0, "B", 9000)
            for source, destination in (("A", "B"), ("B", "A")):
                assert await passes(lab, sockets, source, destination, 0, mtu=9000)
            await faults.set_mtu(lab, 0, "A", 1400)
            assert not await passes(lab, sockets, "A", "B", 0, mtu=1401, tries=3)
            with pytest.raises(BadQuantity):
                await faults.set_mtu(lab, 0, "A", 100)
            with pytest.raises(BadDefinition):
                await faults.set_mtu(lab, 0, "C", 1500)


async def test_two_nics_in_one_subnet_share_a_wire_and_the_first_carries_what_the_routes_decide(lab_name: str) -> None:
    async with Lab(parse_lab(lab_name, "A,B", ["1Gbit,switched", "1Gbit,switched,subnet=0"])) as lab:
        for _ in range(2):
            for host, number in (("A", 1), ("B", 2)):
                routes = (await lab.run_in(host, ["ip", "-o", "route", "show", "10.80.0.0/24"])).stdout.decode()
                first, second = routes.splitlines()
                assert f"dev link0-{host}" in first and f"src 10.80.0.{number} " in first and "metric" not in first
                assert f"dev link1-{host}" in second and f"src 10.80.0.{100 + number} metric 1" in second
                assert routes.count("congctl cubic") == 2
            decided = (await lab.run_in("A", ["ip", "route", "get", "10.80.0.102"])).stdout.decode()
            assert "dev link0-A src 10.80.0.1 " in decided
            with ears(lab) as sockets:
                for index in range(2):
                    assert await passes(lab, sockets, "A", "B", index)
                # by the NIC's name the second one carries too, and on its own when the first is cut off
                sockets["A", 1].setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"link1-A")
                assert await passes(lab, sockets, "A", "B", 1)
                await faults.cut(lab, 0, host="A")
                assert not await passes(lab, sockets, "A", "B", 0, tries=15)
                assert await passes(lab, sockets, "A", "B", 1)
            await faults.cut(lab, 1)
            await faults.heal(lab, 0)
            await faults.heal(lab, 1)


@pytest.mark.parametrize("link", ["1Gbit", "1Gbit,switched", "unshaped,switched"])
async def test_a_rate_can_be_changed_taken_away_and_given_again(lab_name: str, link: str) -> None:
    async with Lab(parse_lab(lab_name, "A,B", [link])) as lab:

        async def shapers() -> list[str]:
            shown = [
                await lab.tools.run(["tc", "-n", lab.spec.namespace(member), "qdisc"]) for member in lab.spec.members
            ]
            return sorted(word for text in shown for word in text.split() if word.endswith("bit"))

        places = 4 if "switched" in link else 2
        if link != "unshaped,switched":
            assert await shapers() == ["1Gbit"] * places
        with ears(lab) as sockets:
            await faults.set_rate(lab, 0, 31_250_000)
            assert await shapers() == ["250Mbit"] * places
            assert await passes(lab, sockets, "A", "B", 0)
            await faults.set_rate(lab, 0, None)
            await faults.set_rate(lab, 0, None)
            assert await shapers() == []
            assert await passes(lab, sockets, "A", "B", 0)
            await faults.set_rate(lab, 0, 125_000_000)
            assert await shapers() == ["1Gbit"] * places
            assert await passes(lab, sockets, "A", "B", 0)
            with pytest.raises(BadQuantity):
                await faults.set_rate(lab, 0, 0)
            if "switched" in link:
                await faults.set_rate(lab, 0, 31_250_000, host="B")
                assert await shapers() == ["1Gbit"] * 2 + ["250Mbit"] * 2


async def test_what_a_host_queues_at_its_nic_on_a_switched_link_is_its_own(lab_name: str) -> None:
    async with Lab(parse_lab(lab_name, "A,B", ["1Gbit,switched"])) as lab:
        namespace = lab.spec.namespace("A")
        shown = ["tc", "-n", namespace, "qdisc", "show", "dev", "link0-A"]
        assert "tbf" not in await lab.tools.run(shown)
        await lab.tools.tc(namespace, ["qdisc add dev link0-A root handle 1: htb default 1"])
        before = await lab.tools.run(shown)
        assert "htb" in before
        await faults.set_rate(lab, 0, 31_250_000)
        await faults.set_rate(lab, 0, None)
        await faults.cut(lab, 0)
        await faults.restore(lab, 0)
        assert await lab.tools.run(shown) == before


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
