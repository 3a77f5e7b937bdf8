"""What this host has left: memory, huge pages, processors. Read anew at each call, for the fitness check."""

from __future__ import annotations

import os
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
HUGEPAGES = Path("/sys/kernel/mm/hugepages")


def memory_available_bytes(meminfo: Path = MEMINFO) -> int:
    """Bytes that programs can still take without swapping, as the kernel estimates them (MemAvailable); 0 if unknown."""
    return _meminfo_bytes("MemAvailable", meminfo)


def memory_total_bytes(meminfo: Path = MEMINFO) -> int:
    """Bytes of memory that this host has; 0 if unknown."""
    return _meminfo_bytes("MemTotal", meminfo)


def _meminfo_bytes(key: str, meminfo: Path) -> int:
    for line in meminfo.read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        number = value.strip().partition(" ")[0]
        if name == key and number.isascii() and number.isdigit() and len(number) < 20:
            return int(number) * 1024
    return 0


def free_hugepages(size_bytes: int, *, root: Path = HUGEPAGES) -> int:
    """How many huge pages of that size are free and not promised; 0 when the kernel has none of that size."""
    directory = root / f"hugepages-{size_bytes // 1024}kB"
    try:
        free = int((directory / "free_hugepages").read_text())
        return max(0, free - int((directory / "resv_hugepages").read_text()))
    except FileNotFoundError:
        return 0


def cpu_count() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))
