"""What the QEMUs themselves say, asked again and again on a monitor of the tests' own: never do two of a VM run.

Each guest of such a test has a second QMP monitor on a TCP port of its host's loopback; agents know nothing of it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from pathlib import Path

from tests.e2e.inside import enter

from livemove.base.clock import SystemClock

#: Long for an answer that is made from memory, short beside a hold of a stopped QEMU.
ANSWER_S = 1.0
PAUSE_S = 0.1


def monitor_arguments(port: int) -> tuple[str, ...]:
    """Arguments of QEMU for a second monitor."""
    return ("-qmp", f"tcp:127.0.0.1:{port},server=on,wait=off")


class Monitor:
    """One VM's QEMU on one host, whichever process that is at the moment."""

    def __init__(self, namespace: Path, port: int) -> None:
        self._namespace = namespace
        self._port = port
        self._socket: socket.socket | None = None
        self._buffer = b""
        self._number = 0

    def status(self) -> str:
        """QEMU's run state; "none" when there is no QEMU, "mute" when it does not answer."""
        try:
            if self._socket is None:
                enter(self._namespace)
                self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=ANSWER_S)
                self._buffer = b""
                self._execute("qmp_capabilities")
            return str(self._execute("query-status")["status"])
        except TimeoutError:
            return "mute"
        except OSError:
            self.close()
            return "none"

    def _execute(self, command: str) -> dict[str, str]:
        assert self._socket is not None
        self._number += 1
        self._socket.sendall(json.dumps({"execute": command, "id": self._number}).encode() + b"\n")
        while True:
            while b"\n" not in self._buffer:
                received = self._socket.recv(65536)
                if not received:
                    raise ConnectionResetError
                self._buffer += received
            line, _, self._buffer = self._buffer.partition(b"\n")
            said = json.loads(line)
            # answers to questions that were given up come late
            if said.get("id") == self._number:
                return dict(said.get("return", {}))

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Watch:
    """Asks both hosts' QEMUs of one VM in turn; keeps what they said last and every moment at which both ran."""

    def __init__(self, namespaces: dict[str, Path], port: int) -> None:
        self._hosts = tuple(namespaces)
        self._monitors = {host: Monitor(namespace, port) for host, namespace in namespaces.items()}
        self._clock = SystemClock()
        self._ended = threading.Event()
        self.now = dict.fromkeys(self._hosts, "none")
        self.asked = 0
        self.two: list[str] = []
        self._thread = threading.Thread(target=self._live, name=f"watch port {port}", daemon=True)
        self._thread.start()

    def _live(self) -> None:
        first, second = self._hosts
        while not self._ended.wait(PAUSE_S):
            self.now[first] = self._monitors[first].status()
            self.now[second] = self._monitors[second].status()
            self.asked += 1
            # it may have moved between the two questions, but not there and back
            if self.now[first] == self.now[second] == "running" and self._monitors[first].status() == "running":
                self.two.append(f"both {first} and {second} ran it at {self._clock.monotonic_s():.3f} s")

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        for monitor in self._monitors.values():
            with contextlib.suppress(OSError):
                monitor.close()
