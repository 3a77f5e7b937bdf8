"""Grants: a host's permission for one journey, given to a person and presented by the source.

    person ── certificate ──> destination        asks for a grant
    person <── grant ──────── destination        signed with the destination's own key
    person ── grant ────────> source             asks for the journey
               source ── certificate, grant ──> destination   which knows its signature, once

    lmg1.<payload, base64url>.<signature, base64url>

The payload is JSON with sorted keys; the signature is ECDSA-SHA256 over a line naming purpose and version, then exactly
the payload's bytes, so a signature made for TLS or another purpose is never one of a grant. The host verifies only what
it signed itself: no key of another host is ever needed. A host without a person's grant can thus move nothing.

A host that renews its certificate keeps its key, or the grants that it gave in the last minutes are void.
"""

from __future__ import annotations

import json
import secrets
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from livemove.agent.identity import sign, signed_by
from livemove.agent.token_text import open_token, seal_token
from livemove.api.client_identity import Identity, Peer, Role
from livemove.base.clock import Clock
from livemove.base.errors import NotPermitted
from livemove.base.settings import describe_validation

PREFIX = "lmg1"
# a journey may wait in a queue before it reaches the destination
LIFETIME_S = 600.0
MAX_CHARS = 4096
_PURPOSE = b"livemove grant 1\n"
_REMEDY_FRESH = "Give the command again: it asks for a fresh grant."
_REMEDY_OTHER = "The host that presented it may be faulty or taken over; its log tells more."

_Name = Annotated[str, Field(min_length=1, max_length=63)]


class Grant(BaseModel):
    """What a host permits: this VM, from that host to this one, for that person, until then, once."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: Annotated[str, Field(pattern=r"\A[0-9a-f]{32}\z")]
    vm_uuid: Annotated[str, Field(min_length=1, max_length=64)]
    vm_name: Annotated[str, Field(min_length=1, max_length=128)]
    source: _Name
    destination: _Name
    person: _Name
    person_fingerprint: Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
    role: Literal["operator", "admin"]
    issued_wall_s: Annotated[float, Field(ge=0, lt=1e12)]
    expires_wall_s: Annotated[float, Field(ge=0, lt=1e12)]


class GrantLedger(Protocol):
    """Which grants were used. The agent keeps it in its journal, so that a restart forgets none."""

    def consume(self, grant_id: str, expires_wall_s: float) -> bool:
        """True the first time for an id, False ever after; may forget it once it has expired."""


class MemoryLedger:
    """A ledger for tests and for a single run."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._used: dict[str, float] = {}

    def consume(self, grant_id: str, expires_wall_s: float) -> bool:
        now_wall_s = self._clock.wall_s()
        self._used = {known: expiry for known, expiry in self._used.items() if expiry > now_wall_s}
        if grant_id in self._used:
            return False
        self._used[grant_id] = expires_wall_s
        return True


def issue_grant(
    identity: Identity,
    *,
    vm_uuid: str,
    vm_name: str,
    source: str,
    person: Peer,
    now_wall_s: float,
    lifetime_s: float = LIFETIME_S,
    grant_id: str | None = None,
) -> str:
    """The token by which this host, as destination, permits one journey of the VM from `source`.

    Raises NotPermitted when the person is neither operator nor admin, when this identity is no host's, when source and
    destination are one, and when a value has the wrong form.
    """
    if identity.role is not Role.HOST:
        raise NotPermitted(f"Only a host can grant a journey; {identity.directory} is of {identity.peer}.")
    if not person.role.allows(Role.OPERATOR):
        raise NotPermitted(f"{person} may not move VMs to '{identity.name}'.")
    if source == identity.name:
        raise NotPermitted(f"'{source}' cannot grant a journey to itself.", remedy="Name another host with --to.")
    try:
        grant = Grant.model_validate(
            {
                "id": grant_id or secrets.token_hex(16),
                "vm_uuid": vm_uuid,
                "vm_name": vm_name,
                "source": source,
                "destination": identity.name,
                "person": person.name,
                "person_fingerprint": person.fingerprint,
                "role": person.role.value,
                "issued_wall_s": now_wall_s,
                "expires_wall_s": now_wall_s + lifetime_s,
            }
        )
    except ValidationError as error:
        raise NotPermitted(f"No grant can be given: {describe_validation(error)}") from error
    payload = json.dumps(grant.model_dump(), sort_keys=True, separators=(",", ":")).encode()
    return seal_token(PREFIX, payload, sign(identity, _PURPOSE + payload))


def check_grant(
    token: str, granting_identity: Identity, *, vm_uuid: str, source_peer: Peer, now_wall_s: float
) -> Grant:
    """The grant in the token when this very host gave it for this VM and for the host that presents it.

    The caller consumes its id in a :class:`GrantLedger` before acting on it; this function changes nothing.
    Raises NotPermitted saying which check failed, and never anything else whatever the token is.
    """
    payload, signature = open_token(token, PREFIX, parts=2, max_chars=MAX_CHARS, what="grant", remedy=_REMEDY_FRESH)
    if not signed_by(granting_identity, _PURPOSE + payload, signature):
        raise NotPermitted(f"The grant was not signed by '{granting_identity.name}'.", remedy=_REMEDY_FRESH)
    try:
        grant = Grant.model_validate_json(payload)
    except ValidationError as error:  # only a host of another version signs such a one
        raise NotPermitted(f"The grant cannot be read: {describe_validation(error)}", remedy=_REMEDY_FRESH) from error
    if now_wall_s >= grant.expires_wall_s:
        late_s = now_wall_s - grant.expires_wall_s
        raise NotPermitted(f"The grant for '{grant.vm_name}' expired {late_s:.0f} s ago.", remedy=_REMEDY_FRESH)
    if grant.destination != granting_identity.name:
        raise NotPermitted(f"The grant is for the destination '{grant.destination}'.", remedy=_REMEDY_FRESH)
    if source_peer.role is not Role.HOST:
        raise NotPermitted(f"A grant is presented by the source host, not by {source_peer}.", remedy=_REMEDY_OTHER)
    if source_peer.name != grant.source:
        raise NotPermitted(
            f"The grant is for the source '{grant.source}', and '{source_peer.name}' presents it.", remedy=_REMEDY_OTHER
        )
    if vm_uuid != grant.vm_uuid:
        raise NotPermitted(
            f"The grant is for the VM '{grant.vm_name}' ({grant.vm_uuid}), not for {vm_uuid[:64]}.",
            remedy=_REMEDY_OTHER,
        )
    return grant
