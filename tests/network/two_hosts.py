"""Two network namespaces joined by veth pairs, MPTCP connections between them with traffic, and faults of the cables."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator

_libc = ctypes.CDLL(None, use_errno=True)
PORT = 49001


def run(*words: str, text: str | None = None) -> str:
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


class TwoHosts:
    """`source` and `destination`, with `count` cables: 10.77.N.1 to 10.77.N.2, or fd77:M::1 to fd77:M::2 with M = N + 1."""

    def __init__(self, count: int = 2, *, ipv6: bool = False, rate: str = "") -> None:
        mark = f"kp{os.getpid()}"
        self.source, self.destination = f"{mark}s", f"{mark}d"
        self.count, self.ipv6 = count, ipv6
        for namespace in (self.source, self.destination):
            run("ip", "netns", "add", namespace)
            run("ip", "-n", namespace, "link", "set", "lo", "up")
            run("ip", "-n", namespace, "mptcp", "limits", "set", "subflow", "8", "add_addr_accepted", "8")
        for number in range(count):
            self.lay(number, rate)
        self.set("source", "pm_type", "1")
        self.set("source", "blackhole_timeout", "0")

    def lay(self, number: int, rate: str) -> None:
        """The cable, which must not be there."""
        ends = ((self.source, self.link("source", number)), (self.destination, self.link("destination", number)))
        (one, first), (other, second) = ends
        run("ip", "link", "add", first, "netns", one, "type", "veth", "peer", "name", second, "netns", other)
        for (namespace, link), side in zip(ends, ("source", "destination"), strict=True):
            address = self.address(side, number) + ("/64" if self.ipv6 else "/24")
            nodad = ["nodad"] if self.ipv6 else []
            run("ip", "-n", namespace, "addr", "add", address, "dev", link, *nodad)
            run("ip", "-n", namespace, "link", "set", link, "up")
            if rate:
                run(
                    "tc",
                    "-n",
                    namespace,
                    "qdisc",
                    "add",
                    "dev",
                    link,
                    "root",
                    "tbf",
                    "rate",
                    rate,
                    "burst",
                    "128k",
                    "limit",
                    "1m",
                )

    def namespace(self, side: str) -> str:
        return self.source if side == "source" else self.destination

    def link(self, side: str, number: int) -> str:
        return f"{self.namespace(side)}{number}"

    def address(self, side: str, number: int) -> str:
        last = 1 if side == "source" else 2
        return f"fd77:{number + 1}::{last}" if self.ipv6 else f"10.77.{number}.{last}"

    def set(self, side: str, name: str, value: str) -> None:
        run("ip", "netns", "exec", self.namespace(side), "sysctl", "-qw", f"net.mptcp.{name}={value}")

    @contextlib.contextmanager
    def inside(self, side: str) -> Iterator[None]:
        """This thread, and what it starts, is on that host."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.namespace(side)}", os.O_RDONLY)
        try:
            assert _libc.setns(there, 0) == 0
            yield
        finally:
            assert _libc.setns(home, 0) == 0
            os.close(home)
            os.close(there)

    def deafen(self, side: str, number: int) -> None:
        """What arrives at that host by that cable vanishes; the carrier stays."""
        link = self.link(side, number)
        run(
            "ip", "netns", "exec", self.namespace(side), "nft", "-f", "-",
            text=f'add table netdev kp\nadd chain netdev kp c{number} {{ type filter hook ingress device "{link}" priority -500; policy drop; }}\n',
        )  # fmt: skip

    def undeafen(self, side: str, number: int) -> None:
        run("ip", "netns", "exec", self.namespace(side), "nft", "-f", "-", text=f"add table netdev kp\nadd chain netdev kp c{number}\ndelete chain netdev kp c{number}\n")  # fmt: skip

    def drop_udp(self, side: str, number: int) -> None:
        """Of what arrives at that host by that cable, heartbeats vanish."""
        link = self.link(side, number)
        run(
            "ip", "netns", "exec", self.namespace(side), "nft", "-f", "-",
            text=f'add table netdev kp\nadd chain netdev kp u{number} {{ type filter hook ingress device "{link}" priority -500; }}\nadd rule netdev kp u{number} ip protocol udp drop\n',
        )  # fmt: skip

    def black_hole(self, number: int) -> None:
        self.deafen("source", number)
        self.deafen("destination", number)

    def heal(self, number: int) -> None:
        for side in ("source", "destination"):
            self.undeafen(side, number)
            run("ip", "-n", self.namespace(side), "link", "set", self.link(side, number), "up")

    def pull(self, number: int, side: str = "destination") -> None:
        """The NIC of that host goes down, the other one loses its carrier."""
        run("ip", "-n", self.namespace(side), "link", "set", self.link(side, number), "down")

    def close(self) -> None:
        left = [run("ip", "netns", "pids", namespace).split() for namespace in (self.source, self.destination)]
        for namespace in (self.source, self.destination):
            run("ip", "netns", "del", namespace)
        assert left == [[], []]


