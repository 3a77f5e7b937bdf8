"""What agents and people say to each other about bandwidth; see models.py for what holds of all bodies."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from livemove.api.model_base import Model, Text, Word
from livemove.policy.bandwidth import DEFAULT_BUFFER, MAX_SELECTORS, Limit, Selectors, parse_category

Rate = Annotated[int, Field(ge=0, le=1 << 50)]
Percent = Annotated[float, Field(ge=0, le=100)]
Selector = Annotated[str, Field(max_length=256)]
SelectorList = Annotated[tuple[Selector, ...], Field(max_length=MAX_SELECTORS)]


class BandwidthLimit(Model):
    """policy.bandwidth.Limit on the wire: rates in bytes per second, 0: nothing said; parts in percent.

    :param category: ``LiveMigration``, ``VirtualMachine`` or ``Default``.
    :param min_percent: of what the living NICs carry.
    :param buffer_percent: of the minimum.
    """

    category: Word
    max_bytes_per_s: Rate = 0
    min_bytes_per_s: Rate = 0
    min_percent: Percent = 0
    buffer_percent: Percent = DEFAULT_BUFFER * 100
    ports: SelectorList = ()
    addresses: SelectorList = ()
    cgroups: SelectorList = ()
    presets: SelectorList = ()

    def to_limit(self) -> Limit:
        """Raises BadSetting when there is no such category."""
        return Limit(
            parse_category(self.category),
            self.max_bytes_per_s,
            self.min_bytes_per_s,
            self.min_percent / 100,
            self.buffer_percent / 100,
            Selectors(self.ports, self.addresses, self.cgroups, self.presets),
        )


def limit_body(limit: Limit) -> BandwidthLimit:
    selectors = limit.selectors
    return BandwidthLimit(
        category=limit.category.value, max_bytes_per_s=limit.max_bytes_per_s, min_bytes_per_s=limit.min_bytes_per_s,
        min_percent=round(limit.min_share * 100, 6), buffer_percent=round(limit.buffer * 100, 6), ports=selectors.ports,
        addresses=selectors.addresses, cgroups=selectors.cgroups, presets=selectors.presets,
    )  # fmt: skip


class BandwidthNic(Model):
    """A NIC whose bandwidth is shared out, and what others than migration use of it now.

    :param speed_bytes_per_s: 0 when not known.
    :param shaped: it has classes of livemove's now.
    """

    name: Word
    speed_bytes_per_s: Rate
    living: bool
    shaped: bool = False
    others_out_bytes_per_s: Rate = 0
    others_in_bytes_per_s: Rate = 0


class BandwidthJourney(Model):
    """What a journey may use now.

    :param role: this host's, ``source`` or ``destination``.
    :param bytes_per_s: 0 when nothing limits it.
    """

    journey: Word
    role: Word
    bytes_per_s: Rate


class BandwidthView(Model):
    """Limits of a host, its NICs, and how it shares them out now.

    :param warnings: what is odd about the limits.
    :param notes: what cannot be done now, and why.
    :param commands: with `dry_run`: what would keep the limits while a migration runs.
    """

    host: Word
    limits: list[BandwidthLimit]
    nics: list[BandwidthNic]
    journeys: tuple[BandwidthJourney, ...] = ()
    warnings: tuple[Text, ...] = ()
    notes: tuple[Text, ...] = ()
    commands: tuple[Text, ...] = ()
