"""Certificates of a running cluster: revoked everywhere within seconds, renewed without anybody noticing."""

from __future__ import annotations

from pathlib import Path

import pytest

from livemove.agent.identity import host_identity_dir
from livemove.agent.join import issue_person
from livemove.api.client_identity import Role, load_identity
from livemove.base.clock import SystemClock
from livemove.lab import agents

from .world import HOSTS, World

pytestmark = pytest.mark.qemu


def config(world: World, host: str) -> tuple[str, str]:
    return "--config", str(agents.config_path(world.lab, host))


def test_a_revoked_person_is_out_on_every_host_within_seconds(world: World, tmp_path: Path) -> None:
    world.ensure_agents()
    state = world.lab.directory("A") / "state"
    mal = issue_person(state, name="mal", role=Role.ADMIN, directory=tmp_path / "mal", clock=SystemClock())
    for host in HOSTS:
        assert world.livemove("host", "show", "--host", host, "--json", identity=mal.directory).code == 0
    done = world.livemove("cluster", "revoke", "mal", *config(world, "A"), "--json").json
    assert [each["serial"] for each in done["revoked"]] == [mal.peer.serial]
    for host in HOSTS:
        # an agent looks at its files every second, and at the authority's host every 5 s
        world.wait(
            lambda host=host: (
                world.livemove("host", "show", "--host", host, "--json", identity=mal.directory, expect=None).code != 0
            ),
            f"{host} refuses the revoked certificate",
            timeout_s=15,
        )  # fmt: skip
        text = agents.log_path(world.lab, host).read_text()
        assert text.count("refused admin 'mal' at") == 1, "logged once"
        metrics = world.ask(host, lambda agent: agent.metrics())
        counted = next(line for line in metrics.splitlines() if line.startswith("livemove_revoked_certificates "))
        assert float(counted.split()[1]) >= 1, counted
        assert 'livemove_refused_total{kind="revoked"}' in metrics


def test_a_hosts_certificate_is_renewed_while_its_agent_serves(world: World) -> None:
    world.ensure_agents()
    for host in HOSTS:
        directory = host_identity_dir(world.lab.directory(host) / "state")
        before, pid = load_identity(directory), world.agent_pid(host)
        done = world.livemove("cluster", "renew", "--force", *config(world, host), "--json", host=host).json
        assert done["renewed"] and done["days_left"] > 364
        serial = load_identity(directory).peer.serial
        assert serial != before.peer.serial

        def shown(host: str = host, serial: str = serial) -> bool:
            return world.ask(host, lambda agent: agent.host()).certificate["serial"] == serial

        world.wait(shown, f"{host} uses its new certificate", timeout_s=10)
        assert world.agent_pid(host) == pid
        assert world.livemove("cluster", "hosts", "--json").json["hosts"]
