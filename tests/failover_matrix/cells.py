"""The failover matrix: what befalls one of two paths, which one, when, and what must become of the journey.

Always: the journey completes, the guest's memory is right, there is exactly one VM, and both hosts' networks are as before.
The copy never stands still for STALL_S, and the guest not for DOWNTIME_S.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: The longest that nothing may arrive while the guest runs at the source.
STALL_S = 0.5
#: The longest that the guest may stand still, as the report has it.
DOWNTIME_S = 0.8
#: How long a fault lasts that heals.
HEAL_S = 1.5

Fault = Literal["cut", "hole", "hole out", "hole in", "cut, healed", "hole, healed", "added"]
#: The carrier goes; all vanishes; what the source sends vanishes; what the destination sends vanishes; the first two for
#: HEAL_S; there was no carrier, and now there is one.
FAULTS: tuple[Fault, ...] = ("cut", "hole", "hole out", "hole in", "cut, healed", "hole, healed", "added")
#: Links of the lab. The first connections are made over the primary path, unless it is the one that is added later.
PATHS = {"primary": 0, "secondary": 1}
#: Shares of the memory that have arrived, and the moment at which the guest stops at the source.
MOMENTS = ("10 %", "50 %", "90 %", "switch-over")
PLAIN, COMPRESSED = MODES = ("plain", "zstd+TLS")
#: With compression and encryption the same connections carry other bytes, so the ends of the scale suffice.
MOMENTS_OF = {PLAIN: MOMENTS, COMPRESSED: ("10 %", "switch-over")}


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell."""

    fault: Fault
    path: str
    moment: str
    mode: str

    @property
    def name(self) -> str:
        return f"{self.fault}, {self.path}, {self.moment}, {self.mode}"

    @property
    def link(self) -> int:
        """Of the lab."""
        return PATHS[self.path]

    @property
    def share(self) -> float | None:
        """Of the memory; None at the switch-over."""
        return None if self.moment == "switch-over" else float(self.moment.split()[0]) / 100

    @property
    def in_ci(self) -> bool:
        """Whether `make test` plays it."""
        return (self.fault, self.path, self.moment, self.mode) in _IN_CI


_IN_CI = {
    ("cut", "primary", "10 %", PLAIN),
    ("hole in", "primary", "50 %", PLAIN),
    ("hole out", "secondary", "10 %", COMPRESSED),
    ("hole, healed", "primary", "10 %", PLAIN),
    ("hole", "primary", "switch-over", PLAIN),
    ("cut", "secondary", "switch-over", PLAIN),
}

CELLS = [
    Cell(fault, path, moment, mode)
    for mode in MODES
    for fault in FAULTS
    for path in PATHS
    for moment in MOMENTS_OF[mode]
]
