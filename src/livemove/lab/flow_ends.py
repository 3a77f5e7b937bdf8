"""The two ends of a flow, a process each: one sends what the network takes, one counts what arrives.

    python -m livemove.lab.flow_ends receive --address 10.80.0.3 --port 5201 --out FILE [--protocol udp]
    python -m livemove.lab.flow_ends send --address 10.80.0.3 --port 5201 --source 10.80.0.1 --device link0-A
                                          [--connections 2] [--rate-bytes-per-s N] [--protocol udp --packet-bytes 1472]

FILE gets a line every 50 ms: monotonic seconds, and the bytes that have arrived in all. Both ends end at SIGTERM.

They cost little CPU, for the machine's cores are shared with what they compete with: TCP's bytes are sent from a file that is
never copied and dropped unread, TCP counts them itself, and the kernel paces a flow that has a rate. A connection that
breaks is made again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import struct
import sys
from pathlib import Path

from livemove.base.clock import Clock, SystemClock

SAMPLE_PERIOD_S = 0.05
# Far more than a link of 10 Gbit/s needs for 10 ms: an end that waits for a core does not slow its flow down.
_RECEIVE_BUFFER_BYTES = 16 << 20
_SEND_BUFFER_BYTES = 8 << 20
# Awake once a megabyte, and for every sample.
_LOW_WATER_BYTES = 1 << 20
_FILE_BYTES = 4 << 20
_RECONNECT_PAUSE_S = 0.1
_CONNECT_TIMEOUT_S = 1.0
# A datagram flow sends what is due this often, and leaves out what it was too late for by more.
_TICK_S = 0.005
_LONGEST_DEBT_S = 0.1
_MAX_DATAGRAMS_BYTES = 65507
_NICENESS = -10

# from linux: asm-generic/socket.h, udp.h, tcp.h
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE, _SO_MAX_PACING_RATE = 32, 33, 47
_UDP_SEGMENT, _UDP_GRO = 103, 104
_TCP_INFO_BYTES_RECEIVED = struct.Struct("128xQ")


class TcpReceiver:
    """Accepts any number of connections and counts what TCP received on them, in order."""

    def __init__(self, address: str, port: int) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # inherited by the connections
        self._listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _LOW_WATER_BYTES)
        self._listener.bind((address, port))
        self._listener.listen()
        self._listener.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._listener, select.POLLIN)
        self._connections: dict[int, socket.socket] = {}
        self._closed_bytes = 0
        self._unread = bytearray(_RECEIVE_BUFFER_BYTES)

    def wait(self, wait_s: float) -> None:
        for handle, _ in self._poll.poll(wait_s * 1000):
            if handle == self._listener.fileno():
                self._accept()
            else:
                self._drain(self._connections[handle])

    def total_bytes(self) -> int:
        for connection in list(self._connections.values()):
            # what is below the low-water mark wakes nobody
            self._drain(connection)
        return self._closed_bytes + sum(_received_bytes(connection) for connection in self._connections.values())

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection = self._listener.accept()[0]
            connection.setblocking(False)
            self._connections[connection.fileno()] = connection
            self._poll.register(connection, select.POLLIN)

    def _drain(self, connection: socket.socket) -> None:
        try:
            # TCP's MSG_TRUNC: taken off the queue, and copied nowhere
            if connection.recv_into(self._unread, 0, socket.MSG_TRUNC):
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # broken; what had arrived counts
        self._closed_bytes += _received_bytes(connection)
        self._poll.unregister(connection)
        del self._connections[connection.fileno()]
        connection.close()


def _received_bytes(connection: socket.socket) -> int:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES_RECEIVED.size)
    return int(_TCP_INFO_BYTES_RECEIVED.unpack(info)[0])


class UdpReceiver:
    """Counts the payload of all datagrams that arrive."""

    def __init__(self, address: str, port: int) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
        self._socket.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
        self._socket.bind((address, port))
        self._socket.setblocking(False)
        self._total_bytes = 0

    def wait(self, wait_s: float) -> None:
        if select.select([self._socket], [], [], wait_s)[0]:
            self._drain()

    def total_bytes(self) -> int:
        self._drain()
        return self._total_bytes

    def _drain(self) -> None:
        unread = bytearray(1)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._total_bytes += self._socket.recv_into(unread, 0, socket.MSG_TRUNC)


class Ending:
    """Whether SIGTERM or SIGINT has come."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True


