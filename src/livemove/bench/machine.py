"""The machine that a benchmark runs on, as its report names it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from livemove import __version__
from livemove.base.clock import Clock
from livemove.bench.report import HostFacts
from livemove.hypervisor.machine_facts import cpu_count, memory_total_bytes
from livemove.hypervisor.probe import QemuFacts

CPUINFO = Path("/proc/cpuinfo")
# Of psutil's kinds of time; that of guests under KVM is in user time already.
_AT_WORK = ("user", "nice", "system", "irq", "softirq")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def host_facts(qemu: QemuFacts) -> HostFacts:
    """What this machine is, now."""
    return HostFacts(
        cpu_model=cpu_model(CPUINFO.read_text()) or platform.machine(), cores=cpu_count(), memory_bytes=memory_total_bytes(),
        kernel=platform.release(), qemu=f"{qemu.version_text} {qemu.package}".strip(), accelerator=qemu.accelerator,
        python=platform.python_version(), livemove=__version__, load_1min=load_1min(),
    )  # fmt: skip


def cpu_model(cpuinfo: str) -> str:
    """The first processor's name from the text of ``/proc/cpuinfo``; empty when it has none."""
    for line in cpuinfo.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == "model name":
            return " ".join(value.split())
    return ""


class Busyness:
    """How busy the machine was since this was made, and how much of that was not ours: it tells a disturbed sample.

    :param own_cpu_s: CPU seconds so far of everything that belongs to the benchmark.
    """

    def __init__(self, own_cpu_s: Callable[[], float], clock: Clock) -> None:
        self._own_cpu_s, self._clock = own_cpu_s, clock
        self._started_s, self._own_start_s, self._start = clock.monotonic_s(), own_cpu_s(), psutil.cpu_times()

    def cores(self) -> dict[str, float]:
        """Cores at work on average: all, those of other programs, and those that this machine's own host took (steal)."""
        change = [now - then for now, then in zip(psutil.cpu_times(), self._start, strict=True)]
        own_s, elapsed_s = self._own_cpu_s() - self._own_start_s, self._clock.monotonic_s() - self._started_s
        spent_s = dict(zip(self._start._fields, change, strict=True))
        busy_s = sum(spent_s.get(name, 0.0) for name in _AT_WORK)
        amounts_s = {"busy": busy_s, "others": max(0.0, busy_s - own_s), "stolen": spent_s.get("steal", 0.0)}
        return {f"{name}_cores": round(amount / elapsed_s, 2) for name, amount in amounts_s.items()}


def cpu_seconds_of(pids: Iterable[int]) -> float:
    """CPU seconds so far of these processes and of their children that have ended."""
    total_s = 0.0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total_s += sum(int(field) for field in fields[11:15]) / _TICKS_PER_S
    return total_s


def load_1min() -> float:
    """Runnable processes of the last minute: tells a quiet machine from a busy one."""
    return round(os.getloadavg()[0], 2)
