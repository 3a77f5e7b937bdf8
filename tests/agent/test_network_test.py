"""Tests of the network between two agents: real probes on loopback, doors that close, and who may have them opened."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import pytest

from livemove.agent import network_test
from livemove.agent.network_test import MAX_TESTS, NetworkTests
from livemove.agent.networking import AgentNetworking
from livemove.api.network_models import AskDoors, DoorsAnswer, HostNetworksBody, PathPair
from livemove.base.errors import AgentBusy, LinkLost, NoCommonNetwork, PeerViolation, PortClosed, SameHost
from livemove.base.settings import HostSettings
from livemove.policy.host_setup import Change
from livemove.policy.paths import HostNetworks, LinkFacts, NetworkRule, Path

MTU = 16000
PORTS = range(49300, 49304)


class Changes:
    """Remembers for what the host's network is changed."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.ever = 0

    async def apply(self, journey: str, changes: Sequence[Change]) -> list[str]:
        self.held.append(journey)
        self.ever += 1
        return []


class Networking:
    """A host with one NIC, loopback, and an address of its own on it."""

    def __init__(self, name: str, address: str, mtu: int = MTU) -> None:
        link = LinkFacts("lo", 1, "loopback", 0, mtu, True, "", 1, (f"{address}/8",))
        self.networks = HostNetworks(name, (link,))
        self.list: tuple[NetworkRule, ...] = ()
        self.changes = Changes()

    async def own(self) -> HostNetworks:
        return self.networks

    async def rules(self) -> tuple[NetworkRule, ...]:
        return self.list

    async def as_destination(self, pairs: Sequence[PathPair]) -> tuple[list[Path], list[Path]]:
        paths = [Path(each.source, each.destination, "127.0.0.0/8", "", "", "lo", 1, 0, MTU) for each in pairs]
        return paths, paths

    async def put_back(self, journey: str) -> None:
        self.changes.held = [held for held in self.changes.held if held != journey]


class Client:
    """The other agent, without HTTP between."""

    def __init__(self, tests: NetworkTests, source: str) -> None:
        self.tests, self.source = tests, source

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def open_doors(self, body: AskDoors) -> DoorsAnswer:
        answer = await self.tests.open_doors(self.source, AskDoors.model_validate_json(body.model_dump_json()))
        return DoorsAnswer.model_validate_json(answer.model_dump_json())

    async def close_doors(self, test: str) -> None:
        await self.tests.close_doors(self.source, test)


class Host:
    def __init__(self, name: str, address: str, root: FilePath, mtu: int = MTU) -> None:
        self.networking = Networking(name, address, mtu)
        self.taken: set[int] = set()
        self.peers: dict[str, Any] = {}
        settings = HostSettings(name=name, state_dir=root, run_dir=root, port_range=f"{PORTS[0]}-{PORTS[-1]}")
        networking: Any = self.networking
        self.tests = NetworkTests(lambda: settings, networking, lambda host: self.peers[host], lambda: self.taken)

    def is_quiet(self) -> bool:
        """Whether nothing of a test is left here."""
        link = self.networking.networks.links[0]
        address = link.addresses[0].partition("/")[0]
        for port in PORTS:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_INET, kind) as trial:
                    trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    trial.bind((address, port))
        return not self.tests.under_way and not self.networking.changes.held


@pytest.fixture
def a(tmp_path: FilePath) -> Host:
    return Host("A", "127.0.0.2", tmp_path)


@pytest.fixture
def b(tmp_path: FilePath, a: Host) -> Host:
    made = Host("B", "127.0.0.3", tmp_path)
    a.peers["B"] = Client(made.tests, "A")
    return made


def asked(host: Host) -> AskDoors:
    return AskDoors(networks=HostNetworksBody.of(host.networking.networks))


async def test_a_path_is_measured_and_nothing_stays(a: Host, b: Host) -> None:
    b.taken = {PORTS[0]}
    view = await a.tests.run("B")
    assert (view.source, view.destination, view.port, view.left_out, view.notes) == ("A", "B", PORTS[1], (), ())
    (path,) = view.paths
    assert (path.source_address, path.destination_address) == ("127.0.0.2", "127.0.0.3")
    assert (path.level, path.verdict, path.port_open) == ("fine", "", True)
    assert path.measured is not None and (path.measured.mtu_out, path.measured.mtu_in) == (MTU, MTU)
    assert a.networking.changes.ever == b.networking.changes.ever == 1
    assert a.is_quiet() and b.is_quiet()


