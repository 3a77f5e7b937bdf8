"""Hosts in namespaces, each joined to a switch by cables whose rate is kept outside of the host, in both directions.

A cable is host NIC -- bridge of its own -- switch, with tbf on both ports of that bridge: so the NIC itself is free for
classes, as a real one is, and yet nothing faster leaves or reaches the host.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).parents[2]


class Wires:
    """`with Wires("name", hosts="ABC", cables=2, rate_mbit=500)`: host A has NICs e0, e1 with 10.77.0.1, 10.77.1.1, ..."""

    def __init__(self, name: str, *, hosts: str, cables: int = 1, rate_mbit: int = 500) -> None:
        self.name, self.hosts, self.cables, self.rate_mbit = name, hosts, cables, rate_mbit
        self._started: list[subprocess.Popen[str]] = []

    def namespace(self, member: str) -> str:
        return f"{self.name}-{member}"

    def address(self, host: str, cable: int = 0) -> str:
        return f"10.77.{cable}.{self.hosts.index(host) + 1}"

    def __enter__(self) -> Self:
        for member in (*self.hosts, "switch"):
            self._run("ip", "netns", "add", self.namespace(member))
        try:
            self._make()
        except BaseException:
            self.remove()
            raise
        return self

    def _make(self) -> None:
        switch = self.namespace("switch")
        ip, tc = [], []
        for cable in range(self.cables):
            ip += [f"link add sw{cable} type bridge stp_state 0 forward_delay 0", f"link set sw{cable} up"]
            for host in self.hosts:
                end, port, bridge, up, down = (
                    f"e{cable}",
                    f"p{host}{cable}",
                    f"b{host}{cable}",
                    f"u{host}{cable}",
                    f"d{host}{cable}",
                )
                ip += [
                    f"link add {bridge} type bridge stp_state 0 forward_delay 0",
                    f"link add {port} type veth peer name {end} netns {self.namespace(host)}",
                    f"link add {up} type veth peer name {down}",
                    *(f"link set {member} master {bridge}" for member in (port, up)),
                    f"link set {down} master sw{cable}",
                    *(f"link set {member} up" for member in (bridge, port, up, down)),
                ]
                tc += [self.shaper(member) for member in (port, up)]
        self._batch("ip", switch, ip)
        self._batch("tc", switch, tc)
        for host in self.hosts:
            lines = ["link set lo up"]
            for cable in range(self.cables):
                subnet = f"10.77.{cable}.0/24"
                lines += [
                    f"link set e{cable} up",
                    f"addr add {self.address(host, cable)}/24 dev e{cable}",
                    f"route replace {subnet} dev e{cable} proto kernel scope link src {self.address(host, cable)} congctl cubic",
                ]
            self._batch("ip", self.namespace(host), lines)
        time.sleep(0.5)  # ports begin to forward

    def shaper(self, interface: str) -> str:
        return f"qdisc replace dev {interface} root tbf rate {self.rate_mbit}mbit burst 128k limit 1m"

    def ip(self, host: str, line: str) -> None:
        """One `ip` command in a member's namespace."""
        self._batch("ip", self.namespace(host), [line])

    def output(self, host: str, *argv: str) -> str:
        return subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.namespace(host)}", "--", *argv],
            capture_output=True, text=True, check=True, timeout=30,
        ).stdout  # fmt: skip

    def start(self, host: str, module: str, *words: str) -> Running:
        """A module of tests.bandwidth in a host."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
        process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.namespace(host)}", "--", sys.executable, "-m", f"tests.bandwidth.{module}", *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        self._started.append(process)
        return Running(process)

    def remove(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()
        for member in (*self.hosts, "switch"):
            subprocess.run(["ip", "netns", "del", self.namespace(member)], check=False, capture_output=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _run(self, *argv: str, text: str = "") -> None:
        subprocess.run(argv, input=text, text=True, check=True, capture_output=True, timeout=30)

    def _batch(self, program: str, namespace: str, lines: Sequence[str]) -> None:
        self._run(program, "-n", namespace, "-batch", "-", text="".join(f"{line}\n" for line in lines))


class Running:
    """A process in a host, and what it said."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def wait_ready(self) -> None:
        assert self._process.stdout is not None
        while "ready" not in (line := self._process.stdout.readline()):
            assert line, f"{self._process.args} ended"

    def wait(self, timeout_s: float) -> None:
        self._process.wait(timeout_s)

    def stop(self) -> list[dict[str, Any]]:
        """Have it end by its standard input, or at once when it does not read that; its lines."""
        try:
            out, _ = self._process.communicate("", timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            out, _ = self._process.communicate()
        return [json.loads(line) for line in out.splitlines() if line.startswith("{") and line.endswith("}")]

    def kill(self) -> list[dict[str, Any]]:
        self._process.kill()
        out, _ = self._process.communicate()
        return [json.loads(line) for line in out.splitlines() if line.startswith("{") and line.endswith("}")]
