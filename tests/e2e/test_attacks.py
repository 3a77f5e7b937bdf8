"""Who does not belong, at every port, while a VM moves: refused, logged once, and the journey goes on as if nothing were."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from livemove.agent.identity import authority_dir, host_identity_dir
from livemove.agent.join import LabHost, invite, issue_person, join_request, make_lab_cluster
from livemove.agent.revoking import remove_host
from livemove.api.client import AgentClient
from livemove.api.client_identity import Identity, Role, load_identity
from livemove.api.cluster_map import load_map
from livemove.api.models import AskJourney, JourneyOptions
from livemove.api.trust import LINK_FAILURES, authority_context, client_context, client_with
from livemove.base.clock import ManualClock, SystemClock
from livemove.base.settings import DEFAULT_PORT
from livemove.base.units import parse_rate
from livemove.lab import agents

from .inside import Inside
from .world import Guest, World, other

pytestmark = pytest.mark.qemu

#: What is thrown at ports: not TLS, the beginning of TLS, a TLS record of nonsense, nothing at all.
RUBBISH = (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"\x16\x03\x03\x40\x00" + b"\xa5" * 4000, b"")
DAY_S = 86_400.0
PORTS = range(49152, 49216)


class Stranger:
    """Somebody on both networks of the lab, with addresses of its own, who attacks the destination of a journey."""

    def __init__(self, world: World, host: str, tmp_path: Path, number: int = 0) -> None:
        self.world = world
        self.host = host
        self.base = other(host)
        self.tmp_path = tmp_path
        self.agent = str(world.lab.spec.control_address(host))
        self.migration = str(world.lab.spec.link_address(host, 0))
        self.networks = [_beside(self.agent, number), _beside(self.migration, number)]
        self.pid = world.agent_pid(host)
        self.tries = 0
        self.reached = 0

    def come(self) -> None:
        for address, near in zip(self.networks, self._own(), strict=True):
            links = self.world.run(self.base, "ip", "-o", "addr", "show", "to", near).split()
            self.world.run(self.base, "ip", "addr", "add", f"{address}/24", "dev", links[1].split("@")[0])

    def leave(self) -> None:
        for address in self.networks:
            links = self.world.run(self.base, "ip", "-o", "addr", "show", "to", address).split()
            if links:
                self.world.run(self.base, "ip", "addr", "del", f"{address}/24", "dev", links[1].split("@")[0])

    def _own(self) -> list[str]:
        spec = self.world.lab.spec
        return [str(spec.control_address(self.base)), str(spec.link_address(self.base, 0))]

    async def throw(self, address: str, port: int, data: bytes, *, hold_s: float, patience_s: float = 1.0) -> bool:
        """Connect, send and stay; whether anybody took the connection."""
        near = self.networks[0] if address == self.agent else self.networks[1]
        writer = None
        try:
            async with asyncio.timeout(patience_s):
                reader, writer = await asyncio.open_connection(address, port, local_addr=(near, 0))
                writer.write(data)
                await writer.drain()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(hold_s):
                    await reader.read(1)
        except (OSError, TimeoutError):
            return writer is not None
        finally:
            if writer is not None:
                writer.transport.abort()
        return True

    def open_ports(self) -> list[int]:
        """The destination's migration ports on which somebody listens now: our probe, then QEMU."""
        table = Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()[1:]
        listening = [int(line.split()[1].rpartition(":")[2], 16) for line in table if line.split()[3] == "0A"]
        return [port for port in listening if port in PORTS]

    async def pester(self, ended: asyncio.Event) -> None:
        """Rubbish and idle connections at the migration's ports, from before the journey to its end."""
        number = 0
        while not ended.is_set():
            data = RUBBISH[number % len(RUBBISH)]
            for port in self.open_ports():
                self.tries += 1
                self.reached += await self.throw(self.migration, port, data, hold_s=0.1, patience_s=0.2)
            number += 1
            await asyncio.sleep(0.002)

    def client(self, context: ssl.SSLContext) -> httpx.AsyncClient:
        target = f"{self.agent}:{DEFAULT_PORT}"
        client = client_with(context, self.host, target, 5, 5)
        pool = client._transport._pool  # type: ignore[attr-defined]
        pool._local_address = self.networks[0]
        return client


