from __future__ import annotations

import asyncio
import json
import sys

import pytest

from livemove.lab import faults, links, namespaces, processes
from livemove.lab.lab import Lab
from livemove.lab.link_spec import LinkSpec, parse_link
from livemove.lab.namespaces import socket_in
from livemove.lab.topology import LabSpec, parse_lab

GUEST_MAC = "52:54:00:00:00:01"

REACH = """
import json, socket, sys
results = []
for source, target in json.loads(sys.argv[1]):
    try:
        with socket.create_connection((target, 9), timeout=2, source_address=(source, 0)) as peer:
            results.append(peer.recv(64).decode())
    except OSError as error:
        results.append(str(error))
print(json.dumps(results))
"""

ANSWER = """
import socket, sys
with socket.create_server(("0.0.0.0", 9)) as server:
    while True:
        with server.accept()[0] as peer:
            peer.sendall(sys.argv[1].encode())
"""

SINK = """
import socket
with socket.create_server(("0.0.0.0", 9)) as server:
    while True:
        with server.accept()[0] as peer:
            while peer.recv(1 << 18):
                pass
"""

# bytes a second over 2 s, after half a second in which the burst and the buffers fill, as the kernel counts what arrived
SEND = """
import socket, struct, sys, time
def acked(peer):
    return struct.unpack_from("Q", peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 120)[0]
with socket.create_connection((sys.argv[1], 9), timeout=10) as peer:
    block, begin = bytes(1 << 16), time.monotonic()
    while time.monotonic() < begin + 0.5:
        peer.sendall(block)
    first, begin = acked(peer), time.monotonic()
    while time.monotonic() < begin + 2:
        peer.sendall(block)
    print((acked(peer) - first) / (time.monotonic() - begin))
"""


def test_a_shaper_says_rate_burst_and_limit() -> None:
    assert links.shaper("link0-A", parse_link("200Mbit,queue=10ms")) == (
        "qdisc replace dev link0-A root tbf rate 200000000bit burst 65536 limit 315536"
    )


def test_every_end_of_a_shaped_link_is_shaped_and_no_other() -> None:
    spec = parse_lab(hosts="A,B,C", links=["1Gbit", "unshaped"])
    lines = [line for lines in links.shaping(spec).values() for line in lines]
    assert sorted(line.split()[3] for line in lines) == ["link0-A", "link0-B", "link0-C", "s0-A", "s0-B", "s0-C"]


async def wait_for_port(lab: Lab, member: str, address: str) -> None:
    script = "import socket,sys;socket.create_connection((sys.argv[1],9),1).close()"
    async with asyncio.timeout(10):
        while (await lab.run_in(member, [sys.executable, "-c", script, address])).returncode:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def test_the_hosts_nics_of_a_switched_link_are_left_alone() -> None:
    spec = parse_lab(links=["1Gbit,switched", "unshaped,switched"])
    shaped = {member: [line.split()[3] for line in lines] for member, lines in links.shaping(spec).items()}
    assert shaped == {"switch": ["s0-A", "u0-A", "s0-B", "u0-B"]}
    led = [line for line in links.filtering(spec).splitlines() if "fwd to" in line]
    assert [line.split()[-1] for line in led] == ['"u0-A"', '"u0-B"']
    assert links.filtering(parse_lab(links=["1Gbit"])) == ""


@pytest.mark.qemu
@pytest.mark.parametrize("hosts", ["A,B", "A,B,C"])
async def test_every_host_reaches_every_other_over_every_network(lab_name: str, hosts: str) -> None:
    spec = parse_lab(lab_name, hosts, ["1Gbit", "unshaped,mtu=9000,offloads=off", "1Gbit,switched"])
    async with Lab(spec) as lab:
        for host in spec.hosts:
            log = lab.directory(host) / "log" / "answer.log"
            lab.start_process(host, [sys.executable, "-c", ANSWER, host], log=log)
        for host in spec.hosts:
            await wait_for_port(lab, host, "127.0.0.1")
        for host in spec.hosts:
            pairs = []
            for other in (name for name in spec.hosts if name != host):
                pairs += [(spec.link_address(host, index), spec.link_address(other, index)) for index in range(3)]
                pairs += [(spec.control_address(host), spec.control_address(other))]
            argument = json.dumps([[str(address) for address in pair] for pair in pairs])
            done = await lab.run_in(host, [sys.executable, "-c", REACH, argument], timeout_s=60)
            expected = [other for other in spec.hosts if other != host for _ in range(4)]
            assert json.loads(done.stdout) == expected, done.stderr


