"""The joining host's side of join.py over the network: fetch the authority, check it, ask, keep the answer."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any

import httpx
from pydantic import ValidationError

from livemove.agent.identity import check_no_identity, host_identity_dir
from livemove.agent.join import JoinAnswer, JoinToken, check_authority, finish_join, join_request
from livemove.api.client_identity import Identity
from livemove.api.trust import (
    ANSWER_TIMEOUT_S,
    CONNECT_TIMEOUT_S,
    LINK_FAILURES,
    authority_context,
    client_with,
    explain_failure,
    unverified_context,
)
from livemove.base.errors import PeerViolation, error_from_json

CA_ROUTE = "/cluster/ca"
"""GET, no certificate needed: ``{"ca": PEM}``."""
JOIN_ROUTE = "/cluster/join"
"""POST, no certificate needed: JoinRequest to JoinAnswer."""

# an answer holds two certificates and a map of at most 1024 hosts
_MAX_ANSWER_BYTES = 512 << 10


async def join_cluster(token_text: str, *, address: str, state_dir: Path) -> Identity:
    """Make this host a member of the cluster that the token is from; `address` is where its agent will answer.

    Raises Conflict when this host belongs to a cluster already, NotPermitted for a bad token or an authority that is
    not the token's, BadSetting, AgentUnreachable, PeerViolation, and whatever the authority answers (see
    :func:`livemove.agent.join.redeem`). Unless it succeeds, nothing is written here.
    """
    directory = host_identity_dir(state_dir)
    check_no_identity(directory)
    pending = join_request(token_text, address=address)
    token = pending.token
    ca_pem = (await _exchange(unverified_context(), token, "GET", CA_ROUTE)).get("ca")
    if not isinstance(ca_pem, str):
        raise PeerViolation(f"The agent at {token.address} did not send its authority.")
    check_authority(token, ca_pem)
    body = await _exchange(
        authority_context(ca_pem), token, "POST", JOIN_ROUTE, pending.request.model_dump_json().encode()
    )
    try:
        answer = JoinAnswer.model_validate(body)
    except ValidationError as error:
        raise PeerViolation(f"The agent of '{token.authority}' answered what is no answer to a join.") from error
    return finish_join(pending, answer, directory)


async def _exchange(
    context: ssl.SSLContext, token: JoinToken, method: str, route: str, content: bytes | None = None
) -> dict[str, Any]:
    headers = {"content-type": "application/json"} if content is not None else {}
    received = bytearray()
    try:
        async with (
            client_with(context, token.authority, token.address, CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S) as client,
            client.stream(method, route, content=content, headers=headers) as response,
        ):
            async for part in response.aiter_bytes():
                received += part
                if len(received) > _MAX_ANSWER_BYTES:
                    raise PeerViolation(f"The agent at {token.address} sends more than {_MAX_ANSWER_BYTES} bytes.")
            succeeded = response.is_success
    except LINK_FAILURES as error:
        raise explain_failure(error, token.authority, token.address) from error
    except httpx.HTTPError as error:
        raise PeerViolation(f"The agent at {token.address} answered what is not HTTP: {error}.") from error
    try:
        body = json.loads(received)
    except (ValueError, RecursionError) as error:
        raise PeerViolation(f"The agent at {token.address} answered what is not JSON.") from error
    if not isinstance(body, dict):
        raise PeerViolation(f"The agent at {token.address} answered what is not a JSON object.")
    if not succeeded:
        raise error_from_json(body)
    return body
