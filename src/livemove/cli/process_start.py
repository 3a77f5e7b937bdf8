"""When this command was typed, as far as the kernel knows: before Python began to start."""

from __future__ import annotations

import os
from pathlib import Path

from livemove.base.clock import Clock

# A command that has run for longer before it asks was kept waiting, not starting.
_LONGEST_START_S = 60.0


def process_start_s(clock: Clock) -> float:
    """The monotonic time at which this process began, within 10 ms; the present one when that cannot be known.

    The kernel counts a process's start from the boot, the time asleep (suspend) included, which the monotonic clock
    leaves out: on a machine that slept, the answer lies in the future and is not used.
    """
    now_s = clock.monotonic_s()
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return now_s
    started_s = ticks / os.sysconf("SC_CLK_TCK")
    return started_s if 0 <= now_s - started_s <= _LONGEST_START_S else now_s
