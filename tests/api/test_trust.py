from __future__ import annotations

import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given
from hypothesis import strategies as st

from livemove.agent.authority import create_authority, new_key, signing_request
from livemove.agent.join import LabHost, make_lab_cluster
from livemove.api.client_identity import (
    Identity,
    Role,
    default_identity_dir,
    find_identity,
    load_identity,
    peer_from_certificate,
)
from livemove.api.cluster_map import ClusterMap, check_address, load_map, map_from_json, merge_maps, save_map
from livemove.api.trust import async_client, client_context, explain_failure, server_context
from livemove.base.clock import ManualClock
from livemove.base.errors import AgentUnreachable, BadSetting, Conflict, NoIdentity, PeerViolation, UnknownHost
from livemove.base.errors import NotPermitted as Refused


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Identity]:
    root = tmp_path_factory.mktemp("cluster")
    return make_lab_cluster(
        [LabHost("alpha", root / "alpha", "192.0.2.1:7443")],
        people={"ann": (Role.ADMIN, root / "ann")},
        clock=ManualClock(),
    )


@pytest.fixture
def ann(cluster: dict[str, Identity], tmp_path: Path) -> Path:
    """A copy of a person's directory that a test may spoil."""
    directory = tmp_path / "ann"
    directory.mkdir(mode=0o700)
    for path in cluster["ann"].directory.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
        (directory / path.name).chmod(0o600)
    return directory


# Roles and certificates -----------------------------------------------------------------------------------------------


def test_roles_of_people_are_ordered_and_hosts_stand_apart() -> None:
    allowed = {(a, b) for a in Role for b in Role if a.allows(b)}
    viewer, operator, admin, host = Role.VIEWER, Role.OPERATOR, Role.ADMIN, Role.HOST
    assert allowed == {
        (host, host),
        (viewer, viewer),
        (operator, viewer),
        (operator, operator),
        (admin, viewer),
        (admin, operator),
        (admin, admin),
    }


def certificate_with(subject: str) -> bytes:
    key = new_key()
    name = x509.Name.from_rfc4514_string(subject)
    moment = x509.load_pem_x509_certificate(CA_PEM.encode()).not_valid_before_utc
    builder = x509.CertificateBuilder(name, name, key.public_key(), 5, moment, moment)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.fixture(scope="module", autouse=True)
def _ca(tmp_path_factory: pytest.TempPathFactory) -> None:
    global CA_PEM
    CA_PEM = create_authority(tmp_path_factory.mktemp("ca") / "a", clock=ManualClock()).ca_pem


def test_a_subject_of_our_form_is_read() -> None:
    peer = peer_from_certificate(certificate_with("OU=role:operator,CN=olga"))
    assert (peer.name, peer.role, peer.serial) == ("olga", Role.OPERATOR, "5")
    assert str(peer) == "operator 'olga'"


@pytest.mark.parametrize(
    "subject",
    [
        "CN=olga",
        "OU=role:operator",
        "OU=operator,CN=olga",
        "OU=role:root,CN=olga",
        "OU=role:,CN=olga",
        "OU=role:viewer,OU=role:admin,CN=olga",
        "OU=role:viewer,CN=olga,CN=ann",
        "OU=role:viewer,CN=a b",
        "OU=ROLE:viewer,CN=a",
        "OU=role:viewer,CN=../a",
    ],
)
def test_a_subject_of_another_form_is_refused(subject: str) -> None:
    with pytest.raises(Refused):
        peer_from_certificate(certificate_with(subject))


