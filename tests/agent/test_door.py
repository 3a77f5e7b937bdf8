"""What comes to the agent's port before HTTP, how often it is logged, and how much a peer may ask."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from livemove.agent import door, tls_server
from livemove.agent.rates import RATES, STRANGER, Rates
from livemove.agent.refusals import MAX_PEERS, MAX_REASONS, WINDOW_S, Refusals
from livemove.agent.revoking import revoke
from livemove.api.client_connection import AgentConnection
from livemove.api.client_identity import Peer, Role
from livemove.api.trust import LINK_FAILURES, client_context
from livemove.base.clock import ManualClock, SystemClock
from livemove.base.errors import NotPermitted

from .test_tls_server import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    await world.server.start()
    yield world
    await world.server.close()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "livemove.agent.refusals"]


async def knock(world: World, data: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = world.server.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    return reader, writer


async def ended(reader: asyncio.StreamReader, within_s: float) -> None:
    async with asyncio.timeout(within_s):
        try:
            while await reader.read(65536):
                pass
        except ConnectionError:
            pass


async def test_rubbish_is_refused_and_logged_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        reader, writer = await knock(world, b"GET / HTTP/1.1\r\n\r\n")
        await ended(reader, 2)
        writer.close()
    assert len(said(caplog)) == 1 and said(caplog)[0].startswith("refused 127.0.0.1: what it sent is not TLS")
    assert world.server.refusals.counts == {"handshake": 5}


async def test_a_half_open_handshake_ends_and_members_are_not_kept_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(door, "HANDSHAKE_S", 0.4)
    monkeypatch.setattr(door, "MAX_HANDSHAKES_EACH", 20)
    idle = [await knock(world, b"\x16\x03\x01" if n % 2 else b"") for n in range(12)]
    async with world.client("viewer") as client:
        assert (await client.get("/viewer")).status_code == 200
    for reader, writer in idle:
        await ended(reader, 3)
        writer.close()
    assert said(caplog) == ["refused 127.0.0.1: it did not end its TLS handshake within 0.4 s"]


async def test_half_open_handshakes_of_one_address_are_few(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(door, "MAX_HANDSHAKES_EACH", 3)
    idle = [await knock(world) for _ in range(3)]
    await asyncio.sleep(0.05)
    for _ in range(4):
        reader, writer = await knock(world)
        await ended(reader, 1)
        writer.close()
    assert said(caplog) == ["refused 127.0.0.1: too many connections that have not ended their TLS handshake"]
    for _, writer in idle:
        writer.transport.abort()
    await asyncio.sleep(0.1)
    async with world.client("viewer") as client:
        assert (await client.get("/viewer")).status_code == 200


async def test_connections_of_one_address_and_of_one_certificate_are_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_server, "MAX_PER_PEER", 2)
    clients = [world.client("viewer") for _ in range(3)]
    for client in clients[:2]:
        assert (await client.get("/viewer")).status_code == 200
    with pytest.raises(LINK_FAILURES):
        await clients[2].get("/viewer")
    async with world.client("admin") as other:
        assert (await other.get("/admin")).status_code == 200
        monkeypatch.setattr(door, "MAX_CONNECTIONS_EACH", 3)
        with pytest.raises(LINK_FAILURES):
            await clients[2].get("/viewer")
    for client in clients:
        await client.aclose()
    await asyncio.sleep(0.1)
    assert not world.server._door._inside and not world.server._door._knocking


async def test_a_member_that_says_nothing_is_let_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_server, "FIRST_REQUEST_S", 0.2)
    host, port = world.server.address.rsplit(":", 1)
    context = client_context(world.identities["viewer"])
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="alpha")
    await ended(reader, 3)
    writer.transport.abort()


async def test_a_request_with_the_last_bytes_of_the_handshake_is_answered(world: World) -> None:
    """In TLS 1.3 the client may send at once; nothing of it may be lost while the connection changes hands."""
    host, port = world.server.address.rsplit(":", 1)
    context = client_context(world.identities["viewer"])
    for _ in range(20):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname="alpha")
        reader, writer = await asyncio.open_connection(host, int(port))
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        writer.write(outgoing.read())
        while True:
            incoming.write(await reader.read(65536))
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                pass
        tls.write(b"GET /viewer HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        writer.write(outgoing.read())
        answer = b""
        while b"viewer" not in answer:
            incoming.write(await reader.read(65536))
            try:
                answer += tls.read(65536)
            except ssl.SSLWantReadError:
                continue
        assert answer.startswith(b"HTTP/1.1 200")
        writer.transport.abort()


# Revoked certificates -------------------------------------------------------------------------------------------------


async def test_a_revoked_certificate_ends_open_connections_and_gets_no_new_one(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.client("viewer") as client, world.client("admin") as other:
        assert (await client.get("/viewer")).status_code == 200
        assert (await other.get("/admin")).status_code == 200
        revoke(world.root / "alpha", "viewer", clock=SystemClock())
        assert world.server.membership.changed()
        world.server.drop_revoked()
        for _ in range(3):
            with pytest.raises(LINK_FAILURES):
                await client.get("/viewer")
        assert (await other.get("/admin")).status_code == 200, "others are not touched"
    assert said(caplog) == ["refused viewer 'viewer' at 127.0.0.1: its certificate was revoked"]


async def test_an_agent_does_not_believe_a_host_whose_certificate_was_revoked(world: World) -> None:
    revoked: set[str] = set()
    serial = world.identities["alpha"].peer.serial
    connection = AgentConnection(
        world.identities["beta"], "alpha", world.server.address, is_revoked=lambda found: found in revoked
    )
    async with connection as client:
        assert await client._exchange("GET", "/host") == b'"beta"'
        revoked.add(serial)
        with pytest.raises(NotPermitted, match=r"'alpha' at .* was revoked"):
            await client._exchange("GET", "/host")


# What is logged -------------------------------------------------------------------------------------------------------


def test_a_reason_is_logged_once_in_a_window(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    refusals = Refusals(clock)
    for _ in range(1000):
        refusals.note("192.0.2.1", "handshake", "rubbish")
        refusals.note("192.0.2.2", "handshake", "rubbish")
    assert len(said(caplog)) == 2
    clock.advance(WINDOW_S + 1)
    refusals.note("192.0.2.1", "handshake", "rubbish")
    assert said(caplog)[2:] == ["refused 1998 more times for reasons named before", "refused 192.0.2.1: rubbish"]
    assert refusals.counts == {"handshake": 2001}


def test_nobody_can_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals(ManualClock())
    for number in range(5000):
        refusals.note("192.0.2.1", "permission", f"reason {number}")
    assert len(said(caplog)) == MAX_REASONS
    for number in range(5000):
        refusals.note(f"2001:db8::{number:x}", "handshake", "rubbish")
    assert len(said(caplog)) <= MAX_REASONS + MAX_PEERS + 1
    assert refusals.counts == {"permission": 5000, "handshake": 5000}
    assert len(caplog.records) == len(said(caplog)) and caplog.records[0].levelno == logging.WARNING


# Rates ----------------------------------------------------------------------------------------------------------------


def test_a_peer_may_ask_so_often_and_no_more() -> None:
    clock = ManualClock()
    rates = Rates(clock, Refusals(clock))
    peer = Peer("vic", Role.VIEWER, "f" * 64, "1", 0.0)
    per_s, most = RATES[Role.VIEWER]
    allowed = sum(rates.refusal(peer, "192.0.2.1", "/vms") is None for _ in range(1000))
    assert allowed == most
    busy = rates.refusal(peer, "192.0.2.1", "/vms")
    assert busy is not None and "viewer 'vic' at 192.0.2.1 sends more than" in busy.message
    clock.advance(1)
    assert sum(rates.refusal(peer, "192.0.2.1", "/vms") is None for _ in range(1000)) == per_s
    other = Peer("ann", Role.ADMIN, "e" * 64, "2", 0.0)
    assert rates.refusal(other, "192.0.2.1", "/vms") is None, "others have their own"
    assert sum(rates.refusal(None, "192.0.2.9", "/cluster/ca") is None for _ in range(100)) == STRANGER[1]


def test_the_hand_over_is_never_refused_for_its_rate() -> None:
    clock = ManualClock()
    rates = Rates(clock, Refusals(clock))
    host = Peer("beta", Role.HOST, "f" * 64, "1", 0.0)
    while rates.refusal(host, "192.0.2.2", "/incoming/j1/facts") is None:
        pass
    for word in ("arm", "go", "ask", "abandon"):
        assert rates.refusal(host, "192.0.2.2", f"/incoming/j1/{word}") is None
    person = Peer("ann", Role.ADMIN, "e" * 64, "2", 0.0)
    while rates.refusal(person, "192.0.2.2", "/incoming/j1/go") is None:
        pass


async def test_the_answer_says_what_to_do(world: World) -> None:
    async with world.stranger() as stranger:
        answers = [await stranger.get("/open") for _ in range(int(STRANGER[1]) + 4)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused and refused[0].json()["code"] == "agent-busy"
    assert "Ask less often" in refused[0].json()["remedy"] and refused[0].headers["retry-after"] == "1"