def _beside(address: str, number: int) -> str:
    """Another address of the same /24; what one did is logged once, so every test has its own."""
    first, _, last = address.rpartition(".")
    return f"{first}.{150 + 10 * number + int(last) % 10}"


@pytest.fixture
def no_tls(request: pytest.FixtureRequest, world: World) -> Iterator[bool]:
    """The migration's network as one that both hosts trust, when the test asks for it."""
    trusted: bool = request.param
    network = f"{str(world.lab.spec.link_address('A', 0)).rpartition('.')[0]}.0/24"
    for host in ("A", "B"):
        world.settings(host, {"trusted_networks": network if trusted else ""})
    yield trusted
    for host in ("A", "B"):
        world.settings(host, {"trusted_networks": ""})


def lines_about(world: World, host: str, since: int, who: str) -> list[str]:
    """What the agent's log says of refusals of an address since a place in it."""
    text = agents.log_path(world.lab, host).read_text(errors="replace")[since:]
    return [line.partition(" refused ")[2] for line in text.splitlines() if " refused " in line and who in line]


@pytest.mark.parametrize("no_tls", [False, True], indirect=True, ids=["tls", "trusted network"])
def test_strangers_at_every_port_disturb_nothing(world: World, guest: Guest, tmp_path: Path, no_tls: bool) -> None:
    if guest.host == "A":
        guest.move()
    # towards the authority's host, because only there can a join token be tried
    source, destination = "B", "A"
    stranger = Stranger(world, destination, tmp_path, int(no_tls))
    inside = Inside(Path("/run/netns") / world.lab.spec.namespace(stranger.base))
    stranger.come()
    log_start = agents.log_path(world.lab, destination).stat().st_size
    try:
        report, facts = inside.run(_attacked_journey(world, guest, stranger), timeout_s=90)
    finally:
        inside.close()
        stranger.leave()
        remove_host(world.lab.directory("A") / "state", "gamma", clock=SystemClock())
    assert report.source == source
    assert report.outcome == "completed" and report.tls is not no_tls, report
    guest.exactly_one(destination)
    guest.check()
    assert facts["thrown"] >= 20 and facts["pestered"] > 20 and facts["requests"] > 20, facts
    refused = lines_about(world, destination, log_start, stranger.networks[0])
    assert refused and len(refused) == len(set(refused)), refused
    words = "\n".join(refused)
    for reason in (
        "what it sent is not TLS", "did not end its TLS handshake within 5 s", "certificate has expired",
        "unable to get local issuer certificate", "viewer 'vic'", "The grant has been used already",
        "The join token is unknown, used or expired", "needs the role",
    ):  # fmt: skip
        assert words.count(reason) >= 1, (reason, refused)
    once = [line for line in refused if "certificate" in line and "not accepted" in line]
    assert len(once) == 2, once
    # and the VM goes back, without anybody
    guest.move()


async def _attacked_journey(world: World, guest: Guest, stranger: Stranger) -> tuple[Any, dict[str, int]]:
    source, destination = other(stranger.host), stranger.host
    admin = load_identity(agents.admin_dir(world.lab))
    cluster = load_map(admin.map_path)
    ended = asyncio.Event()
    facts = {"thrown": 0, "requests": 0, "pestered": 0}
    async with (
        AgentClient(admin, source, cluster.address_of(source)) as at_source,
        AgentClient(admin, destination, cluster.address_of(destination)) as at_destination,
        asyncio.TaskGroup() as group,
    ):
        pests = [group.create_task(stranger.pester(ended)) for _ in range(3)]
        idle = [
            group.create_task(stranger.throw(stranger.agent, DEFAULT_PORT, data, hold_s=7))
            for data in (b"", b"\x16\x03\x01") * 12
        ]
        view = await at_source.vm(guest.name)
        grant = await at_destination.ask_grant(guest.name, view.uuid, source)
        options = JourneyOptions(max_bandwidth_bytes_per_s=parse_rate("60Mbit"))
        body = AskJourney(vm=guest.name, destination=destination, grant=grant, options=options)
        journey = (await at_source.start_journey(body)).id
        for _ in range(10):
            for data in RUBBISH[:3:2]:
                facts["thrown"] += await stranger.throw(stranger.agent, DEFAULT_PORT, data, hold_s=0.2)
        facts["requests"] += await _impostors(world, stranger, tmp=stranger.tmp_path)
        facts["requests"] += await _replays(world, guest, stranger, grant, view.uuid)
        async with asyncio.timeout(60):
            while True:
                if (await at_source.journey(journey)).terminal:
                    break
                await asyncio.sleep(0.2)
        await asyncio.gather(*idle)
        ended.set()
        await asyncio.gather(*pests)
        facts["pestered"] += stranger.tries
        report = await at_source.report(journey)
    return report, facts


