"""The benchmark ``multichannel``: what several links carry that one does not.

Where the links are the bottleneck alone, nothing is encrypted: both hosts of a lab share the machine's processors, and with
few of them TLS would be what is measured. Where compression is the point, encryption is on as well, as it would be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from livemove.bench.report import Bar, Ratio, Report, Sample, make_ratio
from livemove.bench.run import Benchmark
from livemove.bench.scenario import Comparison, GuestMix, Scenario, capacity_bytes_per_s
from livemove.bench.wire import bulk_bytes_per_s

# Half of it does not compress: with zstd's ratio near 0.57, {two links, raw} and {one link, zstd} take about as long.
GUEST = GuestMix(memory_mib=1024, random_mib=350, text_mib=350, working_set_mib=16, rate_pages_per_s=500)


def _plain(*links: str, multichannel: bool) -> Scenario:
    return Scenario("ours", links, multichannel, tls=False, guest=GUEST)


SCENARIOS = {
    "stock_one": Scenario("stock", ("1Gbit",), tls=False, guest=GUEST),
    "one": _plain("1Gbit", multichannel=False),
    "one_mptcp": _plain("1Gbit", multichannel=True),
    "two": _plain("1Gbit", "1Gbit", multichannel=True),
    "unequal": _plain("1Gbit", "250Mbit", multichannel=True),
    "one_of_four": _plain("500Mbit", multichannel=False),
    "four": _plain(*["500Mbit"] * 4, multichannel=True),
    "one_zstd": Scenario("ours", ("300Mbit",), compression="zstd", guest=GUEST),
    "two_raw": Scenario("ours", ("300Mbit",) * 2, multichannel=True, guest=GUEST),
    "two_zstd": Scenario("ours", ("300Mbit",) * 2, multichannel=True, compression="zstd", guest=GUEST),
}

BARS = {
    "two_over_one": Bar(1.93, "least"),
    "two_share_of_sum": Bar(0.93, "least"),
    "unequal_share_of_sum": Bar(0.9, "least"),
    "four_over_one": Bar(3.6, "least"),
    "all_over_best_single": Bar(0.8),
    "mptcp_cost": Bar(1.03),
}


def share_of_sum(sample: Sample, links: Sequence[str]) -> float:
    """How fast the bulk of QEMU's bytes went, as a part of what the links are shaped to.

    Headers and what was sent again count against it: a shaper counts every packet whole, and Ethernet, IP, TCP and MPTCP have
    6 % of a full one of 1514 bytes. Raises ValueError for a link without a rate.
    """
    capacity = capacity_bytes_per_s(links)
    if capacity is None:
        raise ValueError("a link without a rate has no share")
    return bulk_bytes_per_s(sample["wire_bytes"], sample["bulk_ms"]) / capacity


def ratios_of(report: Report) -> dict[str, Ratio]:
    """The figures of the benchmark, each from the rounds in which all its scenarios were measured; none without such a round."""

    def faster(slow: Sample, fast: Sample) -> float:
        return float(slow["copy_ms"]) / float(fast["copy_ms"])

    def share(key: str) -> Callable[[Sample], float]:
        return lambda sample: share_of_sum(sample, report.of(key).fields["links"])

    def over_best_single(both: Sample, two_raw: Sample, one_zstd: Sample) -> float:
        return float(both["copy_ms"]) / min(float(two_raw["copy_ms"]), float(one_zstd["copy_ms"]))

    wanted: dict[str, tuple[Callable[..., float], tuple[str, ...]]] = {
        "two_over_one": (faster, ("one", "two")),
        "two_share_of_sum": (share("two"), ("two",)),
        "unequal_share_of_sum": (share("unequal"), ("unequal",)),
        "four_over_one": (faster, ("one_of_four", "four")),
        "all_over_best_single": (over_best_single, ("two_zstd", "two_raw", "one_zstd")),
        "mptcp_cost": (faster, ("one_mptcp", "one")),
        "two_over_stock": (faster, ("stock_one", "two")),
    }
    there = {result.key for result in report.scenarios}
    found = {
        name: [figure(*pair) for pair in report.whole_pairs(*keys)]
        for name, (figure, keys) in wanted.items()
        if there.issuperset(keys)
    }
    return {name: make_ratio(samples, bar=BARS.get(name)) for name, samples in found.items() if samples}


MULTICHANNEL = Benchmark(
    Comparison(
        "multichannel",
        "How much faster is a journey over several links, against one link and against stock QEMU, which uses one?",
        SCENARIOS,
    ),
    ratios_of,
    ledger_of="two",
)
