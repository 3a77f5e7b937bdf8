"""Where a host keeps who it is, how an identity directory is filled, and what is signed with its key."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from livemove.agent.authority import key_to_pem
from livemove.api.client_identity import CA_FILE, CERTIFICATE_FILE, KEY_FILE, MAP_FILE, Identity, load_identity
from livemove.api.cluster_map import ClusterMap, save_map
from livemove.api.private_files import make_private_dir, write_private
from livemove.base.errors import Conflict, NoIdentity


def host_identity_dir(state_dir: Path) -> Path:
    """Where a host keeps its own certificate and key."""
    return state_dir / "identity"


def authority_dir(state_dir: Path) -> Path:
    """Where the one host that has it keeps the cluster's authority."""
    return state_dir / "authority"


def check_no_identity(directory: Path) -> None:
    """Raises Conflict when the directory already has an identity, which would be lost."""
    for name in (CA_FILE, CERTIFICATE_FILE, KEY_FILE):
        if (directory / name).exists():
            raise Conflict(
                f"{directory} already holds an identity of a cluster.",
                remedy="Choose another directory with --identity-dir, or move that one away.",
            )


def install_identity(
    directory: Path, *, ca_pem: str, certificate_pem: str, key: ec.EllipticCurvePrivateKey, cluster: ClusterMap
) -> Identity:
    """Fill an identity directory, the certificate last: only with it the directory counts as one.

    Raises StateUnwritable.
    """
    make_private_dir(directory)
    write_private(directory / KEY_FILE, key_to_pem(key))
    write_private(directory / CA_FILE, ca_pem.encode())
    save_map(directory / MAP_FILE, cluster)
    write_private(directory / CERTIFICATE_FILE, certificate_pem.encode())
    return load_identity(directory)


def sign(identity: Identity, message: bytes) -> bytes:
    """ECDSA-SHA256 by the identity's private key. Raises NoIdentity when the key cannot be used."""
    try:
        key = serialization.load_pem_private_key(identity.key_path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise NoIdentity(f"The private key {identity.key_path} cannot be used: {error}.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise NoIdentity(f"The private key {identity.key_path} is not an ECDSA key.")
    return key.sign(message, ec.ECDSA(hashes.SHA256()))


def signed_by(identity: Identity, message: bytes, signature: bytes) -> bool:
    """Whether :func:`sign` made the signature with the key of this identity's certificate."""
    key = x509.load_der_x509_certificate(identity.certificate_der).public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
