"""The direct engine at the destination: a port that is proved before QEMU listens on it, then QEMU's own listener.

Nobody ever probes a port that QEMU listens on: without TLS a stray connection kills or hangs it (facts.md). So our own
listener takes the port first, the source connects and gets its nonce back, we close, and QEMU takes the same port.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import os
import secrets
import socket
from collections.abc import Iterable
from typing import Any

from livemove.base.errors import HypervisorError, MissingPrerequisite, PeerViolation, PortClosed, QemuFailed
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.hypervisor.qmp import Monitor

#: Our probe is one line; nobody who sends more is ours.
_NONCE_BYTES = 32
_PROBE_TIMEOUT_S = 5.0


class PortProbe:
    """Our own listener on the port that QEMU will take; answers whoever knows the nonce with the nonce."""

    def __init__(self, server: asyncio.Server, address: str, port: int, nonce: str) -> None:
        self._server = server
        self.address = address
        self.port = port
        self.nonce = nonce
        #: the address from which the nonce came, as this host sees it; empty until then
        self.source = ""

    @classmethod
    async def open(cls, address: str, ports: Iterable[int], taken: set[int]) -> PortProbe:
        """Listen on the first free port. Raises PortClosed when all are in use, or the address is not ours."""
        nonce = secrets.token_hex(_NONCE_BYTES)
        probe: PortProbe | None = None

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(_PROBE_TIMEOUT_S):
                    said = await reader.readexactly(len(nonce))
                    if secrets.compare_digest(said, nonce.encode()):
                        if probe is not None:
                            probe.source = str(writer.get_extra_info("peername")[0])
                        writer.write(said)
                        await writer.drain()
                        await reader.read(1)  # the source closes first, so that TIME_WAIT is not on our port
            writer.close()

        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for port in ports:
            if port in taken:
                continue
            try:
                server = await asyncio.start_server(answer, address, port, family=family, backlog=4, limit=4096)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise PortClosed(
                    f"The destination cannot listen on {address}: {os.strerror(error.errno or 0)}.",
                    remedy="Set 'migration_address' of the destination to an address that it has.",
                ) from error
            probe = cls(server, address, port, nonce)
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


async def probe_port(address: str, port: int, nonce: str) -> float:
    """Connect to a :class:`PortProbe` from the source; the round trip in seconds.

    Raises PortClosed naming address and port: refused, no answer within 5 s, or somebody else answers there.
    """
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    target = f"TCP port {port} of {address}"
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(address, port)
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


async def listen_in_qemu(monitor: Monitor, address: str, port: int) -> None:
    """Let QEMU listen. Raises QemuFailed (the port was taken between our probe and now, or QEMU refuses)."""
    inet = {"transport": "socket", "type": "inet", "host": address, "port": str(port)}
    await monitor.execute("migrate-incoming", {"channels": [{"channel-type": "main", "addr": inet}]})


# A packet filter, so that nobody but the source reaches QEMU's port ---------------------------------------------------
#
# Without TLS it is what keeps strangers out. With TLS their handshake fails, but QEMU then ends the whole journey, or waits
# for them in a channel's place: the filter is what keeps a stranger from disturbing it.


def filter_name(journey: str) -> str:
    """The nftables table of a journey."""
    return f"livemove_{journey.replace('-', '_')}"


def filter_rules(journey: str, source: str, port: int) -> str:
    """A ruleset that admits only `source` to `port`; for ``nft -f``. Raises PeerViolation when `source` is no address."""
    try:
        address = ipaddress.ip_address(source.partition("%")[0])
    except ValueError as error:
        raise PeerViolation(f"{source!r:.60} is no address that a source can have.") from error
    family, source = ("ip6" if address.version == 6 else "ip"), str(address)
    return (
        f"table inet {filter_name(journey)} {{\n"
        "  chain input {\n"
        "    type filter hook input priority -10; policy accept;\n"
        f"    tcp dport {port} {family} saddr != {source} drop\n"
        f"    tcp dport {port} meta nfproto {'ipv4' if family == 'ip6' else 'ipv6'} drop\n"
        "  }\n"
        "}\n"
    )


async def admit_only(journey: str, source: str, port: int) -> None:
    """Put the packet filter in place before QEMU listens. Raises MissingPrerequisite when nft cannot."""
    await _nft(filter_rules(journey, source, port))


async def remove_filter(journey: str) -> None:
    """Take the packet filter away; harmless when there is none."""
    with contextlib.suppress(HypervisorError, MissingPrerequisite):
        await _nft(f"table inet {filter_name(journey)}\ndelete table inet {filter_name(journey)}\n")


async def list_filters() -> list[str]:
    """The tables that may be filters of journeys, anybody's; none where there is no nft."""
    try:
        process = await asyncio.create_subprocess_exec(
            "nft", "-j", "list", "tables",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        return []
    said, _ = await process.communicate()
    return read_filters(said)


def read_filters(said: bytes) -> list[str]:
    """:func:`list_filters` on the text that nft printed; none when it printed something else."""
    try:
        entries = json.loads(said or b"{}").get("nftables", [])
        tables = [entry["table"] for entry in entries if "table" in entry]
        return [str(table["name"]) for table in tables if table["family"] == "inet"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []


async def _nft(rules: str) -> None:
    remedy = "Install nftables and give the agent CAP_NET_ADMIN, or use TLS (empty 'trusted_networks')."
    try:
        process = await asyncio.create_subprocess_exec(
            "nft",
            "-f",
            "-",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise MissingPrerequisite(
            "There is no 'nft' program for the packet filter of a journey.", remedy=remedy
        ) from error
    _, said = await process.communicate(rules.encode())
    if process.returncode:
        raise MissingPrerequisite(
            f"nft refused the packet filter: {said.decode(errors='replace').strip()[:300]}.", remedy=remedy
        )


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
