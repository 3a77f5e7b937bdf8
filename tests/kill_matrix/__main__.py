"""All cells of the kill matrix: ``python -m tests.kill_matrix``, run by ``make kill-matrix``.

The shards play side by side, each in a lab of its own. The summary by victim and the line that counts come last; the exit
code is 1 when there was a violation.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from tests.kill_matrix.cells import CELLS, COLUMNS, LEFT_OUT, NOT_IN_IT, VICTIMS, Cell
from tests.kill_matrix.harness import Violation, matrix

from livemove.base.clock import SystemClock
from livemove.base.errors import LivemoveError


def play(cells: list[Cell], name: str, until_s: float, results: Path) -> None:
    """Play `cells` until the clock says `until_s`; a line of JSON for each goes to `results`.

    After a violation the others are played in a new lab, so that each is judged by itself.
    """
    clock, left, labs = SystemClock(), list(enumerate(cells, 1)), 0
    while left and clock.monotonic_s() <= until_s:
        labs += 1
        try:
            with matrix(f"{name}-{labs}") as played, results.open("a") as out:
                violation = ""
                while left and not violation and clock.monotonic_s() <= until_s:
                    number, cell = left.pop(0)
                    began_s = clock.monotonic_s()
                    try:
                        played.play(cell)
                    except Violation as error:
                        violation = str(error)
                    took_s = clock.monotonic_s() - began_s
                    said = "VIOLATION" if violation else "as expected"
                    print(f"{number}/{len(cells)} {took_s:5.1f} s  {cell.end}  {cell.name}: {said}", flush=True)
                    if violation:
                        print(violation, flush=True)
                    out.write(json.dumps({"cell": asdict(cell), "violation": violation}) + "\n")
                    out.flush()
        except (AssertionError, LivemoveError) as error:
            print(f"lab {name}-{labs} was not taken down whole: {error}", flush=True)


def sum_up(results: list[Path]) -> int:
    """Print what came of all cells; the number of violations."""
    played = [json.loads(line) for path in results for line in path.read_text().splitlines()]
    counts = Counter[tuple[str, str]]()
    for row in played:
        counts[row["cell"]["victim"], row["cell"]["how"] if not row["violation"] else "violations"] += 1
    print(f"\n{'victim':20}{'killed':>8}{'stopped':>9}{'cut off':>9}{'violations':>12}")
    for victim in VICTIMS:
        row_of = [counts[victim, what] for what in ("kill", "stop", "drop", "violations")]
        print(f"{victim:20}{row_of[0]:8}{row_of[1]:9}{row_of[2]:9}{row_of[3]:12}")
    print("\nLeft out, because there is nothing to strike:")
    for victim, reason in LEFT_OUT.items():
        points = [point for point, left_out in NOT_IN_IT if left_out == victim]
        cells = len(points) * sum(1 for column in COLUMNS if column[0] == victim)
        print(f"  {victim}: {cells} cells at {len(points)} points: {reason}")
    if len(played) < len(CELLS):
        print(f"  {len(CELLS) - len(played)} cells were not played: the time was over, or a shard ended early")
    violations = [row for row in played if row["violation"]]
    for row in violations:
        print(f"VIOLATION {row['violation'].splitlines()[0]}")
    print(f"\n{len(played)} cells, {len(played) - len(violations)} as expected, {len(violations)} violations")
    return len(violations)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kill_matrix")
    parser.add_argument("--shard", default=os.environ.get("SHARD", ""), help="1/2: the first of two halves only")
    parser.add_argument("--shards", type=int, default=2, help="how many to play side by side when no shard is named")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no cell after that time")
    parser.add_argument("--results", type=Path, help="add a line of JSON for each cell to this file")
    arguments = parser.parse_args()
    if arguments.shard:
        number, count = map(int, arguments.shard.split("/"))
        with tempfile.TemporaryDirectory() as scratch:
            results = arguments.results or Path(scratch) / "results"
            results.touch()
            mine = list(CELLS[number - 1 :: count])
            play(mine, f"kill{number}-{os.getpid()}", SystemClock().monotonic_s() + arguments.minutes * 60, results)
            if arguments.results is None:
                return min(1, sum_up([results]) + (len(results.read_text().splitlines()) < len(mine)))
        return 0
    return play_shards(arguments.shards, arguments.minutes)


def play_shards(count: int, minutes: float) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        results = [Path(scratch) / f"{number}" for number in range(1, count + 1)]
        shards = []
        for number, path in enumerate(results, 1):
            path.touch()
            words = ["--shard", f"{number}/{count}", "--minutes", f"{minutes}", "--results", str(path)]
            shards.append(subprocess.Popen([sys.executable, "-m", "tests.kill_matrix", *words]))
        try:
            codes = [shard.wait() for shard in shards]
        except KeyboardInterrupt:
            # the terminal has told them too; each takes its lab down
            codes = [shard.wait() for shard in shards]
        violations = sum_up(results)
        whole = sum(len(path.read_text().splitlines()) for path in results) == len(CELLS)
    return 0 if whole and not violations and not any(codes) else 1


def _end(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
