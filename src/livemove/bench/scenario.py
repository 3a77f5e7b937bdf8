"""What is measured. A scenario's fields say all that matters, and its name is made from them; pure.

A comparison is a question and the scenarios that answer it. They run in turn in one lab, so that whatever the machine is
busy with meets all of them alike.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from livemove.base.errors import BadSetting
from livemove.lab.reference import Workload
from livemove.lab.topology import LinkSpec, parse_link

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
    """One way of moving one guest over one link.

    :param engine: ``stock``: QEMU driven plainly by hand; ``ours``: ``livemove migrate``.
    :param link: as ``livemove lab up --link`` takes it.
    :param channels: multifd connections.
    :param populate: the guest's memory is allocated ahead of use, on both hosts.

    Raises BadSetting, BadDefinition or BadQuantity when it could not be run.
    """

    engine: Engine
    link: str = "1Gbit"
    channels: int = 2
    tls: bool = True
    compression: Literal["none", "zstd"] = "none"
    populate: bool = True
    guest: GuestMix = GuestMix()

    def __post_init__(self) -> None:
        parse_link(self.link)
        self.guest.workload("")
        if self.engine not in ("stock", "ours"):
            raise BadSetting(f"A scenario's engine is 'stock' or 'ours', not '{self.engine}'.")
        if self.compression not in ("none", "zstd"):
            raise BadSetting(f"A scenario's compression is 'none' or 'zstd', not '{self.compression}'.")
        if not 1 <= self.channels <= 64:
            raise BadSetting(f"A scenario has 1 to 64 channels, not {self.channels}.")

    @property
    def name(self) -> str:
        """Every field in it: two scenarios of one name are the same scenario."""
        return "-".join(
            [
                self.engine,
                self.link.lower().replace(",", "+"),
                f"{self.channels}ch",
                "tls" if self.tls else "plain",
                "raw" if self.compression == "none" else self.compression,
                "populated" if self.populate else "sparse",
                self.guest.name,
            ]
        )

    @property
    def link_spec(self) -> LinkSpec:
        return parse_link(self.link)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A question and the scenarios that answer it.

    Raises BadSetting when they do not differ in the engine alone, because the answer would then be one to another question.
    """

    name: str
    question: str
    scenarios: tuple[Scenario, ...]

    def __post_init__(self) -> None:
        if sorted(scenario.engine for scenario in self.scenarios) != ["ours", "stock"]:
            raise BadSetting(f"Comparison '{self.name}' needs one scenario of stock QEMU and one of ours.")
        if replace(self.of("ours"), engine="stock") != self.of("stock"):
            ours, stock = self.of("ours"), self.of("stock")
            names = (field.name for field in fields(Scenario) if field.name != "engine")
            apart = [name for name in names if getattr(ours, name) != getattr(stock, name)]
            raise BadSetting(f"The scenarios of comparison '{self.name}' differ in {', '.join(apart)} too.")

    def of(self, engine: Engine) -> Scenario:
        """The scenario of one engine."""
        return next(scenario for scenario in self.scenarios if scenario.engine == engine)


def against_stock(name: str, question: str, ours: Scenario) -> Comparison:
    """`ours` compared with the same thing done by stock QEMU."""
    return Comparison(name, question, (replace(ours, engine="stock"), replace(ours, engine="ours")))
