"""What to say of a path that was probed outside of a journey."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from livemove.policy.mtu import End, OnBlackHole, PathMeasure, Use, judge, name_filtered
from livemove.policy.paths import HostNetworks, Path


class Level(Enum):
    """How bad it is."""

    FINE = "fine"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Assessment:
    """A sentence says what is amiss, and another one what mends it; both are empty when all is well."""

    level: Level
    verdict: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Door:
    """How a connection to the destination's port went.

    :param closed: why there was none; empty: there was.
    :param remedy: what opens it.
    """

    address: str
    port: int
    closed: str = ""
    remedy: str = ""


def assess(measure: PathMeasure, door: Door, source: End, destination: End) -> Assessment:
    """What a journey would meet on that path. What it would do about that is a setting, and no business of a test's."""
    if not measure.alive and not door.closed:
        return Assessment(Level.FAULT, *name_filtered(door.address, door.port))
    verdict = judge(measure, source, destination, OnBlackHole.LEAVE_OUT)
    if measure.alive and door.closed:
        return Assessment(Level.FAULT, door.closed, door.remedy)
    if verdict.use is not Use.USE:
        return Assessment(Level.FAULT, verdict.sentence, verdict.remedy)
    return Assessment(Level.WARNING if verdict.sentence else Level.FINE, verdict.sentence, verdict.remedy)


def assess_dormant(path: Path, source: HostNetworks, destination: HostNetworks) -> Assessment:
    """A path that there would be if its NICs had a carrier."""
    ends = ((source, path.source_link), (destination, path.destination_link))
    dark = [
        f"{name} of {host.host}" for host, name in ends for link in host.links if link.name == name and not link.carrier
    ]
    verdict = f"{' and '.join(dark)} {'have' if len(dark) > 1 else 'has'} no carrier."
    return Assessment(Level.FAULT, verdict, "Plug in the cable, or switch on the port at its other end.")
