"""What a command leaves open is filled in from the host's settings."""

from __future__ import annotations

import pytest

from livemove.agent.asked import bandwidth_of, contract_of, wish_of
from livemove.api.models import JourneyOptions
from livemove.base.settings import parse_settings
from livemove.policy.convergence import Contract

SETTINGS = parse_settings(
    'downtime = "200ms"\ndeadline = "10m"\nmax_throttle = 60\nchannels = 3\nmax_bandwidth = "8Gbit"\noption = "tcp"'
)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (JourneyOptions(), Contract(0.2, 600.0, 0)),
        (JourneyOptions(downtime_s=1.0, deadline_s=5.0, throttle=True), Contract(1.0, 5.0, 60)),
    ],
)
def test_the_contract(options: JourneyOptions, wanted: Contract):
    assert contract_of(options, SETTINGS) == wanted


def test_no_deadline_anywhere():
    assert contract_of(JourneyOptions(), parse_settings("")).deadline_s is None


@pytest.mark.parametrize(
    ("options", "option", "channels"),
    [(JourneyOptions(), "tcp", 3), (JourneyOptions(option="compression", channels=0), "compression", 0)],
)
def test_the_wish(options: JourneyOptions, option: str, channels: int):
    wish = wish_of(options, SETTINGS)
    assert (wish.option, wish.channels, wish.tls) == (option, channels, True)


@pytest.mark.parametrize(
    ("asked", "settings", "wanted"),
    [(None, "8Gbit", 10**9), (5, "8Gbit", 5), (2 * 10**9, "8Gbit", 10**9), (None, "", 0), (7, "", 7)],
)
def test_the_lower_limit_counts(asked: int | None, settings: str, wanted: int):
    options = JourneyOptions(max_bandwidth_bytes_per_s=asked)
    assert bandwidth_of(options, parse_settings(f'max_bandwidth = "{settings}"')) == wanted
