"""The benchmark ``journey``: what livemove's care costs against stock QEMU driven by hand.

1. a lab with one link; a guest for each engine, alike, booted one after the other
2. one uncounted move of each from A to B: from then on both are guests that have arrived, as in every counted move
3. pairs: both guests make the same way, one right after the other, on memory that is warm; who goes first alternates
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
from livemove.bench.report import Ratio, Report, Sample, ScenarioResult, make_ratio, write_report
from livemove.bench.scenario import Comparison, Engine, Scenario, against_stock
from livemove.bench.statistics import median, pair_differences, pair_ratios, permutation_p
from livemove.bench.stock import StockGuest
from livemove.bench.testbed import HOSTS, MeasuredGuest, Testbed, testbed

JOURNEY = against_stock(
    "journey",
    "What does livemove's care cost against stock QEMU driven by hand, over one 1 Gbit/s link?",
    Scenario("ours"),
)

Say = Callable[[str], None]

# A guest that was paused gets this long to be itself again: 2000 pages rewritten, its client's connection in its stride.
SETTLE_S = 2.0


@dataclass(frozen=True, slots=True)
class Bar:
    """What a ratio is to keep."""

    ratio: str
    at_most: float
    unit: str = ""


BARS = (
    Bar("copy_over_stock", 1.05),
    Bar("downtime_extra_ms", 20.0, "ms"),
    Bar("command_to_first_byte_ms", 1500.0, "ms"),
)


async def run_comparison(
    comparison: Comparison, *, pairs: int, lab: str, json_path: Path | None, say: Say, clock: Clock,
    on_start: Callable[[Report], None] = lambda _: None, settle_s: float = SETTLE_S,
) -> Report:  # fmt: skip
    """Measure both sides of a comparison in turn; nothing of the lab is left however this ends.

    :param settle_s: how long a guest runs before it is moved.
    :param on_start: given the report as soon as there is one; it fills while this runs, also for a caller that cancels.

    Raises what stopped it: Conflict, MissingPrerequisite, StateUnwritable, or the error of the side that failed. What was
    measured until then is in the report, and in `json_path` if that is given.
    """
    async with testbed(lab, comparison.of("ours"), clock) as bed:
        report = Report(
            comparison.name, comparison.question, wall_text(clock.wall_s()), host_facts(bed.qemu), pairs,
            [ScenarioResult.of(scenario) for scenario in comparison.scenarios],
        )  # fmt: skip
        on_start(report)
        keep(report, json_path)
        guests: dict[Engine, MeasuredGuest] = {"stock": StockGuest(bed), "ours": OurGuest(bed)}
        try:
            await _run(bed, guests, report, json_path, say, settle_s)
        finally:
            for guest in guests.values():
                await guest.close()
    report.complete = True
    keep(report, json_path)
    return report


def keep(report: Report, json_path: Path | None) -> None:
    """Work out what the samples so far say, and write it if there is a file. Raises StateUnwritable."""
    report.ratios = ratios_of(report)
    report.ledger = ledger_of(report.of("ours").samples)
    if json_path is not None:
        write_report(report, json_path)


async def _run(
    bed: Testbed, guests: dict[Engine, MeasuredGuest], report: Report, json_path: Path | None, say: Say, settle_s: float
) -> None:
    for engine, guest in guests.items():
        say(f"{engine}: booting a guest, then one uncounted move")
        await guest.start()
        await asyncio.sleep(settle_s)
        await guest.move(HOSTS[1])
        await guest.pause()
    for pair in range(1, report.pairs + 1):
        for engine in order_of(pair):
            guest = guests[engine]
            destination = HOSTS[0] if guest.host == HOSTS[1] else HOSTS[1]
            sample: Sample = {"pair": pair, "way": f"{guest.host} to {destination}", "load_1min": load_1min()}
            await bed.warm(guest)
            await guest.resume()
            await asyncio.sleep(settle_s)
            sample |= await bed.watched_move(guest, destination)
            await guest.pause()
            report.of(engine).samples.append(sample)
            keep(report, json_path)
            say(progress_line(pair, report.pairs, engine, sample))
    for engine, guest in guests.items():
        await guest.resume()
        report.guest_checks[engine] = await bed.check(guest)
        await guest.pause()
        say(f"{engine}: the guest compared its {report.guest_checks[engine]['checked']} pages, 0 bad")


def order_of(pair: int) -> tuple[Engine, Engine]:
    """Who goes first in a pair, counted from 1."""
    return ("stock", "ours") if pair % 2 else ("ours", "stock")


def progress_line(pair: int, pairs: int, engine: str, sample: Sample) -> str:
    """A sample as it is told while the benchmark runs."""
    text = (
        f"pair {pair} of {pairs}, {engine}: copy {sample['copy_ms'] / 1e3:.2f} s, downtime {sample['downtime_ms']:.0f} ms"
        f" (the client waited {sample['client_gap_ms']:.0f} ms), {sample['rounds']} rounds,"
        f" {sample['busy_cores']:.1f} cores at work, {sample['others_cores']:.1f} of them for other programs"
    )
    if "command_to_first_byte_ms" in sample:
        text += f", first byte after {sample['command_to_first_byte_ms']:.0f} ms"
    return text


# What the samples say; pure ---------------------------------------------------------------------------------------------


def ratios_of(report: Report) -> dict[str, Ratio]:
    """The figures of the benchmark, from the pairs of which both sides were measured; none before the first."""
    by_pair = {side: {sample["pair"]: sample for sample in report.of(side).samples} for side in ("ours", "stock")}
    whole = sorted(by_pair["ours"].keys() & by_pair["stock"].keys())
    if not whole:
        return {}

    def values(side: str, name: str) -> list[float]:
        return [float(by_pair[side][pair][name]) for pair in whole]

    copies = values("ours", "copy_ms"), values("stock", "copy_ms")
    downtimes = pair_differences(values("ours", "downtime_ms"), values("stock", "downtime_ms"))
    gaps = pair_differences(values("ours", "client_gap_ms"), values("stock", "client_gap_ms"))
    found = {
        "copy_over_stock": (pair_ratios(*copies), permutation_p(pair_differences(*copies))),
        "downtime_extra_ms": (downtimes, permutation_p(downtimes)),
        "command_to_first_byte_ms": (values("ours", "command_to_first_byte_ms"), None),
        "client_gap_extra_ms": (gaps, permutation_p(gaps)),
    }
    bars = {bar.ratio: bar.at_most for bar in BARS}
    return {
        name: make_ratio(samples, unit="ms" if name.endswith("_ms") else "", bar=bars.get(name), p=p)
        for name, (samples, p) in found.items()
    }


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
