"""Paths as text: those that a plan chooses and what it leaves out, and what each carried. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from livemove.api.network_models import LeftOutPath, PathMeasured, PathReport, PathView
from livemove.base.units import format_duration, format_rate, format_size
from livemove.cli.output import columns

_PROBED_LATER = (
    "  A plan opens no port: connections, round trips and the packets that really pass are probed when the migration begins,",
    "  or now by 'livemove network test'.",
)
_STATES = {"use": "used", "spare": "spare, if those used are unavailable at the start"}


def plan_path_lines(paths: Sequence[PathView], left_out: Sequence[LeftOutPath]) -> list[str]:
    """The paths in the order of preference, and why each other was left out; nothing when there are none."""
    lines = []
    if paths:
        cells = [["path", "NICs", "network", "capacity", "MTU", ""]]
        cells += [
            [
                f"{path.source_address} to {path.destination_address}",
                _nics(path.source_link, path.destination_link),
                _network(path.network, path.name),
                _capacity(path.capacity_bytes_per_s),
                str(path.mtu),
                _STATES[path.state],
            ]
            for path in paths
        ]
        lines = ["", "paths:", *(f"  {line}" for line in columns(cells)), *_PROBED_LATER]
    return lines + _left_out_lines(left_out)


def report_path_lines(paths: Sequence[PathReport], left_out: Sequence[LeftOutPath]) -> list[str]:
    """What each path carried, counted by the kernel on both hosts, beside its share of the capacity."""
    if not paths:
        return _left_out_lines(left_out)
    whole = sum(path.capacity_bytes_per_s for path in paths if path.planned)
    known = all(path.capacity_bytes_per_s for path in paths if path.planned)
    cells = [
        [
            "path",
            "NICs",
            "network",
            "sent",
            "received",
            "share",
            "of capacity",
            "removed",
            "silent",
            "MTU",
            "round trip",
        ]
    ]
    for path in paths:
        share = f"{path.capacity_bytes_per_s / whole:.0%}" if path.planned and known and whole else "-"
        measured = path.measured or PathMeasured()
        cells.append(
            [
                f"{path.source_address} to {path.destination_address}",
                _nics(path.source_link, path.destination_link),
                path.network or "-",
                format_size(path.source_bytes),
                format_size(path.destination_bytes),
                f"{path.share:.0%}",
                share,
                _times(path.removed),
                _ms(path.longest_silence_ms),
                _mtu(measured),
                _ms(measured.round_trip_ms),
            ]
        )
    lines = ["", "paths:", *(f"  {line}" for line in columns(cells))]
    lines += [
        f"  NOT PLANNED: {path.source_address} to {path.destination_address} carried {format_size(path.source_bytes)}"
        for path in paths
        if not path.planned
    ]
    return lines + _left_out_lines(left_out)


def _left_out_lines(left_out: Sequence[LeftOutPath]) -> list[str]:
    return ["", "paths left out:", *(f"  {each.what}: {each.reason}" for each in left_out)] if left_out else []


def _nics(source: str, destination: str) -> str:
    return f"{source or '?'} to {destination or '?'}"


def _network(subnet: str, name: str) -> str:
    return f"{subnet} ({name})" if name else subnet


def _capacity(bytes_per_s: int) -> str:
    return format_rate(bytes_per_s) if bytes_per_s else "unknown"


def _times(count: int) -> str:
    return {0: "never", 1: "once"}.get(count, f"{count} times")


def _ms(ms: float | None) -> str:
    return "-" if ms is None else format_duration(ms / 1e3)


def _mtu(found: PathMeasured) -> str:
    if found.mtu_out == found.mtu_in:
        return str(found.mtu_out) if found.mtu_out else "-"
    return f"{found.mtu_out or 'none'} there, {found.mtu_in or 'none'} back"
