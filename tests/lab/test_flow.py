"""Real flows in a real lab: that they take what the link gives, no more, and that what is on record is what arrived."""

from __future__ import annotations

import asyncio
import json

import pytest

from livemove.base.clock import SystemClock
from livemove.base.errors import BadDefinition, Conflict, LinkLost
from livemove.lab import faults
from livemove.lab.flow import Flow
from livemove.lab.lab import Lab
from livemove.lab.topology import parse_lab

pytestmark = pytest.mark.qemu

RATE = 25_000_000  # 200 Mbit/s
# Room for the burst, 64 KiB, in a window of half a second.
MOST = RATE * 1.02


async def arrived(lab: Lab, host: str, link: int = 0) -> int:
    """Bytes that the host's NIC has received, Ethernet included."""
    shown = ["ip", "-j", "-s", "-n", lab.spec.namespace(host), "link", "show", f"link{link}-{host}"]
    return int(json.loads(await lab.tools.run(shown))[0]["stats64"]["rx"]["bytes"])


@pytest.mark.parametrize("connections", [1, 3])
async def test_a_stream_takes_the_link_and_its_bytes_are_those_that_arrived(lab_name: str, connections: int) -> None:
    async with Lab(parse_lab(lab_name, links=["unshaped", "200Mbit,switched"])) as lab:
        async with Flow(lab, sender="A", receiver="B", link=1, connections=connections) as flow:
            await asyncio.sleep(0.5)
            start_s, before = SystemClock().monotonic_s(), await arrived(lab, "B", 1)
            await asyncio.sleep(1.5)
            end_s, after = SystemClock().monotonic_s(), await arrived(lab, "B", 1)
            established = await lab.run_in("A", ["ss", "-Htin", "state", "established", "dport", "=", f":{flow.port}"])
            assert established.stdout.count(b"cubic") == connections
        seen = (after - before) / (end_s - start_s) * 1448 / 1514
        assert flow.mean(start_s, end_s).rate_bytes_per_s == pytest.approx(seen, rel=0.05)
        assert (
            RATE * 0.5 < flow.worst(0.5, start_s, end_s).rate_bytes_per_s <= flow.mean(start_s, end_s).rate_bytes_per_s
        )
        assert max(window.rate_bytes_per_s for window in flow.rates(0.5, start_s)) < MOST
        assert lab.processes() == []
        gaps = [later.at_s - sooner.at_s for sooner, later in zip(flow.samples(), flow.samples()[1:], strict=False)]
        assert sorted(gaps)[len(gaps) // 2] == pytest.approx(0.05, rel=0.2)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_a_flow_with_a_rate_keeps_to_it(lab_name: str, protocol: str) -> None:
    async with Lab(parse_lab(lab_name, links=["200Mbit,switched,mtu=9000"])) as lab:
        flow = Flow(lab, sender="B", receiver="A", rate_bytes_per_s=RATE // 5, connections=2, protocol=protocol)  # type: ignore[arg-type]  # one of the two
        async with flow:
            await asyncio.sleep(1.5)
        start_s = flow.samples()[-1].at_s - 1
        assert RATE / 5 * 0.5 < flow.mean(start_s).rate_bytes_per_s < RATE / 5 * 1.1


@pytest.mark.parametrize(("senders", "receivers"), [("AB", "CC"), ("AA", "BC")])
async def test_flows_of_several_hosts_share_the_port_and_those_of_one_host_its_cable(
    lab_name: str, senders: str, receivers: str
) -> None:
    async with (
        Lab(parse_lab(lab_name, "A,B,C", ["200Mbit,switched"])) as lab,
        Flow(lab, sender=senders[0], receiver=receivers[0], port=5201) as first,
        Flow(lab, sender=senders[1], receiver=receivers[1], port=5202) as second,
    ):
        await asyncio.sleep(0.5)
        start_s = SystemClock().monotonic_s()
        await asyncio.sleep(2)
        rates = [flow.mean(start_s).rate_bytes_per_s for flow in (first, second)]
        assert RATE * 0.5 < sum(rates) < MOST
        # how they share is theirs, and none is shut out
        assert min(rates) > RATE * 0.02


async def test_a_cut_is_silence_on_record_and_the_flow_goes_on_after_it(lab_name: str) -> None:
    async with (
        Lab(parse_lab(lab_name, links=["200Mbit,switched"])) as lab,
        Flow(lab, sender="A", receiver="B") as flow,
    ):
        await faults.cut(lab, 0)
        start_s = SystemClock().monotonic_s()
        await asyncio.sleep(0.6)
        end_s = SystemClock().monotonic_s()
        assert flow.worst(0.3, start_s, end_s).rate_bytes_per_s == 0
        await faults.heal(lab, 0)
        total = flow.samples()[-1].total_bytes
        async with asyncio.timeout(10):
            while flow.samples()[-1].total_bytes < total + RATE / 10:  # noqa: ASYNC110  (a file)
                await asyncio.sleep(0.05)


async def test_a_second_nic_in_the_subnet_carries_the_flow_that_is_to_be_there(lab_name: str) -> None:
    async with Lab(parse_lab(lab_name, links=["200Mbit,switched", "200Mbit,switched,subnet=0"])) as lab:

        async def sent(index: int) -> int:
            shown = ["ip", "-j", "-s", "-n", lab.spec.namespace("A"), "link", "show", f"link{index}-A"]
            return int(json.loads(await lab.tools.run(shown))[0]["stats64"]["tx"]["bytes"])

        async with Flow(lab, sender="A", receiver="B", link=1):
            await asyncio.sleep(0.3)
        assert await sent(0) < 100_000 < await sent(1)


async def test_a_flow_that_is_none_is_told(lab_name: str) -> None:
    async with Lab(parse_lab(lab_name)) as lab:
        for wrong in ({"sender": "C"}, {"link": 1}, {"protocol": "udp"}):
            with pytest.raises(BadDefinition):
                Flow(lab, **{"sender": "A", "receiver": "B", **wrong})  # type: ignore[arg-type]  # wrong on purpose
        await faults.black_hole(lab, 0)
        flow = Flow(lab, sender="A", receiver="B")
        with pytest.raises(LinkLost, match="from A to B arrived within 1"):
            await flow.start(timeout_s=1)
        assert lab.processes() == []
        await faults.heal(lab, 0)
        async with Flow(lab, sender="A", receiver="B") as flow:
            with pytest.raises(Conflict, match="5201"):
                await Flow(lab, sender="A", receiver="B").start()
            async with Flow(lab, sender="B", receiver="A"):
                assert len(lab.processes()) == 4
            faults.kill(lab, flow.pids[0])
            await asyncio.sleep(0.8)
            with pytest.raises(LinkLost, match="recorded nothing after"):
                flow.mean(None, SystemClock().monotonic_s())
