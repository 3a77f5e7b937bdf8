"""The cluster's own certificate authority: files in ``<state_dir>/authority`` of the host that began the cluster.

    ca.pem  ca.key              ECDSA P-256, valid for ten years, signs leaves only (path length 0)
    issued/SERIAL.pem           every certificate issued, so that it can be listed and revoked
    invitations/HASH.json       open invitations of hosts, by the hash of the secret (see join.py)

Certificates are made from a signing request alone, so private keys stay where they were made. Of the request only the
public key is used; name, role and addresses are the authority's decision. The role stands in the subject as
``OU=role:operator``: api/client_identity.py says why. A host's certificate serves and connects (agents call each
other); a person's connects only, so that a person's stolen key cannot impersonate an agent.
"""

from __future__ import annotations

import datetime
import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from livemove.api.client_identity import ROLE_PREFIX, Role, check_host_name, check_person_name, fingerprint_of
from livemove.api.private_files import make_private_dir, write_private
from livemove.base.clock import Clock
from livemove.base.errors import BadSetting, Conflict, NoIdentity, NotPermitted

DAY_S = 86_400.0
CA_VALIDITY_S = 3650 * DAY_S
HOST_VALIDITY_S = 365 * DAY_S
PERSON_VALIDITY_S = 90 * DAY_S
# hosts' clocks may be this much apart before a new certificate is refused as not yet valid
CLOCK_SKEW_S = 300.0
MAX_REQUEST_BYTES = 8 << 10

_CA_FILE = "ca.pem"
_KEY_FILE = "ca.key"
_ISSUED_DIR = "issued"
_REMEDY_REQUEST = "Run the same version of livemove on both hosts."


