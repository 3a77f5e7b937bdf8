"""Certificates that count no more: the authority's signed list (X.509 CRL, PEM), in ``revoked.pem`` of an identity directory.

It is signed, so it may come from anybody; it is numbered, so an older one never takes the place of a newer one. Expired
certificates are left out of it, because nobody accepts them anyway.

``cryptography`` is imported only when there is a list: the command line has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from livemove.api.client_identity import CA_FILE
from livemove.api.private_files import write_private
from livemove.base.errors import NoIdentity, PeerViolation

REVOKED_FILE = "revoked.pem"
#: An entry has some 50 bytes in PEM; a certificate lives a year at most.
MAX_REVOKED = 4096
MAX_LIST_CHARS = 512 << 10


@dataclass(frozen=True)
class Revocations:
    """The list as last learnt. `serials` are in hex, as in :attr:`Peer.serial`; `pem` is empty when there is no list."""

    number: int = 0
    serials: frozenset[str] = frozenset()
    pem: str = ""


def read_revocations(pem: str, ca_pem: str) -> Revocations:
    """The list in `pem`. Raises PeerViolation when it is none, is too long, or was not signed by this authority."""
    if not pem:
        return Revocations()
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    if len(pem) > MAX_LIST_CHARS:
        raise PeerViolation(f"The list of revoked certificates has {len(pem)} characters; {MAX_LIST_CHARS} are read.")
    try:
        revoked = x509.load_pem_x509_crl(pem.encode())
        authorities = x509.load_pem_x509_certificates(ca_pem.encode())
        number = revoked.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        signed = any(
            ca.subject == revoked.issuer and revoked.is_signature_valid(ca.public_key())  # type: ignore[arg-type]  # other kinds: TypeError
            for ca in authorities
        )
        serials = frozenset(f"{entry.serial_number:x}" for entry in revoked)
    except (ValueError, TypeError, x509.ExtensionNotFound, UnsupportedAlgorithm) as error:
        raise PeerViolation("The list of revoked certificates cannot be read.") from error
    if not signed:
        raise PeerViolation("The list of revoked certificates was not signed by the cluster's authority.")
    return Revocations(number, serials, pem)


def load_revocations(directory: Path) -> Revocations:
    """The list in an identity directory; an empty one when there is none. Raises NoIdentity when it is damaged."""
    path = directory / REVOKED_FILE
    try:
        text = path.read_text()
    except FileNotFoundError:
        return Revocations()
    except (OSError, UnicodeDecodeError) as error:
        raise NoIdentity(f"{path} cannot be read: {error}.") from error
    try:
        return read_revocations(text, (directory / CA_FILE).read_text())
    except (OSError, PeerViolation) as error:
        message = error.message if isinstance(error, PeerViolation) else str(error)
        remedy = "Remove it on a host that does not hold the authority: it is fetched again."
        raise NoIdentity(f"{path}: {message}", remedy=remedy) from error


def save_revocations(directory: Path, revocations: Revocations) -> None:
    """Replace the list in an identity directory. Raises StateUnwritable."""
    write_private(directory / REVOKED_FILE, revocations.pem.encode())
