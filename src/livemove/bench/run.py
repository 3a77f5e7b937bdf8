"""Running a comparison: every scenario in turn, round after round, in one lab.

1. a lab with the links of all scenarios; a guest for each engine, alike, booted one after the other
2. one uncounted move of each from A to B: from then on they are guests that have arrived, as in every counted move
3. rounds: each scenario moves its engine's guest to the other host, on memory that is warm, one right after the other; every
   other round goes through them backwards
4. each guest compares all its pages
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from livemove.base.clock import Clock, wall_text
from livemove.bench.machine import host_facts, load_1min
from livemove.bench.ours import STEPS_BEFORE_COPY, OurGuest
from livemove.bench.report import Ratio, Report, Sample, ScenarioResult, write_report
from livemove.bench.scenario import Comparison, Engine
from livemove.bench.statistics import median
from livemove.bench.stock import StockGuest
from livemove.bench.testbed import HOSTS, MeasuredGuest, Testbed, testbed

Say = Callable[[str], None]

# A guest that was paused gets this long to be itself again: 2000 pages rewritten, its client's connection in its stride.
SETTLE_S = 2.0


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A comparison and what its samples are asked.

    :param ratios_of: the figures, from the rounds so far; pure.
    :param ledger_of: the scenario of which the report tells where the time goes; one of livemove's.
    """

    comparison: Comparison
    ratios_of: Callable[[Report], dict[str, Ratio]]
    ledger_of: str = "ours"


async def run_benchmark(
    benchmark: Benchmark, *, pairs: int, lab: str, json_path: Path | None, say: Say, clock: Clock,
    on_start: Callable[[Report], None] = lambda _: None, settle_s: float = SETTLE_S,
) -> Report:  # fmt: skip
    """Measure all scenarios in turn; nothing of the lab is left however this ends.

    :param pairs: rounds, in each of which every scenario is measured once.
    :param settle_s: how long a guest runs before it is moved.
    :param on_start: given the report as soon as there is one; it fills while this runs, also for a caller that cancels.

    Raises what stopped it: Conflict, MissingPrerequisite, StateUnwritable, or the error of the side that failed. What was
    measured until then is in the report, and in `json_path` if that is given.
    """
    comparison = benchmark.comparison
    async with testbed(lab, comparison, clock) as bed:
        report = Report(
            comparison.name, comparison.question, wall_text(clock.wall_s()), host_facts(bed.qemu), pairs,
            [ScenarioResult.of(key, scenario) for key, scenario in comparison.scenarios.items()],
            ledger_of=benchmark.ledger_of,
        )  # fmt: skip
        on_start(report)
        keep(benchmark, report, json_path)
        kinds: dict[Engine, Callable[[Testbed], MeasuredGuest]] = {"stock": StockGuest, "ours": OurGuest}
        guests = {engine: kinds[engine](bed) for engine in comparison.engines}
        try:
            await _run(bed, guests, benchmark, report, json_path, say, settle_s)
        finally:
            for guest in guests.values():
                await guest.close()
    report.complete = True
    keep(benchmark, report, json_path)
    return report


def keep(benchmark: Benchmark, report: Report, json_path: Path | None) -> None:
    """Work out what the samples so far say, and write it if there is a file. Raises StateUnwritable."""
    report.ratios = benchmark.ratios_of(report)
    report.ledger = ledger_of(report.of(benchmark.ledger_of).samples)
    if json_path is not None:
        write_report(report, json_path)


async def _run(
    bed: Testbed, guests: dict[Engine, MeasuredGuest], benchmark: Benchmark, report: Report, json_path: Path | None, say: Say,
    settle_s: float,
) -> None:  # fmt: skip
    comparison = benchmark.comparison
    for engine, guest in guests.items():
        say(f"{engine}: booting a guest, then one uncounted move")
        await guest.start()
        await asyncio.sleep(settle_s)
        first = next(scenario for scenario in comparison.scenarios.values() if scenario.engine == engine)
        await guest.move(HOSTS[1], first)
        await guest.pause()
    for pair in range(1, report.pairs + 1):
        for key in comparison.order_of(pair):
            scenario = comparison.scenarios[key]
            guest = guests[scenario.engine]
            destination = HOSTS[0] if guest.host == HOSTS[1] else HOSTS[1]
            sample: Sample = {"pair": pair, "way": f"{guest.host} to {destination}", "load_1min": load_1min()}
            await bed.warm(guest)
            await guest.resume()
            await asyncio.sleep(settle_s)
            sample |= await bed.watched_move(guest, destination, scenario)
            await guest.pause()
            report.of(key).samples.append(sample)
            keep(benchmark, report, json_path)
            say(progress_line(pair, report.pairs, key, sample))
    for engine, guest in guests.items():
        await guest.resume()
        report.guest_checks[engine] = await bed.check(guest)
        await guest.pause()
        say(f"{engine}: the guest compared its {report.guest_checks[engine]['checked']} pages, 0 bad")


def progress_line(pair: int, pairs: int, key: str, sample: Sample) -> str:
    """A sample as it is told while the benchmark runs."""
    text = (
        f"pair {pair} of {pairs}, {key}: copy {sample['copy_ms'] / 1e3:.2f} s, downtime {sample['downtime_ms']:.0f} ms"
        f" (the client waited {sample['client_gap_ms']:.0f} ms), {sample['rounds']} rounds,"
        f" {sample['busy_cores']:.1f} cores at work, {sample['others_cores']:.1f} of them for other programs"
    )
    if "command_to_first_byte_ms" in sample:
        text += f", first byte after {sample['command_to_first_byte_ms']:.0f} ms"
    return text


def ledger_of(samples: list[Sample]) -> dict[str, dict[str, float]]:
    """Medians of where the time goes on our side, in ms: up to the first byte, in the ten steps, in the blackout."""
    if not samples:
        return {}
    steps, blackout = _medians(samples, "steps_ms"), _medians(samples, "blackout_ms")
    before = {"0 command, until the journey begins": median([sample["before_steps_ms"] for sample in samples])}
    before |= {name: ms for name, ms in steps.items() if int(name.split()[0]) in STEPS_BEFORE_COPY}
    return {"to_first_byte_ms": before, "steps_ms": steps, "blackout_ms": blackout}


def _medians(samples: list[Sample], name: str) -> dict[str, float]:
    parts: dict[str, list[float]] = {}
    for sample in samples:
        for part, ms in sample[name].items():
            parts.setdefault(part, []).append(ms)
    return {part: round(median(values), 2) for part, values in parts.items()}
