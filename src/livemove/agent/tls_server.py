"""The agent's listener: uvicorn over mutual TLS, inside the agent's own loop, with the peer's certificate in the scope.

uvicorn hands the application no certificate, so a protocol class of ours reads it once a connection, after the
handshake, and puts the :class:`Peer` into ``scope["state"]``. Routes name who may use them:

    @app.post("/vms")
    async def define(peer: Annotated[Peer, Depends(require_role("operator"))]) -> ...

Clients without a certificate pass the handshake, because a joining host has none; they get few connections, little
time, and every ``require_*`` refuses them. A certificate that is shown must be valid: TLS itself refuses a foreign or
expired one, and a connection ends when the certificate does.

Rotation: the listener's SSLContext stays, and a callback puts the present one in its place at each handshake; so a
reload takes certificate, key and authority together or, when the files are bad, not at all. Open connections live on.
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
# 64 hosts with a few connections each and some people; further requests are answered 503
MAX_CONNECTIONS = 256
MAX_HEADER_BYTES = 32 << 10
# the largest body is a definition or a frozen configuration of some 10 KiB
MAX_BODY_BYTES = 1 << 20
# a join is one short request; more would let strangers take the connections that members need
MAX_ANONYMOUS = 8
ANONYMOUS_S = 15.0
# how long a peer may leave our TLS close unanswered before the socket goes
_CLOSE_GRACE_S = 0.2
_STOP_GRACE_S = 2

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
    """One connection of a client."""

    def __init__(self, *args: Any, clock: Clock, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.peer: Peer | None = None
        self._clock = clock
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        try:
            self.peer = _peer_of(transport)
        except NotPermitted as error:
            _log.warning("refused a connection from %s: %s", self.client, error)
            transport.abort()
            return
        self.app_state = {**self.app_state, PEER_KEY: self.peer}
        if self.peer is not None:
            left_s = self.peer.not_after_wall_s - self._clock.wall_s()
            self._end = self.loop.call_later(max(0.0, left_s), self.shutdown)
        elif self._strangers() > MAX_ANONYMOUS:
            transport.abort()
        else:
            self._end = self.loop.call_later(ANONYMOUS_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close once the present request is answered; uvicorn calls it too when the server stops."""
        super().shutdown()  # type: ignore[no-untyped-call, unused-ignore]
        if self.transport.is_closing():
            # an idle client may read our TLS close minutes later; asyncio would wait 30 s for its answer
            self.loop.call_later(_CLOSE_GRACE_S, self.transport.abort)

    def _strangers(self) -> int:
        return sum(1 for other in self.connections if isinstance(other, PeerProtocol) and other.peer is None)


def _peer_of(transport: asyncio.Transport) -> Peer | None:
    tls = transport.get_extra_info("ssl_object")
    if not isinstance(tls, ssl.SSLObject):
        raise NotPermitted("The connection has no TLS.")
    der = tls.getpeercert(binary_form=True)
    return None if der is None else peer_from_certificate(der)


def bounded(app: Application, max_body_bytes: int) -> Application:
    """The application, reading no more than that of any request's body."""

    async def bounded_app(scope: Scope, receive: Receive, send: Send) -> None:
        received_bytes = 0

        async def counted() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > max_body_bytes:
                raise PeerViolation(f"The request's body is longer than {max_body_bytes} bytes.")
            return message

        await app(scope, counted if scope["type"] == "http" else receive, send)

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

    def __init__(self, app: Application, *, address: str, identity: Identity, clock: Clock | None = None) -> None:
        self.identity = identity
        self._host, self._port = _split(address)
        self._context = server_context(identity, admit_anonymous=True)
        config = uvicorn.Config(
            cast(Any, bounded(app, MAX_BODY_BYTES)),
            http=cast(type[asyncio.Protocol], functools.partial(PeerProtocol, clock=clock or SystemClock())),
            ws="none",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # else whoever connects from loopback could claim another address
            server_header=False,
            date_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            backlog=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=_STOP_GRACE_S,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
        config.load()
        config.ssl = server_context(identity, admit_anonymous=True)
        config.ssl.sni_callback = self._use_present_context
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

    def _use_present_context(
        self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _listener: ssl.SSLContext
    ) -> None:
        connection.context = self._context

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        # asyncio sets TCP_NODELAY only where the protocol is named; without it an answer waits 40 ms for an ACK
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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
