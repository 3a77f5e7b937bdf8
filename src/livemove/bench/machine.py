"""The machine that a benchmark runs on, as its report names it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from livemove import __version__
from livemove.bench.report import HostFacts
from livemove.hypervisor.machine_facts import cpu_count, memory_total_bytes
from livemove.hypervisor.probe import QemuFacts

CPUINFO = Path("/proc/cpuinfo")


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


def load_1min() -> float:
    """Runnable processes of the last minute: tells a quiet machine from a busy one."""
    return round(os.getloadavg()[0], 2)
