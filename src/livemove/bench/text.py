"""A report as people read it; pure."""

from __future__ import annotations

from collections.abc import Sequence

from livemove.bench.report import Ratio, Report, Sample
from livemove.bench.statistics import median, median_interval
from livemove.bench.wire import bulk_bytes_per_s

# What system services take up; with more, samples of one side were seen to differ by a third.
QUIET_CORES = 0.3

_ROWS = (
    ("copy", "copy_ms", "ms", 1.0, 0),
    ("  of it the first round", "first_round_ms", "ms", 1.0, 0),
    ("downtime", "downtime_ms", "ms", 1.0, 1),
    ("  by QEMU", "downtime_qemu_ms", "ms", 1.0, 0),
    ("  by the client", "client_gap_ms", "ms", 1.0, 1),
    ("rounds", "rounds", "", 1.0, 0),
    ("on the wire", "wire_bytes", "MB", 1e-6, 1),
    ("pages sent", "normal_pages", "", 1.0, 0),
    ("cores at work", "busy_cores", "", 1.0, 2),
    ("  for other programs", "others_cores", "", 1.0, 2),
)


def report_lines(report: Report) -> list[str]:
    """The table of both sides or of all scenarios, the ledger, and one verdict for each bar."""
    host = report.host
    lines = [
        f"{report.name}: {report.question}",
        f"  machine:  {host.cpu_model}, {host.cores} cores, Linux {host.kernel}, load {host.load_1min:g} at the start",
        f"  programs: QEMU {host.qemu} ({host.accelerator}), Python {host.python}, livemove {host.livemove}",
        *(_two_sides(report) if {result.key for result in report.scenarios} == {"ours", "stock"} else _many(report)),
    ]
    of = "" if report.ledger_of == "ours" else f" of '{report.ledger_of}'"
    for title, parts in (
        (f"Up to the first byte{of} (medians, ms)", report.ledger.get("to_first_byte_ms", {})),
        (f"The journey's steps{of} (medians, ms)", report.ledger.get("steps_ms", {})),
        (f"The blackout{of} (medians, ms)", report.ledger.get("blackout_ms", {})),
    ):
        if parts:
            lines += ["", title, *_columns([[f"  {name}", f"{ms:.1f}"] for name, ms in parts.items()])]
    others = [sample["others_cores"] for result in report.scenarios for sample in result.samples]
    if others and median(others) > QUIET_CORES:
        lines += ["", f"Other programs took {median(others):.1f} cores meanwhile: repeat this on a quiet machine."]
    if report.ratios:
        lines += ["", *(verdict_line(name, ratio) for name, ratio in report.ratios.items())]
    return lines


def verdict_line(name: str, ratio: Ratio) -> str:
    """A figure with its interval, and whether its bar is met."""
    unit = f" {ratio.unit}" if ratio.unit else ""
    digits = 1 if ratio.unit else 3
    text = (
        f"{name}: {ratio.value:.{digits}f}{unit}"
        f" [{ratio.low:.{digits}f} to {ratio.high:.{digits}f}, {ratio.confidence * 100:.0f} %]"
    )
    if ratio.p is not None:
        text += f", p = {ratio.p:.2g}"
    if ratio.bar is None:
        return text
    return f"{text}; at {ratio.bar_at} {ratio.bar:g}{unit}: {'met' if ratio.met else 'NOT MET'}"


def _two_sides(report: Report) -> list[str]:
    ours, stock = report.of("ours"), report.of("stock")
    lines = [
        f"  scenario: {ours.name.removeprefix('ours-')}",
        f"  samples:  {len(ours.samples)} of ours, {len(stock.samples)} of stock{_incomplete(report)}",
    ]
    if ours.samples and stock.samples:
        lines += ["", *_columns(_table(ours.samples, stock.samples))]
    return lines


def _many(report: Report) -> list[str]:
    """A row for each scenario that was measured; what their names have in common at the end is told once."""
    names = [result.name.split("-") for result in report.scenarios]
    alike = 0
    while all(len(name) > alike + 1 and name[-alike - 1] == names[0][-alike - 1] for name in names):
        alike += 1
    lines = [
        f"  all:      {'-'.join(names[0][len(names[0]) - alike :])}",
        f"  samples:  {min(len(result.samples) for result in report.scenarios)} of each{_incomplete(report)}",
    ]
    rows = [["", "SCENARIO", "COPY (s)", "", "BULK (Mbit/s)", "DOWNTIME (ms)", "CORES"]]
    for result, name in zip(report.scenarios, names, strict=True):
        if result.samples:
            copy = median_interval([sample["copy_ms"] / 1e3 for sample in result.samples])
            rate = median(
                [bulk_bytes_per_s(sample["wire_bytes"], sample["bulk_ms"]) * 8e-6 for sample in result.samples]
            )
            downtime, cores = (
                median([sample[key] for sample in result.samples]) for key in ("downtime_ms", "busy_cores")
            )
            rows.append(
                [
                    result.key, "-".join(name[: len(name) - alike]), f"{copy.value:.2f}", f"[{copy.low:.2f} to {copy.high:.2f}]",
                    f"{rate:.0f}", f"{downtime:.0f}", f"{cores:.2f}",
                ]
            )  # fmt: skip
    return [*lines, "", *_columns(rows)] if len(rows) > 1 else lines


def _incomplete(report: Report) -> str:
    return "" if report.complete else f"; INCOMPLETE, {report.pairs} pairs were asked for"


def _table(ours: Sequence[Sample], stock: Sequence[Sample]) -> list[list[str]]:
    rows = [["", "LIVEMOVE", "", "STOCK QEMU", ""]]
    for title, name, unit, scale, digits in _ROWS:
        row = [f"{title}{f' ({unit})' if unit else ''}"]
        for samples in (ours, stock):
            found = median_interval([float(sample[name]) * scale for sample in samples])
            row += [f"{found.value:.{digits}f}", f"[{found.low:.{digits}f} to {found.high:.{digits}f}]"]
        rows.append(row)
    return rows


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
