"""TCP flows and their rate: python -m tests.bandwidth.flow sink PORT | send ADDRESS PORT STREAMS SECONDS

A sink prints one JSON object a tenth of a second: the bytes received since it started, by the sender's address.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import threading
import time
from collections import Counter

_PIECE = bytes(1 << 18)


def sink(port: int) -> None:
    counted: Counter[str] = Counter()
    with socket.create_server(("0.0.0.0", port), backlog=64) as server, selectors.DefaultSelector() as ready:
        server.setblocking(False)
        ready.register(server, selectors.EVENT_READ)
        print("ready", flush=True)
        due_s = time.monotonic()
        scratch = bytearray(1 << 20)
        while True:
            for key, _ in ready.select(max(0.0, due_s - time.monotonic())):
                if key.fileobj is server:
                    connection, (peer, _) = server.accept()
                    connection.setblocking(False)
                    ready.register(connection, selectors.EVENT_READ, peer)
                    continue
                try:
                    got = key.fileobj.recv_into(scratch)  # type: ignore[union-attr]
                except BlockingIOError:
                    continue
                except OSError:
                    got = 0
                counted[key.data] += got
                if not got:
                    ready.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
            if time.monotonic() >= due_s:
                print(json.dumps({"at_s": time.monotonic(), **counted}), flush=True)
                due_s += 0.1


def send(address: str, port: int, streams: int, seconds: float) -> None:
    end_s = time.monotonic() + seconds

    def one() -> None:
        with socket.create_connection((address, port)) as connection:
            connection.settimeout(1.0)
            while time.monotonic() < end_s:
                try:
                    connection.send(_PIECE)
                except TimeoutError:
                    continue
                except ConnectionError:
                    return  # the sink is gone

    threads = [threading.Thread(target=one, daemon=True) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 2)


if __name__ == "__main__":
    if sys.argv[1] == "sink":
        sink(int(sys.argv[2]))
    else:
        send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
