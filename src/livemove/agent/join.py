"""How a cluster begins and hosts come to it.

    authority's host                                   joining host
    cluster init            CA, own certificate, an admin's identity, map
    cluster invite beta ->  lmj1.…  ── carried by a person ──>  cluster join lmj1.… --address IP:PORT
                            GET /cluster/ca     <────────────   1 fetch the CA, trusting nothing
                                                                2 SHA-256 equal to the token's? else stop
                            POST /cluster/join  <────────────   3 verified by that CA: secret, signing request
      4 secret known, in time, for that name? once only
      5 certificate, CA, map  ────────────────────────────────> 6 for my key, by that CA? then keep them

The joining host has no certificate yet, so the agent's listener takes clients without one, and the application refuses
them on every route but these two. The secret is 256 random bits; only its hash is stored. It is sent only over a
connection that the token's CA verified, so somebody in between learns nothing and can only make the join fail.

Everything here that changes the authority's files does so under one lock, because commands and the agent both do.
The functions block for some milliseconds (they sync to disk): call them from an agent's loop with asyncio.to_thread.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from livemove.agent import invitations
from livemove.agent.authority import (
    PERSON_VALIDITY_S,
    Authority,
    check_issued,
    create_authority,
    key_of_request,
    load_authority,
    new_key,
    signing_request,
)
from livemove.agent.identity import authority_dir, check_no_identity, host_identity_dir, install_identity
from livemove.agent.invitations import Invitation
from livemove.agent.token_text import open_token, seal_token
from livemove.api.client_identity import MAP_FILE, Identity, Role, check_host_name, fingerprint_of
from livemove.api.cluster_map import ClusterMap, check_address, load_map, map_from_json, parse_address, save_map
from livemove.api.private_files import make_private_dir
from livemove.base.clock import Clock
from livemove.base.errors import BadSetting, Conflict, NotPermitted, PeerViolation

PREFIX = "lmj1"
INVITATION_LIFETIME_S = 600.0
MAX_LIFETIME_S = 86_400.0
_MAX_TOKEN_CHARS = 2048
_REMEDY_INVITE = "Make a new one with 'livemove cluster invite HOST' on the authority's host, and copy it whole."
_REMEDY_REPLACE = "Choose another name, or invite it with --replace when the host was installed anew."

_Text = Annotated[str, Field(min_length=1, max_length=100)]
_Secret = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
_Pem = Annotated[str, Field(min_length=1, max_length=8192)]


class JoinToken(BaseModel):
    """What a join token says."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    secret: _Secret
    ca_sha256: _Secret
    authority: _Text
    address: _Text
    host: _Text


class JoinRequest(BaseModel):
    """Body of ``POST /cluster/join``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    secret: _Secret
    host: _Text
    address: _Text
    signing_request: _Pem


class JoinAnswer(BaseModel):
    """What the authority answers to it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    certificate: _Pem
    ca: _Pem
    cluster: dict[str, Any]


# On the authority's host ----------------------------------------------------------------------------------------------


def init_cluster(
    state_dir: Path,
    *,
    name: str,
    address: str,
    clock: Clock,
    admin: str | None = None,
    admin_dir: Path | None = None,
) -> Identity:
    """Begin a cluster on this host: authority, this host's identity, the map, and an admin's identity if both are given.

    Raises Conflict when the host already belongs to a cluster or the admin's directory holds an identity, BadSetting for
    a bad name or address, StateUnwritable. Whatever fails, nothing is left behind that was not there before.
    """
    check_host_name(name)
    cluster = ClusterMap(name, 0).with_host(name, address)
    directory = host_identity_dir(state_dir)
    check_no_identity(directory)
    if admin_dir is not None:
        check_no_identity(admin_dir)
    make_private_dir(state_dir)
    with contextlib.ExitStack() as undo:
        _remove_on_error(undo, authority_dir(state_dir))
        authority = create_authority(authority_dir(state_dir), clock=clock)
        _remove_on_error(undo, directory)
        identity = _issue_host(authority, directory, name, cluster, clock)
        if admin is not None and admin_dir is not None:
            _remove_on_error(undo, admin_dir)
            _issue_person(authority, admin_dir, admin, Role.ADMIN, cluster, clock, PERSON_VALIDITY_S)
        undo.pop_all()
    return identity


