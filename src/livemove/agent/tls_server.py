"""The agent's listener: uvicorn over mutual TLS, inside the agent's own loop, with the peer's certificate in the scope.

uvicorn hands the application no certificate, so a protocol class of ours reads it once a connection, after the
handshake, and puts the :class:`Peer` into ``scope["state"]``. Routes name who may use them:

    @app.post("/vms")
    async def define(peer: Annotated[Peer, Depends(require_role("operator"))]) -> ...

Clients without a certificate pass the handshake, because a joining host has none; they get few connections, little
time, and every ``require_*`` refuses them. A certificate that is shown must be valid: TLS itself refuses a foreign or
expired one, a revoked one is refused here, and a connection ends when the certificate does. door.py does the handshake.

Rotation: every handshake uses the SSLContext of the moment; a reload takes certificate, key and authority together or,
when the files are bad, not at all. Open connections live on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any, cast

import uvicorn
from starlette.requests import HTTPConnection
from uvicorn.protocols.http.h11_impl import H11Protocol

from livemove.agent.door import MAX_CONNECTIONS, Door, Knock, address_of
from livemove.agent.membership import Membership
from livemove.agent.rates import Rates, answer_busy
from livemove.agent.refusals import Refusals
from livemove.api.client_identity import Identity, Peer, Role, load_identity, peer_from_certificate
from livemove.api.cluster_map import parse_address
from livemove.api.trust import server_context
from livemove.base.clock import Clock, SystemClock
from livemove.base.errors import Bug, MissingPrerequisite, NotPermitted, PeerViolation
from livemove.base.tasks import spawn

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

PEER_KEY = "tls_peer"

# a journey's connection idles between steps; a client gives up after 60 s (api.trust), so the agent never closes first
KEEP_ALIVE_S = 75
MAX_HEADER_BYTES = 32 << 10
# the largest body is a definition or a frozen configuration of some 10 KiB
MAX_BODY_BYTES = 1 << 20
# a join is one short request; more would let strangers take the connections that members need
MAX_ANONYMOUS = 8
ANONYMOUS_S = 15.0
# of one certificate; a journey needs two or three, and a host may have many journeys
MAX_PER_PEER = 128
# a member that has said nothing at all for so long is not asking anything
FIRST_REQUEST_S = 30.0
# of TCP: the least that IPv6 lets a network carry, 1280, without the headers
SEGMENT_BYTES = 1220
# how long a peer may leave our TLS close unanswered before the socket goes
_CLOSE_GRACE_S = 0.2
_STOP_GRACE_S = 2
REVOKED = "its certificate was revoked"

_log = logging.getLogger(__name__)


# Who may ask ----------------------------------------------------------------------------------------------------------


def current_peer(connection: HTTPConnection | Scope) -> Peer | None:
    """The holder of the certificate that the client showed; None when it showed none."""
    scope = connection.scope if isinstance(connection, HTTPConnection) else connection
    peer = scope.get("state", {}).get(PEER_KEY)
    return peer if isinstance(peer, Peer) else None


async def require_peer(connection: HTTPConnection) -> Peer:
    """Dependency: any member of the cluster, host or person. Raises NotPermitted."""
    peer = current_peer(connection)
    if peer is None:
        raise NotPermitted(
            "This request needs a certificate of the cluster.",
            remedy="Set LIVEMOVE_IDENTITY to the directory of your certificate.",
        )
    return peer


def require_role(needed: Role | str) -> Callable[[HTTPConnection], Awaitable[Peer]]:
    """Dependency: a person whose role is `needed` or higher; raises NotPermitted for others and for hosts."""
    role = Role(needed)

    async def allowed(connection: HTTPConnection) -> Peer:
        peer = await require_peer(connection)
        if not peer.role.allows(role):
            raise NotPermitted(f"{peer} may not do this: it needs the role {role}.")
        return peer

    return allowed


def require_host() -> Callable[[HTTPConnection], Awaitable[Peer]]:
    """Dependency: another host's agent; raises NotPermitted for people."""
    return require_role(Role.HOST)


