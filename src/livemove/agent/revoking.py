"""What the authority's host does after a certificate was issued: list it, revoke it, take a host out of the cluster.

The list of revoked certificates is signed here and put beside this host's own identity, where its agent sees it within a
second and from where the other agents fetch it within :data:`livemove.agent.host.FOLLOW_S`.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from livemove.agent import invitations
from livemove.agent.authority import Authority, load_authority
from livemove.agent.identity import authority_dir, host_identity_dir
from livemove.api.client_identity import MAP_FILE, Peer, Role, peer_from_certificate
from livemove.api.cluster_map import load_map, save_map
from livemove.api.revocations import MAX_REVOKED, load_revocations, read_revocations, save_revocations
from livemove.base.clock import Clock
from livemove.base.errors import BadSetting, Conflict, NotPermitted

_DAY_S = 86_400.0


@dataclass(frozen=True)
class Issued:
    """A certificate that this authority issued."""

    peer: Peer
    not_before_wall_s: float
    revoked: bool

    def days_left(self, now_wall_s: float) -> float:
        """Negative when it has expired."""
        return (self.peer.not_after_wall_s - now_wall_s) / _DAY_S

    def state(self, now_wall_s: float) -> str:
        """``valid``, ``revoked`` or ``expired``."""
        return "revoked" if self.revoked else "expired" if self.days_left(now_wall_s) <= 0 else "valid"


def issued_certificates(state_dir: Path) -> list[Issued]:
    """Every certificate that is on record, by role and name, the newest of each last.

    Raises NoIdentity when this host does not hold the authority, or its list is damaged.
    """
    authority = load_authority(authority_dir(state_dir))
    revoked = load_revocations(host_identity_dir(state_dir)).serials
    found = []
    for path in (authority.directory / "issued").glob("*.pem"):
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            peer = peer_from_certificate(certificate.public_bytes(serialization.Encoding.DER))
        except (OSError, ValueError, NotPermitted):
            continue  # something else lies there
        found.append(Issued(peer, certificate.not_valid_before_utc.timestamp(), peer.serial in revoked))
    return sorted(found, key=lambda each: (each.peer.role, each.peer.name, each.not_before_wall_s))


def revoke(state_dir: Path, who: str, *, clock: Clock, dry_run: bool = False) -> list[Issued]:
    """Revoke the certificate with the serial number `who` (hex), or all of the person or host of that name.

    Returns those that it revoked, or would; none when all are revoked or expired already. Raises BadSetting when there is
    no such certificate, Conflict when a host and a person have that name, NotPermitted for the authority's own host,
    NoIdentity, StateUnwritable.
    """
    authority = load_authority(authority_dir(state_dir))
    with invitations.locked(authority.directory):
        known = issued_certificates(state_dir)
        chosen = [each for each in known if who in (each.peer.serial, each.peer.name)]
        if not chosen:
            raise BadSetting(
                f"This authority issued no certificate to '{who[:80]}', and none with that serial number.",
                remedy="'livemove cluster certificates' lists them.",
            )
        if len({each.peer.role is Role.HOST for each in chosen}) > 1:
            raise Conflict(
                f"'{who}' is a host and a person too.",
                remedy="Name the serial number, from 'livemove cluster certificates'.",
            )
        return _revoke(authority, state_dir, chosen, clock, dry_run)


def remove_host(state_dir: Path, host: str, *, clock: Clock, dry_run: bool = False) -> list[Issued]:
    """Take a host out of the cluster: out of the map, and its certificates revoked; returns those.

    A host that is out already stays so. Raises NotPermitted for the authority's own host, UnknownHost for one that never
    was in the cluster, NoIdentity, StateUnwritable.
    """
    authority = load_authority(authority_dir(state_dir))
    map_path = host_identity_dir(state_dir) / MAP_FILE
    with invitations.locked(authority.directory):
        cluster = load_map(map_path)
        chosen = [
            each for each in issued_certificates(state_dir) if each.peer.role is Role.HOST and each.peer.name == host
        ]
        if not chosen:
            cluster.address_of(host)
        revoked = _revoke(authority, state_dir, chosen, clock, dry_run)
        if host in cluster.hosts and not dry_run:
            save_map(map_path, cluster.without_host(host))
        return revoked


def _revoke(authority: Authority, state_dir: Path, chosen: list[Issued], clock: Clock, dry_run: bool) -> list[Issued]:
    directory = host_identity_dir(state_dir)
    owner = load_map(directory / MAP_FILE).authority
    if any(each.peer.role is Role.HOST and each.peer.name == owner for each in chosen):
        raise NotPermitted(
            f"'{owner}' holds the cluster's authority; without a certificate it could tell nobody of it.",
            remedy="If its key is lost to others, the authority's is too: begin the cluster anew.",
        )
    now_wall_s = clock.wall_s()
    fresh = [each for each in chosen if each.state(now_wall_s) == "valid"]
    if dry_run or not fresh:
        return fresh
    old = load_revocations(directory)
    still = {each.peer.serial for each in issued_certificates(state_dir) if each.days_left(now_wall_s) > 0}
    serials = (old.serials & still) | {each.peer.serial for each in fresh}
    if len(serials) > MAX_REVOKED:
        raise Conflict(f"{MAX_REVOKED} certificates are revoked, which is the most.", remedy="Begin the cluster anew.")
    moment = datetime.datetime.fromtimestamp(int(now_wall_s), tz=datetime.UTC)
    pem = authority.sign_revocations(sorted(int(serial, 16) for serial in serials), old.number + 1, moment)
    save_revocations(directory, read_revocations(pem, authority.ca_pem))
    return fresh
