"""TLS between agents and their clients: version 1.3 only, the cluster's own authority only, names checked.

A client connects to an address and means a host: it sends the host's *name* as server name and OpenSSL verifies it
against the DNS name in the certificate, so that addresses may change freely and no code of ours decides. A person's
certificate is issued for clients only, which OpenSSL verifies too, so nobody but a host can answer as one.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import httpx

from livemove.api.client_identity import Identity
from livemove.api.cluster_map import check_address
from livemove.base.clock import Clock, wall_text
from livemove.base.errors import AgentUnreachable, LivemoveError, NoIdentity, NotPermitted

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 30.0
# the agent closes idle connections after 75 s; a client that gives up earlier never writes into one being closed
IDLE_CONNECTION_S = 60.0
MAX_CONNECTIONS = 16

LINK_FAILURES = (httpx.TransportError, ssl.SSLError, OSError)
"""What a request through :func:`async_client` may raise; :func:`explain_failure` makes a livemove error of it."""


_REMEDY_CERTIFICATE = "If need be, have a certificate issued with 'livemove cluster person' on the authority's host."


def client_context(identity: Identity) -> ssl.SSLContext:
    """For connections to agents. Raises NoIdentity when the files do not hold a key with its certificate."""
    context = authority_context(identity.ca_path.read_text())
    _load_own(context, identity)
    return context


def authority_context(ca_pem: str) -> ssl.SSLContext:
    """For a client without a certificate that trusts this authority alone. Raises NoIdentity when it is none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.hostname_checks_common_name = False
    _harden(context)
    _trust(context, ca_pem)
    return context


def unverified_context() -> ssl.SSLContext:
    """For the one request of a joining host that fetches the authority's certificate to compare its fingerprint."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def server_context(identity: Identity, *, admit_anonymous: bool = False) -> ssl.SSLContext:
    """For an agent's listener; a certificate that is shown must be valid in either case.

    :param admit_anonymous: let clients without a certificate finish the handshake, because a host that joins has none
        yet. The application must then refuse them on every other route (``agent.tls_server.require_*``).

    Sessions are not resumed: a resumed one would carry a certificate past its expiry, revocation and rotation.
    Raises NoIdentity when the files do not hold a key with its certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL if admit_anonymous else ssl.CERT_REQUIRED
    context.num_tickets = 0
    _harden(context)
    _trust(context, identity.ca_path.read_text())
    _load_own(context, identity)
    return context


def async_client(
    identity: Identity,
    host_name: str,
    address: str,
    *,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    answer_timeout_s: float = ANSWER_TIMEOUT_S,
) -> httpx.AsyncClient:
    """A client for the agent of one host, at ``IP:PORT``; close it with ``aclose``.

    Requests take paths (``client.get("/vms")``) and raise :data:`LINK_FAILURES`. Raises NoIdentity, BadSetting.
    """
    return client_with(client_context(identity), host_name, address, connect_timeout_s, answer_timeout_s)


def client_with(
    context: ssl.SSLContext, host_name: str, address: str, connect_timeout_s: float, answer_timeout_s: float
) -> httpx.AsyncClient:
    """As :func:`async_client`, with a given context. Raises BadSetting for a malformed address."""
    return httpx.AsyncClient(
        base_url=f"https://{check_address(address)}",
        transport=_NamedHost(context, host_name),
        timeout=httpx.Timeout(
            connect=connect_timeout_s, read=answer_timeout_s, write=answer_timeout_s, pool=answer_timeout_s
        ),
        trust_env=False,
    )


def explain_failure(
    error: BaseException, host_name: str, address: str, *, identity: Identity | None = None, clock: Clock | None = None
) -> LivemoveError:
    """What a failed request means: NotPermitted when a certificate was refused, else AgentUnreachable.

    In TLS 1.3 the agent judges the client's certificate after the client's side of the handshake is done, and asyncio
    drops a refused connection without sending TLS's alert: the refusal looks like a broken connection. With `identity`
    and `clock` given, an own certificate that has expired is told from that.
    """
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return NotPermitted(
                f"{address} does not prove to be '{host_name}' of this cluster: {cause.verify_message}.",
                remedy="Check the address in cluster.toml, and that both belong to one cluster.",
            )
    if identity is not None and clock is not None and identity.peer.not_after_wall_s <= clock.wall_s():
        return NotPermitted(
            f"The certificate of {identity.peer} expired at {wall_text(identity.peer.not_after_wall_s)}.",
            remedy=_REMEDY_CERTIFICATE,
        )
    if isinstance(error, httpx.TimeoutException):
        return AgentUnreachable(f"The agent of '{host_name}' at {address} did not answer in time.")
    if isinstance(error, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError | ssl.SSLError):
        return AgentUnreachable(
            f"The agent of '{host_name}' at {address} closed the connection without an answer: it was stopped, or it "
            "does not accept this certificate.",
            remedy=f"Look at its log. {_REMEDY_CERTIFICATE}",
        )
    what = next((str(cause) for cause in _causes(error) if str(cause)), "the connection was closed at once")
    return AgentUnreachable(f"The agent of '{host_name}' at {address} cannot be reached: {what}.")


class _NamedHost(httpx.AsyncHTTPTransport):
    """Sends the host's name as TLS server name, whatever address the URL has."""

    def __init__(self, context: ssl.SSLContext, host_name: str) -> None:
        limits = httpx.Limits(
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_CONNECTIONS,
            keepalive_expiry=IDLE_CONNECTION_S,
        )
        super().__init__(verify=context, limits=limits, trust_env=False)
        self._host_name = host_name

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions = {**request.extensions, "sni_hostname": self._host_name}
        return await super().handle_async_request(request)


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT


def _trust(context: ssl.SSLContext, ca_pem: str) -> None:
    try:
        context.load_verify_locations(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as error:
        raise NoIdentity("The authority's certificate cannot be read.") from error


def _load_own(context: ssl.SSLContext, identity: Identity) -> None:
    try:
        context.load_cert_chain(identity.certificate_path, identity.key_path)
    except (ssl.SSLError, OSError) as error:
        raise NoIdentity(f"{identity.directory} does not hold a key with its certificate: {error}.") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__
