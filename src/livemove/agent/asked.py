"""What was asked of a journey, with the host's settings where nothing was said."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from livemove.api.models import JourneyOptions
from livemove.base.settings import HostSettings
from livemove.base.units import parse_duration, parse_rate
from livemove.migration.model import Verify
from livemove.policy.convergence import Contract
from livemove.policy.paths import PathWish, UsePaths, parse_wish
from livemove.policy.transport import Wish


def contract_of(options: JourneyOptions, settings: HostSettings) -> Contract:
    """The downtime, deadline and throttling that the user accepts."""
    deadline_s = options.deadline_s or (parse_duration(settings.deadline) if settings.deadline else None)
    throttle = settings.max_throttle if options.throttle else 0
    return Contract(options.downtime_s or parse_duration(settings.downtime), deadline_s, throttle)


def wish_of(options: JourneyOptions, settings: HostSettings) -> Wish:
    """What the two QEMUs are to agree on; TLS unless the network turns out to be trusted."""
    channels = settings.channels if options.channels is None else options.channels
    option = options.option or settings.option
    multipath = option == "multichannel" or (option != "tcp" and paths_of(options, settings).use is not UsePaths.ONE)
    return Wish(option, channels, settings.compression_level, True, options.throttle, multipath)


def paths_of(options: JourneyOptions, settings: HostSettings) -> PathWish:
    """The networks to use. Raises BadSetting for a text that names none."""
    option = options.option or settings.option
    return parse_wish(options.paths or ("all" if option == "multichannel" else settings.paths))


def verify_of(options: JourneyOptions, settings: HostSettings) -> Verify:
    """How much of the memory is compared before the hand-over."""
    return Verify(options.verify or settings.verify)


def bandwidth_of(options: JourneyOptions, settings: HostSettings) -> int:
    """The lower of the host's limit and the journey's, bytes per second; 0: none."""
    host = parse_rate(settings.max_bandwidth) if settings.max_bandwidth else None
    return min((limit for limit in (options.max_bandwidth_bytes_per_s, host) if limit), default=0)


def both_trust(address: str, source_networks: Sequence[str], destination_networks: Sequence[str]) -> bool:
    """Whether both hosts marked the network of `address` as one that may go without TLS."""
    there = ipaddress.ip_address(address)
    return all(
        any(there in ipaddress.ip_network(network) for network in networks)
        for networks in (source_networks, destination_networks)
    )
