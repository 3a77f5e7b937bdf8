"""A guest that stock QEMU moves, driven plainly by hand over QMP, as its manual tells it.

What is the same as under livemove: command line, memory and its preallocation, namespaces and link, connections, TLS with
a pre-shared key, compression, an unlimited ``max-bandwidth``. What livemove adds is left out: the destination resumes the
guest by itself (no ``-S``, no ``late-block-activate``), the source does not wait for its word (no ``return-path``), and
QEMU alone decides when to switch over (``downtime-limit`` at its default of 300 ms).
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from livemove.base.errors import JourneyFailed, LivemoveError, QemuFailed, QemuGone
from livemove.bench.report import Sample
from livemove.bench.scenario import Scenario
from livemove.bench.testbed import HOSTS, IDENTITIES, Testbed
from livemove.hypervisor.command_line import QMP_SOCKET, Place, command_line
from livemove.hypervisor.definition import parse_definition
from livemove.hypervisor.frozen import FrozenVm, freeze
from livemove.hypervisor.memory import populate
from livemove.hypervisor.process import QemuProcess, start_ticks
from livemove.hypervisor.qmp import MONITOR_CLOSED, Monitor, QmpEvent
from livemove.lab.topology import GUEST_BRIDGE
from livemove.migration.direct import UNLIMITED_BYTES_PER_S, configure_qemu, remove_keys
from livemove.migration.receiving import listen_in_qemu

# Beside the ports that the agents give out.
PORT = 49400
TAP = "lmstock0"
START_TIMEOUT_S, COPY_TIMEOUT_S = 20.0, 180.0
UUID = "5f0e1d2c-0000-4000-8000-00000000be01"
_POLL_S = 0.01


@dataclass(slots=True)
class Qemu:
    """One QEMU of ours in the lab."""

    pid: int
    monitor: Monitor


class Moments:
    """When events of two QEMUs were first heard, by one clock in one process; and a wait for any of them."""

    def __init__(self) -> None:
        self.at_s: dict[str, float] = {}
        self._news = asyncio.Event()

    def hear(self, side: str, event: QmpEvent) -> None:
        """For Monitor.listen."""
        which = {"MIGRATION": "status", "MIGRATION_PASS": "pass"}.get(event.name)
        suffix = f" {event.data.get(which)}" if which is not None else ""
        self.at_s.setdefault(f"{side} {event.name}{suffix}", event.received_monotonic_s)
        self._news.set()

    async def until(self, *wanted: str) -> None:
        """Return when all of the wanted were heard. Raises QemuFailed when a side failed or went away instead."""
        while not all(name in self.at_s for name in wanted):
            for side in ("source", "destination"):
                for end in ("MIGRATION failed", MONITOR_CLOSED):
                    if f"{side} {end}" in self.at_s:
                        raise QemuFailed(f"Stock QEMU's migration failed at the {side}.")
            self._news.clear()
            await self._news.wait()


class StockGuest:
    """See testbed.MeasuredGuest."""

    identity = IDENTITIES["stock"]

    def __init__(self, bed: Testbed) -> None:
        self._bed = bed
        self.host = HOSTS[0]
        self._qemus: dict[str, Qemu] = {}
        definition = parse_definition(bed.definition(self.identity))
        self._frozen: FrozenVm = freeze(definition, bed.qemu, uuid=UUID, mac_for=lambda _: self.identity.mac)

    def _run_dir(self, host: str) -> Path:
        return self._bed.lab.directory(host) / "run" / "stock"

    async def start(self) -> None:
        await self._launch(self.host, incoming=False)
        await self._bed.until_ready(self)

    async def pause(self) -> None:
        await self._qemus[self.host].monitor.execute("stop")

    async def resume(self) -> None:
        await self._qemus[self.host].monitor.execute("cont")

    async def pid(self) -> int:
        return self._qemus[self.host].pid

    async def move(self, destination: str, scenario: Scenario) -> Sample:
        source = self._qemus[self.host]
        arriving = await self._launch(destination, incoming=True)
        (link,) = self._bed.comparison.links_of(scenario)
        address = str(self._bed.lab.spec.link_address(destination, link))
        await self._configure(source, arriving, address, scenario)
        moments = Moments()
        ends = [
            source.monitor.listen(lambda event: moments.hear("source", event)),
            arriving.monitor.listen(lambda event: moments.hear("destination", event)),
        ]
        try:
            began_s = self._bed.clock.monotonic_s()
            inet = {"transport": "socket", "type": "inet", "host": address, "port": str(PORT)}
            await source.monitor.execute("migrate", {"channels": [{"channel-type": "main", "addr": inet}]})
            async with asyncio.timeout(COPY_TIMEOUT_S):
                await moments.until("source STOP", "source MIGRATION completed", "destination RESUME")
        except TimeoutError as error:
            raise JourneyFailed(f"Stock QEMU had not moved its guest after {COPY_TIMEOUT_S:.0f} s.") from error
        finally:
            for end in ends:
                end()
            for host in HOSTS:
                remove_keys(self._run_dir(host) / "keys")
        counters = await source.monitor.execute("query-migrate")
        await self._end(self.host)
        self.host = destination
        return stock_sample(began_s, moments.at_s, counters)

    async def _configure(self, source: Qemu, arriving: Qemu, address: str, scenario: Scenario) -> None:
        parameters: dict[str, Any] = {
            "multifd-channels": scenario.channels, "multifd-compression": scenario.compression,
        }  # fmt: skip
        psk_hex = secrets.token_hex(32) if scenario.tls else ""
        capabilities = ("events", "multifd")
        await configure_qemu(
            arriving.monitor, capabilities, parameters, psk_hex=psk_hex, endpoint="server",
            psk_dir=self._keys(arriving),
        )  # fmt: skip
        await listen_in_qemu(arriving.monitor, address, PORT)
        parameters["max-bandwidth"] = UNLIMITED_BYTES_PER_S
        await configure_qemu(
            source.monitor, capabilities, parameters, psk_hex=psk_hex, endpoint="client", psk_dir=self._keys(source)
        )

    def _keys(self, qemu: Qemu) -> Path:
        host = next(host for host, known in self._qemus.items() if known is qemu)
        return self._run_dir(host) / "keys"

    async def _launch(self, host: str, *, incoming: bool) -> Qemu:
        """A QEMU that obeys, its memory allocated if the scenario says so."""
        run_dir = self._run_dir(host)
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        await self._make_tap(host)
        place = Place(run_dir, self._bed.qemu.accelerator, (TAP,), Path("/dev/vhost-net").exists())
        argv = command_line(self._frozen, place, qemu=self._bed.qemu.path, incoming=incoming)
        if incoming:
            argv.remove("-S")
        log = run_dir / "qemu.log"
        pid = self._bed.lab.start_process(host, argv, log=log, label="stock QEMU")
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                monitor = await self._connect(pid, run_dir, log)
        except TimeoutError as error:
            raise QemuFailed(f"QEMU {pid} did not answer within {START_TIMEOUT_S:g} s of its start.") from error
        self._qemus[host] = Qemu(pid, monitor)
        if self._frozen.populate:
            await populate(QemuProcess(self.identity.name, pid, start_ticks(pid) or 0), self._frozen)
        return self._qemus[host]

    async def _connect(self, pid: int, run_dir: Path, log: Path) -> Monitor:
        while True:
            try:
                monitor = await Monitor.connect(run_dir / QMP_SOCKET, name=self.identity.name, clock=self._bed.clock)
            except QemuGone as error:
                if start_ticks(pid) is None:
                    said = log.read_text(errors="replace").strip()[-300:]
                    raise QemuFailed(f"QEMU ended at its start: {said}") from error
                await asyncio.sleep(_POLL_S)
                continue
            await monitor.execute("query-status")  # answered when the machine stands
            return monitor

    async def _make_tap(self, host: str) -> None:
        ip = self._bed.lab.tools.ip
        namespace = self._bed.lab.spec.namespace(host)
        await ip(
            namespace,
            [f"tuntap add dev {TAP} mode tap vnet_hdr", f"link set {TAP} master {GUEST_BRIDGE}", f"link set {TAP} up"],
        )

    async def _end(self, host: str) -> None:
        """End the QEMU that the guest has left."""
        qemu = self._qemus.pop(host)
        await qemu.monitor.close()
        await self._bed.lab.end_process(qemu.pid)
        await self._bed.lab.tools.ip(self._bed.lab.spec.namespace(host), [f"link del {TAP}"])

    def consoles(self) -> list[Path]:
        return [self._run_dir(host) / "console.log" for host in HOSTS]

    async def close(self) -> None:
        """Let go of the QEMUs; the lab's removal ends them."""
        while self._qemus:
            _, qemu = self._qemus.popitem()
            try:
                await qemu.monitor.close()
            except LivemoveError:
                continue


def stock_sample(began_s: float, at_s: dict[str, float], counters: dict[str, Any]) -> Sample:
    """The sample that events and QEMU's own counters make.

    :param began_s: when ``migrate`` was sent; livemove's reports count from the same moment.
    :param at_s: when each event was heard, by the same clock.
    """
    ram = counters["ram"]
    return {
        "copy_ms": round((at_s["source MIGRATION completed"] - began_s) * 1e3, 2),
        "first_round_ms": round((at_s["source MIGRATION_PASS 2"] - began_s) * 1e3, 2),
        "downtime_ms": round((at_s["destination RESUME"] - at_s["source STOP"]) * 1e3, 3),
        "downtime_qemu_ms": counters.get("downtime"),
        "setup_ms": counters.get("setup-time"),
        "rounds": int(ram["dirty-sync-count"]),
        "wire_bytes": int(ram["transferred"]),
        "normal_pages": int(ram["normal"]),
        "zero_pages": int(ram["duplicate"]),
    }
