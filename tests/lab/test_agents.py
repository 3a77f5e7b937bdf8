"""With a small server in the agent's place: what it is told, and how the lab waits for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from livemove.base.errors import AgentUnreachable, BadDefinition, BadSetting, Conflict
from livemove.base.settings import load_settings
from livemove.lab import agents, faults
from livemove.lab.lab import Lab
from livemove.lab.topology import parse_lab

pytestmark = pytest.mark.qemu

STAND_IN = """
import socket, sys, time, tomllib
settings = tomllib.load(open(sys.argv[2], "rb"))
address, _, port = settings["listen"].rpartition(":")
time.sleep(0.2)
with socket.create_server((address, int(port))) as server:
    print("listening", flush=True)
    while True:
        with server.accept()[0] as peer:
            peer.sendall(settings["name"].encode())
"""
COMMAND = (sys.executable, "-c", STAND_IN)
ASK = "import socket,sys;print(socket.create_connection((sys.argv[1],7443),2).recv(9).decode())"


async def test_every_host_has_an_agent_that_the_others_reach_when_start_returns(lab_name: str) -> None:
    async with Lab(parse_lab(lab_name, "A,B,C")) as lab:
        pids = await agents.start_agents(lab, command=COMMAND, settings={"simultaneous": 4})
        assert list(pids) == ["A", "B", "C"]
        for number, host in enumerate(lab.spec.hosts, start=1):
            settings = load_settings(agents.config_path(lab, host))
            directory = Path("/run/livemove-lab") / lab_name / "hosts" / host
            assert settings.name == host
            assert settings.listen == f"10.79.0.{number}:7443"
            assert settings.migration_address == f"10.80.0.{number}"
            assert (settings.state_dir, settings.run_dir) == (directory / "state", directory / "run")
            assert (settings.accelerator, settings.simultaneous) == ("tcg", 4)
            assert [process.pid for process in lab.processes(host, agents.LABEL)] == [pids[host]]
        asked = await lab.run_in("A", [sys.executable, "-c", ASK, "10.79.0.3"])
        assert asked.stdout == b"C\n", asked.stderr
        with pytest.raises(Conflict, match="'A' runs already"):
            await agents.start_agents(lab, command=COMMAND)
        # one that was killed is started again with the settings that it had
        faults.kill(lab, pids["B"])
        await lab.end_process(pids["B"])
        pid = agents.start_agent(lab, "B", command=COMMAND)
        await agents.wait_listening(lab, "B", pid, timeout_s=10)
        asked = await lab.run_in("A", [sys.executable, "-c", ASK, "10.79.0.2"])
        assert asked.stdout == b"B\n", asked.stderr


async def test_an_agent_that_ends_is_told_with_its_last_words(lab_name: str) -> None:
    async with Lab(parse_lab(lab_name)) as lab:
        with pytest.raises(AgentUnreachable, match="'A' ended: no luck today"):
            await agents.start_agents(lab, command=("sh", "-c", "echo no luck today; exit 4"))


async def test_an_agent_that_does_not_listen_is_told_in_time(lab_name: str) -> None:
    async with Lab(parse_lab(lab_name)) as lab:
        with pytest.raises(AgentUnreachable, match=r"port 7443 after 0\.3 s: its log is empty"):
            await agents.start_agents(lab, command=("sh", "-c", "sleep 600"), timeout_s=0.3)


async def test_wrong_settings_start_nothing(lab_name: str) -> None:
    async with Lab(parse_lab(lab_name)) as lab:
        with pytest.raises(BadSetting, match="simultaneous"):
            await agents.start_agents(lab, command=COMMAND, settings={"simultaneous": 0})
        with pytest.raises(BadDefinition, match="'C'"):
            await agents.start_agents(lab, command=COMMAND, host_settings={"C": {"simultaneous": 3}})
        assert lab.processes() == []


async def test_an_agent_is_told_what_its_shaped_nics_carry_and_what_is_its_alone(lab_name: str) -> None:
    async with Lab(parse_lab(lab_name, links=["1Gbit", "unshaped", "250Mbit,switched"])) as lab:
        await agents.start_agents(
            lab, command=COMMAND, settings={"simultaneous": 4}, host_settings={"B": {"simultaneous": 5, "paths": "all"}}
        )
        found = {host: load_settings(agents.config_path(lab, host)) for host in lab.spec.hosts}
        assert found["A"].speeds_bytes_per_s == {"link0-A": 125_000_000, "link2-A": 31_250_000}
        assert found["B"].speeds_bytes_per_s == {"link0-B": 125_000_000, "link2-B": 31_250_000}
        assert [(found[host].simultaneous, found[host].paths) for host in "AB"] == [(4, "one"), (5, "all")]
