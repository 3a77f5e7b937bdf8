from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse

from livemove.agent.authority import create_authority, load_authority, new_key, signing_request
from livemove.agent.identity import authority_dir, host_identity_dir, install_identity
from livemove.agent.join import LabHost, issue_person, make_lab_cluster
from livemove.agent.tls_server import (
    MAX_ANONYMOUS,
    MAX_BODY_BYTES,
    SEGMENT_BYTES,
    AgentServer,
    current_peer,
    require_host,
    require_peer,
    require_role,
)
from livemove.api.client_identity import Identity, Peer, Role
from livemove.api.cluster_map import load_map
from livemove.api.trust import (
    LINK_FAILURES,
    async_client,
    authority_context,
    client_context,
    client_with,
    explain_failure,
)
from livemove.base.clock import Clock, ManualClock, SystemClock
from livemove.base.errors import AgentUnreachable, Bug, LivemoveError, MissingPrerequisite, NoIdentity, NotPermitted
from livemove.base.tasks import spawn

CLOCK = SystemClock()
DAY_S = 86_400.0


def make_app() -> FastAPI:
    app = FastAPI()

    @app.exception_handler(LivemoveError)
    async def failed(request: Request, error: LivemoveError) -> JSONResponse:
        return JSONResponse(error.to_json(), status_code=403)

    @app.get("/open")
    async def open_(request: Request) -> dict[str, Any]:
        peer = current_peer(request)
        return {"peer": None if peer is None else [peer.name, peer.role, peer.fingerprint]}

    @app.get("/viewer")
    async def of_viewer(peer: Annotated[Peer, Depends(require_role("viewer"))]) -> str:
        return peer.name

    @app.get("/operator")
    async def of_operator(peer: Annotated[Peer, Depends(require_role(Role.OPERATOR))]) -> str:
        return peer.name

    @app.get("/admin")
    async def of_admin(peer: Annotated[Peer, Depends(require_role("admin"))]) -> str:
        return peer.name

    @app.get("/host")
    async def of_host(peer: Annotated[Peer, Depends(require_host())]) -> str:
        return peer.name

    @app.get("/any")
    async def of_any(peer: Annotated[Peer, Depends(require_peer)]) -> str:
        return peer.name

    @app.post("/echo")
    async def echo(request: Request) -> int:
        return len(await request.body())

    return app


class World:
    """A lab cluster of alpha and beta whose alpha serves."""

    def __init__(self, root: Path, clock: Clock = CLOCK) -> None:
        self.root = root
        self.identities = make_lab_cluster(
            [LabHost(name, root / name, f"127.0.0.{n}:1") for n, name in enumerate(("alpha", "beta"), start=1)],
            people={role: (Role(role), root / role) for role in ("viewer", "operator", "admin")},
            clock=clock,
        )
        self.server = AgentServer(make_app(), address="127.0.0.1:0", identity=self.identities["alpha"])

    def client(self, identity: Identity | str, host_name: str = "alpha") -> httpx.AsyncClient:
        own = self.identities[identity] if isinstance(identity, str) else identity
        return async_client(own, host_name, self.server.address, answer_timeout_s=5)

    def stranger(self) -> httpx.AsyncClient:
        context = authority_context(self.identities["alpha"].ca_path.read_text())
        return client_with(context, "alpha", self.server.address, 5, 5)

    def renew(self, identity: Identity, *, name: str | None = None) -> None:
        authority = load_authority(authority_dir(self.root / "alpha"))
        key = new_key()
        pem = authority.issue_host(signing_request(key, "x"), name=name or identity.name, clock=CLOCK)
        install_identity(
            identity.directory,
            ca_pem=authority.ca_pem,
            certificate_pem=pem,
            key=key,
            cluster=load_map(identity.map_path),
        )


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    await world.server.start()
    yield world
    await world.server.close()


async def test_segments_are_small_enough_for_every_network(world: World) -> None:
    """Also on a NIC set to jumbo frames whose switch drops them: loopback's MTU is 65536."""
    host, _, port = world.server.address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    try:
        handle = writer.get_extra_info("socket")
        # what we may send at once, told by the agent; it keeps to the same itself
        assert handle.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= SEGMENT_BYTES
    finally:
        writer.close()
        await writer.wait_closed()


