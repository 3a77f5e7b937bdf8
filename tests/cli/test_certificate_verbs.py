"""What becomes of certificates, by the commands of the authority's host, on real files."""

from __future__ import annotations

from pathlib import Path

import pytest

from livemove.agent.identity import host_identity_dir
from livemove.agent.membership import Membership
from livemove.api.client_identity import load_identity
from livemove.base.errors import Conflict, NoIdentity, NotPermitted

from .conftest import Cli


@pytest.fixture
def config(cli: Cli, tmp_path: Path) -> str:
    path = str(tmp_path / "alpha.toml")
    Path(path).write_text(f'state_dir = "{tmp_path}/alpha"\n')
    address = ("--address", "192.0.2.1:7443", "--admin", "ann", "--identity-dir", str(tmp_path / "ann"))
    assert cli("cluster", "init", "--name", "alpha", *address, "--config", path).code == 0
    assert cli("cluster", "person", "vic", "--identity-dir", str(tmp_path / "vic"), "--config", path).code == 0
    return path


def test_certificates_shows_everybody(cli: Cli, config: str) -> None:
    listed = cli("cluster", "certificates", "--config", config, "--json").json["certificates"]
    assert [(each["name"], each["role"], each["state"]) for each in listed] == [
        ("ann", "admin", "valid"), ("alpha", "host", "valid"), ("vic", "viewer", "valid"),
    ]  # fmt: skip
    assert [round(each["days_left"]) for each in listed] == [90, 365, 90]
    shown = cli("cluster", "certificates", "--config", config).out
    assert "DAYS LEFT" in shown and listed[2]["serial"] in shown


def test_revoke_says_what_it_would_do_then_does_it_then_nothing(cli: Cli, config: str, tmp_path: Path) -> None:
    serial = load_identity(tmp_path / "vic").peer.serial
    planned = cli("cluster", "revoke", "vic", "--dry-run", "--config", config)
    assert planned.code == 0 and f"{serial} of viewer 'vic' would be revoked" in planned.out
    assert not Membership(host_identity_dir(tmp_path / "alpha")).is_revoked(serial)
    done = cli("cluster", "revoke", "vic", "--config", config, "--json").json
    assert [each["serial"] for each in done["revoked"]] == [serial] and not done["dry_run"]
    assert Membership(host_identity_dir(tmp_path / "alpha")).is_revoked(serial)
    again = cli("cluster", "revoke", "vic", "--config", config)
    assert again.code == 0 and "No valid certificate is left to revoke" in again.out
    states = {each["name"]: each["state"] for each in cli("cluster", "certificates", "--config", config, "--json").json[
        "certificates"]}  # fmt: skip
    assert states == {"ann": "valid", "alpha": "valid", "vic": "revoked"}


def test_the_authoritys_own_host_stays(cli: Cli, config: str) -> None:
    assert cli("cluster", "revoke", "alpha", "--config", config).code == NotPermitted.exit_code
    assert cli("cluster", "remove", "alpha", "--config", config).code == NotPermitted.exit_code


def test_a_host_renews_its_own(cli: Cli, config: str, tmp_path: Path) -> None:
    directory = host_identity_dir(tmp_path / "alpha")
    first = load_identity(directory).fingerprint
    idle = cli("cluster", "renew", "--config", config, "--json").json
    assert not idle["renewed"] and not idle["due"] and round(idle["days_left"]) == 365
    assert "is not due" in cli("cluster", "renew", "--force", "--dry-run", "--config", config).out
    assert load_identity(directory).fingerprint == first
    assert "was renewed" in cli("cluster", "renew", "--force", "--config", config).out
    assert load_identity(directory).fingerprint != first


def test_a_persons_certificate_is_renewed_in_its_place(cli: Cli, config: str, tmp_path: Path) -> None:
    words = ("cluster", "person", "vic", "--renew", "--config", config, "--identity-dir")
    before = load_identity(tmp_path / "vic")
    assert "vic (viewer)" in cli(*words, str(tmp_path / "vic")).out
    after = load_identity(tmp_path / "vic")
    assert after.fingerprint != before.fingerprint and after.role is before.role
    assert cli(*words, str(tmp_path / "ann")).code == Conflict.exit_code
    assert cli(*words, str(tmp_path / "nobody")).code == NoIdentity.exit_code
