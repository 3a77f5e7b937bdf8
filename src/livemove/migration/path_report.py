"""What each path of a journey carried, from both hosts' counters; and whether that is what was planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from livemove.api.incoming_models import PathTotals
from livemove.api.network_models import PathMeasured, PathReport
from livemove.network.keeper_words import KeeperTotals, PathCounters
from livemove.policy.mtu import PathMeasure
from livemove.policy.path_audit import Carried, audit, shares
from livemove.policy.paths import Path


@dataclass(frozen=True, slots=True)
class Probed:
    """A path that was looked at.

    :param clamp_mtu: the largest packet to be sent on it; 0: as its NICs are set.
    :param dead: it does not work, and is taken up when it does.
    """

    path: Path
    measure: PathMeasure
    clamp_mtu: int = 0
    dead: bool = False


def path_reports(
    probed: Sequence[Probed], source: KeeperTotals, destination: Sequence[PathTotals]
) -> tuple[list[PathReport], list[str]]:
    """The paths in use, then those that were not planned; and a sentence for each difference from the plan."""
    here = {(each.local, each.remote): each for each in (*source.paths, *source.unplanned)}
    there = {(each.source_address, each.destination_address): each for each in destination}
    planned = {(each.path.source_address, each.path.destination_address): each for each in probed}
    pairs = [*planned, *sorted(pair for pair in {*here, *there} if pair not in planned)]
    received = [there[pair].received_bytes if pair in there else 0 for pair in pairs]
    # the destination may not have told: what was acknowledged to the source was received as well
    if not any(received):
        received = [here[pair].bytes_acked if pair in here else 0 for pair in pairs]
    carried = [
        Carried(
            text_of(planned[pair].path) if pair in planned else f"{pair[0]} to {pair[1]}", pair in planned,
            planned[pair].path.capacity_bytes_per_s if pair in planned else 0, count,
            # how long it was dead is not counted; once is enough for not being blamed
            dead_part=1.0 if (pair in here and here[pair].removed) or (pair in planned and planned[pair].dead) else 0.0,
        )
        for pair, count in zip(pairs, received, strict=True)
    ]  # fmt: skip
    reports = []
    for pair, share in zip(pairs, shares(carried), strict=True):
        counted, found = here.get(pair, PathCounters(-1, *pair)), planned.get(pair)
        told = there.get(pair)
        silences = [counted.longest_silence_ms, (told.longest_silence_ms if told is not None else None) or 0.0]
        reports.append(
            PathReport(
                source_address=pair[0],
                destination_address=pair[1],
                network=found.path.network if found else "",
                source_link=found.path.source_link if found else "",
                destination_link=found.path.destination_link if found else "",
                capacity_bytes_per_s=found.path.capacity_bytes_per_s if found else 0,
                planned=found is not None,
                source_bytes=counted.bytes_acked,
                destination_bytes=told.received_bytes if told is not None else 0,
                share=round(share, 4),
                subflows=counted.subflows,
                retransmitted_segments=counted.retransmitted_segments,
                removed=counted.removed,
                longest_silence_ms=max(silences) or None,
                measured=measured(found.measure) if found else None,
            )
        )
    return reports, audit(carried)


def text_of(path: Path) -> str:
    """A path as people read it."""
    name = f" ({path.name})" if path.name else ""
    return f"{path.source_address} to {path.destination_address}{name}"


def measured(measure: PathMeasure) -> PathMeasured:
    """A measurement as the report has it."""
    round_trip_ms = round(measure.round_trip_s * 1e3, 3) if measure.round_trip_s is not None else None
    return PathMeasured(mtu_out=measure.mtu_out, mtu_in=measure.mtu_in, round_trip_ms=round_trip_ms)