async def impostor(client: httpx.AsyncClient, host_name: str) -> str:
    """How the client refuses who answers."""
    async with client:
        with pytest.raises(LINK_FAILURES) as caught:
            await client.get("/open")
    error = explain_failure(caught.value, host_name, "ADDRESS")
    assert isinstance(error, NotPermitted), (error, caught.value)
    return error.message


async def assert_refused(world: World, client: httpx.AsyncClient, server: AgentServer | None = None) -> None:
    """The agent refuses the client's certificate: it ends the connection, no request reaches the application."""
    before = (server or world.server)._server.server_state.total_requests
    async with client:
        with pytest.raises(LINK_FAILURES) as caught:
            await client.get("/open")
    error = explain_failure(caught.value, "alpha", "ADDRESS")
    assert isinstance(error, AgentUnreachable)
    assert "does not accept this certificate" in error.message
    assert (server or world.server)._server.server_state.total_requests == before


@pytest.mark.parametrize(
    ("who", "admitted"),
    [
        ("viewer", {"viewer", "any"}),
        ("operator", {"viewer", "operator", "any"}),
        ("admin", {"viewer", "operator", "admin", "any"}),
        ("beta", {"host", "any"}),
        (None, set()),
    ],
)
async def test_every_route_admits_exactly_its_roles(world: World, who: str | None, admitted: set[str]) -> None:
    async with world.stranger() if who is None else world.client(who) as client:
        for route in ("viewer", "operator", "admin", "host", "any"):
            response = await client.get(f"/{route}")
            if route in admitted:
                assert (response.status_code, response.json()) == (200, who)
            else:
                assert (response.status_code, response.json()["code"]) == (403, "not-permitted"), route


async def test_the_application_sees_the_certificate_of_each_connection(world: World) -> None:
    for who in ("beta", "operator"):
        async with world.client(who) as client:
            identity = world.identities[who]
            expected = [identity.name, identity.role, identity.fingerprint]
            for _ in range(2):
                assert (await client.get("/open")).json() == {"peer": expected}
    async with world.stranger() as client:
        assert (await client.get("/open")).json() == {"peer": None}


async def test_a_header_cannot_name_a_peer(world: World) -> None:
    async with world.stranger() as client:
        response = await client.get("/viewer", headers={"tls_peer": "admin", "x-forwarded-for": "10.0.0.1"})
        assert response.status_code == 403


async def test_a_certificate_of_another_authority_is_refused(world: World, tmp_path: Path) -> None:
    foreign = World(tmp_path / "foreign").identities["admin"]
    mixed = tmp_path / "mixed"
    shutil.copytree(foreign.directory, mixed)
    shutil.copy(world.identities["admin"].ca_path, mixed)
    await assert_refused(world, world.client(Identity(mixed, foreign.certificate_der)))
    # and the other way round: its holder does not believe our agent
    assert "does not prove to be 'alpha'" in await impostor(world.client(foreign), "alpha")


async def test_an_expired_certificate_is_refused(world: World) -> None:
    past = ManualClock(wall_s=CLOCK.wall_s() - 91 * DAY_S)
    # the authority must have existed then
    root = world.root / "old"
    old = World(root, clock=past)
    server = AgentServer(make_app(), address="127.0.0.1:0", identity=old.identities["alpha"])
    await server.start()
    try:
        client = async_client(old.identities["admin"], "alpha", server.address)
        await assert_refused(world, client, server)
        explained = explain_failure(
            httpx.ReadError(""), "alpha", "ADDRESS", identity=old.identities["admin"], clock=CLOCK
        )
        assert isinstance(explained, NotPermitted)
        assert "certificate of admin 'admin' expired at" in explained.message
        fresh = issue_person(root / "alpha", name="new", role=Role.ADMIN, directory=root / "new", clock=CLOCK)
        async with async_client(fresh, "alpha", server.address) as client:
            assert (await client.get("/admin")).json() == "new"
    finally:
        await server.close()


async def test_a_connection_ends_with_its_certificate(world: World) -> None:
    brief = issue_person(
        world.root / "alpha",
        name="brief",
        role=Role.ADMIN,
        directory=world.root / "brief",
        clock=CLOCK,
        validity_s=2.5,
    )
    async with world.client(brief) as client:
        assert (await client.get("/admin")).status_code == 200
        await asyncio.sleep(3)
        with pytest.raises(LINK_FAILURES):
            await client.get("/admin")


async def test_the_client_insists_on_the_host_it_means(world: World) -> None:
    assert "does not prove to be 'beta'" in await impostor(world.client("admin", "beta"), "beta")


