"""The direct engine at the destination: a port that is proved before QEMU listens on it, then QEMU's own listener.

Nobody ever probes a port that QEMU listens on: without TLS a stray connection kills or hangs it (facts.md). So our own
listener takes the port first, the source connects and gets its nonce back, we close, and QEMU takes the same port.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import socket
from collections.abc import Iterable, Sequence
from typing import Any

from livemove.base.errors import PortClosed, QemuFailed
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.hypervisor.qmp import Monitor

#: Our probe is one line; nobody who sends more is ours.
_NONCE_BYTES = 32
_PROBE_TIMEOUT_S = 5.0


class PortProbe:
    """Our own listener on the port that QEMU will take; answers whoever knows the nonce with the nonce."""

    def __init__(self, server: asyncio.Server, port: int, nonce: str) -> None:
        self._server = server
        self.port = port
        self.nonce = nonce
        #: by address of ours the one from which the nonce came, as this host sees it
        self.sources: dict[str, str] = {}

    @classmethod
    async def open(cls, addresses: Sequence[str], ports: Iterable[int], taken: set[int]) -> PortProbe:
        """Listen on the first port that is free on all `addresses`; with several of them, on all that the host has.

        Raises PortClosed when all are in use, or an address is not ours.
        """
        nonce = secrets.token_hex(_NONCE_BYTES)
        probe: PortProbe | None = None

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(_PROBE_TIMEOUT_S):
                    said = await reader.readexactly(len(nonce))
                    if secrets.compare_digest(said, nonce.encode()):
                        if probe is not None:
                            ours, theirs = writer.get_extra_info("sockname")[0], writer.get_extra_info("peername")[0]
                            probe.sources[str(ours)] = str(theirs)
                        writer.write(said)
                        await writer.drain()
                        await reader.read(1)  # the source closes first, so that TIME_WAIT is not on our port
            writer.close()

        for port in ports:
            if port in taken:
                continue
            try:
                if len(addresses) > 1:
                    _try_any_address(port, like=addresses[0])
                server = await asyncio.start_server(answer, addresses, port, backlog=4, limit=4096)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise PortClosed(
                    f"The destination cannot listen on {', '.join(addresses)}: {os.strerror(error.errno or 0)}.",
                    remedy="Set 'migration_address' and 'incoming' of the destination to addresses that it has.",
                ) from error
            probe = cls(server, port, nonce)
            return probe
        raise PortClosed(
            "All ports of the destination's 'port_range' are in use.", remedy="Widen 'port_range' on the destination."
        )

    async def close(self) -> None:
        """Stop listening; the port is free when this returns. May be called twice."""
        self._server.close()
        # a stranger's idle connection must not hold the journey up, and does not hold the port
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await self._server.wait_closed()


def any_address(like: str) -> str:
    """All addresses of the host, of the family of `like`: where QEMU listens for several networks."""
    return "::" if ":" in like else "0.0.0.0"


def _try_any_address(port: int, *, like: str) -> None:
    """Raises OSError when QEMU could not listen there, as for a port that the kernel has given to an outgoing connection.

    It is in use then until a minute after that connection's end, on the address that it has, and so on all together.
    """
    family = socket.AF_INET6 if ":" in like else socket.AF_INET
    with socket.socket(family) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tried.bind((any_address(like), port))


async def probe_port(address: str, port: int, nonce: str, *, source: str = "") -> float:
    """Connect to a :class:`PortProbe` from the source; the round trip in seconds.

    :param source: the address of ours to come from; empty: what the routes say.

    Raises PortClosed naming address and port: refused, no answer within 5 s, or somebody else answers there.
    """
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    target = f"TCP port {port} of {address}"
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            local = (source, 0) if source else None
            reader, writer = await asyncio.open_connection(address, port, local_addr=local)
            try:
                writer.write(nonce.encode())
                answer = await reader.readexactly(len(nonce))
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError as error:
        raise PortClosed(
            f"{target} did not answer within {_PROBE_TIMEOUT_S:.0f} s; a packet filter seems to drop it."
        ) from error
    except (OSError, asyncio.IncompleteReadError) as error:
        raise PortClosed(f"{target} cannot be reached from the source: {error}.") from error
    if answer != nonce.encode():
        raise PortClosed(f"Something else than livemove answers on {target}.")
    return loop.time() - started_s


async def listen_in_qemu(monitor: Monitor, address: str, port: int, *, mptcp: bool = False) -> None:
    """Let QEMU listen. Raises QemuFailed (the port was taken between our probe and now, or QEMU refuses)."""
    inet: dict[str, Any] = {"transport": "socket", "type": "inet", "host": address, "port": str(port)}
    if mptcp:
        inet["mptcp"] = True
    await monitor.execute("migrate-incoming", {"channels": [{"channel-type": "main", "addr": inet}]})


class LoadedWatch:
    """Knows whether a destination's QEMU has loaded everything, from its events."""

    def __init__(self, monitor: Monitor) -> None:
        self._done = asyncio.Event()
        self.status = "none"
        self._unsubscribe = monitor.listen(self._heard)

    def _heard(self, event: Any) -> None:
        if event.name == "MIGRATION":
            self.status = str(event.data.get("status", ""))
            if self.status in ("completed", "failed"):
                self._done.set()

    async def wait(self, timeout_s: float) -> None:
        """Return when QEMU has loaded everything. Raises QemuFailed when it failed or does not get there in time."""
        waiting = spawn(self._done.wait(), name="wait for the destination to load")
        try:
            async with asyncio.timeout(timeout_s):
                await waiting
        except TimeoutError as error:
            raise QemuFailed(f"The destination's QEMU has not loaded the VM within {timeout_s:g} s.") from error
        finally:
            await cancel_and_wait(waiting)
        if self.status != "completed":
            raise QemuFailed("The destination's QEMU failed to load the VM.")

    def close(self) -> None:
        self._unsubscribe()
