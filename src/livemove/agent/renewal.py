"""A host's certificate, renewed long before it ends: the present one is the proof, and the private key stays.

The key stays because grants given in the last minutes were signed with it. Whoever has a host's key can therefore renew
too; ``livemove cluster revoke`` ends that, because a revoked certificate is refused before anything is read.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from livemove.agent import invitations
from livemove.agent.authority import check_issued, load_authority, signing_request
from livemove.agent.identity import authority_dir, host_identity_dir
from livemove.agent.revoking import issued_certificates
from livemove.api.client import AgentClient
from livemove.api.client_identity import MAP_FILE, Identity, Peer, Role, load_identity
from livemove.api.cluster_map import load_map, parse_address
from livemove.api.models import RenewAnswer, RenewRequest
from livemove.api.private_files import write_private
from livemove.base.clock import Clock
from livemove.base.errors import Conflict, NoIdentity, NotPermitted

#: Renewed when less than this part of its life is left: 120 days of a year, so a host may be off for months.
DUE_FRACTION = 1 / 3
#: Of one host; far more than renewals within a certificate's life, and a bound for a host gone wrong.
MAX_VALID_EACH = 16
_DAY_S = 86_400.0


@dataclass(frozen=True)
class Renewal:
    """What became, or would become, of a host's certificate. `days_left` is of the one in force afterwards."""

    host: str
    renewed: bool
    due: bool
    days_left: float


def is_due(identity: Identity, now_wall_s: float) -> bool:
    """Whether so little of the certificate's life is left that it should be renewed."""
    certificate = x509.load_der_x509_certificate(identity.certificate_der)
    begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return ends - now_wall_s < (ends - begins) * DUE_FRACTION


def days_left(identity: Identity, now_wall_s: float) -> float:
    """Negative when it has expired."""
    return (identity.peer.not_after_wall_s - now_wall_s) / _DAY_S


def renew_for(state_dir: Path, peer: Peer, request: RenewRequest, *, clock: Clock) -> RenewAnswer:
    """On the authority's host: a new certificate for the host that showed its present one.

    Raises NotPermitted for others and for a host that is not in the map any more, Conflict when it has
    :data:`MAX_VALID_EACH` valid ones already, NoIdentity when the authority is not here, StateUnwritable.
    """
    authority = load_authority(authority_dir(state_dir))
    with invitations.locked(authority.directory):
        cluster = load_map(host_identity_dir(state_dir) / MAP_FILE)
        if peer.role is not Role.HOST or peer.name not in cluster.hosts:
            raise NotPermitted(f"{peer} is no host of the cluster.")
        valid = [
            each
            for each in issued_certificates(state_dir)
            if (each.peer.name, each.peer.role) == (peer.name, Role.HOST) and each.state(clock.wall_s()) == "valid"
        ]
        if len(valid) >= MAX_VALID_EACH:
            raise Conflict(
                f"Host '{peer.name}' has {len(valid)} valid certificates.",
                remedy="Revoke old ones by serial number; 'livemove cluster certificates' lists them.",
            )
        address = parse_address(cluster.hosts[peer.name])[0]
        pem = authority.issue_host(request.signing_request, name=peer.name, addresses=[address], clock=clock)
    return RenewAnswer(certificate=pem)


async def renew_own(state_dir: Path, *, clock: Clock, force: bool = False, dry_run: bool = False) -> Renewal:
    """Renew this host's certificate when it is due, or at once with `force`; its agent uses it within a second.

    Raises NoIdentity when this host belongs to no cluster, AgentUnreachable when the authority's host does not answer, and
    what :func:`renew_for` raises there. Whatever fails, the present certificate stays.
    """
    identity = load_identity(host_identity_dir(state_dir))
    due = is_due(identity, clock.wall_s())
    if dry_run or not (due or force):
        return Renewal(identity.name, False, due, days_left(identity, clock.wall_s()))
    key = _key_of(identity)
    request = RenewRequest(signing_request=signing_request(key, identity.name))
    cluster = load_map(identity.map_path)
    if cluster.authority == identity.name:
        answer = await asyncio.to_thread(renew_for, state_dir, identity.peer, request, clock=clock)
    else:
        async with AgentClient(identity, cluster.authority, cluster.address_of(cluster.authority)) as client:
            answer = await client.renew(request)
    der = check_issued(answer.certificate, identity.ca_path.read_text(), key)
    peer = Identity(identity.directory, der).peer
    if (peer.name, peer.role) != (identity.name, Role.HOST):
        raise NotPermitted(f"The authority sent the certificate of {peer}, not of host '{identity.name}'.")
    write_private(identity.certificate_path, answer.certificate.encode())
    return Renewal(identity.name, True, due, days_left(Identity(identity.directory, der), clock.wall_s()))


def _key_of(identity: Identity) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(identity.key_path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise NoIdentity(f"The private key {identity.key_path} cannot be used: {error}.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise NoIdentity(f"The private key {identity.key_path} is not an ECDSA key.")
    return key


def renew_person(state_dir: Path, directory: Path, name: str, *, clock: Clock, validity_s: float) -> Identity:
    """On the authority's host: a new certificate, for the same key and role, in a person's identity directory.

    Raises NoIdentity when directory or authority is not here, Conflict when the identity is somebody else's, NotPermitted
    when its certificate was revoked or is another cluster's, BadSetting, StateUnwritable.
    """
    authority = load_authority(authority_dir(state_dir))
    identity = load_identity(directory)
    if identity.name != name:
        raise Conflict(f"{directory} holds the identity of {identity.peer}.", remedy="Name its directory.")
    known = {each.peer.serial: each for each in issued_certificates(state_dir)}.get(identity.peer.serial)
    if known is None or known.peer.fingerprint != identity.fingerprint:
        raise NotPermitted(f"The certificate in {directory} was not issued by this authority.")
    if known.revoked:
        raise NotPermitted(f"The certificate of {identity.peer} was revoked.", remedy="Make a new identity instead.")
    key = _key_of(identity)
    pem = authority.issue_person(
        signing_request(key, name), name=name, role=identity.role, clock=clock, validity_s=validity_s
    )
    write_private(identity.certificate_path, pem.encode())
    return load_identity(directory)
