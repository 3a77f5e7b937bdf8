"""What may happen to a journey at a random moment."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

AGENTS = ("source agent", "destination agent", "both agents")
QEMUS = ("source QEMU", "destination QEMU")
MACHINES = ("source host", "destination host")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    :param what: a victim of tests.e2e.striking, or cancel, pause, reset, or nothing.
    :param how: see Strike.
    :param after_s: how long after the journey was asked for.
    :param hold_s: how long it lasts.
    :param networks: those that are struck.
    """

    what: str
    how: str
    after_s: float
    hold_s: float
    networks: tuple[int | str, ...] = ()

    @property
    def may_crash(self) -> bool:
        """Whether the VM may be down afterwards, as it would be without a journey."""
        return self.how == "kill" and self.what in (*QEMUS, *MACHINES)

    def __str__(self) -> str:
        where = f" of {' and '.join(map(str, self.networks))}" if self.networks else ""
        return f"{self.what} {self.how}{where} after {self.after_s:.2f} s for {self.hold_s:.2f} s".replace("  ", " ")


def draw(random: Random, journey_s: float) -> Fault:
    """The next fault; `journey_s` is how long a journey takes here."""
    after_s = random.uniform(0.0, journey_s * 1.1)
    match random.choices(("kill", "stop", "network", "user", "nothing"), weights=(40, 20, 20, 15, 5))[0]:
        case "kill":
            return Fault(random.choice(AGENTS + QEMUS + MACHINES), "kill", after_s, random.choice((0.0, 0.0, 1.0, 4.0)))
        case "stop":
            # some of them longer than the patience for the answer to a GO
            return Fault(
                random.choice(AGENTS + QEMUS + MACHINES), "stop", after_s, random.choice((0.5, 2.0, 5.0, 10.0))
            )
        case "network":
            networks: tuple[int | str, ...] = random.choice((("control",), (0,), ("control", 0)))
            return Fault("network", random.choice(("drop", "unplug")), after_s, random.uniform(1.0, 8.0), networks)
        case "user":
            return Fault(random.choice(("cancel", "pause", "reset")), "", after_s, random.uniform(0.1, 3.0))
        case _:
            return Fault("nothing", "", 0.0, 0.0)