@pytest.mark.qemu
async def test_every_cable_carries_packets_when_up_returns(lab_name: str) -> None:
    async with Lab(parse_lab(lab_name, "A,B,C", ["1Gbit", "1Gbit"])) as lab:
        for member in lab.spec.members:
            shown = json.loads(await lab.tools.run(["ip", "-d", "-j", "-n", lab.spec.namespace(member), "link"]))
            cables = [link for link in shown if link.get("linkinfo", {}).get("info_kind") == "veth"]
            assert cables
            assert {link["operstate"] for link in cables} == {"UP"}
            ports = [link["linkinfo"]["info_slave_data"]["state"] for link in cables if "master" in link]
            assert set(ports) <= {"forwarding"}


@pytest.mark.qemu
async def test_a_guest_on_a_hosts_bridge_is_reached_by_the_client_and_keeps_its_address_when_it_moves(
    lab_name: str,
) -> None:
    async with Lab(LabSpec(lab_name)) as lab:
        # A guest is a network stack of its own. With its address in the host's stack, the host's br0 would answer ARP
        # for it with br0's MAC, and the client would look for the moved guest there.
        guests = {host: f"lm-{lab_name}-guest{host}" for host in lab.spec.hosts}
        await namespaces.make(lab.tools, list(guests.values()))
        for host, guest in guests.items():
            # the same MAC on both hosts, as a moved guest has
            cable = f"link add port type veth peer name eth0 address {GUEST_MAC} netns {guest}"
            await lab.tools.ip(lab.spec.namespace(host), [cable, "link set port master br0 up"])
            log = lab.directory(host) / "log" / "answer.log"
            environment = namespaces.marks(lab_name, host)
            argv = [sys.executable, "-c", ANSWER, host]
            pid = processes.start(guest, argv, directory=log.parent, log=log, env=environment)
            await wait_until_listens(pid)
        argument = json.dumps([[str(lab.spec.client_address.ip), "10.77.0.10"]])
        for here, away in (("A", "B"), ("B", "A"), ("A", "B")):
            await lab.tools.ip(guests[away], ["addr flush dev eth0", "link set eth0 down"])
            await lab.tools.ip(guests[here], ["addr add 10.77.0.10/24 dev eth0", "link set eth0 up"])
            await wait_forwarding(lab, here, "port")
            # what QEMU does for a guest that arrived: anything that the guest sends teaches the switches
            with socket_in(guests[here]) as announcement:
                announcement.setblocking(False)
                announcement.connect_ex(("10.77.0.200", 9))
            done = await lab.run_in("client", [sys.executable, "-c", REACH, argument], timeout_s=30)
            assert json.loads(done.stdout) == [here], done.stderr
            learned = await lab.run_in("client", ["ip", "neigh", "show", "10.77.0.10"])
            assert GUEST_MAC.encode() in learned.stdout


async def wait_until_listens(pid: int) -> None:
    async with asyncio.timeout(10):
        while not processes.listens(pid, 9):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def wait_forwarding(lab: Lab, host: str, port: str) -> None:
    shown = ["ip", "-d", "-n", lab.spec.namespace(host), "link", "show", port]
    async with asyncio.timeout(10):
        while "state forwarding" not in await lab.tools.run(shown):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.qemu
async def test_a_tap_can_be_made_in_a_host_and_joined_to_its_bridge(lab_name: str) -> None:
    async with Lab(LabSpec(lab_name)) as lab:
        namespace = lab.spec.namespace("B")
        await lab.tools.ip(namespace, ["tuntap add tap0 mode tap", "link set tap0 master br0 up"])
        found = json.loads(await lab.tools.run(["ip", "-j", "-n", namespace, "link", "show", "tap0"]))
        assert found[0]["master"] == "br0"
        # opened as QEMU opens it, inside the namespace
        script = (
            "import fcntl,os,struct;f=os.open('/dev/net/tun',os.O_RDWR);"
            "fcntl.ioctl(f,0x400454ca,struct.pack('16sH22x',b'tap0',0x1002));"
            "print(open('/proc/net/dev').read().count('tap0'))"
        )
        done = await lab.run_in("B", [sys.executable, "-c", script])
        assert done.stdout.strip() == b"1", done.stderr