async def _refused(client: httpx.AsyncClient, method: str, path: str, body: Any = None, *, times: int = 3) -> int:
    """The same request some times; it is refused each time, by TLS or by the agent."""
    count = 0
    async with client:
        for _ in range(times):
            try:
                answer = await client.request(method, path, json=body)
            except LINK_FAILURES:
                count += 1
                continue
            assert answer.status_code in (403, 429), (method, path, answer.status_code, answer.text)
            count += 1
    return count


async def _impostors(world: World, stranger: Stranger, *, tmp: Path) -> int:
    """A foreign authority's certificate, an expired one, a viewer's, a host's without a grant."""
    state = world.lab.directory("A") / "state"
    ours = agents.admin_dir(world.lab) / "ca.pem"
    if not (tmp / "vic").exists():
        foreign = make_lab_cluster(
            [LabHost("A", tmp / "foreign", "192.0.2.1:1")],
            people={"eve": (Role.ADMIN, tmp / "eve")},
            clock=SystemClock(),
        )
        assert foreign["eve"].role is Role.ADMIN
        shutil.copy(ours, tmp / "eve" / "ca.pem")
        past = ManualClock(wall_s=SystemClock().wall_s() - 91 * DAY_S)
        issue_person(state, name="old", role=Role.ADMIN, directory=tmp / "old", clock=past)
        issue_person(state, name="vic", role=Role.VIEWER, directory=tmp / "vic", clock=SystemClock())
    eve, old, vic = (load_identity(tmp / name) for name in ("eve", "old", "vic"))
    host = load_identity(host_identity_dir(world.lab.directory(other(stranger.host)) / "state"))
    count = 0
    for wrong in (eve, old):
        count += await _refused(stranger.client(client_context(wrong)), "GET", "/vms")
    async with stranger.client(client_context(vic)) as client:
        assert (await client.get("/vms")).status_code == 200, "a viewer may look"
    grant = {"vm": "x", "vm_uuid": "abcd", "source": "A"}
    count += await _refused(stranger.client(client_context(vic)), "POST", "/grants", grant)
    count += await _refused(stranger.client(client_context(vic)), "POST", "/journeys/x/cancel")
    # a host may do nothing that a person may, and brings no VM without a person's grant
    count += await _refused(stranger.client(client_context(host)), "POST", "/grants", grant)
    bare = {"journey": "made-up-1", "vm": "x", "vm_uuid": "abcd", "grant": "lmg1.e30.e30"}
    count += await _refused(stranger.client(client_context(host)), "POST", "/incoming", bare)
    count += await _refused(stranger.client(client_context(host)), "POST", "/journeys/x/cancel")
    return count


async def _replays(world: World, guest: Guest, stranger: Stranger, grant: str, uuid: str) -> int:
    """The journey's own grant once more, by its own source; a join token that was redeemed."""
    source = other(stranger.host)
    host: Identity = load_identity(host_identity_dir(world.lab.directory(source) / "state"))
    again = {"journey": "made-up-2", "vm": guest.name, "vm_uuid": uuid, "grant": grant}
    count = 0
    # it may have to wait for the journey's slot first: then it is refused when its turn comes
    async with stranger.client(client_context(host)) as client:
        for number in range(3):
            answer = await client.post("/incoming", json={**again, "journey": f"made-up-{number}"})
            assert answer.status_code == 403, answer.text
            count += 1
    state = world.lab.directory("A") / "state"
    token = invite(state, "gamma", clock=SystemClock())
    request = join_request(token, address="10.99.99.99:7443").request.model_dump()
    ca = authority_context((authority_dir(state) / "ca.pem").read_text())
    async with stranger.client(ca) as client:
        assert (await client.post("/cluster/join", json=request)).status_code == 200
    count += await _refused(stranger.client(ca), "POST", "/cluster/join", request)
    return count
