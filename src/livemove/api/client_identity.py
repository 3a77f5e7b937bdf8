"""Who somebody is: the role and name in a certificate, and the directory that holds one's own.

The role stands in the subject's organizational unit (``OU=role:operator``), because the subject is what every TLS stack,
proxy and ``openssl x509 -subject`` shows and can match; an extension of our own would need a parser of our own. Only
the cluster's authority writes subjects, so a client cannot choose its role.

An identity directory has ``ca.pem`` (the authority's certificate; two while it is being exchanged), ``cert.pem``,
``key.pem`` (for nobody but its owner and group) and ``cluster.toml`` (the hosts and where their agents answer).

``cryptography`` is imported only when a certificate's content is asked for: the command line needs none of that to
speak with an agent, and the import is a noticeable part of its start.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from livemove.base.errors import BadSetting, NoIdentity, NotPermitted
from livemove.base.settings import NAME

CA_FILE = "ca.pem"
CERTIFICATE_FILE = "cert.pem"
KEY_FILE = "key.pem"
MAP_FILE = "cluster.toml"

IDENTITY_VARIABLE = "LIVEMOVE_IDENTITY"
SYSTEM_IDENTITY_DIR = Path("/etc/livemove/identity")

ROLE_PREFIX = "role:"
_MAX_CERTIFICATE_BYTES = 16 << 10  # ours have about 700; whoever parses an unknown one wants a bound
_MAX_FILE_BYTES = 64 << 10


class Role(enum.StrEnum):
    """What a certificate is for. A person's roles are ordered; a host is no person and may do nothing a person may."""

    HOST = "host"
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def allows(self, needed: Role) -> bool:
        """Whether this role may do what `needed` may: admin >= operator >= viewer; host only what host may."""
        if Role.HOST in (self, needed):
            return self is needed
        people = (Role.VIEWER, Role.OPERATOR, Role.ADMIN)
        return people.index(self) >= people.index(needed)


@dataclass(frozen=True, slots=True)
class Peer:
    """The holder of a certificate."""

    name: str
    role: Role
    fingerprint: str
    """SHA-256 of the certificate's DER form, in hex."""
    serial: str
    """The certificate's serial number in hex, by which it is revoked."""
    not_after_wall_s: float
    """End of validity, seconds since 1970."""

    def __str__(self) -> str:
        return f"{self.role} '{self.name}'"


