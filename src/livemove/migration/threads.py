"""CPU time of a QEMU's migration threads, by name: what a journey costs a host (#159)."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
#: Thread names of QEMU with debug-threads=on: ``mig/src/main``, ``mig/src/send_0``, ``mig/dst/recv_0`` since 9.2 and
#: ``live_migration``, ``multifdsend_0``, ``multifdrecv_0`` before (migration/migration.h).
_PREFIXES = ("mig/", "live_migration", "multifd", "migration")


def process_cpu_seconds(pid: int) -> float:
    """CPU seconds of a whole process so far, threads that have ended included; 0 when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


class MigrationCpu:
    """Adds up what it sees at each :meth:`read`; a thread's time since the last reading before its end is missed."""

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._seen: dict[str, int] = {}

    @property
    def seconds(self) -> float:
        return sum(self._seen.values()) / _TICKS_PER_S

    def read(self) -> float:
        """CPU seconds so far, user and system, of the threads that carry the migration."""
        try:
            threads = os.listdir(self._tasks)  # noqa: PTH208  (cheaper than Path objects, ten times a second)
        except OSError:
            return self.seconds
        for thread in threads:
            try:
                stat = (self._tasks / thread / "stat").read_text()
            except OSError:
                continue
            name, _, rest = stat.partition("(")[2].rpartition(")")
            if name.startswith(_PREFIXES):
                fields = rest.split()
                self._seen[thread] = int(fields[11]) + int(fields[12])
        return self.seconds