async def test_a_port_that_is_free_for_connections_only_is_passed_over(a: Host, b: Host) -> None:
    """The kernel gives ports of this range to any program's datagram socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as somebodys:
        somebodys.bind(("0.0.0.0", PORTS[0]))
        assert (await a.tests.run("B")).port == PORTS[1]
    assert a.is_quiet() and b.is_quiet()


async def test_a_smaller_nic_at_one_end_is_named(a: Host, tmp_path: FilePath) -> None:
    small = Host("B", "127.0.0.3", tmp_path, mtu=1500)
    a.peers["B"] = Client(small.tests, "A")
    (path,) = (await a.tests.run("B")).paths
    assert (path.level, path.source_mtu, path.destination_mtu) == ("warning", MTU, 1500)
    assert "lo of B is set to 1500" in path.verdict


async def test_what_the_destination_s_list_does_not_allow_is_not_probed(a: Host, b: Host) -> None:
    b.networking.list = (NetworkRule("127.0.0.0/8", 1, allowed=False),)
    with pytest.raises(NoCommonNetwork, match="denied"):
        await a.tests.run("B")
    assert a.is_quiet() and b.is_quiet()


async def test_a_nic_without_a_carrier_is_a_fault(a: Host, b: Host) -> None:
    for host, address in ((a, "10.9.9.1/24"), (b, "10.9.9.2/24")):
        pulled = LinkFacts("eth7", 7, "physical", 0, 1500, host is a, "", 1, (address,))
        host.networking.networks = replace(host.networking.networks, links=(*host.networking.networks.links, pulled))
    view = await a.tests.run("B")
    assert [(each.network, each.level, each.port_open) for each in view.paths] == [
        ("127.0.0.0/8", "fine", True), ("10.9.9.0/24", "fault", False),
    ]  # fmt: skip
    assert view.paths[1].verdict == "eth7 of B has no carrier." and view.paths[1].measured is None
    assert [each.what for each in view.left_out] == []


async def test_what_the_destination_did_not_open_is_told(a: Host, b: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = await b.tests.open_doors("A", asked(a))
    await b.tests.close_doors("A", answer.test)

    async def opens_nothing(body: AskDoors) -> DoorsAnswer:
        return answer.model_copy(update={"paths": ()})

    monkeypatch.setattr(a.peers["B"], "open_doors", opens_nothing)
    view = await a.tests.run("B")
    assert view.paths == ()
    assert [(each.what, each.reason) for each in view.left_out] == [("127.0.0.2 to 127.0.0.3", "B does not admit it")]


async def test_a_port_that_does_not_answer_is_waited_for_a_moment_only(
    a: Host, b: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silence(*asked: object, **how: object) -> float:
        await asyncio.sleep(60)
        return 0

    async def nothing(paths: Sequence[Path], port: int, nonce: bytes) -> dict[Path, network_test.PathMeasure]:
        return {path: network_test.PathMeasure() for path in paths}

    monkeypatch.setattr(network_test, "probe_port", silence)
    monkeypatch.setattr(network_test, "probe_paths", nothing)
    monkeypatch.setattr(network_test, "_SILENT_PATIENCE_S", 0.05)
    (path,) = (await a.tests.run("B")).paths
    assert (path.level, path.port_open, path.measured) == ("fault", False, None)
    assert "No answer comes between lo of A and lo of B" in path.verdict


async def test_a_port_that_is_shut_is_told_as_one(a: Host, b: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*asked: object, **how: object) -> float:
        raise PortClosed("TCP port 1 cannot be reached.", remedy="Open it.")

    monkeypatch.setattr(network_test, "probe_port", refused)
    (path,) = (await a.tests.run("B")).paths
    assert (path.level, path.port_open, path.verdict, path.remedy) == (
        "fault", False, "TCP port 1 cannot be reached.", "Open it.",
    )  # fmt: skip
    assert path.measured is not None


async def test_a_destination_that_is_lost_leaves_nothing_changed(
    a: Host, b: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*asked: object) -> None:
        raise LinkLost("gone")

    monkeypatch.setattr(a.peers["B"], "close_doors", lost)
    assert (await a.tests.run("B")).paths
    assert a.is_quiet() and b.networking.changes.held
    await b.tests.close()
    monkeypatch.setattr(a.peers["B"], "open_doors", lost)
    with pytest.raises(LinkLost):
        await a.tests.run("B")
    assert a.is_quiet() and b.is_quiet()


async def test_doors_close_by_themselves(a: Host, b: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_test, "OPEN_S", 0.1)
    await b.tests.open_doors("A", asked(a))
    assert b.tests.under_way
    for _ in range(500):
        if not b.tests.under_way:
            break
        await asyncio.sleep(0.01)
    assert b.is_quiet()


async def test_doors_are_bounded_and_each_source_s_own(b: Host, tmp_path: FilePath) -> None:
    sources = [Host(f"S{number}", f"127.0.1.{number + 1}", tmp_path) for number in range(MAX_TESTS + 1)]
    opened = [
        await b.tests.open_doors(f"S{number}", asked(source)) for number, source in enumerate(sources[: len(PORTS)])
    ]
    with pytest.raises(AgentBusy):
        await b.tests.open_doors("S0", asked(sources[0]))
    with pytest.raises(PortClosed, match="port_range"):
        await b.tests.open_doors("S7", asked(sources[7]))
    assert len(b.tests.under_way) == len(opened)
    await b.tests.close_doors("S1", opened[0].test)
    await b.tests.close_doors("S1", "test-unknown")
    assert len(b.tests.under_way) == len(opened)
    await b.tests.close_doors("S0", opened[0].test)
    assert len(b.tests.under_way) == len(opened) - 1
    await b.tests.close()
    assert b.is_quiet()


async def test_no_more_tests_than_that(a: Host, b: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_test, "MAX_TESTS", 0)
    with pytest.raises(AgentBusy, match="on A"):
        await a.tests.run("B")
    with pytest.raises(AgentBusy, match="with B"):
        await b.tests.open_doors("A", asked(a))
    assert a.is_quiet() and b.is_quiet()


async def test_a_host_speaks_for_itself_only(a: Host, b: Host) -> None:
    with pytest.raises(PeerViolation, match="C sent the links of A"):
        await b.tests.open_doors("C", asked(a))
    with pytest.raises(SameHost):
        await a.tests.run("A")
    assert a.is_quiet() and b.is_quiet()


def test_the_double_has_what_the_agent_has() -> None:
    for name in ("own", "rules", "as_destination", "put_back"):
        assert hasattr(AgentNetworking, name)