async def test_a_person_cannot_pose_as_a_host(world: World) -> None:
    """Even with a name that is a host's: a person's certificate is for clients only."""
    person = issue_person(
        world.root / "alpha", name="beta", role=Role.ADMIN, directory=world.root / "posing", clock=CLOCK
    )
    server = AgentServer(make_app(), address="127.0.0.1:0", identity=person)
    await server.start()
    try:
        client = async_client(world.identities["admin"], "beta", server.address)
        assert "does not prove to be 'beta'" in await impostor(client, "beta")
    finally:
        await server.close()


async def test_older_tls_is_refused(world: World) -> None:
    context = client_context(world.identities["admin"])
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with client_with(context, "alpha", world.server.address, 5, 5) as client:
        with pytest.raises(LINK_FAILURES):
            await client.get("/open")


async def test_no_session_can_be_resumed(world: World) -> None:
    context = client_context(world.identities["admin"])
    host, port = world.server.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="alpha")
    writer.write(b"GET /open HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    session = writer.get_extra_info("ssl_object").session
    assert session is None or not session.has_ticket
    writer.transport.abort()


async def test_answers_are_not_held_back(world: World) -> None:
    async with world.client("viewer") as client:
        assert (await client.get("/viewer")).status_code == 200
        (connection,) = world.server._server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# Rotation -------------------------------------------------------------------------------------------------------------


async def served_fingerprint(world: World) -> str:
    context = client_context(world.identities["admin"])
    host, port = world.server.address.rsplit(":", 1)
    _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="alpha")
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return Identity(world.root, der).fingerprint


async def test_a_new_certificate_is_used_while_an_old_connection_lives_on(world: World) -> None:
    before = await served_fingerprint(world)
    async with world.client("admin") as client:
        assert (await client.get("/admin")).status_code == 200
        connection = client._transport._pool.connections[0]  # type: ignore[attr-defined]
        world.renew(world.identities["alpha"])
        assert await served_fingerprint(world) == before
        renewed = world.server.reload()
        assert (await client.get("/admin")).status_code == 200
        assert client._transport._pool.connections == [connection]  # type: ignore[attr-defined]
    assert await served_fingerprint(world) == renewed.fingerprint != before


async def test_a_request_under_way_survives_a_reload(world: World) -> None:
    host, port = world.server.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(
        host, int(port), ssl=client_context(world.identities["admin"]), server_hostname="alpha"
    )
    writer.write(b"POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 10\r\n\r\n01234")
    await writer.drain()
    await asyncio.sleep(0.05)
    world.renew(world.identities["alpha"])
    world.server.reload()
    writer.write(b"56789")
    assert (await reader.read()).endswith(b"\r\n\r\n10")
    writer.close()
    await writer.wait_closed()


async def test_unusable_files_change_nothing(world: World) -> None:
    before = await served_fingerprint(world)
    alpha = world.identities["alpha"]
    key = alpha.key_path.read_bytes()
    alpha.key_path.write_bytes(world.identities["beta"].key_path.read_bytes())
    with pytest.raises(NoIdentity, match="key with its certificate"):
        world.server.reload()
    alpha.key_path.write_bytes(key)
    world.renew(alpha, name="gamma")
    with pytest.raises(NotPermitted, match="of host 'gamma'"):
        world.server.reload()
    alpha.certificate_path.unlink()
    with pytest.raises(NoIdentity):
        world.server.reload()
    assert await served_fingerprint(world) == before
    async with world.client("admin") as client:
        assert (await client.get("/admin")).status_code == 200


async def test_the_authority_itself_can_be_exchanged(world: World) -> None:
    """First both are trusted, then the new one alone; nobody with a certificate of the present one is shut out."""
    alpha = world.identities["alpha"]
    old_ca = alpha.ca_path.read_text()
    new = create_authority(world.root / "new-authority", clock=CLOCK)
    key = new_key()
    newcomer = install_identity(
        world.root / "newcomer",
        ca_pem=old_ca + new.ca_pem,
        certificate_pem=new.issue_person(signing_request(key, "x"), name="new", role=Role.ADMIN, clock=CLOCK),
        key=key,
        cluster=load_map(alpha.map_path),
    )
    await assert_refused(world, world.client(newcomer))
    alpha.ca_path.write_text(old_ca + new.ca_pem)
    world.server.reload()
    for identity in (newcomer, world.identities["admin"]):
        async with world.client(identity) as client:
            assert (await client.get("/admin")).status_code == 200
    alpha.ca_path.write_text(new.ca_pem)
    world.server.reload()
    await assert_refused(world, world.client("admin"))
    async with world.client(newcomer) as client:
        assert (await client.get("/admin")).status_code == 200


