"""What to say of a path that was probed outside of a journey."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from livemove.policy.mtu import End, OnBlackHole, PathMeasure, Use, judge, name_filtered


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
