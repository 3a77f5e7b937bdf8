"""The kill matrix: who is killed, stopped or cut off, exactly where, and what must become of the VM.

A row is a fault point (migration/points.py): a journey is stopped there, then the victim is struck, then the journey goes
on, then the victim comes back: a killed agent is restarted, a stopped process continued, the network healed.

What must be true at the end is written here, before anything is run:

| S | the VM runs at the source, the journey has failed                                            |
| C | the VM runs at the source, the journey was cancelled                                         |
| D | the VM runs at the destination, the journey has completed                                    |
| E | S or D, whichever of two messages came first: exactly one                                    |
| X | the source's QEMU died and nobody else had the VM: it crashed at the source, reported as that |
| Y | the destination's QEMU died after the VM was handed over: it crashed there                   |
| Z | as X, but the journey's end may have been on record when its QEMU died: cancelled or failed  |
| . | there is nothing to strike; see LEFT_OUT                                                     |

A `u` before it: until the victim comes back the source knows that it does not know, and lets nobody run the VM.
A `+` after it: one of the cells that `make test` runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

VICTIMS = (
    "source agent", "destination agent", "both agents", "destination QEMU", "source QEMU", "source host", "destination host",
    "network",
)  # fmt: skip
#: columns of the table: victim and how it is struck
COLUMNS = (
    *((victim, "kill") for victim in VICTIMS[:-1]),
    *((victim, "stop") for victim in VICTIMS[:-1]),
    ("network", "drop"),
)

#: In a plain journey. Columns: killed SA DA SA+DA DQ SQ SH DH, stopped the same, network dropped.
PLAIN = """
                                        kill                                    stop                                  drop
                                        SA   DA   2A   DQ   SQ   SH   DH        SA   DA   2A   DQ   SQ   SH   DH        net
source.journal.after.created            S    S    S    .    X    X    S         D    D    D    .    D    D    D         D
destination.journal.after.grant         S    S+   S    .    X    X    S         D    D    D    .    D    D    D         D
destination.before.start-qemu           S    S    S    .    X    X    S         D    D    D    .    D    D    D         D
destination.after.start-qemu            S+   S+   S    S    X    X    S         D    D    D    D    D    D    D         D
source.after.OpenConnection             S    S    S    S    X+   X    S         D    D    D    D    D    D    D         D
source.before.ArmHandOver               S    S    S+   S+   X+   X    S         D    D    D    D    D    D    D         D+
destination.journal.before.armed        S    S    S    S    X    X    S         D    D    D    D    D    D    D         D
destination.journal.after.armed         S    S    S    S    X    X    S+        D    D    D    D    D    D    D         D
source.journal.after.HandOverArmed      S+   S    S    S    X    X+   S         D    D    D    D    D    D    D         D
source.journal.before.CopyCompleted     S+   uS   S    S    D    X    uS        D    D    D    D    D    D    D         uE
source.before.SendGo                    S+   uS+  S+   S+   D+   D+   uS        D+   D    D    D    D+   D    D+        uE+
destination.journal.before.owned        D+   uS+  S    S    D    D    uS+       D    uD   D    D    D    D    D         uD
destination.journal.after.owned         D    uD+  D+   S+   D    D    uY        D    uD   D    D    D    D    D         uD+
destination.after.resume-guest          D    uD+  D    Y+   D+   D    uY        D    uD   D    D    D    D    D         uD
source.after.SendGo                     D+   D    D    Y+   D    D+   Y         D    D    D    D    D    D    D         D
source.before.RemoveSource              D    D    D    Y    D    D    Y         D    D    D    D    D    D    D         D
source.journal.before.SourceRemoved     D    D    D    Y    .    D    Y         D    D    D    D    .    D    D         D
destination.journal.before.settled      D    D+   D    Y    .    .    Y         D    D    D    D    .    .    D         D
"""

#: In a journey that is cancelled while it copies.
CANCELLED = """
                                        kill                                    stop                                  drop
                                        SA   DA   2A   DQ   SQ   SH   DH        SA   DA   2A   DQ   SQ   SH   DH        net
source.before.CancelCopy                C    C    C    C    X    X    C         C    C    C    C    C    C    C         C
source.after.CancelCopy                 C+   C    C    .    Z    X    C         C    C    C    .    C    C    C         C
destination.before.kill-qemu            C    C+   C    C    X    X    C         C    C    C    C    C    C    C         C
destination.journal.before.abandoned    C    C    C    .    X    X    .         C    C    C    .    C    C    .         C
destination.request.after.abandon       C    C    C    .    X    X    .         C    C    C    .    C    C    .         C
"""

#: In a journey with --verify full. A guest that was not verified is never given away, so its host's crash is its own.
VERIFIED = """
                                        kill                                    stop                                  drop
                                        SA   DA   2A   DQ   SQ   SH   DH        SA   DA   2A   DQ   SQ   SH   DH        net
source.before.VerifyMemory              S    S    S    S    X    X    S         D    D    D    D    D    D    D         D
destination.request.before.digests      S+   S    S    S    X    X    S         D    D    D    D    D    D    D         D
source.journal.after.MemoryVerified     S    uS   S    S    D    D    uS        D    D    D    D    D    D    D         uE
"""

LEFT_OUT = {
    "destination QEMU": "no such process at that point: not started yet, or ended already, or ending as the copy does",
    "source QEMU": "it has been removed, or is just being removed by its agent",
    "source host": "its QEMU is just being removed: the row above is the same with a certain moment",
    "destination host": "its QEMU has ended already: the same as the destination agent alone",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the matrix.

    :param unknown: whether the owner is unknown until the victim comes back.
    :param in_ci: whether `make test` runs it.
    :param kind: of journey: a plain one, one that is cancelled while it copies, one with --verify full.
    """

    point: str
    victim: str
    how: str
    end: str
    unknown: bool
    in_ci: bool
    kind: Literal["", "cancelled", "verified"]

    @property
    def name(self) -> str:
        return f"{self.point}, {self.victim}, {self.how}{', ' if self.kind else ''}{self.kind}"


def _read(table: str, kind: Literal["", "cancelled", "verified"]) -> tuple[list[Cell], list[tuple[str, str]]]:
    cells, left_out = [], []
    for line in table.strip().splitlines()[2:]:
        point, *words = line.split()
        assert len(words) == len(COLUMNS), line
        for (victim, how), word in zip(COLUMNS, words, strict=True):
            if word == ".":
                left_out.append((point, victim))
                continue
            end = word.strip("u+")
            assert end in ("S", "C", "D", "E", "X", "Y", "Z"), line
            cells.append(Cell(point, victim, how, end, word.startswith("u"), word.endswith("+"), kind))
    return cells, left_out


_plain, _plain_left_out = _read(PLAIN, "")
_cancelled, _cancelled_left_out = _read(CANCELLED, "cancelled")
_verified, _verified_left_out = _read(VERIFIED, "verified")
CELLS = (*_plain, *_cancelled, *_verified)
#: (point, victim), both ways of striking
NOT_IN_IT = tuple(dict.fromkeys((*_plain_left_out, *_cancelled_left_out, *_verified_left_out)))
