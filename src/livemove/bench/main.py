"""The benchmarks by name, and running them from a command: progress, interruption, the report at the end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

from livemove.base.clock import Clock, SystemClock
from livemove.base.errors import BadSetting
from livemove.bench.journey import JOURNEY
from livemove.bench.multichannel import MULTICHANNEL
from livemove.bench.report import Report, check_writable
from livemove.bench.run import SETTLE_S, Benchmark, Say, run_benchmark
from livemove.bench.text import report_lines

BENCHMARKS = {benchmark.comparison.name: benchmark for benchmark in (JOURNEY, MULTICHANNEL)}
LAB = "bench"
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def list_benchmarks() -> dict[str, str]:
    """The question that each benchmark answers, by its name."""
    return {name: benchmark.comparison.question for name, benchmark in BENCHMARKS.items()}


def run_benchmarks(names: Sequence[str], *, json_path: Path | None, pairs: int, say: Say) -> list[Report]:
    """Run benchmarks one after the other and tell what they found; how fast anything was is no fault.

    Raises BadSetting for a name that is none (nothing is run then) and for several names with one `json_path`;
    KeyboardInterrupt when a signal ended it, after everything was cleaned up and what was measured was told and written;
    and what :func:`livemove.bench.run.run_benchmark` raises.
    """
    for name in names:
        if name not in BENCHMARKS:
            raise BadSetting(f"There is no benchmark '{name[:64]}'.", remedy="'livemove bench list' lists them.")
    if json_path is not None and len(names) > 1:
        raise BadSetting("One file holds the report of one benchmark.", remedy="Run them one by one with --json.")
    return [run_one(BENCHMARKS[name], json_path=json_path, pairs=pairs, say=say) for name in names]


def run_one(
    benchmark: Benchmark, *, json_path: Path | None, pairs: int, say: Say, lab: str = LAB, clock: Clock | None = None,
    settle_s: float = SETTLE_S,
) -> Report:  # fmt: skip
    """Run one benchmark and tell its report, also of one that was cut short; see :func:`run_benchmarks`."""
    if json_path is not None:
        check_writable(json_path)
    begun: list[Report] = []
    work = run_benchmark(
        benchmark, pairs=pairs, lab=lab, json_path=json_path, say=say, clock=clock or SystemClock(),
        on_start=begun.append, settle_s=settle_s,
    )  # fmt: skip

    async def until_signalled() -> Report:
        task = asyncio.current_task()
        assert task is not None
        ending = _once(task.cancel)
        for number in _ENDING_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, ending)
        return await work

    try:
        return asyncio.run(until_signalled())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        # pair by pair it is in the file already
        for report in (
            report for report in begun if report.complete or any(result.samples for result in report.scenarios)
        ):
            say("")
            for line in report_lines(report):
                say(line)
            if json_path is not None:
                say(f"\nThe report is in {json_path}.")


def _once(action: Callable[[], object]) -> Callable[[], None]:
    """`action` at the first call only: a second Ctrl-C does not cut off the cleaning up that the first one began."""
    done = False

    def call() -> None:
        nonlocal done
        if not done:
            done = True
            action()

    return call