def peer_from_certificate(der: bytes) -> Peer:
    """Name and role from a certificate whose chain TLS has verified; nothing is verified here.

    Raises NotPermitted when it is no certificate of the form that the cluster's authority issues.
    """
    from cryptography import x509  # see the module's docstring
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.x509.oid import NameOID

    if len(der) > _MAX_CERTIFICATE_BYTES:
        raise NotPermitted(f"The peer's certificate has {len(der)} bytes; at most {_MAX_CERTIFICATE_BYTES} are read.")
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = [str(part.value) for part in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        units = [
            str(part.value) for part in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
        ]
        serial = f"{certificate.serial_number:x}"
        not_after_wall_s = certificate.not_valid_after_utc.timestamp()
    except (ValueError, TypeError, OverflowError, x509.InvalidVersion, UnsupportedAlgorithm, Warning) as error:
        # some malformed fields are only warned about, which is an exception under -W error
        raise NotPermitted("The peer's certificate cannot be read.") from error
    if len(names) != 1 or not NAME.fullmatch(names[0]):
        raise NotPermitted(f"The peer's certificate has no single valid name: {names!r:.100}.")
    if len(units) != 1 or not units[0].startswith(ROLE_PREFIX):
        raise NotPermitted(f"The certificate of '{names[0]}' names no single role: {units!r:.100}.")
    try:
        role = Role(units[0].removeprefix(ROLE_PREFIX))
    except ValueError as error:
        raise NotPermitted(f"The certificate of '{names[0]}' has the unknown role {units[0]!r:.100}.") from error
    return Peer(names[0], role, fingerprint_of(der), serial, not_after_wall_s)


def fingerprint_of(der: bytes) -> str:
    """SHA-256 of a certificate, in hex."""
    return hashlib.sha256(der).hexdigest()


@dataclass(frozen=True)
class Identity:
    """One's own certificate and key, in a directory. The key stays in its file; TLS and grants read it there."""

    directory: Path
    certificate_der: bytes

    @property
    def ca_path(self) -> Path:
        return self.directory / CA_FILE

    @property
    def certificate_path(self) -> Path:
        return self.directory / CERTIFICATE_FILE

    @property
    def key_path(self) -> Path:
        return self.directory / KEY_FILE

    @property
    def map_path(self) -> Path:
        return self.directory / MAP_FILE

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, in hex."""
        return fingerprint_of(self.certificate_der)

    @functools.cached_property
    def peer(self) -> Peer:
        """What others see of this identity. Raises NotPermitted when the certificate is not of our form."""
        return peer_from_certificate(self.certificate_der)

    @property
    def name(self) -> str:
        return self.peer.name

    @property
    def role(self) -> Role:
        return self.peer.role


def load_identity(directory: Path) -> Identity:
    """The identity in `directory`. Raises NoIdentity naming the file that is missing, unreadable or open to all."""
    contents = {}
    for name in (CA_FILE, CERTIFICATE_FILE, KEY_FILE):
        path = directory / name
        try:
            with path.open("rb") as file:
                contents[name] = file.read(_MAX_FILE_BYTES)
                mode = os.fstat(file.fileno()).st_mode
        except FileNotFoundError as error:
            raise NoIdentity(f"There is no {path}.") from error
        except OSError as error:
            raise NoIdentity(
                f"{path} cannot be read: {error.strerror}.", remedy="Run the command as the owner of that file."
            ) from error
        if name == KEY_FILE and mode & 0o007:
            raise NoIdentity(
                f"The private key {path} is open to every user (mode {mode & 0o777:o}).",
                remedy=f"Run 'chmod 600 {path}', and replace the certificate if somebody may have read the key.",
            )
    try:
        der = ssl.PEM_cert_to_DER_cert(contents[CERTIFICATE_FILE].decode("ascii"))
    except ValueError as error:
        raise NoIdentity(f"{directory / CERTIFICATE_FILE} is not a certificate in PEM form.") from error
    return Identity(directory, der)


def default_identity_dir(environment: Mapping[str, str] | None = None, home: Path | None = None) -> Path:
    """Where a person's own identity belongs: ``$LIVEMOVE_IDENTITY``, else ``~/.config/livemove``."""
    chosen = (os.environ if environment is None else environment).get(IDENTITY_VARIABLE)
    return Path(chosen) if chosen else (home or Path.home()) / ".config" / "livemove"


def find_identity(environment: Mapping[str, str] | None = None, home: Path | None = None) -> Identity:
    """The identity that the command line uses: ``$LIVEMOVE_IDENTITY`` alone when set, else ``~/.config/livemove``, else
    ``/etc/livemove/identity``.

    Raises NoIdentity when there is none, and when the first that is there cannot be used: none is passed over silently.
    """
    chosen = (os.environ if environment is None else environment).get(IDENTITY_VARIABLE)
    if chosen:
        return load_identity(Path(chosen))
    places = (default_identity_dir({}, home), SYSTEM_IDENTITY_DIR)
    for place in places:
        if os.path.lexists(place / CERTIFICATE_FILE):
            return load_identity(place)
    raise NoIdentity(
        f"There is no certificate in {places[0]} or {places[1]}, and ${IDENTITY_VARIABLE} is not set.",
        remedy="'livemove cluster person NAME --role operator' on the authority's host makes one; put its directory at "
        f"{places[0]}. A new cluster begins with 'livemove cluster init'.",
    )


def check_host_name(name: str) -> str:
    """`name` when it can be a host's: it is compared as a DNS name in TLS, where an address would be something else.

    Raises BadSetting.
    """
    labels = name.split(".")
    if not NAME.fullmatch(name) or not all(labels) or re.fullmatch("[0-9]+", labels[-1]):
        raise BadSetting(
            f"'{name[:80]}' cannot be a host's name.",
            remedy="Use letters, digits, '-', '_' and single dots; the last part must not be a number.",
        )
    return name


def check_person_name(name: str) -> str:
    """`name` when it can be a person's. Raises BadSetting."""
    if not NAME.fullmatch(name):
        raise BadSetting(f"'{name[:80]}' cannot be a person's name.", remedy="Use letters, digits, '.', '_' and '-'.")
    return name