def invite(
    state_dir: Path,
    host: str,
    *,
    clock: Clock,
    lifetime_s: float = INVITATION_LIFETIME_S,
    replace: bool = False,
) -> str:
    """A token with which the host may join, once, within `lifetime_s` (at most a day).

    :param replace: the host is in the map already and was installed anew.

    Raises NoIdentity when this host does not hold the authority, BadSetting for a bad name or lifetime, Conflict when
    the name is taken or too many invitations are open, StateUnwritable.
    """
    if not 0 < lifetime_s <= MAX_LIFETIME_S:
        raise BadSetting(f"An invitation cannot last {lifetime_s:.0f} s.", remedy="Choose --ttl up to 24h.")
    authority = load_authority(authority_dir(state_dir))
    secret = secrets.token_hex(32)
    with invitations.locked(authority.directory):
        cluster = load_map(host_identity_dir(state_dir) / MAP_FILE)
        _check_free(cluster, check_host_name(host), replace)
        invitation = Invitation(host=host, expires_wall_s=clock.wall_s() + lifetime_s, replace=replace)
        invitations.store(authority.directory, secret, invitation, clock)
    token = JoinToken(
        secret=secret,
        ca_sha256=authority.fingerprint,
        authority=cluster.authority,
        address=cluster.address_of(cluster.authority),
        host=host,
    )
    return seal_token(PREFIX, token.model_dump_json().encode())


def redeem(state_dir: Path, request: JoinRequest, *, clock: Clock) -> JoinAnswer:
    """Take a new host into the cluster; what the agent's ``POST /cluster/join`` does.

    The invitation is gone, durably, before the certificate is made: a crash in between costs a new invitation, never a
    second certificate. A request that is itself at fault leaves the invitation as it was.

    Raises NotPermitted when the secret is unknown, used or late (all one message: who tries learns nothing), is for
    another host, or the signing request is bad; BadSetting for a bad address; Conflict when name or address is taken;
    NoIdentity, StateUnwritable.
    """
    authority = load_authority(authority_dir(state_dir))
    map_path = host_identity_dir(state_dir) / MAP_FILE
    with invitations.locked(authority.directory):
        invitation = invitations.find(authority.directory, request.secret, clock)
        if invitation is None:
            raise NotPermitted("The join token is unknown, used or expired.", remedy=_REMEDY_INVITE)
        if request.host != invitation.host:
            raise NotPermitted(f"The join token is not for '{request.host}'.", remedy=_REMEDY_INVITE)
        key_of_request(request.signing_request)
        cluster = load_map(map_path)
        _check_free(cluster, request.host, invitation.replace)
        cluster = cluster.with_host(request.host, request.address, replace=invitation.replace)
        invitations.consume(authority.directory, request.secret)
        certificate = authority.issue_host(
            request.signing_request, name=request.host, addresses=[parse_address(request.address)[0]], clock=clock
        )
        save_map(map_path, cluster)
    return JoinAnswer(certificate=certificate, ca=authority.ca_pem, cluster=cluster.to_json())


def issue_person(
    state_dir: Path,
    *,
    name: str,
    role: Role,
    directory: Path,
    clock: Clock,
    validity_s: float = PERSON_VALIDITY_S,
) -> Identity:
    """A person's identity in a directory of its own, on the authority's host.

    Raises NoIdentity when this host does not hold the authority, Conflict when the directory holds an identity,
    NotPermitted for the role of a host, BadSetting, StateUnwritable.
    """
    check_no_identity(directory)
    authority = load_authority(authority_dir(state_dir))
    cluster = load_map(host_identity_dir(state_dir) / MAP_FILE)
    return _issue_person(authority, directory, name, role, cluster, clock, validity_s)


@dataclass(frozen=True)
class LabHost:
    """A host of a lab: all of them are directories of one machine."""

    name: str
    state_dir: Path
    address: str


def make_lab_cluster(
    hosts: Sequence[LabHost], *, people: Mapping[str, tuple[Role, Path]], clock: Clock
) -> dict[str, Identity]:
    """A whole cluster at once, no network needed; the first host holds the authority.

    :param people: name to role and identity directory.

    Returns the identities of hosts and people by name. Raises as :func:`init_cluster` and :func:`issue_person`.
    """
    first = hosts[0]
    identities = {first.name: init_cluster(first.state_dir, name=first.name, address=first.address, clock=clock)}
    authority = load_authority(authority_dir(first.state_dir))
    cluster = load_map(identities[first.name].map_path)
    for host in hosts[1:]:
        cluster = cluster.with_host(host.name, host.address)
    save_map(identities[first.name].map_path, cluster)
    for host in hosts[1:]:
        directory = host_identity_dir(host.state_dir)
        check_no_identity(directory)
        identities[host.name] = _issue_host(authority, directory, host.name, cluster, clock)
    for name, (role, directory) in people.items():
        check_no_identity(directory)
        identities[name] = _issue_person(authority, directory, name, role, cluster, clock, PERSON_VALIDITY_S)
    return identities