@given(data=st.data())
def test_garbage_certificates_raise_only_not_permitted(cluster: dict[str, Identity], data: st.DataObject) -> None:
    raw = bytearray(cluster["ann"].certificate_der)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    candidate = data.draw(st.sampled_from([bytes(raw), bytes(raw[: len(raw) // 2]), b"", b"\x30" * 20_000]))
    try:
        peer = peer_from_certificate(candidate)
    except Refused:
        return
    assert isinstance(peer.role, Role)


# The identity directory -----------------------------------------------------------------------------------------------


def test_an_identity_is_read(ann: Path) -> None:
    identity = load_identity(ann)
    assert (identity.name, identity.role, len(identity.fingerprint)) == ("ann", Role.ADMIN, 64)
    assert client_context(identity).minimum_version is ssl.TLSVersion.TLSv1_3
    assert server_context(identity).verify_mode is ssl.CERT_REQUIRED
    assert server_context(identity, admit_anonymous=True).verify_mode is ssl.CERT_OPTIONAL


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
def test_a_missing_file_is_named(ann: Path, name: str) -> None:
    (ann / name).unlink()
    with pytest.raises(NoIdentity, match=name):
        load_identity(ann)


def test_a_key_open_to_all_is_refused(ann: Path) -> None:
    (ann / "key.pem").chmod(0o640)
    load_identity(ann)
    (ann / "key.pem").chmod(0o644)
    with pytest.raises(NoIdentity, match="open to every user") as caught:
        load_identity(ann)
    assert "chmod 600" in caught.value.remedy


def test_spoilt_files_are_no_identity(ann: Path, cluster: dict[str, Identity]) -> None:
    good = load_identity(ann)
    (ann / "key.pem").write_bytes(cluster["alpha"].key_path.read_bytes())
    with pytest.raises(NoIdentity):
        client_context(good)
    (ann / "ca.pem").write_text("rubbish")
    with pytest.raises(NoIdentity):
        server_context(good)
    (ann / "cert.pem").write_text("rubbish")
    with pytest.raises(NoIdentity, match="PEM"):
        load_identity(ann)


def test_where_the_command_line_looks(ann: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livemove.api.client_identity.SYSTEM_IDENTITY_DIR", tmp_path / "system")
    home = tmp_path / "home"
    with pytest.raises(NoIdentity, match="no certificate in"):
        find_identity({}, home)
    (tmp_path / "system").symlink_to(ann)
    assert find_identity({}, home).directory == tmp_path / "system"
    (home / ".config").mkdir(parents=True)
    (home / ".config/livemove").symlink_to(ann)
    assert find_identity({}, home).directory == home / ".config/livemove"
    assert find_identity({"LIVEMOVE_IDENTITY": str(ann)}, home).directory == ann
    with pytest.raises(NoIdentity):  # what was chosen by name is not passed over
        find_identity({"LIVEMOVE_IDENTITY": str(tmp_path / "none")}, home)
    assert default_identity_dir({}, home) == home / ".config/livemove"
    assert default_identity_dir({"LIVEMOVE_IDENTITY": "/x"}, home) == Path("/x")


# The map --------------------------------------------------------------------------------------------------------------


def test_a_map_survives_file_and_wire(tmp_path: Path) -> None:
    cluster = ClusterMap("alpha", 0).with_host("alpha", "192.0.2.1:7443").with_host("b_1.x", "[2001:db8:0::2]:7443")
    assert (cluster.serial, cluster.address_of("b_1.x")) == (2, "[2001:db8::2]:7443")
    save_map(tmp_path / "cluster.toml", cluster)
    assert load_map(tmp_path / "cluster.toml") == cluster == map_from_json(cluster.to_json())
    with pytest.raises(UnknownHost, match=r"alpha, b_1\.x"):
        cluster.address_of("gamma")


def test_the_newer_map_wins() -> None:
    old = ClusterMap("alpha", 1, {"alpha": "192.0.2.1:1"})
    new = old.with_host("beta", "192.0.2.2:1")
    assert merge_maps(old, new) is new
    assert merge_maps(new, old) is new
    assert merge_maps(old, ClusterMap("alpha", 1, {})) is old
    with pytest.raises(PeerViolation):
        merge_maps(old, ClusterMap("other", 9, {}))


def test_names_and_addresses_are_not_shared() -> None:
    cluster = ClusterMap("alpha", 1, {"alpha": "192.0.2.1:1"})
    with pytest.raises(Conflict):
        cluster.with_host("ALPHA", "192.0.2.2:1")
    with pytest.raises(Conflict):
        cluster.with_host("beta", "192.0.2.1:1")
    assert cluster.with_host("alpha", "192.0.2.9:1", replace=True).address_of("alpha") == "192.0.2.9:1"


@pytest.mark.parametrize(
    "text",
    [
        *("", "a:1", "192.0.2.1", "192.0.2.1:0", "192.0.2.1:65536", "192.0.2.1:٣", "192.0.2.1:1/x", "192.0.2.1: 1"),
        *("::1:5", "[192.0.2.1]:5", "[fe80::1%eth0]:5", "[::]:7443", "0.0.0.0:1", "224.0.0.1:5"),
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(BadSetting):
        check_address(text)


HOSTS_OK = {"a": "192.0.2.1:1"}


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"authority": "a", "serial": 1},
        {"authority": "a", "serial": 1, "hosts": HOSTS_OK, "x": 1},
        {"authority": "a", "serial": 0, "hosts": HOSTS_OK},
        {"authority": "a", "serial": True, "hosts": HOSTS_OK},
        {"authority": "a", "serial": 1 << 60, "hosts": HOSTS_OK},
        {"authority": "a", "serial": 1.5, "hosts": HOSTS_OK},
        {"authority": 7, "serial": 1, "hosts": HOSTS_OK},
        {"authority": "a b", "serial": 1, "hosts": HOSTS_OK},
        {"authority": "a", "serial": 1, "hosts": {"a": 7}},
        {"authority": "a", "serial": 1, "hosts": {"a": "x"}},
        {"authority": "a", "serial": 1, "hosts": {"A": "192.0.2.1:1", "a": "192.0.2.2:1"}},
        {"authority": "a", "serial": 1, "hosts": {f"h{n}x": f"192.0.2.1:{n + 1}" for n in range(1025)}},
    ],
)
def test_what_is_no_map(data: object) -> None:
    with pytest.raises(PeerViolation):
        map_from_json(data)


def test_files_that_hold_no_map(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    with pytest.raises(NoIdentity):
        load_map(path)
    for content in (b"\xff", b"serial = ", b"serial = 1", b"a = " + b"[" * 5000):
        path.write_bytes(content)
        with pytest.raises(BadSetting, match=r"cluster\.toml"):
            load_map(path)


# Failures and cost ----------------------------------------------------------------------------------------------------


async def test_nobody_there_is_unreachable(cluster: dict[str, Identity], unused_tcp_port: int) -> None:
    address = f"127.0.0.1:{unused_tcp_port}"
    async with async_client(cluster["ann"], "alpha", address) as client:
        with pytest.raises(httpx.TransportError) as caught:
            await client.get("/x")
    error = explain_failure(caught.value, "alpha", address)
    assert isinstance(error, AgentUnreachable)
    assert address in error.message


def test_the_client_needs_neither_server_nor_cryptography() -> None:
    heavy = "{'fastapi', 'uvicorn', 'starlette', 'cryptography'} & set(sys.modules)"
    code = f"import sys, livemove.api.trust, livemove.api.cluster_map; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_signing_requests_are_pem() -> None:
    assert signing_request(new_key(), "a").startswith("-----BEGIN CERTIFICATE REQUEST-----")
