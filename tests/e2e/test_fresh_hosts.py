"""Two hosts that have never seen a cluster become one by the commands of the README, and a VM moves between them.

Their network is marked as trusted, so the journey goes without TLS and behind the packet filter.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomlkit

from livemove.base.errors import by_code
from livemove.lab import agents
from livemove.lab.image import ensure_image
from livemove.lab.lab import Lab, down, leftovers
from livemove.lab.reference import ConsoleSummary, Workload, read_console
from livemove.lab.topology import parse_lab

pytestmark = pytest.mark.qemu

VM = f"e2e-{os.getpid()}-fresh"
NETWORK = "10.80.0.0/24"


class FreshHosts:
    """A lab whose hosts have a configuration and nothing else."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.home = lab.directory("A") / "home"
        for host in lab.spec.hosts:
            settings = agents.settings_of(lab, host, {"trusted_networks": [NETWORK]})
            agents.config_path(lab, host).write_text(tomlkit.dumps(settings))

    def livemove(self, host: str, *words: str, code: int = 0, identity: Path | None = None) -> str:
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.lab.spec.namespace(host)}", sys.executable, "-m", "livemove", *words],
            env={**os.environ, "LIVEMOVE_IDENTITY": str(identity or self.home)}, capture_output=True, text=True,
            timeout=60, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def config(self, host: str) -> tuple[str, str]:
        return "--config", str(agents.config_path(self.lab, host))

    def address(self, host: str) -> tuple[str, str]:
        return "--address", f"{self.lab.spec.control_address(host)}:7443"

    def start_agent(self, host: str) -> None:
        pid = agents.start_agent(self.lab, host)
        asyncio.run(agents.wait_listening(self.lab, host, pid))

    def console(self, host: str) -> Path:
        return self.lab.directory(host) / "run" / "vms" / VM / "console.log"

    def wait_console(self, host: str, reached: Callable[[ConsoleSummary], bool]) -> None:
        """Until the console says so; both logs are read, the other host's first."""
        logs = [self.console(other) for other in ("B", "A") if self.console(other).exists() or other == host]
        for _ in range(200):
            if self.console(host).exists() and reached(read_console(*logs)):
                return
            asyncio.run(asyncio.sleep(0.1))
        raise AssertionError(f"the guest did not get that far: {read_console(*logs)}")

    def rules(self, host: str) -> str:
        return asyncio.run(self.lab.run_in(host, ["nft", "list", "ruleset"])).stdout.decode()


@pytest.fixture(scope="module")
def fresh() -> Iterator[FreshHosts]:
    name = f"e2ej-{os.getpid()}"
    lab = asyncio.run(Lab.up(parse_lab(name, "A,B", ["1Gbit"])))
    try:
        yield FreshHosts(lab)
    finally:
        asyncio.run(down(name))
    assert leftovers(name) == []


def test_a_cluster_begins_a_host_joins_and_a_vm_moves(fresh: FreshHosts):
    exits = by_code()
    fresh.livemove("A", "vm", "list", code=exits["no-identity"].exit_code)
    fresh.livemove(
        "A",
        "cluster",
        "init",
        "--name",
        "A",
        *fresh.address("A"),
        "--identity-dir",
        str(fresh.home),
        *fresh.config("A"),
    )
    fresh.start_agent("A")
    token = json.loads(fresh.livemove("A", "cluster", "invite", "B", "--json", *fresh.config("A")))["token"]
    fresh.livemove("B", "cluster", "join", token, *fresh.address("B"), *fresh.config("B"))
    fresh.livemove(
        "B", "cluster", "join", token, *fresh.address("B"), *fresh.config("B"), code=exits["conflict"].exit_code
    )
    fresh.start_agent("B")
    hosts = json.loads(fresh.livemove("A", "cluster", "hosts", "--json"))
    assert "B" in json.dumps(hosts)

    image = ensure_image()
    path = fresh.lab.directory("A") / "etc" / "vm.toml"
    load = Workload(random_mib=16, text_mib=16, working_set_mib=4, rate_pages_per_s=200)
    path.write_text(
        f'name = "{VM}"\n[memory]\nsize = "128MiB"\npopulate = true\n[boot]\nkernel = "{image.kernel}"\n'
        f'initrd = "{image.initrd}"\narguments = "{load.kernel_arguments()}"\n'
    )
    fresh.livemove("A", "vm", "define", str(path), "--host", "A")
    fresh.livemove("A", "vm", "start", VM)
    fresh.wait_console("A", lambda summary: summary.ready is not None)
    fresh.livemove("A", "migrate", VM, "--to", "B", "--option", "compression")
    report = json.loads(fresh.livemove("A", "report", VM, "--json"))
    assert (report["outcome"], report["tls"], report["compression"]) == ("completed", False, "zstd")
    assert report["wire_bytes"] < report["ram_bytes"], "text and zero pages compress"
    row = next(row for row in report["negotiated"] if row["feature"] == "tls-psk")
    assert not row["used"] and "trusted" in row["reason"]
    assert "livemove" not in fresh.rules("B"), "the packet filter went with the journey"
    assert "memory" in json.dumps(json.loads(fresh.livemove("A", "vm", "show", VM, "--json")))


def test_a_used_token_admits_nobody_and_a_viewer_moves_nothing(fresh: FreshHosts):
    exits = by_code()
    viewer = fresh.lab.directory("A") / "viewer"
    fresh.livemove(
        "A", "cluster", "person", "eve", "--role", "viewer", "--identity-dir", str(viewer), *fresh.config("A")
    )
    fresh.livemove("A", "vm", "list", identity=viewer)
    fresh.livemove("A", "migrate", VM, "--to", "A", identity=viewer, code=exits["not-permitted"].exit_code)
    fresh.livemove("A", "vm", "stop", "--force", VM, identity=viewer, code=exits["not-permitted"].exit_code)
    fresh.livemove(
        "A", "host", "set", "--host", "B", "simultaneous=9", identity=viewer, code=exits["not-permitted"].exit_code
    )


def test_back_again_with_its_memory_whole(fresh: FreshHosts):
    fresh.livemove("A", "migrate", VM, "--to", "A")
    before = read_console(fresh.console("B"), fresh.console("A")).ticks
    fresh.wait_console("A", lambda summary: summary.ticks >= before + 4)
    assert read_console(fresh.console("A"), fresh.console("B")).bad == 0
    fresh.livemove("A", "vm", "stop", "--force", VM)
