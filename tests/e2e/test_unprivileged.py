"""The agents with the capabilities of their unit and no others, and QEMU as a user with none: a VM goes there and back."""

from __future__ import annotations

import pwd
import re
import signal
import stat
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from livemove.base.errors import LivemoveError
from livemove.lab import agents
from livemove.lab.reference import Workload

from .world import HOSTS, Guest, World, other

pytestmark = pytest.mark.qemu

USER = "nobody"
WORKLOAD = Workload(
    random_mib=8, text_mib=4, working_set_mib=4, rate_pages_per_s=200, check_pages_per_s=500, address="10.77.0.44/24"
)


def unit_capabilities() -> list[str]:
    """What the unit leaves to the agent, without the prefix."""
    unit = (files("livemove.agent") / "livemove-agent.service").read_text()
    lines = re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)
    return [name.removeprefix("CAP_").lower() for line in lines for name in line.split()]


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@pytest.fixture
def confined(world: World) -> Iterator[None]:
    """Both agents as the unit starts them: root by number, the unit's capabilities alone, no new privileges."""
    command = (
        "setpriv", "--bounding-set=-all," + ",".join(f"+{name}" for name in unit_capabilities()), "--inh-caps=-all",
        "--no-new-privs", sys.executable, "-m", "livemove", "agent",
    )  # fmt: skip
    world.ensure_agents()
    # as udev leaves it on a host: whoever opens it gets only a tap that is its own
    tun = Path("/dev/net/tun")
    mode = stat.S_IMODE(tun.stat().st_mode)
    tun.chmod(0o666)
    for host in HOSTS:
        world.settings(host, {"qemu_user": USER})
        world.signal_agent(host, signal.SIGTERM)
        pid = agents.start_agent(world.lab, host, command=command)
        world.do(agents.wait_listening(world.lab, host, pid))
    yield
    tun.chmod(mode)
    for host in HOSTS:
        world.settings(host, {"qemu_user": ""})
        world.restart_agent(host)


def test_a_vm_moves_both_ways_without_roots_capabilities(world: World, confined: None) -> None:
    guest = Guest(world, f"{world.lab.spec.name}-low", "10.77.0.44", WORKLOAD)
    allowed = unit_capabilities()
    assert "sys_admin" not in allowed and "sys_ptrace" in allowed
    for host in HOSTS:
        status = status_of(world.agent_pid(host))
        assert bin(int(status["CapBnd"], 16)).count("1") == len(allowed), status["CapBnd"]
        assert int(status["CapEff"], 16) & ~int(status["CapBnd"], 16) == 0 and status["NoNewPrivs"] == "1"
    try:
        start = guest.ensure_running()
        for source in (start, other(start)):
            _qemu_has_nothing(world, source, guest.name)
            report = world.livemove("migrate", guest.name, "--to", other(source), "--verify", "full", "--json").json
            assert report["outcome"] == "completed" and report["tls"], report
            # not exactly_one(): another test's guest may run on the host that it left
            assert guest.host == other(source) and guest.runs()
            assert world.qemu(source, guest.name) is None
            guest.check()
        _qemu_has_nothing(world, start, guest.name)
    finally:
        for host in HOSTS:
            for work in (
                lambda agent: agent.stop_vm(guest.name, force=True),
                lambda agent: agent.remove_vm(guest.name),
            ):
                try:
                    world.ask(host, work)
                except LivemoveError:
                    continue


def _qemu_has_nothing(world: World, host: str, name: str) -> None:
    """Its process has no rights, and nobody but it and root can use its sockets."""
    found = world.qemu(host, name)
    assert found is not None
    status, user = status_of(found.pid), pwd.getpwnam(USER)
    assert set(status["Uid"].split()) == {str(user.pw_uid)} and set(status["Gid"].split()) == {str(user.pw_gid)}
    assert all(int(status[name], 16) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")), status
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2", "QEMU's own sandbox is on"
    directory = world.run_dir(host) / "vms" / name
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700 and directory.stat().st_uid == user.pw_uid
    for path in directory.iterdir():
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