# The connection -------------------------------------------------------------------------------------------------------


class PeerProtocol(H11Protocol):
    """One connection of a client, from the end of its TLS handshake on."""

    def __init__(self, *args: Any, clock: Clock, door: Door, membership: Membership, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.peer: Peer | None = None
        self._clock = clock
        self._door = door
        self._membership = membership
        self._timers: list[asyncio.TimerHandle] = []
        self._address = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows it
        super().connection_made(transport)
        self._address = address_of(transport)
        try:
            self.peer = _peer_of(transport)
        except NotPermitted as error:
            self.refuse("certificate", error.message)
            return
        self.app_state = {**self.app_state, PEER_KEY: self.peer}
        if self.peer is None:
            self._timers.append(self.loop.call_later(ANONYMOUS_S, transport.abort))
            if self._others(None) > MAX_ANONYMOUS:
                self.refuse("connections", f"more than {MAX_ANONYMOUS} connections without a certificate")
            return
        if self._membership.is_revoked(self.peer.serial):
            self.refuse("revoked", REVOKED)
            return
        left_s = self.peer.not_after_wall_s - self._clock.wall_s()
        self._timers.append(self.loop.call_later(max(0.0, left_s), self.shutdown))
        self._timers.append(self.loop.call_later(FIRST_REQUEST_S, self._end_if_silent))
        if self._others(self.peer) > MAX_PER_PEER:
            self.refuse("connections", f"more than {MAX_PER_PEER} connections with one certificate")

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in self._timers:
            timer.cancel()
        self._door.leave(self._address)
        super().connection_lost(exc)

    def refuse(self, kind: str, reason: str) -> None:
        """End the connection at once, whatever is under way on it."""
        who = self._address if self.peer is None else f"{self.peer} at {self._address}"
        self._door.refusals.note(who, kind, reason)
        self.transport.abort()

    def shutdown(self) -> None:
        """Close once the present request is answered; uvicorn calls it too when the server stops."""
        super().shutdown()  # type: ignore[no-untyped-call, unused-ignore]  # untyped in some versions
        if self.transport.is_closing():
            # an idle client may read our TLS close minutes later; asyncio would wait 30 s for its answer
            self.loop.call_later(_CLOSE_GRACE_S, self.transport.abort)

    def _end_if_silent(self) -> None:
        if self.cycle is None:
            self.transport.abort()

    def _others(self, peer: Peer | None) -> int:
        mine = None if peer is None else peer.fingerprint
        peers = [other.peer for other in self.connections if isinstance(other, PeerProtocol)]
        return sum(1 for other in peers if (None if other is None else other.fingerprint) == mine)


def _peer_of(transport: asyncio.Transport) -> Peer | None:
    tls = transport.get_extra_info("ssl_object")
    if not isinstance(tls, ssl.SSLObject):
        raise NotPermitted("The connection has no TLS.")
    der = tls.getpeercert(binary_form=True)
    return None if der is None else peer_from_certificate(der)


def bounded(app: Application, max_body_bytes: int, rates: Rates) -> Application:
    """The application, reading no more than that of any request's body, and no more requests than a peer may send."""

    async def bounded_app(scope: Scope, receive: Receive, send: Send) -> None:
        received_bytes = 0

        async def counted() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > max_body_bytes:
                raise PeerViolation(f"The request's body is longer than {max_body_bytes} bytes.")
            return message

        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        client = scope.get("client")
        busy = rates.refusal(current_peer(scope), str(client[0]) if client else "", scope["path"])
        if busy is not None:
            await answer_busy(busy, send)
            return
        await app(scope, counted, send)

    return bounded_app


# The server -----------------------------------------------------------------------------------------------------------


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which belong to the agent, telling when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class AgentServer:
    """Serves an application at one address until :meth:`close`.

    :param address: ``IP:PORT``; port 0 takes a free one.
    """

    def __init__(
        self,
        app: Application,
        *,
        address: str,
        identity: Identity,
        clock: Clock | None = None,
        membership: Membership | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self.identity = identity
        self.membership = membership or Membership(identity.directory)
        self.refusals = refusals or Refusals(clock)
        self._host, self._port = _split(address)
        self._context = server_context(identity, admit_anonymous=True)
        self._door = Door(self.refusals, lambda: self._context)
        speak = functools.partial(PeerProtocol, clock=clock, door=self._door, membership=self.membership)

        def protocol(**given: Any) -> asyncio.Protocol:
            return Knock(self._door, functools.partial(speak, **given))

        config = uvicorn.Config(
            cast(Any, bounded(app, MAX_BODY_BYTES, Rates(clock, self.refusals))),
            http=cast(type[asyncio.Protocol], protocol),
            ws="none",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # else whoever connects from loopback could claim another address
            server_header=False,
            date_header=False,
            backlog=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=_STOP_GRACE_S,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
        config.load()
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """``IP:PORT`` as bound."""
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    async def start(self) -> None:
        """Return once connections are taken. Raises MissingPrerequisite when the address cannot be had, Bug when the
        application's own start-up fails."""
        listener = self._bind()
        self._task = spawn(self._run(listener), name=f"agent server {self.address}")
        ready = spawn(self._server.ready.wait(), name="agent server ready")
        await asyncio.wait((self._task, ready), return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            ready.cancel()
            await self._task

    async def wait(self) -> None:
        """Return when the server has ended; raises what ended it."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def close(self) -> None:
        """Answer what is being asked, for at most two seconds, and stop; may be called twice."""
        self._server.should_exit = True
        self._door.close()
        if self._task is not None:
            await asyncio.wait((self._task,))

    def reload(self) -> Identity:
        """Use certificate, key and authority as they are in the files now, for every later connection.

        Raises NoIdentity or NotPermitted when the files are not usable; the old ones are used on then.
        """
        identity = load_identity(self.identity.directory)
        if (identity.name, identity.role) != (self.identity.name, self.identity.role):
            raise NotPermitted(f"The new certificate is of {identity.peer}, not of {self.identity.peer}.")
        self._context = server_context(identity, admit_anonymous=True)
        self.identity = identity
        return identity

    def drop_revoked(self) -> None:
        """End every connection whose certificate has been revoked since it began, also in the middle of a request."""
        for connection in list(self._server.server_state.connections):
            if not isinstance(connection, PeerProtocol) or connection.peer is None:
                continue
            if self.membership.is_revoked(connection.peer.serial):
                connection.refuse("revoked", REVOKED)

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        # asyncio sets TCP_NODELAY only where the protocol is named; without it an answer waits 40 ms for an ACK
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # in both directions of every connection taken: where a wrong jumbo setting makes large packets vanish, the
            # agents can still talk, and say so
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)
            listener.bind((self._host, self._port))
        except OSError as error:
            listener.close()
            raise MissingPrerequisite(
                f"The agent cannot listen on {self.address}: {error.strerror}.",
                remedy="Set 'listen' to an address of this host and a port that is free.",
            ) from error
        listener.setblocking(False)
        self._port = listener.getsockname()[1]
        return listener

    async def _run(self, listener: socket.socket) -> None:
        try:
            await self._server.serve(sockets=[listener])
        except SystemExit as error:  # uvicorn's way to say that the application's start-up failed
            raise Bug("The agent's application did not start; its log has the exception.") from error
        finally:
            listener.close()
        if not self._server.started:
            raise Bug("The agent's application did not start; its log has the exception.")


def _split(address: str) -> tuple[str, int]:
    if address.endswith(":0"):
        return parse_address(address[:-1] + "1")[0], 0
    return parse_address(address)