@pytest.mark.qemu
async def test_links_have_the_congestion_control_mtu_and_offloads_that_they_should(lab_name: str) -> None:
    spec = parse_lab(lab_name, links=["1Gbit", "1Gbit,mtu=9000,offloads=off"])
    async with Lab(spec) as lab:
        for host in spec.hosts:
            namespace = spec.namespace(host)
            routes = json.loads(await lab.tools.run(["ip", "-j", "-d", "-n", namespace, "route"]))
            on_links = [route for route in routes if route["dev"].startswith("link")]
            assert len(on_links) == 2
            for found in on_links:
                assert "cubic" in json.dumps(found), found
            shown = json.loads(await lab.tools.run(["ip", "-j", "-n", namespace, "link"]))
            mtus = {link["ifname"]: link["mtu"] for link in shown}
            assert (mtus[f"link0-{host}"], mtus[f"link1-{host}"]) == (1500, 9000)
            script = "cat /proc/sys/net/ipv4/conf/all/rp_filter /proc/sys/net/mptcp/blackhole_timeout"
            done = await lab.run_in(host, ["sh", "-c", script])
            assert done.stdout.split() == [b"0", b"0"]
        assert (await mean_packet_bytes(lab, 0)) > 9100  # offloaded: packets of many segments
        assert (await mean_packet_bytes(lab, 1)) <= 9014


async def mean_packet_bytes(lab: Lab, index: int) -> float:
    """What a packet of A has on average while A sends 4 MB to B."""
    end = lab.spec.network(index).end_of("A")
    await faults.set_rate(lab, index, None)
    script = "import socket,sys;p=socket.create_connection((sys.argv[1],9));p.sendall(bytes(4000000));p.close()"
    if not lab.processes("B", "sink"):
        lab.start_process("B", [sys.executable, "-c", SINK], log=lab.directory("B") / "log/sink.log", label="sink")
        await wait_for_port(lab, "B", "127.0.0.1")
    shown = ["ip", "-j", "-s", "-n", lab.spec.namespace("A"), "link", "show", end.interface]
    before = json.loads(await lab.tools.run(shown))[0]["stats64"]["tx"]
    await lab.run_in("A", [sys.executable, "-c", script, str(lab.spec.link_address("B", index))], timeout_s=30)
    after = json.loads(await lab.tools.run(shown))[0]["stats64"]["tx"]
    assert after["bytes"] - before["bytes"] > 4_000_000
    return float((after["bytes"] - before["bytes"]) / (after["packets"] - before["packets"]))


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("hosts", "link"), [("A,B", "200Mbit"), ("A,B,C", "200Mbit"), ("A,B", "200Mbit,switched,mtu=9000")]
)
async def test_a_shaped_link_carries_its_rate_in_both_directions(lab_name: str, hosts: str, link: str) -> None:
    async with Lab(parse_lab(lab_name, hosts, [link])) as lab:
        for host in ("A", "B"):
            lab.start_process(host, [sys.executable, "-c", SINK], log=lab.directory(host) / "log/sink.log")
            await wait_for_port(lab, host, "127.0.0.1")
        assert await transfer(lab, "A", "B") == pytest.approx(25e6, rel=0.15)
        assert await transfer(lab, "B", "A") == pytest.approx(25e6, rel=0.15)
        if hosts == "A,B":
            await faults.set_rate(lab, 0, 50_000_000)
            assert await transfer(lab, "A", "B") == pytest.approx(50e6, rel=0.15)


async def transfer(lab: Lab, source: str, destination: str) -> float:
    target = str(lab.spec.link_address(destination, 0))
    done = await lab.run_in(source, [sys.executable, "-c", SEND, target], timeout_s=30)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_a_link_rescaled_keeps_its_queue_in_time() -> None:
    before = parse_link("200Mbit,queue=10ms,mtu=9000")
    assert faults.rescaled(before, 50_000_000) == LinkSpec(50_000_000, 500_000, 9000)
    assert faults.rescaled(before, None) == LinkSpec(mtu=9000)
    assert faults.rescaled(LinkSpec(), 1_000_000) == LinkSpec(1_000_000)
