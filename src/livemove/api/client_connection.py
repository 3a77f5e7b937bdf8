"""A connection to one agent: how a request is sent and what its answer may be.

A request ends in one of four ways:

    the answer        a model, checked
    a refusal         the error that the agent sent (``ErrorBody``), as its own class, ``where`` naming the host
    no answer         AgentUnreachable, or NotPermitted when a certificate was refused; for ``go`` and ``ask`` LinkLost
    a false answer    PeerViolation: not what the API says, or longer than 16 MiB; for ``go`` and ``ask`` LinkLost

LinkLost from ``go`` and ``ask`` means that the destination may own the VM or not: the caller must ask again, never guess.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self, TypeVar

import httpx
from pydantic import ValidationError

from livemove.api import trust
from livemove.api.client_identity import Identity
from livemove.api.models import ErrorBody, Model
from livemove.base.errors import AgentUnreachable, LinkLost, LivemoveError, NotPermitted, PeerViolation, error_from_json

MAX_ANSWER_BYTES = 16 << 20

M = TypeVar("M", bound=Model)
Query = Mapping[str, str | int | bool]


class AgentConnection:
    """Requests to the agent of one host, for the length of ``async with``; they may overlap.

    :param host_name: the name that the agent must prove by its certificate.
    :param address: ``IP:PORT`` of the agent.
    :param context: the TLS context, for callers that have many clients of one identity; else made from `identity`.
    :param http: sends the requests instead of a connection of our own, for tests; it is closed at the end.
    :param is_revoked: whether the certificate with a serial number (hex) was revoked; asked for every answer, because a
        connection may be older than the revocation. Such an answer is not believed: NotPermitted, as any false name.

    Entering raises NoIdentity when the identity's files do not fit, BadSetting for a malformed address.
    """

    def __init__(
        self,
        identity: Identity | None,
        host_name: str,
        address: str,
        *,
        context: ssl.SSLContext | None = None,
        http: httpx.AsyncClient | None = None,
        is_revoked: Callable[[str], bool] | None = None,
    ) -> None:
        self.host_name = host_name
        self.address = address
        self._identity = identity
        self._context = context
        self._http = http
        self._is_revoked = is_revoked

    async def __aenter__(self) -> Self:
        if self._http is None:
            if self._context is None:
                assert self._identity is not None
                self._context = trust.client_context(self._identity)
            self._http = trust.client_with(
                self._context, self.host_name, self.address, trust.CONNECT_TIMEOUT_S, trust.ANSWER_TIMEOUT_S
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. May be called twice."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    # One request ------------------------------------------------------------------------------------------------------

    async def _ask(
        self,
        answer: type[M],
        method: str,
        path: str,
        body: Model | None = None,
        *,
        query: Query | None = None,
        timeout_s: float = trust.ANSWER_TIMEOUT_S,
        hand_over: bool = False,
    ) -> M:
        data = await self._exchange(method, path, body, query=query, timeout_s=timeout_s, hand_over=hand_over)
        try:
            return answer.model_validate_json(data)
        except ValidationError as error:
            what = f"no {answer.__name__}: {error.errors(include_url=False, include_input=False)[0]['msg']}"
            raise self._no_answer(self._violation(method, path, what), hand_over) from error

    async def _exchange(
        self,
        method: str,
        path: str,
        body: Model | None = None,
        *,
        query: Query | None = None,
        timeout_s: float = trust.ANSWER_TIMEOUT_S,
        hand_over: bool = False,
    ) -> bytes:
        """The bytes of a 2xx answer; see the module's docstring for what is raised."""
        assert self._http is not None, "the client is used outside 'async with'"
        # compressed answers could be far longer than they look
        headers = {"Accept-Encoding": "identity"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        timeout = httpx.Timeout(timeout_s, connect=min(trust.CONNECT_TIMEOUT_S, timeout_s))
        content = body.model_dump_json().encode() if body is not None else None
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._http.stream(
                    method, path, params=dict(query or {}), content=content, headers=headers, timeout=timeout
                ) as response,
            ):
                self._check_not_revoked(response)
                status, data = response.status_code, await self._read(response, method, path)
        except TimeoutError as error:
            late = AgentUnreachable(
                f"The agent of '{self.host_name}' at {self.address} did not answer within {timeout_s:g} s.",
                where=self.host_name,
            )
            raise self._no_answer(late, hand_over) from error
        except trust.LINK_FAILURES as error:
            failure = trust.explain_failure(error, self.host_name, self.address)
            raise self._no_answer(failure, hand_over) from error
        except (PeerViolation, NotPermitted) as error:
            raise self._no_answer(error, hand_over) from error.__cause__
        if 200 <= status < 300:
            return data
        try:
            refusal = ErrorBody.model_validate_json(data)
        except ValidationError as error:
            violation = self._violation(method, path, f"status {status} and no error of livemove's")
            raise self._no_answer(violation, hand_over) from error
        refused = error_from_json(refusal.model_dump())
        refused.where = refused.where or self.host_name
        raise refused

    def _check_not_revoked(self, response: httpx.Response) -> None:
        stream = response.extensions.get("network_stream")
        tls = stream.get_extra_info("ssl_object") if stream is not None else None
        if self._is_revoked is None or tls is None:
            return
        serial = str((tls.getpeercert() or {}).get("serialNumber", "")).lower().lstrip("0")
        if self._is_revoked(serial):
            raise NotPermitted(
                f"The certificate of '{self.host_name}' at {self.address} was revoked.",
                remedy="It was taken out of the cluster: invite it anew with 'livemove cluster invite --replace'.",
            )

    async def _read(self, response: httpx.Response, method: str, path: str) -> bytes:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise self._violation(method, path, "an encoding that was not asked for")
        data = bytearray()
        async for part in response.aiter_raw():
            data += part
            if len(data) > MAX_ANSWER_BYTES:
                raise self._violation(method, path, f"more than {MAX_ANSWER_BYTES >> 20} MiB")
        return bytes(data)

    def _violation(self, method: str, path: str, what: str) -> PeerViolation:
        return PeerViolation(
            f"The agent of '{self.host_name}' answered {method} {path} with {what}.", where=self.host_name
        )

    def _no_answer(self, error: LivemoveError, hand_over: bool) -> LivemoveError:
        if not hand_over:
            return error
        return LinkLost(
            f"'{self.host_name}' gave no valid answer about who owns the VM: {error.message}",
            remedy="The source keeps the VM paused and asks again until it knows.",
            where=self.host_name,
        )
