"""Network namespaces of a test's own: hosts A and B, and a switch between them with a bridge for each network."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from livemove.lab.namespaces import offloads_off

T = TypeVar("T")
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Wires:
    """The namespaces, by the name that the test gives them."""

    prefix: str

    def namespace(self, member: str) -> str:
        return f"{self.prefix}-{member}"

    def enter(self, member: str) -> list[str]:
        """The words before a command that is to run there."""
        return ["nsenter", f"--net=/run/netns/{self.namespace(member)}", "--"]

    def run(self, member: str, *argv: str, check: bool = True) -> str:
        done = subprocess.run([*self.enter(member), *argv], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def ip(self, member: str, *lines: str) -> None:
        """`ip` commands, one a line."""
        command = ["ip", "-n", self.namespace(member), "-batch", "-"]
        done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"{done.stderr}\n{lines}"

    def nft(self, member: str, rules: str) -> None:
        subprocess.run([*self.enter(member), "nft", "-f", "-"], input=rules, text=True, check=True, timeout=60)

    def python(self, member: str, program: str, *argv: str, **environment: str) -> subprocess.Popen[str]:
        """Start a Python program there."""
        return subprocess.Popen(
            [*self.enter(member), sys.executable, "-c", program, *argv],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        )  # fmt: skip

    def cable(self, member: str, nic: str, bridge: str, *, mtu: int = 1500, middle: int = 9000) -> None:
        """A NIC of a host whose other end is in the switch, with offloads off so that no packet is larger than it says.

        :param middle: what the switch takes and gives on that port; it drops the rest without a word.
        """
        port, switch = f"{bridge}{member}{nic}"[:15], self.namespace("switch")
        self.ip(
            member,
            f"link add {nic} mtu {mtu} type veth peer name {port} mtu {middle} netns {switch}",
            f"link set {nic} addrgenmode none up",
        )
        self.ip("switch", f"link set {port} addrgenmode none master {bridge} up")
        offloads_off(self.namespace(member), [nic])
        offloads_off(switch, [port])

    def inside(self, member: str, work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """What the coroutine returns or raises, run in the namespace by a thread and a loop of its own."""
        return self.call(member, lambda: asyncio.run(work()))

    def call(self, member: str, work: Callable[[], T]) -> Future[T]:
        """What the function returns or raises, run in the namespace by a thread of its own."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                handle = os.open(f"/run/netns/{self.namespace(member)}", os.O_RDONLY)
                assert ctypes.CDLL(None).setns(handle, 0) == 0
                os.close(handle)
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=run, name=f"in {member}", daemon=True).start()
        return done


@contextmanager
def wires(*members: str, bridges: Sequence[str] = ()) -> Iterator[Wires]:
    """The namespaces, with ``lo`` up; removed at the end, whatever happened."""
    made = Wires(f"lmn{os.getpid()}-{next(_numbers)}")
    names = [made.namespace(member) for member in (*members, *(("switch",) if bridges else ()))]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        for bridge in bridges:
            made.ip("switch", f"link add {bridge} mtu 9000 type bridge", f"link set {bridge} up")
        yield made
    finally:
        for name in names:
            if (Path("/run/netns") / name).exists():
                subprocess.run(["ip", "netns", "del", name], check=True)