# On the joining host --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PendingJoin:
    """A join that is under way: the key stays here, the request goes to the authority."""

    token: JoinToken
    key: ec.EllipticCurvePrivateKey
    request: JoinRequest


def parse_join_token(text: str) -> JoinToken:
    """What the token says. Raises NotPermitted, never anything else, when it is not one."""
    (payload,) = open_token(
        text.strip(), PREFIX, parts=1, max_chars=_MAX_TOKEN_CHARS, what="join token", remedy=_REMEDY_INVITE
    )
    try:
        token = JoinToken.model_validate_json(payload)
        check_host_name(token.authority)
        check_host_name(token.host)
        check_address(token.address)
    except (ValidationError, BadSetting) as error:
        raise NotPermitted("The join token is not one that livemove made.", remedy=_REMEDY_INVITE) from error
    return token


def join_request(token_text: str, *, address: str) -> PendingJoin:
    """Make this host's key and the request to join; `address` is where its agent will answer.

    Raises NotPermitted for a malformed token, BadSetting for a bad address.
    """
    token = parse_join_token(token_text)
    key = new_key()
    request = JoinRequest(
        secret=token.secret,
        host=token.host,
        address=check_address(address),
        signing_request=signing_request(key, token.host),
    )
    return PendingJoin(token, key, request)


def check_authority(token: JoinToken, ca_pem: str) -> None:
    """Raises NotPermitted when this is not the authority that the token names; nothing may be sent then."""
    try:
        fingerprint = fingerprint_of(ssl.PEM_cert_to_DER_cert(ca_pem))
    except ValueError as error:
        raise NotPermitted(f"{token.address} did not send a certificate authority.") from error
    if not secrets.compare_digest(fingerprint, token.ca_sha256):
        raise NotPermitted(
            f"{token.address} is not the authority of the token: its certificate's SHA-256 is {fingerprint[:16]}…, "
            f"not {token.ca_sha256[:16]}….",
            remedy="Somebody may be in between; check the address, and ask for a new token.",
        )


def finish_join(pending: PendingJoin, answer: JoinAnswer, directory: Path) -> Identity:
    """Check what the authority answered and keep it as this host's identity.

    Raises NotPermitted or PeerViolation, with nothing written, when CA, certificate, name or map are not as they must
    be; Conflict when the directory holds an identity; StateUnwritable.
    """
    check_no_identity(directory)
    check_authority(pending.token, answer.ca)
    der = check_issued(answer.certificate, answer.ca, pending.key)
    peer = Identity(directory, der).peer
    if (peer.name, peer.role) != (pending.token.host, Role.HOST):
        raise NotPermitted(f"The authority sent the certificate of {peer}, not of host '{pending.token.host}'.")
    cluster = map_from_json(answer.cluster)
    if cluster.hosts.get(peer.name) != pending.request.address:
        raise PeerViolation(f"The cluster's map does not have '{peer.name}' at {pending.request.address}.")
    return install_identity(
        directory, ca_pem=answer.ca, certificate_pem=answer.certificate, key=pending.key, cluster=cluster
    )


# Inside ---------------------------------------------------------------------------------------------------------------


def _issue_host(authority: Authority, directory: Path, name: str, cluster: ClusterMap, clock: Clock) -> Identity:
    key = new_key()
    addresses = [parse_address(cluster.address_of(name))[0]]
    certificate = authority.issue_host(signing_request(key, name), name=name, addresses=addresses, clock=clock)
    return install_identity(directory, ca_pem=authority.ca_pem, certificate_pem=certificate, key=key, cluster=cluster)


def _issue_person(
    authority: Authority, directory: Path, name: str, role: Role, cluster: ClusterMap, clock: Clock, validity_s: float
) -> Identity:
    key = new_key()
    certificate = authority.issue_person(
        signing_request(key, name), name=name, role=role, clock=clock, validity_s=validity_s
    )
    return install_identity(directory, ca_pem=authority.ca_pem, certificate_pem=certificate, key=key, cluster=cluster)


def _check_free(cluster: ClusterMap, host: str, replace: bool) -> None:
    taken = {known.lower(): known for known in cluster.hosts}.get(host.lower())
    if taken is not None and not (replace and taken == host):
        raise Conflict(f"The cluster already has the host '{taken}'.", remedy=_REMEDY_REPLACE)
    if host == cluster.authority:
        raise Conflict(f"'{host}' holds the cluster's authority and cannot be replaced.", remedy=_REMEDY_REPLACE)


def _remove_on_error(undo: contextlib.ExitStack, directory: Path) -> None:
    if not directory.exists():
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