class Traffic:
    """Connections of the journey, filled by threads until :meth:`stop`, one way or both ways.

    :ivar longest_gap_s: between two arrivals on any connection at the destination, when all send as fast as they can.
    """

    def __init__(
        self, hosts: TwoHosts, connections: int = 2, *, both_ways: bool = False, mptcp: bool = True, first: int = 0,
        port: int = PORT,
    ) -> None:  # fmt: skip
        family = socket.AF_INET6 if hosts.ipv6 else socket.AF_INET
        protocol = socket.IPPROTO_MPTCP if mptcp else socket.IPPROTO_TCP
        self._stop = threading.Event()
        self.sent = self.returned = 0
        self.received = self.got_back = 0
        self.longest_gap_s = 0.0
        self.errors: list[OSError] = []
        self._lock = threading.Lock()
        with hosts.inside("destination"):
            listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("::" if hosts.ipv6 else "0.0.0.0", port))
            listener.listen()
        self._ends: list[tuple[socket.socket, socket.socket]] = []
        for _ in range(connections):
            with hosts.inside("source"):
                ours = socket.socket(family, socket.SOCK_STREAM, protocol)
            ours.connect((hosts.address("destination", first), port))
            theirs, _ = listener.accept()
            self._ends.append((ours, theirs))
        # joins need somebody who listens, and QEMU does until the end
        self._listener = listener
        self._threads = []
        for ours, theirs in self._ends:
            self._begin(self._fill, ours, "sent")
            self._begin(self._empty, theirs, "received")
            if both_ways:
                self._begin(self._fill, theirs, "returned")
                self._begin(self._empty, ours, "got_back")

    def _begin(self, work: object, end: socket.socket, counter: str) -> None:
        thread = threading.Thread(target=work, args=(end, counter))  # type: ignore[arg-type]
        thread.start()
        self._threads.append(thread)

    def _fill(self, end: socket.socket, counter: str) -> None:
        block = bytes(1 << 16)
        try:
            while not self._stop.is_set():
                # bounded waits, so that a connection that hangs cannot keep the test
                if select.select([], [end], [], 0.1)[1]:
                    with contextlib.suppress(BlockingIOError):
                        self._add(counter, end.send(block, socket.MSG_DONTWAIT))
        except OSError as error:
            self.errors.append(error)

    def _empty(self, end: socket.socket, counter: str) -> None:
        last = time.monotonic()
        end.settimeout(30)
        try:
            while data := end.recv(1 << 18):
                now = time.monotonic()
                if counter == "received" and not self._stop.is_set():
                    self.longest_gap_s = max(self.longest_gap_s, now - last)
                last = now
                self._add(counter, len(data))
        except OSError as error:
            self.errors.append(error)

    def _add(self, counter: str, count: int) -> None:
        with self._lock:
            setattr(self, counter, getattr(self, counter) + count)

    def stop(self) -> None:
        """Send no more, wait until all has arrived and a little longer, as a journey does, and close; may be called twice."""
        self._stop.set()
        end_s = time.monotonic() + 30
        while (self.sent, self.returned) != (self.received, self.got_back) and time.monotonic() < end_s:
            time.sleep(0.01)
        if self._listener.fileno() >= 0:
            time.sleep(0.15)
        for end in itertools.chain(*self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(40)
            assert not thread.is_alive()
        for end in (self._listener, *itertools.chain(*self._ends)):
            end.close()
