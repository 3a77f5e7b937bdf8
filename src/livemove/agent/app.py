"""The HTTP API of an agent: routes, who may use them, errors as JSON."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from livemove import __version__
from livemove.agent import (
    routes_bandwidth,
    routes_cluster,
    routes_holdings,
    routes_incoming,
    routes_journeys,
    routes_network,
    routes_qos,
    routes_vms,
)
from livemove.agent.host import Host
from livemove.agent.tls_server import current_peer
from livemove.base.errors import (
    AgentBusy,
    Bug,
    CallerError,
    Conflict,
    LinkError,
    LivemoveError,
    NoIdentity,
    NotPermitted,
    OperatorError,
    PeerViolation,
    UnknownHost,
    UnknownJourney,
    UnknownVm,
)
from livemove.base.shortage import shortage_of

_log = logging.getLogger(__name__)

_STATUS: tuple[tuple[type[LivemoveError], int], ...] = (
    (UnknownVm, 404), (UnknownHost, 404), (UnknownJourney, 404), (NotPermitted, 403), (NoIdentity, 403), (Conflict, 409),
    (CallerError, 422), (OperatorError, 409), (AgentBusy, 429), (LinkError, 502), (PeerViolation, 400),
)  # fmt: skip


def make_app(host: Host) -> FastAPI:
    """The ASGI application of `host`."""
    app = FastAPI(title="livemove agent", version=__version__, docs_url=None, redoc_url=None)
    app.state.refusals = host.refusals
    app.add_exception_handler(LivemoveError, _livemove_error)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(OSError, _os_error)
    app.add_exception_handler(Exception, _bug)
    for make in (
        routes_cluster.make_router,
        routes_network.make_router,
        routes_vms.make_router,
        routes_journeys.make_router,
        routes_incoming.make_router,
        routes_holdings.make_router,
        routes_bandwidth.make_router,
        routes_qos.make_router,
    ):
        app.include_router(make(host))
    return app


def _answer(error: LivemoveError) -> JSONResponse:
    status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
    return JSONResponse(error.to_json(), status_code=status)


async def _livemove_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LivemoveError)
    peer, client = current_peer(request), request.client
    if isinstance(error, NotPermitted):
        address = client.host if client is not None else "an address that is gone"
        who = address if peer is None else f"{peer} at {address}"
        # the path without names: who tries one after the other gets one line
        route = "/".join(request.url.path.split("/")[:2])
        request.app.state.refusals.note(who, "permission", f"{request.method} {route}: {error.message}")
        return _answer(error)
    _log.info("%s %s: %s: %s", request.method, request.url.path, error.code, error.message)
    return _answer(error)


async def _bad_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return _answer(PeerViolation(f"{request.method} {request.url.path}: '{where}': {first['msg']}."))


async def _os_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OSError)
    shortage = shortage_of(error)
    return await (_bug(request, error) if shortage is None else _livemove_error(request, shortage))


async def _bug(request: Request, error: Exception) -> JSONResponse:
    _log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
    return _answer(Bug(f"{request.method} {request.url.path} failed: {type(error).__name__}."))
