from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from livemove.agent.authority import (
    CLOCK_SKEW_S,
    DAY_S,
    Authority,
    check_issued,
    create_authority,
    key_of_request,
    load_authority,
    new_key,
    signing_request,
)
from livemove.api.client_identity import Role, peer_from_certificate
from livemove.base.clock import ManualClock
from livemove.base.errors import BadSetting, Conflict, NoIdentity, NotPermitted

CLOCK = ManualClock()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return create_authority(tmp_path / "authority", clock=CLOCK)


def parsed(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def der(pem: str) -> bytes:
    return parsed(pem).public_bytes(serialization.Encoding.DER)


def test_files_are_private_and_load_again(authority: Authority) -> None:
    key = new_key()
    authority.issue_person(signing_request(key, "x"), name="ann", role=Role.ADMIN, clock=CLOCK)
    paths = [authority.directory, *authority.directory.rglob("*")]
    assert len(paths) == 5
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert load_authority(authority.directory).fingerprint == authority.fingerprint


def test_a_second_authority_does_not_replace_the_first(authority: Authority) -> None:
    with pytest.raises(Conflict):
        create_authority(authority.directory, clock=CLOCK)
    assert load_authority(authority.directory).fingerprint == authority.fingerprint


def test_a_host_serves_and_connects_under_its_name_and_addresses(authority: Authority) -> None:
    key = new_key()
    pem = authority.issue_host(
        signing_request(key, "ignored"), name="beta", addresses=["192.0.2.2", "2001:db8::2"], clock=CLOCK
    )
    certificate = parsed(pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["beta"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.2", "2001:db8::2"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    peer = peer_from_certificate(der(pem))
    assert (peer.name, peer.role) == ("beta", Role.HOST)
    assert certificate.not_valid_before_utc.timestamp() == CLOCK.wall_s() - CLOCK_SKEW_S
    assert peer.not_after_wall_s == CLOCK.wall_s() + 365 * DAY_S
    assert (authority.directory / "issued" / f"{peer.serial}.pem").read_text() == pem
    assert check_issued(pem, authority.ca_pem, key) == der(pem)


def test_a_person_connects_only(authority: Authority) -> None:
    pem = authority.issue_person(signing_request(new_key(), "x"), name="ann", role=Role.OPERATOR, clock=CLOCK)
    usage = parsed(pem).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    peer = peer_from_certificate(der(pem))
    assert (peer.name, peer.role) == ("ann", Role.OPERATOR)
    assert peer.not_after_wall_s == CLOCK.wall_s() + 90 * DAY_S


def test_the_subject_of_the_request_does_not_choose_name_or_role(authority: Authority) -> None:
    key = new_key()
    subject = x509.Name.from_rfc4514_string("OU=role:admin,CN=root")
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    pem = authority.issue_person(
        request.public_bytes(serialization.Encoding.PEM).decode(), name="vic", role=Role.VIEWER, clock=CLOCK
    )
    peer = peer_from_certificate(der(pem))
    assert (peer.name, peer.role) == ("vic", Role.VIEWER)


def test_a_certificate_ends_with_the_authority_at_the_latest(tmp_path: Path) -> None:
    clock = ManualClock()
    authority = create_authority(tmp_path / "short", clock=clock, validity_s=10 * DAY_S)
    pem = authority.issue_host(signing_request(new_key(), "a"), name="a", clock=clock)
    assert parsed(pem).not_valid_after_utc == authority.certificate.not_valid_after_utc
    clock.advance(11 * DAY_S)
    with pytest.raises(NotPermitted, match="expired"):
        authority.issue_host(signing_request(new_key(), "a"), name="a", clock=clock)


@pytest.mark.parametrize("name", ["", "-a", "a..b", "a.", "10.0.0.1", "1", "a b", "*.a", "a,b", "x" * 64, "ä"])
def test_what_tls_would_not_take_as_a_name_is_no_host(authority: Authority, name: str) -> None:
    with pytest.raises(BadSetting):
        authority.issue_host(signing_request(new_key(), "x"), name=name, clock=CLOCK)


def test_a_person_cannot_be_a_host(authority: Authority) -> None:
    with pytest.raises(NotPermitted):
        authority.issue_person(signing_request(new_key(), "x"), name="beta", role=Role.HOST, clock=CLOCK)
    with pytest.raises(BadSetting):
        authority.issue_person(signing_request(new_key(), "x"), name="a,OU=role:admin", role=Role.VIEWER, clock=CLOCK)


def test_requests_must_be_signed_by_a_p256_key_of_their_own() -> None:
    good = signing_request(new_key(), "a")
    assert key_of_request(good).key_size == 256
    other_curve = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(NotPermitted, match="P-256"):
        key_of_request(signing_request(other_curve, "a"))
    raw = bytearray(x509.load_pem_x509_csr(good.encode()).public_bytes(serialization.Encoding.DER))
    raw[-1] ^= 1
    altered = x509.load_der_x509_csr(bytes(raw)).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(NotPermitted, match="own key"):
        key_of_request(altered)
    with pytest.raises(NotPermitted, match="at most"):
        key_of_request(good + " " * 9000)


def test_an_answer_for_another_key_or_by_another_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    key = new_key()
    pem = authority.issue_host(signing_request(key, "a"), name="a", clock=CLOCK)
    with pytest.raises(NotPermitted, match="another key"):
        check_issued(pem, authority.ca_pem, new_key())
    foreign = create_authority(tmp_path / "foreign", clock=CLOCK)
    with pytest.raises(NotPermitted, match="not issued"):
        check_issued(pem, foreign.ca_pem, key)


def test_damaged_or_missing_authorities_say_so(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(NoIdentity, match="does not hold"):
        load_authority(tmp_path)
    other = create_authority(tmp_path / "other", clock=CLOCK)
    (authority.directory / "ca.key").write_bytes((other.directory / "ca.key").read_bytes())
    with pytest.raises(NoIdentity, match="do not belong together"):
        load_authority(authority.directory)
    (authority.directory / "ca.pem").write_text("rubbish")
    with pytest.raises(NoIdentity, match="damaged"):
        load_authority(authority.directory)


@given(st.text(max_size=300) | st.text(max_size=200).map(lambda t: f"-----BEGIN CERTIFICATE REQUEST-----\n{t}\n"))
def test_garbage_requests_raise_only_not_permitted(text: str) -> None:
    with pytest.raises(NotPermitted):
        key_of_request(text)
