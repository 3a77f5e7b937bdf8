"""The direct engine at the source: QEMU sends, and this module tells it how and watches.

Order of what happens to one QEMU: :meth:`DirectSource.configure` (capabilities, parameters, the key of this journey),
:meth:`start`, then readings by :meth:`sample` and the two levers :meth:`open_latch` and :meth:`throttle`; at the end
:meth:`cancel` or nothing, and :meth:`forget`, which takes back what configure added.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from livemove.api.private_files import write_private
from livemove.base.clock import Clock
from livemove.base.errors import LivemoveError, QemuFailed, QemuGone
from livemove.hypervisor.qmp import Monitor, QemuSilent
from livemove.migration.dh_group import dh_params_pem
from livemove.policy.convergence import LOW_LATCH_S, Sample
from livemove.policy.transport import Agreement

TLS_ID = "livemove-tls"
#: Names that QEMU gives the files (crypto/tlscredspsk.c, crypto/tlscreds.c).
KEY_FILE, DH_FILE = "keys.psk", "dh-params.pem"
PAGE_BYTES = 4096
#: Without ChaCha20-Poly1305, which GnuTLS prefers with a key of this kind: AES-128-GCM costs a fraction of its CPU where the
#: processor has AES, and QEMU 10.0's clean-up of a broken copy can end the *source* in an assertion of the former, because
#: it says goodbye on a connection on which a thread is still sending (nettle's chacha-poly1305.c, 1 of 7 cancels here).
TLS_PRIORITY = "NORMAL:-CHACHA20-POLY1305"
#: For the same reason a copy is brought to a stand before it is cancelled: this rate for this long leaves its threads idle.
STANDSTILL_BYTES_PER_S, STANDSTILL_S = 1000 * 100, 0.15
#: The rate is the best seen in this long: a round of few pages says little about what the link carries.
RATE_MEMORY_S = 5.0
RATE_WINDOW_S = 0.5
#: QEMU's default of 128 MiB/s is a trap (facts.md); where nobody set a limit this one never binds.
UNLIMITED_BYTES_PER_S = 1 << 40
#: QEMU's own cancel returns at once; how long its threads may take before they are yanked.
CANCEL_PATIENCE_S = 0.7
_OVER = ("none", "cancelled", "failed", "completed")

_log = logging.getLogger(__name__)


def multifd_parameters(agreement: Agreement) -> dict[str, int | str | bool]:
    """Parameters that both QEMUs must have alike."""
    parameters: dict[str, int | str | bool] = {}
    if "multifd" in agreement.capabilities:
        parameters |= {"multifd-channels": agreement.channels, "multifd-compression": agreement.compression}
        if agreement.compression == "zstd":
            parameters["multifd-zstd-level"] = agreement.compression_level
        elif agreement.compression == "zlib":
            parameters["multifd-zlib-level"] = min(agreement.compression_level, 9)
    return parameters


async def configure_qemu(
    monitor: Monitor, capabilities: tuple[str, ...], parameters: dict[str, Any], *, psk_hex: str, psk_dir: Path, endpoint: str,
    owner_uid: int | None = None,
) -> None:  # fmt: skip
    """Set one QEMU up for a journey.

    Capabilities that are not named are switched off, since an earlier journey may have left them on. The client's key file
    is gone when this returns; a server reads its file at every handshake (GnuTLS does so for pre-shared keys), so its owner
    calls :func:`remove_keys` when the connections stand.

    :raise QemuFailed: QEMU refused one of them.
    """
    known = {item["capability"] for item in await monitor.execute("query-migrate-capabilities")}
    ours = {
        "events",
        "return-path",
        "late-block-activate",
        "multifd",
        "auto-converge",
        "xbzrle",
        "pause-before-switchover",
    }
    wanted = [
        {"capability": name, "state": name in capabilities} for name in sorted((known & ours) | set(capabilities))
    ]
    await monitor.execute("migrate-set-capabilities", {"capabilities": wanted})
    await forget_credentials(monitor)
    if psk_hex:
        psk_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        key_file = psk_dir / KEY_FILE
        write_private(key_file, f"qemu:{psk_hex}\n".encode())
        if endpoint == "server":
            write_private(psk_dir / DH_FILE, dh_params_pem())
        if owner_uid is not None:
            for path in (psk_dir, *psk_dir.iterdir()):
                os.chown(path, owner_uid, -1)
        try:
            await monitor.execute(
                "object-add",
                {
                    "qom-type": "tls-creds-psk",
                    "id": TLS_ID,
                    "dir": str(psk_dir),
                    "endpoint": endpoint,
                    "priority": TLS_PRIORITY,
                },
            )
        finally:
            if endpoint == "client":
                remove_keys(psk_dir)
    await monitor.execute("migrate-set-parameters", {**parameters, "tls-creds": TLS_ID if psk_hex else ""})


def remove_keys(psk_dir: Path) -> None:
    """Remove a journey's key file and its directory; harmless when they are gone."""
    for name in (KEY_FILE, DH_FILE):
        (psk_dir / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        psk_dir.rmdir()


async def forget_credentials(monitor: Monitor) -> None:
    """Remove this journey's key from QEMU; nothing happens when there is none."""
    with contextlib.suppress(QemuFailed):
        await monitor.execute("object-del", {"id": TLS_ID})


@dataclass(slots=True)
class Counters:
    """QEMU's counters of a copy, as last read."""

    status: str = "none"
    elapsed_s: float = 0.0
    total_bytes: int = 0
    remaining_bytes: int = 0
    wire_bytes: int = 0
    normal_pages: int = 0
    zero_pages: int = 0
    rounds: int = 0
    dirty_bytes_per_s: float = 0.0
    throttle_percent: int = 0
    throttle_peak_percent: int = 0
    downtime_ms: float | None = None
    setup_ms: float | None = None
    error: str = ""


@dataclass(slots=True)
class RateMeter:
    """Logical bytes of memory a second: the best short window of the last few seconds, zero pages not counted."""

    _readings: list[tuple[float, int]] = field(default_factory=list)
    _rates: list[tuple[float, float]] = field(default_factory=list)

    def add(self, at_s: float, sent_bytes: int) -> float:
        """The present rate, bytes per second, after a reading of all that was sent so far."""
        self._readings.append((at_s, sent_bytes))
        self._readings = [reading for reading in self._readings if reading[0] >= at_s - RATE_WINDOW_S * 2]
        start = next((r for r in reversed(self._readings[:-1]) if at_s - r[0] >= RATE_WINDOW_S), self._readings[0])
        if at_s - start[0] >= RATE_WINDOW_S / 4:
            self._rates.append((at_s, (sent_bytes - start[1]) / (at_s - start[0])))
        self._rates = [entry for entry in self._rates if entry[0] >= at_s - RATE_MEMORY_S]
        return max((rate for _, rate in self._rates), default=0.0)


class DirectSource:
    """The source's QEMU during one journey."""

    def __init__(self, monitor: Monitor, clock: Clock) -> None:
        self.monitor = monitor
        self.counters = Counters()
        self.rate_bytes_per_s = 0.0
        self.wire_rate_bytes_per_s = 0.0
        self.started_monotonic_s: float | None = None
        self.tls = False
        self._clock = clock
        self._cancelling = False
        self._meter, self._wire_meter = RateMeter(), RateMeter()

    async def blocked_reasons(self) -> list[str]:
        """Why QEMU would refuse to migrate now; empty when it would not."""
        answer = await self.monitor.execute("query-migrate")
        return [str(reason) for reason in answer.get("blocked-reasons", [])]

    async def configure(
        self,
        agreement: Agreement,
        *,
        psk_hex: str,
        psk_dir: Path,
        max_bandwidth_bytes_per_s: int,
        owner_uid: int | None,
    ) -> None:
        """Everything before ``migrate``. Raises QemuFailed."""
        self.tls = bool(psk_hex)
        parameters: dict[str, Any] = {
            **multifd_parameters(agreement),
            "max-bandwidth": max_bandwidth_bytes_per_s or UNLIMITED_BYTES_PER_S,
            "downtime-limit": max(1, round(LOW_LATCH_S * 1e3)),
        }
        if self._has_switchover(agreement):
            parameters["avail-switchover-bandwidth"] = 0
        if agreement.throttle:
            # it must be on before the copy begins; the policy lifts the limit when it decides to throttle
            parameters |= {"max-cpu-throttle": 1, "cpu-throttle-initial": 1, "cpu-throttle-increment": 10}
        await configure_qemu(
            self.monitor, agreement.capabilities, parameters, psk_hex=psk_hex, psk_dir=psk_dir, endpoint="client",
            owner_uid=owner_uid,
        )  # fmt: skip

    @staticmethod
    def _has_switchover(agreement: Agreement) -> bool:
        return any(row.feature == "avail-switchover-bandwidth" and row.used for row in agreement.rows)

    async def start(self, address: str, port: int, *, mptcp: bool = False) -> None:
        """Begin the copy. Raises QemuFailed when QEMU refuses at once."""
        inet: dict[str, Any] = {"transport": "socket", "type": "inet", "host": address, "port": str(port)}
        if mptcp:
            inet["mptcp"] = True
        self.started_monotonic_s = self._clock.monotonic_s()
        await self.monitor.execute("migrate", {"channels": [{"channel-type": "main", "addr": inet}]})

    async def read(self, *, timeout_s: float = 20) -> Counters:
        """Read QEMU's counters. Raises QemuGone, QemuSilent."""
        answer = await self.monitor.execute("query-migrate", timeout_s=timeout_s)
        ram = answer.get("ram", {})
        counters = self.counters
        counters.status = str(answer.get("status", "none"))
        counters.error = str(answer.get("error-desc", counters.error))
        counters.setup_ms = answer.get("setup-time", counters.setup_ms)
        counters.downtime_ms = answer.get("downtime", counters.downtime_ms)
        if ram:
            counters.total_bytes = int(ram["total"])
            counters.remaining_bytes = int(ram["remaining"])
            counters.wire_bytes = int(ram["transferred"])
            counters.normal_pages = int(ram["normal"])
            counters.zero_pages = int(ram["duplicate"])
            counters.rounds = int(ram["dirty-sync-count"])
            counters.dirty_bytes_per_s = float(ram.get("dirty-pages-rate", 0)) * PAGE_BYTES
        counters.throttle_percent = int(answer.get("cpu-throttle-percentage", 0))
        counters.throttle_peak_percent = max(counters.throttle_peak_percent, counters.throttle_percent)
        now = self._clock.monotonic_s()
        if self.started_monotonic_s is not None:
            counters.elapsed_s = now - self.started_monotonic_s
        if counters.status == "active":
            self.rate_bytes_per_s = self._meter.add(now, counters.normal_pages * PAGE_BYTES)
            self.wire_rate_bytes_per_s = self._wire_meter.add(now, counters.wire_bytes)
        return counters

    async def sample(self) -> Sample | None:
        """What the convergence policy looks at; None while QEMU is not copying."""
        counters = await self.read()
        if counters.status != "active" or counters.rounds < 1:
            return None
        return Sample(
            counters.elapsed_s,
            counters.rounds,
            counters.remaining_bytes,
            self.rate_bytes_per_s,
            counters.throttle_percent,
        )

    async def limit(self, bytes_per_s: int) -> None:
        """Send at most so much from now on, in all connections together; 0: no limit. Not in the blackout: QEMU lifts it there."""
        if self._cancelling:
            return  # it is being brought to a stand
        await self.monitor.execute("migrate-set-parameters", {"max-bandwidth": bytes_per_s or UNLIMITED_BYTES_PER_S})

    async def open_latch(self, latch_s: float, rate_bytes_per_s: float) -> None:
        """Let QEMU switch over when what remains fits into `latch_s` at that rate."""
        parameters: dict[str, int] = {"downtime-limit": max(1, round(latch_s * 1e3))}
        if rate_bytes_per_s > 0:
            parameters["avail-switchover-bandwidth"] = round(rate_bytes_per_s)
        await self.monitor.execute("migrate-set-parameters", parameters)

    async def throttle(self, percent: int) -> None:
        """Let auto-converge take up to `percent` of the guest's CPU time, stepwise by QEMU."""
        await self.monitor.execute(
            "migrate-set-parameters", {"max-cpu-throttle": percent, "cpu-throttle-initial": min(20, percent)}
        )

    async def cancel(self, *, resume: bool) -> None:
        """End the copy and, with `resume`, see to it that the guest runs; returns when both are so.

        QEMU's own cancel can hang on a dead path for 30 s and more (facts.md): its connections are then yanked.

        :raise QemuGone: the process went away.
        """
        self._cancelling = True
        try:
            over = await self._cancel_politely()
        except QemuSilent:
            # its main loop waits for the lock that a thread holds while it sends into a dead path
            over = False
        if not over:
            with contextlib.suppress(QemuFailed):
                await self.monitor.execute("yank", {"instances": [{"type": "migration"}]}, timeout_s=5, oob=True)
            if not await self._until_over(20):
                raise QemuFailed(
                    f"QEMU of {self.monitor.name} has not ended its migration 20 s after it was cancelled."
                )
        if resume:
            await self.ensure_running()
        await self.forget()

    async def _cancel_politely(self) -> bool:
        """Whether QEMU ended the copy as it should. Raises QemuSilent when it does not even answer."""
        if await self._sends_tls() and (await self.read(timeout_s=CANCEL_PATIENCE_S)).status == "active":
            with contextlib.suppress(QemuFailed):
                await self.monitor.execute(
                    "migrate-set-parameters", {"max-bandwidth": STANDSTILL_BYTES_PER_S}, timeout_s=CANCEL_PATIENCE_S
                )
                await asyncio.sleep(STANDSTILL_S)
        with contextlib.suppress(QemuFailed):
            await self.monitor.execute("migrate_cancel", timeout_s=CANCEL_PATIENCE_S)
        return await self._until_over(CANCEL_PATIENCE_S, answer_s=CANCEL_PATIENCE_S)

    async def _sends_tls(self) -> bool:
        """Also after a restart of the agent, which did not configure this QEMU itself."""
        with contextlib.suppress(QemuFailed):
            parameters = await self.monitor.execute("query-migrate-parameters", timeout_s=CANCEL_PATIENCE_S)
            return bool(parameters.get("tls-creds"))
        return self.tls

    async def ensure_running(self) -> None:
        """The guest runs when this returns. Raises QemuFailed when QEMU cannot run it."""
        status = await self.monitor.execute("query-status")
        if not status["running"]:
            await self.monitor.execute("cont")

    async def _until_over(self, patience_s: float, *, answer_s: float = 20) -> bool:
        deadline = self._clock.monotonic_s() + patience_s
        while True:
            if (await self.read(timeout_s=answer_s)).status in _OVER:
                return True
            if self._clock.monotonic_s() > deadline:
                return False
            await asyncio.sleep(0.01)

    async def forget(self) -> None:
        """Take back the key; harmless when there is none or QEMU is gone."""
        try:
            await forget_credentials(self.monitor)
        except QemuGone:
            pass
        except LivemoveError as error:
            _log.warning("the key of a journey could not be removed from QEMU: %s", error)
