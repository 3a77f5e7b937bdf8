"""A cluster begun, a host invited, a person named: on real files; joining over the network is tests/agent's."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from livemove.agent import join_client
from livemove.agent.join import JoinRequest, finish_join, join_request, redeem
from livemove.api.client_identity import Role, load_identity
from livemove.base.clock import SystemClock
from livemove.base.errors import BadQuantity, BadSetting, Conflict, NoIdentity, NotPermitted
from livemove.base.settings import load_settings

from .conftest import Cli
from .fake_agent import FakeCluster


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "alpha.toml"
    path.write_text(f'# kept\nstate_dir = "{tmp_path}/alpha"\n')
    return path


@pytest.fixture
def begun(cli: Cli, config: Path, tmp_path: Path) -> Path:
    ended = cli(
        "cluster", "init", "--name", "alpha", "--address", "192.0.2.1:7443", "--admin", "ann",
        "--identity-dir", str(tmp_path / "ann"), "--config", str(config), "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert ended.json == {
        "host": "alpha",
        "address": "192.0.2.1:7443",
        "admin": "ann",
        "identity_dir": str(tmp_path / "ann"),
    }
    return config


def test_init_makes_authority_host_and_admin(begun: Path, tmp_path: Path) -> None:
    assert load_identity(tmp_path / "ann").role is Role.ADMIN
    assert load_identity(tmp_path / "alpha" / "identity").name == "alpha"
    assert load_settings(begun).name == "alpha", "the agent goes by the name in its certificate"
    assert begun.read_text().startswith("# kept\n")


def test_init_says_how_to_go_on_and_does_not_begin_twice(cli: Cli, config: Path, tmp_path: Path) -> None:
    words = ["cluster", "init", "--name", "alpha", "--address", "192.0.2.1:7443", "--config", str(config)]
    # the admin's identity goes to $LIVEMOVE_IDENTITY, which the fixture sets
    ended = cli(*words)
    assert ended.code == 0
    assert "livemove cluster invite HOST" in ended.out
    assert load_identity(tmp_path / "nobody").role is Role.ADMIN
    assert cli(*words, "--identity-dir", str(tmp_path / "other")).code == Conflict.exit_code


def test_init_with_a_bad_address(cli: Cli, config: Path, tmp_path: Path) -> None:
    ended = cli("cluster", "init", "--name", "alpha", "--address", "alpha:7443", "--config", str(config), "--json")
    assert ended.code == ended.json["exit_code"] == BadSetting.exit_code
    assert not (tmp_path / "alpha").exists()
    assert load_settings(config).name == "localhost"


def test_invite_and_join(cli: Cli, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = cli("cluster", "invite", "beta", "--config", str(begun))
    assert ended.code == 0
    token = ended.out.split()[-1]
    assert token.startswith("lmj1.")
    config = tmp_path / "beta.toml"
    config.write_text(f'state_dir = "{tmp_path}/beta"\n')

    async def join_cluster(token_text: str, *, address: str, state_dir: Path) -> Any:
        """Join without the network between the two."""
        pending = join_request(token_text, address=address)
        answer = redeem(tmp_path / "alpha", JoinRequest(**pending.request.model_dump()), clock=SystemClock())
        return finish_join(pending, answer, state_dir / "identity")

    monkeypatch.setattr(join_client, "join_cluster", join_cluster)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{token}\n"))
    assert f"livemove cluster join --address IP:PORT\n\n{token}" in ended.out, "the command does not hold the secret"
    joined = cli("cluster", "join", "--address", "192.0.2.2:7443", "--config", str(config))
    assert joined.code == 0, joined.err
    assert "'beta'" in joined.out
    assert load_settings(config).name == "beta"
    again = cli("cluster", "join", token, "--address", "192.0.2.3:7443", "--config", str(begun), "--json")
    assert again.code == NotPermitted.exit_code
    short = cli("cluster", "join", token[:-3], "--address", "192.0.2.3:7443", "--config", str(begun), "--json")
    assert short.code == NotPermitted.exit_code and "copy it whole" in short.json["remedy"]


def test_invitations_are_checked(cli: Cli, begun: Path, config: Path, tmp_path: Path) -> None:
    invite = ["cluster", "invite", "beta", "--config", str(begun)]
    assert cli(*invite, "--ttl", "30").code == BadQuantity.exit_code
    assert cli(*invite, "--ttl", "48h").code == BadSetting.exit_code
    assert cli("cluster", "invite", "alpha", "--config", str(begun)).code == Conflict.exit_code
    assert cli(*invite, "--json").json["lifetime_s"] == 600.0
    elsewhere = tmp_path / "gamma.toml"
    elsewhere.write_text(f'state_dir = "{tmp_path}/gamma"\n')
    assert cli("cluster", "invite", "beta", "--config", str(elsewhere)).code == NoIdentity.exit_code


def test_person(cli: Cli, begun: Path, tmp_path: Path) -> None:
    directory = tmp_path / "bob"
    words = ["cluster", "person", "bob", "--role", "operator", "--identity-dir", str(directory), "--config", str(begun)]
    ended = cli(*words)
    assert ended.code == 0
    identity = load_identity(directory)
    assert (identity.name, identity.role) == ("bob", Role.OPERATOR)
    assert cli(*words).code == Conflict.exit_code
    assert cli("cluster", "person", "eve", "--role", "host", "--config", str(begun)).code == 2
    made = cli("cluster", "person", "cyd", "--identity-dir", str(tmp_path / "cyd"), "--config", str(begun), "--json")
    assert made.json["role"] == "viewer"


def test_hosts(cli: Cli, cluster: FakeCluster) -> None:
    cluster.silence("B")
    found = {host["name"]: host for host in cli("cluster", "hosts", "--json").json["hosts"]}
    assert found["A"]["answers"] is True
    assert found["B"]["answers"] is False and "cannot be reached" in found["B"]["reason"]
    assert found["B"]["address"] == cluster["B"].address
    text = cli("cluster", "hosts")
    assert text.code == 0
    assert [line.split()[0] for line in text.out.splitlines()] == ["HOST", "A", "B"]
