"""How a link of a lab behaves: rate, queue, MTUs, and what joins the hosts. Pure: no IO.

    RATE[,queue=5ms][,mtu=9000[/1500...]][,offloads=off][,switched][,switch-mtu=1500][,subnet=0]

*Where a link is shaped.* Two hosts share one cable, shaped on both ends; more than two hosts have a switch, where a packet
passes the sender's NIC and the receiver's port, both shaped. A ``switched`` link has a switch also between two hosts, and
all shaping is inside it: what a host sends passes a queue of the link's rate behind its port, and what it receives one
before its port. The hosts' own NICs then have no queueing discipline, so that what a host's agent puts there is all there is.

*Where packets are too large.* A NIC drops what is larger than its own MTU; a switch passes what its ports are given, up to
64 KiB, unless it has an MTU of its own: what is larger then vanishes in it, and no sender is told.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from livemove.base.errors import BadDefinition, BadQuantity
from livemove.base.units import parse_duration, parse_rate, parse_size

# Queue of a shaped link that does not say: a switch port's worth; much more would only add latency to every round trip.
DEFAULT_QUEUE_S = 0.020
# tbf cannot send a packet larger than its burst, and GSO packets have 64 KiB; at high rates the timer's granularity asks for more.
MIN_BURST_BYTES = 65536
BURST_S = 0.002
MAX_TBF_BYTES = (1 << 32) - 1
DEFAULT_MTU = 1500
MIN_MTU, MAX_MTU = 576, 65535

_OPTIONS = ("mtu", "queue", "offloads", "switched", "switch-mtu", "subnet")
_REMEDY = (
    "Write RATE[,mtu=BYTES[/BYTES...]][,queue=5ms|queue=512KiB][,offloads=on|off][,switched][,switch-mtu=BYTES]"
    "[,subnet=LINK], RATE such as 1Gbit or 'unshaped'."
)


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """How a link behaves, the same in both directions.

    :param rate_bytes_per_s: None leaves the link unshaped.
    :param queue_bytes: what waits before packets are dropped; None: 20 ms of the rate.
    :param mtu: of the hosts' NICs.
    :param offloads: False makes hosts send packets no larger than the MTU (tso, gso and gro off), as MTU tests need.
    :param switched: joined by a switch also between two hosts, and shaped only there.
    :param switch_mtu: what is larger vanishes in the switch; None: all that the NICs send passes.
    :param host_mtus: the NICs' MTUs where they differ, in the order of the hosts; empty: all have `mtu`.
    :param subnet: number of the link whose subnet and switch this link's NICs are in; None: one of their own.
    """

    rate_bytes_per_s: int | None = None
    queue_bytes: int | None = None
    mtu: int = DEFAULT_MTU
    offloads: bool = True
    switched: bool = False
    switch_mtu: int | None = None
    host_mtus: tuple[int, ...] = ()
    subnet: int | None = None

    def __post_init__(self) -> None:
        for mtu in (self.mtu, *self.host_mtus, *(() if self.switch_mtu is None else (self.switch_mtu,))):
            check_mtu(mtu)
        if self.switch_mtu is not None and self.offloads:
            raise BadDefinition(
                "A switch with an MTU of its own cannot tell large packets from bundles of small ones.",
                remedy="Add offloads=off to the link.",
            )
        if self.rate_bytes_per_s is None:
            if self.queue_bytes is not None:
                raise BadDefinition("A link without a rate has no queue.", remedy="Give a rate too: 1Gbit,queue=5ms.")
            return
        if not 1000 <= self.rate_bytes_per_s <= 50 * 10**9:
            raise BadQuantity(
                f"A link's rate is 8kbit to 400Gbit, not {self.rate_bytes_per_s * 8} bit/s.",
                remedy="Write such as 1Gbit, or 'unshaped'.",
            )
        if self.queue_bytes is not None and self.queue_bytes < 1:
            raise BadQuantity(f"A link's queue is 1 byte at least, not {self.queue_bytes}.")
        if self.limit_bytes > MAX_TBF_BYTES:
            raise BadQuantity(f"A link's queue of {self.queue_bytes} bytes is over 4 GiB.", remedy="Use queue=20ms.")

    @property
    def burst_bytes(self) -> int:
        """What a shaped link may send at once after a pause."""
        return max(MIN_BURST_BYTES, int((self.rate_bytes_per_s or 0) * BURST_S))

    @property
    def limit_bytes(self) -> int:
        """tbf's ``limit``, which counts the burst as well as the queue."""
        queue_bytes = self.queue_bytes
        if queue_bytes is None:
            queue_bytes = int((self.rate_bytes_per_s or 0) * DEFAULT_QUEUE_S)
        return queue_bytes + self.burst_bytes

    def mtu_of(self, place: int) -> int:
        """The MTU of the NIC of the host at a place in the lab's list."""
        return self.host_mtus[place] if self.host_mtus else self.mtu


def check_mtu(mtu: int) -> int:
    """The MTU itself. Raises BadQuantity for one that no NIC of a lab can have."""
    if not MIN_MTU <= mtu <= MAX_MTU:
        raise BadQuantity(f"A link's MTU is {MIN_MTU} to {MAX_MTU} bytes, not {mtu}.", remedy="Write such as mtu=9000.")
    return mtu


def parse_link(text: str) -> LinkSpec:
    """A link from ``1Gbit``, ``1Gbit,mtu=9000``, ``250Mbit,queue=5ms``, ``1Gbit,switched``, ``unshaped,offloads=off``.

    A queue is a duration at the link's rate or a size. Raises BadDefinition for words it does not know, BadQuantity
    for numbers out of range or without a unit.
    """
    shown = text[:64]
    first, *options = [part.strip() for part in text[:400].split(",")]
    if "=" in first or not first:
        raise BadDefinition(f"The link '{shown}' does not begin with a rate.", remedy=_REMEDY)
    rate = None if first == "unshaped" else parse_rate(first)
    if rate == 0:
        raise BadQuantity(f"The link '{shown}' has no rate.", remedy=_REMEDY)
    given: dict[str, str] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if key not in _OPTIONS or key in given or bool(equals) == (key == "switched"):
            raise BadDefinition(f"'{option}' means nothing in the link '{shown}'.", remedy=_REMEDY)
        given[key] = value
    mtus = tuple(_parse_number(part, "an MTU") for part in given.get("mtu", str(DEFAULT_MTU)).split("/"))
    # bundles of packets pass where none of them would
    offloads = given.get("offloads", "off" if len(mtus) > 1 or "switch-mtu" in given else "on")
    if offloads not in ("on", "off"):
        raise BadDefinition(f"'offloads' is on or off, not '{offloads}'.", remedy=_REMEDY)
    return LinkSpec(
        rate,
        _parse_queue(given["queue"], rate) if "queue" in given else None,
        max(mtus),
        offloads == "on",
        "switched" in given,
        _parse_number(given["switch-mtu"], "an MTU") if "switch-mtu" in given else None,
        mtus if len(mtus) > 1 else (),
        _parse_number(given["subnet"], "the number of a link") if "subnet" in given else None,
    )


def _parse_number(text: str, what: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise BadQuantity(f"'{text}' is not {what}.", remedy=_REMEDY)
    return int(text)


def _parse_queue(text: str, rate_bytes_per_s: int | None) -> int:
    if text[-1:] in ("B", "b"):
        return parse_size(text)
    return max(1, int(parse_duration(text) * (rate_bytes_per_s or 0)))
