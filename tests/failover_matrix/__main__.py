"""All cells of the failover matrix: ``python -m tests.failover_matrix``, run by ``make failover-matrix``.

Every cell is played `--times` times, in as many rounds. A table of what it cost and the line that counts come last; the
exit code is 1 when a cell was not as expected. The JSON has every sample.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median

from tests.failover_matrix.cells import CELLS, DOWNTIME_S, MOMENTS, STALL_S, Cell
from tests.failover_matrix.harness import LINKS, MEMORY, WORKLOAD, Sample, Violation, matrix

from livemove.base.clock import SystemClock, wall_text
from livemove.base.errors import LivemoveError
from livemove.bench.machine import host_facts
from livemove.hypervisor.probe import probe_qemu

#: What of a sample is summed up in the report.
MEASURES = ("stall_ms", "downtime_ms", "client_gap_ms", "copy_ms")


class Run:
    """All samples of a run, and what was not as expected."""

    def __init__(self, cells: list[Cell], times: int, minutes: float, out: Path | None) -> None:
        self.clock = SystemClock()
        self.samples: dict[Cell, list[Sample]] = defaultdict(list)
        self.violations: dict[Cell, list[str]] = defaultdict(list)
        self._began = wall_text(self.clock.wall_s())
        self._until_s = self.clock.monotonic_s() + minutes * 60
        self._plays = [cell for _ in range(times) for cell in cells]
        self._out = out
        self._host = asdict(host_facts(asyncio.run(probe_qemu("qemu-system-x86_64"))))

    def go_on(self) -> None:
        """Until all is played or the time is over. After a violation the others are played in a new lab."""
        left, labs = list(enumerate(self._plays, 1)), 0
        while left and self.clock.monotonic_s() < self._until_s:
            labs += 1
            try:
                with matrix(f"fail{labs}-{os.getpid()}") as played:
                    fine = True
                    while left and fine and self.clock.monotonic_s() < self._until_s:
                        number, cell = left.pop(0)
                        began_s = self.clock.monotonic_s()
                        said, fine = "as expected", True
                        try:
                            sample = played.play(cell)
                            self.samples[cell].append(sample)
                            self.violations[cell] += sample.too_long
                            said = f"{sample}: {'; '.join(sample.too_long) or said}"
                        except Violation as error:
                            self.violations[cell].append(str(error).splitlines()[0])
                            said, fine = f"VIOLATION\n{error}", False
                        took_s = self.clock.monotonic_s() - began_s
                        print(f"{number}/{len(self._plays)} {took_s:5.1f} s  {cell.name}: {said}", flush=True)
                        self.write()
            except (AssertionError, LivemoveError) as error:
                print(f"lab {labs} was not taken down whole: {error}", flush=True)

    def write(self) -> None:
        """The report, as far as it has come."""
        if self._out is None:
            return
        cells = [
            {
                **asdict(cell),
                "median": _over(self.samples[cell], median),
                "max": _over(self.samples[cell], max),
                "samples": [asdict(sample) for sample in self.samples[cell]],
                "not_as_expected": self.violations[cell],
            }
            for cell in CELLS
            if self.samples[cell] or self.violations[cell]
        ]
        body = {
            "began": self._began,
            "host": self._host,
            "links": LINKS,
            "guest": {"memory": MEMORY, **asdict(WORKLOAD)},
            "bars_ms": {"stall_ms": STALL_S * 1e3, "downtime_ms": DOWNTIME_S * 1e3},
            "cells": cells,
        }
        self._out.write_text(json.dumps(body, indent=1) + "\n")

    def sum_up(self) -> int:
        """Print the table, what was not as expected, and the line that counts; the number of cells not as expected."""
        print("\nlongest stall of the copy / downtime / longest gap of the client, ms: the worst of each cell")
        rows = dict.fromkeys((cell.mode, cell.fault, cell.path) for cell in CELLS if self.samples[cell])
        print(f"{'':34}" + "".join(f"{moment:>20}" for moment in MOMENTS))
        for mode, fault, path in rows:
            columns = [self._column(Cell(fault, path, moment, mode)) for moment in MOMENTS]
            print(f"{f'{fault}, {path}, {mode}':34}" + "".join(f"{column:>20}" for column in columns))
        played = [cell for cell in CELLS if self.samples[cell] or self.violations[cell]]
        bad = [cell for cell in played if self.violations[cell]]
        print()
        for cell in bad:
            print(f"NOT AS EXPECTED {cell.name}: {'; '.join(self.violations[cell])}")
        if len(played) < len(set(self._plays)):
            print(f"{len(set(self._plays)) - len(played)} cells were not played: the time was over")
        print(f"{len(played)} cells, {len(played) - len(bad)} as expected")
        return len(bad)

    def _column(self, cell: Cell) -> str:
        worst = _over(self.samples[cell], max)
        return " / ".join(f"{worst[name]:.0f}" for name in MEASURES[:3]) if worst else ""

    @property
    def whole(self) -> bool:
        return all(self.samples[cell] or self.violations[cell] for cell in self._plays)


def _over(samples: list[Sample], of: Callable[[list[float]], float]) -> dict[str, float]:
    """Each measure over all samples of a cell; empty when there are none."""
    if not samples:
        return {}
    return {name: round(of([getattr(sample, name) for sample in samples]), 1) for name in MEASURES}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.failover_matrix")
    parser.add_argument("--minutes", type=float, default=30.0, help="begin no cell after that time")
    parser.add_argument("--times", type=int, default=1, help="how often each cell is played")
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--json", type=Path, help="where the report goes")
    arguments = parser.parse_args()
    cells = [cell for cell in CELLS if arguments.only in cell.name]
    run = Run(cells, arguments.times, arguments.minutes, arguments.json)
    try:
        run.go_on()
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    return 1 if run.sum_up() or not run.whole else 0


def _end(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