# Bounds ---------------------------------------------------------------------------------------------------------------


async def test_bodies_and_headers_are_bounded(world: World) -> None:
    async with world.client("admin") as client:
        assert (await client.post("/echo", content=b"x" * MAX_BODY_BYTES)).json() == MAX_BODY_BYTES
        response = await client.post("/echo", content=b"x" * (MAX_BODY_BYTES + 1))
        assert response.status_code == 403


async def test_endless_headers_are_ended(world: World) -> None:
    host, port = world.server.address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(
        host, int(port), ssl=client_context(world.identities["admin"]), server_hostname="alpha"
    )
    writer.write(b"GET /open HTTP/1.1\r\nx: ")
    sent_bytes = 0
    # read meanwhile: what was received is gone once writing fails
    answer = spawn(reader.readline(), name="answer to endless headers")
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while not answer.done() and sent_bytes < 50 << 20:
            writer.write(b"y" * 65536)
            await writer.drain()
            sent_bytes += 65536
            await asyncio.sleep(0)
    writer.transport.abort()
    assert sent_bytes < 20 << 20
    assert (await answer).startswith(b"HTTP/1.1 400")


async def test_strangers_get_few_connections_and_members_are_not_kept_out(world: World) -> None:
    host, port = world.server.address.rsplit(":", 1)
    context = authority_context(world.identities["alpha"].ca_path.read_text())
    writers = []
    for _ in range(MAX_ANONYMOUS):
        _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="alpha")
        writers.append(writer)
    async with world.stranger() as stranger:
        with pytest.raises(LINK_FAILURES):
            await stranger.get("/open")
    async with world.client("viewer") as client:
        assert (await client.get("/viewer")).status_code == 200
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0.05)
    async with world.stranger() as stranger:
        assert (await stranger.get("/open")).status_code == 200


async def test_strangers_get_little_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livemove.agent.tls_server.ANONYMOUS_S", 0.1)
    host, port = world.server.address.rsplit(":", 1)
    context = authority_context(world.identities["alpha"].ca_path.read_text())
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="alpha")
    writer.write(b"GET /open HTTP/1.1\r\n")
    with pytest.raises(ConnectionError):
        async with asyncio.timeout(3):
            assert await reader.read() == b""
            raise ConnectionResetError  # an orderly end is as good as a reset
    writer.transport.abort()


async def test_rubbish_does_not_disturb(world: World) -> None:
    host, port = world.server.address.rsplit(":", 1)
    async with world.client("viewer") as client:
        for rubbish in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 5000, b"\x16\x03\x01\xff\xff" + b"a" * 70_000, b""):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(rubbish)
            assert (await client.get("/viewer")).status_code == 200
            writer.transport.abort()
            del reader


# Starting and stopping ------------------------------------------------------------------------------------------------


async def test_an_address_in_use_is_said(world: World) -> None:
    second = AgentServer(make_app(), address=world.server.address, identity=world.identities["alpha"])
    with pytest.raises(MissingPrerequisite, match="Address already in use"):
        await second.start()
    await second.close()


async def test_an_application_that_does_not_start_is_a_bug(world: World, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    server = AgentServer(broken, address="127.0.0.1:0", identity=world.identities["alpha"])
    with pytest.raises(Bug):
        await server.start()


async def test_stopping_is_quick_with_idle_clients_and_frees_the_port(world: World) -> None:
    async with world.client("admin") as client:
        assert (await client.get("/admin")).status_code == 200
        async with asyncio.timeout(1.5):
            await world.server.close()
        await world.server.close()
        with pytest.raises(LINK_FAILURES) as caught:
            await client.get("/admin")
        assert isinstance(explain_failure(caught.value, "alpha", "x"), AgentUnreachable)
    again = AgentServer(make_app(), address=world.server.address, identity=world.identities["alpha"])
    await again.start()
    await again.close()


def test_a_host_directory_is_where_the_agent_looks(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert world.identities["beta"].directory == host_identity_dir(tmp_path / "beta")