def receive(receiver: TcpReceiver | UdpReceiver, out: Path, clock: Clock, ending: Ending) -> None:
    """Write a sample every period until the end, and one at the end."""
    with out.open("w", buffering=1) as file:
        next_s = clock.monotonic_s()
        while not ending.asked:
            receiver.wait(max(0.0, next_s - clock.monotonic_s()))
            now_s = clock.monotonic_s()
            if now_s >= next_s:
                file.write(f"{now_s:.6f} {receiver.total_bytes()}\n")
                next_s = max(next_s + SAMPLE_PERIOD_S, now_s)
        file.write(f"{clock.monotonic_s():.6f} {receiver.total_bytes()}\n")


class Destination:
    """Where a sender sends to, and from which address and NIC."""

    def __init__(self, peer: tuple[str, int], source: str, device: str) -> None:
        self._peer = peer
        self._source = source
        self._device = device

    def bound(self, kind: socket.SocketKind) -> socket.socket:
        made = socket.socket(socket.AF_INET, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._device.encode())
        made.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER_BYTES)
        made.bind((self._source, 0))
        return made

    def connect(self, made: socket.socket) -> None:
        made.connect(self._peer)


def send_streams(to: Destination, connections: int, rate_bytes_per_s: int | None, clock: Clock, ending: Ending) -> None:
    """Keep so many connections busy; a rate is shared evenly between them."""
    block = os.memfd_create("flow")
    os.ftruncate(block, _FILE_BYTES)
    busy: dict[int, socket.socket] = {}
    poll = select.poll()
    again_s = 0.0
    while not ending.asked:
        if len(busy) < connections and clock.monotonic_s() >= again_s:
            try:
                made = _stream(to, rate_bytes_per_s // connections if rate_bytes_per_s else None)
                busy[made.fileno()] = made
                poll.register(made, select.POLLOUT)
            except OSError:
                again_s = clock.monotonic_s() + _RECONNECT_PAUSE_S
        for handle, _ in poll.poll(_RECONNECT_PAUSE_S * 1000 if busy else 10):
            try:
                os.sendfile(handle, block, 0, _FILE_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                poll.unregister(handle)
                busy.pop(handle).close()


def _stream(to: Destination, rate_bytes_per_s: int | None) -> socket.socket:
    made = to.bound(socket.SOCK_STREAM)
    try:
        # the machine's default may be another, which shares a link otherwise
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        if rate_bytes_per_s is not None:
            made.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, struct.pack("Q", rate_bytes_per_s))
        made.settimeout(_CONNECT_TIMEOUT_S)
        to.connect(made)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


def send_datagrams(to: Destination, packet_bytes: int, rate_bytes_per_s: int, clock: Clock, ending: Ending) -> None:
    """Send datagrams of that size at that rate of payload, whatever arrives."""
    made = to.bound(socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, packet_bytes)
    to.connect(made)
    block = memoryview(bytes(_MAX_DATAGRAMS_BYTES // packet_bytes * packet_bytes))
    due_bytes, before_s = 0.0, clock.monotonic_s()
    while not ending.asked:
        now_s = clock.monotonic_s()
        due_bytes = min(due_bytes + (now_s - before_s) * rate_bytes_per_s, _LONGEST_DEBT_S * rate_bytes_per_s)
        before_s = now_s
        while due_bytes >= packet_bytes and not ending.asked:
            size_bytes = min(len(block), int(due_bytes) // packet_bytes * packet_bytes)
            # refused now and then by an interface that is down or a port that nobody has yet
            with contextlib.suppress(OSError):
                made.send(block[:size_bytes])
            due_bytes -= size_bytes
        select.select([], [], [], _TICK_S)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="livemove.lab.flow_ends", description="An end of a flow.")
    parser.add_argument("role", choices=["receive", "send"])
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--protocol", choices=["tcp", "udp"], default="tcp")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--source", default="0.0.0.0")
    parser.add_argument("--device", default="")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--rate-bytes-per-s", type=int)
    parser.add_argument("--packet-bytes", type=int, default=1472)
    given = parser.parse_args(arguments)
    ending, clock = Ending(), SystemClock()
    # an end that waits for a core would look like a network that held it back
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
    if given.role == "receive":
        if given.out is None:
            parser.error("receive needs --out")
        kind = TcpReceiver if given.protocol == "tcp" else UdpReceiver
        receive(kind(given.address, given.port), given.out, clock, ending)
        return 0
    to = Destination((given.address, given.port), given.source, given.device)
    if given.protocol == "tcp":
        send_streams(to, given.connections, given.rate_bytes_per_s, clock, ending)
        return 0
    if given.rate_bytes_per_s is None:
        parser.error("datagrams need --rate-bytes-per-s")
    send_datagrams(to, given.packet_bytes, given.rate_bytes_per_s, clock, ending)
    return 0


if __name__ == "__main__":
    sys.exit(main())