@dataclass(frozen=True)
class Authority:
    """The key that says who belongs to the cluster."""

    directory: Path
    certificate: x509.Certificate
    _key: ec.EllipticCurvePrivateKey

    @property
    def ca_pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the authority's certificate, in hex."""
        return certificate_fingerprint(self.certificate)

    def issue_host(
        self,
        request_pem: str,
        *,
        name: str,
        addresses: Sequence[str] = (),
        clock: Clock,
        validity_s: float = HOST_VALIDITY_S,
    ) -> str:
        """The certificate (PEM) of a host whose agent answers at these IP addresses.

        livemove's clients verify the name alone; the addresses are for other programs, such as a metrics collector.
        Raises NotPermitted for a bad request, BadSetting for a name or address that cannot be.
        """
        check_host_name(name)
        try:
            parsed = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        except ValueError as error:
            raise BadSetting(f"{list(addresses)!r:.100} are not all IP addresses.") from error
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return self._issue(request_pem, name, Role.HOST, usages, [x509.DNSName(name), *parsed], clock, validity_s)

    def issue_person(
        self, request_pem: str, *, name: str, role: Role, clock: Clock, validity_s: float = PERSON_VALIDITY_S
    ) -> str:
        """The certificate (PEM) of a person. Raises NotPermitted for a bad request or the role of a host, BadSetting."""
        check_person_name(name)
        if role is Role.HOST:
            raise NotPermitted(f"'{name}' is a person and cannot have the role of a host.")
        return self._issue(request_pem, name, role, [ExtendedKeyUsageOID.CLIENT_AUTH], [], clock, validity_s)

    def sign_revocations(self, serials: Sequence[int], number: int, moment: datetime.datetime) -> str:
        """The list of revoked certificates (CRL, PEM). It has no end of its own: a newer one has a higher `number`."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(moment)
            .next_update(self.certificate.not_valid_after_utc)
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(_authority_key_identifier(self.certificate), critical=False)
        )
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(moment).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    def _issue(
        self,
        request_pem: str,
        name: str,
        role: Role,
        usages: list[x509.ObjectIdentifier],
        alternatives: list[x509.GeneralName],
        clock: Clock,
        validity_s: float,
    ) -> str:
        public_key = key_of_request(request_pem)
        now = _moment(clock.wall_s())
        ends = min(now + datetime.timedelta(seconds=validity_s), self.certificate.not_valid_after_utc)
        if ends <= now:
            raise NotPermitted(
                f"The cluster's authority expired at {self.certificate.not_valid_after_utc.isoformat()}.",
                remedy="Begin the cluster anew with 'livemove cluster init'.",
            )
        serial = x509.random_serial_number()
        builder = (
            x509.CertificateBuilder()
            .subject_name(
                x509.Name(
                    [
                        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, ROLE_PREFIX + role),
                        x509.NameAttribute(NameOID.COMMON_NAME, name),
                    ]
                )
            )
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(serial)
            .not_valid_before(now - datetime.timedelta(seconds=CLOCK_SKEW_S))
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(_authority_key_identifier(self.certificate), critical=False)
        )
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        issued = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        write_private(self.directory / _ISSUED_DIR / f"{serial:x}.pem", issued)
        return issued.decode()


def create_authority(directory: Path, *, clock: Clock, validity_s: float = CA_VALIDITY_S) -> Authority:
    """A new authority in an empty or missing directory. Raises Conflict when there is one already, StateUnwritable."""
    if (directory / _CA_FILE).exists() or (directory / _KEY_FILE).exists():
        raise Conflict(f"{directory} already holds a cluster's authority.", remedy="Use it, or remove the directory.")
    make_private_dir(directory)
    make_private_dir(directory / _ISSUED_DIR)
    key = ec.generate_private_key(ec.SECP256R1())
    # a name of its own, so that two clusters' authorities can be told apart in messages of TLS stacks
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"livemove cluster {secrets.token_hex(4)}")])
    now = _moment(clock.wall_s())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(seconds=CLOCK_SKEW_S))
        .not_valid_after(now + datetime.timedelta(seconds=validity_s))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(directory / _KEY_FILE, key_to_pem(key))
    write_private(directory / _CA_FILE, certificate.public_bytes(serialization.Encoding.PEM))
    return Authority(directory, certificate, key)


def load_authority(directory: Path) -> Authority:
    """The authority in the directory. Raises NoIdentity when this host does not hold one, or its files are damaged."""
    try:
        certificate = x509.load_pem_x509_certificate((directory / _CA_FILE).read_bytes())
        key = serialization.load_pem_private_key((directory / _KEY_FILE).read_bytes(), password=None)
    except FileNotFoundError as error:
        raise NoIdentity(
            f"This host does not hold the cluster's authority: there is no {error.filename}.",
            remedy="Run the command on the host where 'livemove cluster init' was run; cluster.toml names it.",
        ) from error
    except OSError as error:
        raise NoIdentity(
            f"The authority in {directory} cannot be read: {error.strerror}.", remedy="Run the command as root."
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise NoIdentity(f"The authority in {directory} is damaged: {error}.", remedy="Restore its files.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise NoIdentity(f"Key and certificate in {directory} do not belong together.", remedy="Restore its files.")
    return Authority(directory, certificate, key)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key for a host or a person; it never leaves the machine where it was made."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def signing_request(key: ec.EllipticCurvePrivateKey, name: str) -> str:
    """The request (PEM) that proves possession of the key. The name in it is for people who read it."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def key_of_request(request_pem: str) -> ec.EllipticCurvePublicKey:
    """The public key of a request that was signed by its private key.

    Raises NotPermitted, never anything else, when it is too long, not a request, of another kind of key (grants are
    signed with ECDSA P-256) or not signed by it.
    """
    if len(request_pem) > MAX_REQUEST_BYTES:
        raise NotPermitted(
            f"The signing request has {len(request_pem)} characters; at most {MAX_REQUEST_BYTES} are read.",
            remedy=_REMEDY_REQUEST,
        )
    try:
        request = x509.load_pem_x509_csr(request_pem.encode())
        key = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise NotPermitted("The signing request cannot be read.", remedy=_REMEDY_REQUEST) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise NotPermitted("The signing request's key is not ECDSA P-256.", remedy=_REMEDY_REQUEST)
    if not signed:
        raise NotPermitted("The signing request is not signed by its own key.", remedy=_REMEDY_REQUEST)
    return key


def check_issued(certificate_pem: str, ca_pem: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The certificate's DER form when this authority issued it for this key.

    Raises NotPermitted, never anything else, when it did not.
    """
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
        ca = x509.load_pem_x509_certificate(ca_pem.encode())
        certificate.verify_directly_issued_by(ca)
        same_key = certificate.public_key() == key.public_key()
    except (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm, InvalidSignature) as error:
        raise NotPermitted("The certificate received was not issued by the cluster's authority.") from error
    if not same_key:
        raise NotPermitted("The certificate received is for another key than this host's.")
    return certificate.public_bytes(serialization.Encoding.DER)


def certificate_fingerprint(certificate: x509.Certificate) -> str:
    return fingerprint_of(certificate.public_bytes(serialization.Encoding.DER))


def _moment(wall_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(wall_s), tz=datetime.UTC)


def _key_usage(*, authority: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_key_identifier(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
