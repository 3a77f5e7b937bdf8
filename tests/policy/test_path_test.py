"""What is said of a path that was probed: every way in which it can be wrong."""

from __future__ import annotations

import pytest

from livemove.policy.mtu import End, PathMeasure
from livemove.policy.path_test import Assessment, Door, Level, assess, assess_dormant
from livemove.policy.paths import HostNetworks, LinkFacts, Path

A, B = End("A", "eth1", 9000), End("B", "eth2", 9000)
WHOLE = PathMeasure(9000, 9000, 0.001, alive=True)
HOLE = PathMeasure(1500, 9000, 0.001, alive=True)
SILENT = PathMeasure()
OPEN = Door("10.1.0.2", 49152)
CLOSED = Door("10.1.0.2", 49152, "TCP port 49152 of 10.1.0.2 did not answer.", "Open it.")


@pytest.mark.parametrize(
    ("measure", "door", "destination", "level", "verdict", "remedy"),
    [
        (WHOLE, OPEN, B, Level.FINE, "", ""),
        (PathMeasure(1500, 1500, 0.1, alive=True), OPEN, End("B", "eth2", 1500), Level.WARNING, "eth2 of B is set to 1500", "to 9000 as well"),
        (HOLE, OPEN, B, Level.FAULT, "A to B carries 1500 bytes", "Set 9000 on every switch"),
        (WHOLE, CLOSED, B, Level.FAULT, "did not answer.", "Open it."),
        # the connection that cannot be made is worse than the packets that would be lost on it
        (HOLE, CLOSED, B, Level.FAULT, "did not answer.", "Open it."),
        (SILENT, OPEN, B, Level.FAULT, "UDP port 49152 of 10.1.0.2 does not answer, though TCP port 49152 does", "'port_range'"),
        (SILENT, CLOSED, B, Level.FAULT, "No answer comes between eth1 of A and eth2 of B.", "Check the cables"),
        (PathMeasure(reason="Nothing can be sent."), CLOSED, B, Level.FAULT, "Nothing can be sent.", "Check the cables"),
    ],
)  # fmt: skip
def test_the_worst_is_said(
    measure: PathMeasure, door: Door, destination: End, level: Level, verdict: str, remedy: str
) -> None:
    found = assess(measure, door, A, destination)
    assert found.level is level
    assert verdict in found.verdict and remedy in found.remedy
    assert bool(found.verdict) is bool(found.remedy) is (level is not Level.FINE)
    assert (found == Assessment(Level.FINE)) is (level is Level.FINE)


@pytest.mark.parametrize(
    ("here", "there", "says"),
    [
        (False, True, "eth1 of A has no carrier."),
        (True, False, "eth2 of B has no carrier."),
        (False, False, "eth1 of A and eth2 of B have no carrier."),
    ],
)
def test_nics_without_a_carrier_are_named(here: bool, there: bool, says: str) -> None:
    def host(name: str, nic: str, carrier: bool) -> HostNetworks:
        other = LinkFacts("eth9", 3, "physical", 0, 1500, False, "", 1, ())
        return HostNetworks(name, (LinkFacts(nic, 2, "physical", 0, 1500, carrier, "", 1, ()), other))

    path = Path("10.1.0.1", "10.1.0.2", "10.1.0.0/24", "", "eth1", "eth2", 2, 0, 1500)
    found = assess_dormant(path, host("A", "eth1", here), host("B", "eth2", there))
    assert (found.level, found.verdict) == (Level.FAULT, says) and "cable" in found.remedy
