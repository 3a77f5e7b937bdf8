"""The benchmark ``journey``: what livemove's care costs against stock QEMU driven by hand."""

from __future__ import annotations

from livemove.bench.report import Bar, Ratio, Report, make_ratio
from livemove.bench.run import Benchmark
from livemove.bench.scenario import Scenario, against_stock
from livemove.bench.statistics import pair_differences, pair_ratios, permutation_p

BARS = {
    "copy_over_stock": Bar(1.05),
    "downtime_extra_ms": Bar(20.0),
    "command_to_first_byte_ms": Bar(1500.0),
}


def ratios_of(report: Report) -> dict[str, Ratio]:
    """The figures of the benchmark, from the pairs of which both sides were measured; none before the first."""
    whole = report.whole_pairs("ours", "stock")
    if not whole:
        return {}

    def values(side: int, name: str) -> list[float]:
        return [float(pair[side][name]) for pair in whole]

    copies = values(0, "copy_ms"), values(1, "copy_ms")
    downtimes = pair_differences(values(0, "downtime_ms"), values(1, "downtime_ms"))
    gaps = pair_differences(values(0, "client_gap_ms"), values(1, "client_gap_ms"))
    found = {
        "copy_over_stock": (pair_ratios(*copies), permutation_p(pair_differences(*copies))),
        "downtime_extra_ms": (downtimes, permutation_p(downtimes)),
        "command_to_first_byte_ms": (values(0, "command_to_first_byte_ms"), None),
        "client_gap_extra_ms": (gaps, permutation_p(gaps)),
    }
    return {
        name: make_ratio(samples, unit="ms" if name.endswith("_ms") else "", bar=BARS.get(name), p=p)
        for name, (samples, p) in found.items()
    }


JOURNEY = Benchmark(
    against_stock(
        "journey",
        "What does livemove's care cost against stock QEMU driven by hand, over one 1 Gbit/s link?",
        Scenario("ours"),
    ),
    ratios_of,
)
