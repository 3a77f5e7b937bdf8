"""A transfer over plain TCP between the hosts of a lab: what becomes of it where nobody has probed the network."""

from __future__ import annotations

import select
import socket
import threading
import time
from pathlib import Path

from .inside import enter
from .world import World


def _socket_in(world: World, host: str) -> socket.socket:
    """It stays in the namespace in which it is made."""
    made: list[socket.socket] = []

    def make() -> None:
        enter(Path("/run/netns") / world.lab.spec.namespace(host))
        made.append(socket.socket())

    thread = threading.Thread(target=make, name=f"socket in {host}")
    thread.start()
    thread.join()
    return made[0]


def transfer(
    world: World, link: int, size_bytes: int, *, patience_s: float, segment_bytes: int = 0
) -> tuple[int, float]:
    """Send over plain TCP from A to B: how much has arrived when all has or patience ends, and how long that took."""
    address = str(world.lab.spec.link_address("B", link))
    with _socket_in(world, "B") as listener, _socket_in(world, "A") as sender:
        if segment_bytes:
            sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment_bytes)
        listener.bind((address, 0))
        listener.listen()
        sender.connect(listener.getsockname())
        receiver, _ = listener.accept()
        with receiver:
            sender.setblocking(False)
            waiting, arrived, begun_s = memoryview(bytes(size_bytes)), 0, time.monotonic()
            while arrived < size_bytes and time.monotonic() < begun_s + patience_s:
                readable, writable, _ = select.select([receiver], [sender] if waiting else [], [], 0.1)
                if writable:
                    waiting = waiting[sender.send(waiting[: 1 << 18]) :]
                if readable:
                    arrived += len(receiver.recv(1 << 20))
            return arrived, time.monotonic() - begun_s
