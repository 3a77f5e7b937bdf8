"""The machine that a benchmark runs on, as its report names it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

from livemove import __version__
from livemove.bench.report import HostFacts
from livemove.hypervisor.machine_facts import cpu_count, memory_total_bytes
from livemove.hypervisor.probe import QemuFacts

CPUINFO = Path("/proc/cpuinfo")
_KINDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


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
    """How busy the machine was since this was made: other programs' work is in it, and tells a disturbed sample."""

    def __init__(self) -> None:
        self._start = psutil.cpu_times()

    def cores(self) -> dict[str, float]:
        """Cores at work, and cores that the machine's own host took away (steal), on average."""
        change = [now - then for now, then in zip(psutil.cpu_times(), self._start, strict=True)]
        spent = dict(zip(self._start._fields, change, strict=True))
        # guest time is in user time already
        total_s = sum(spent.get(name, 0.0) for name in _KINDS)
        busy_s = total_s - spent["idle"] - spent.get("iowait", 0.0) - spent.get("steal", 0.0)
        scale = cpu_count() / total_s if total_s > 0 else 0.0
        return {"busy_cores": round(busy_s * scale, 2), "stolen_cores": round(spent.get("steal", 0.0) * scale, 2)}


def load_1min() -> float:
    """Runnable processes of the last minute: tells a quiet machine from a busy one."""
    return round(os.getloadavg()[0], 2)
