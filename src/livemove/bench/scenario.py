"""What is measured. A scenario's fields say all that matters, and its name is made from them; pure.

A comparison is a question and the scenarios that answer it. They run in turn in one lab, whose links all stand from the
start, so that whatever the machine is busy with meets all of them alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from livemove.base.errors import BadSetting
from livemove.lab.link_spec import LinkSpec, parse_link
from livemove.lab.reference import Workload

Engine = Literal["stock", "ours"]


@dataclass(frozen=True, slots=True)
class GuestMix:
    """What the reference guest holds and does; see livemove.lab.reference.Workload."""

    memory_mib: int = 1024
    random_mib: int = 200
    text_mib: int = 200
    working_set_mib: int = 16
    rate_pages_per_s: int = 1000

    @property
    def name(self) -> str:
        """Such as ``1024m-200r-200t-16w-1000p``."""
        writing = f"{self.working_set_mib}w-{self.rate_pages_per_s}p"
        return f"{self.memory_mib}m-{self.random_mib}r-{self.text_mib}t-{writing}"

    def workload(self, address: str) -> Workload:
        """The guest's workload, `address` being ``ADDRESS/PREFIX`` of its network card. Raises BadSetting."""
        return Workload(
            random_mib=self.random_mib, text_mib=self.text_mib, working_set_mib=self.working_set_mib,
            rate_pages_per_s=self.rate_pages_per_s, address=address,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way of moving one guest over one link, or over several at once.

    :param engine: ``stock``: QEMU driven plainly by hand; ``ours``: ``livemove migrate``.
    :param links: those that it may use, each as ``livemove lab up --link`` takes it.
    :param multichannel: MPTCP carries the connections, also over one link; else plain TCP does.
    :param channels: multifd connections.
    :param populate: the guest's memory is allocated ahead of use, on both hosts.

    Raises BadSetting, BadDefinition or BadQuantity when it could not be run.
    """

    engine: Engine
    links: tuple[str, ...] = ("1Gbit",)
    multichannel: bool = False
    channels: int = 2
    tls: bool = True
    compression: Literal["none", "zstd"] = "none"
    populate: bool = True
    guest: GuestMix = GuestMix()

    def __post_init__(self) -> None:
        for link in self.links:
            parse_link(link)
        self.guest.workload("")
        if self.engine not in ("stock", "ours"):
            raise BadSetting(f"A scenario's engine is 'stock' or 'ours', not '{self.engine}'.")
        if self.compression not in ("none", "zstd"):
            raise BadSetting(f"A scenario's compression is 'none' or 'zstd', not '{self.compression}'.")
        if not 1 <= self.channels <= 64:
            raise BadSetting(f"A scenario has 1 to 64 channels, not {self.channels}.")
        if not self.links:
            raise BadSetting("A scenario has one link at least.")
        if self.multichannel and self.engine == "stock":
            raise BadSetting("Stock QEMU driven by hand is given one address, so it has one path.")
        if len(self.links) > 1 and not self.multichannel:
            raise BadSetting(f"{len(self.links)} links without multichannel: plain TCP would use one of them.")

    @property
    def name(self) -> str:
        """Every field in it: two scenarios of one name are the same scenario."""
        return "-".join(
            [
                self.engine,
                name_of_links(self.links),
                *(["mptcp"] if self.multichannel else []),
                f"{self.channels}ch",
                "tls" if self.tls else "plain",
                "raw" if self.compression == "none" else self.compression,
                "populated" if self.populate else "sparse",
                self.guest.name,
            ]
        )


def name_of_links(links: Sequence[str]) -> str:
    """Such as ``1gbit``, ``4x500mbit``, ``1gbit-and-250mbit``."""
    words = [(link.lower().replace(",", "+"), len(list(alike))) for link, alike in groupby(links)]
    return "-and-".join(link if number == 1 else f"{number}x{link}" for link, number in words)


def capacity_bytes_per_s(links: Sequence[str]) -> int | None:
    """What the links are shaped to, together; None when one of them is not shaped."""
    rates = [parse_link(link).rate_bytes_per_s for link in links]
    return None if None in rates else sum(rate for rate in rates if rate is not None)


@dataclass(frozen=True, slots=True)
class LabLink:
    """A link of the comparison's lab.

    :param tls: what crosses it is encrypted. It is a network's property here as it is for livemove, whose
        ``trusted_networks`` go without.
    """

    link: str
    tls: bool

    @property
    def spec(self) -> LinkSpec:
        return parse_link(self.link)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A question and the scenarios that answer it.

    :param scenarios: by what the question calls them, in the order in which they are measured.

    Raises BadSetting without a scenario, or when their guests differ: it is one guest for each engine that is moved to and
    fro, in all scenarios of that engine.
    """

    name: str
    question: str
    scenarios: Mapping[str, Scenario]

    def __post_init__(self) -> None:
        if not self.scenarios:
            raise BadSetting(f"Comparison '{self.name}' has no scenario.")
        if len({(scenario.guest, scenario.populate) for scenario in self.scenarios.values()}) > 1:
            raise BadSetting(f"The scenarios of comparison '{self.name}' have different guests.")

    @property
    def guest(self) -> GuestMix:
        return self._any.guest

    @property
    def populate(self) -> bool:
        return self._any.populate

    @property
    def _any(self) -> Scenario:
        return next(iter(self.scenarios.values()))

    @property
    def engines(self) -> tuple[Engine, ...]:
        """Whose guests are needed, in the order of the scenarios."""
        return tuple(dict.fromkeys(scenario.engine for scenario in self.scenarios.values()))

    @property
    def lab_links(self) -> tuple[LabLink, ...]:
        """The links of a lab in which every scenario finds its own: as many of a kind as one scenario uses at most."""
        most: dict[LabLink, int] = {}
        for scenario in self.scenarios.values():
            for link in scenario.links:
                kind = LabLink(link, scenario.tls)
                most[kind] = max(most.get(kind, 0), scenario.links.count(link))
        return tuple(kind for kind, number in most.items() for _ in range(number))

    def links_of(self, scenario: Scenario) -> tuple[int, ...]:
        """Which of :attr:`lab_links` a scenario of this comparison uses, in its own order."""
        free = list(enumerate(self.lab_links))
        found = []
        for link in scenario.links:
            place = next(place for place in free if place[1] == LabLink(link, scenario.tls))
            free.remove(place)
            found.append(place[0])
        return tuple(found)

    def order_of(self, pair: int) -> tuple[str, ...]:
        """In which order the scenarios are measured in a round, counted from 1: to and fro, so that none is always first."""
        order = tuple(self.scenarios)
        return order if pair % 2 else order[::-1]


def against_stock(name: str, question: str, ours: Scenario) -> Comparison:
    """`ours` compared with the same thing done by stock QEMU."""
    return Comparison(name, question, {engine: replace(ours, engine=engine) for engine in ("stock", "ours")})
