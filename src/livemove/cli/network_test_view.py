"""A test of the network between hosts as a person sees it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from livemove.base.errors import LivemoveError, MtuBlackHole, PortClosed
from livemove.base.units import format_duration
from livemove.cli.output import columns

if TYPE_CHECKING:
    from livemove.api.network_models import NetworkTestView, ProbedPath

_HEADERS = ["PATH", "NICS", "NETWORK", "MTU SET", "THERE", "BACK", "ROUND TRIP", "PORT", ""]
_LEVELS = {"fine": "fine", "warning": "warning", "fault": "FAULT"}


def rounds(sources: Sequence[str], destinations: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Every source with every destination but itself, in rounds in which no host tests twice the same way."""
    left = [(source, destination) for source in sources for destination in destinations if source != destination]
    found: list[list[tuple[str, str]]] = []
    while left:
        taken: list[tuple[str, str]] = []
        for source, destination in left:
            if all(source != one and destination != other for one, other in taken):
                taken.append((source, destination))
        left = [pair for pair in left if pair not in taken]
        found.append(taken)
    return found


def lines_of(test: NetworkTestView) -> list[str]:
    """A title, a row for each path, then what is amiss and what mends it."""
    cells = [_HEADERS, *(_cells(path) for path in test.paths)]
    lines = [f"{test.source} to {test.destination}, port {test.port}:", *(f"  {line}" for line in columns(cells))]
    for path in test.paths:
        if path.verdict:
            lines += [f"  {_pair(path)}: {path.verdict}", f"    remedy: {path.remedy}"]
    lines += [f"  {note}" for note in test.notes]
    lines += [f"  not tested: {each.what}: {each.reason}" for each in test.left_out]
    return lines


def failure_lines(source: str, destination: str, error: LivemoveError) -> list[str]:
    """A test that could not be made."""
    where = f"{error.where}: " if error.where and error.where not in error.message else ""
    return [f"{source} to {destination}: {where}{error.message}", f"  remedy: {error.remedy}"]


def failure_json(source: str, destination: str, error: LivemoveError) -> dict[str, Any]:
    """The same for ``--json``."""
    return {"source": source, "destination": destination, "error": error.to_json()}


def worst(tests: Sequence[NetworkTestView], errors: Sequence[LivemoveError]) -> int:
    """The exit code."""
    if errors:
        return errors[0].exit_code
    faults = [path for test in tests for path in test.paths if path.level == "fault"]
    if any(path.measured is None or not path.port_open for path in faults):
        return PortClosed.exit_code
    return MtuBlackHole.exit_code if faults else 0


def _cells(path: ProbedPath) -> list[str]:
    found = path.measured
    mtus = f"{path.source_mtu}, {path.destination_mtu}"
    return [
        _pair(path), f"{path.source_link}, {path.destination_link}", path.name or path.network,
        str(path.source_mtu) if path.source_mtu == path.destination_mtu else mtus,
        str(found.mtu_out) if found else "-", str(found.mtu_in) if found else "-",
        format_duration(found.round_trip_ms / 1e3) if found and found.round_trip_ms is not None else "-",
        "open" if path.port_open else "closed", _LEVELS[path.level],
    ]  # fmt: skip


def _pair(path: ProbedPath) -> str:
    return f"{path.source_address} to {path.destination_address}"
