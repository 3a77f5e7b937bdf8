"""The largest packet that a path carries: which sizes to try, and what to do about the answer (#53, #117-#122).

A network that carries less than the NICs at its ends are set to, and says nothing about it, is a *black hole*: small
packets pass, large ones vanish, and a copy hangs without a word. The search finds its size:

1. The largest size that both NICs are set to; on a healthy network that is all.
2. Sizes that networks really have, each with the next larger one: a switch without jumbo frames, a tunnel.
3. What is left is cut into nine until a size passes and the next larger one does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from livemove.policy.paths import HostNetworks, Path

#: A size is too large when so many packets of it were lost although a small one sent right after each arrived: with 5 % of
#: the packets lost by chance each way that happens once in a million.
TRIES = 6
_CUTS = 8
# IPv6 least, VPNs, WireGuard, VXLAN and its like in 1500, PPPoE, Ethernet, and the same around jumbo frames
_USUAL = (1280, 1400, 1420, 1450, 1492, 1500, 8950, 9000, 9216)
_LEAST_IPV4, _LEAST_IPV6 = 576, 1280
_ETHERNET_HEADER = 14
#: What networks carry that nobody has set up otherwise: packets for a path that could not be measured.
USUAL_MTU = 1500


class MtuSearch:
    """Which sizes to try in one direction, told apart by what became of them. Answers may come late, and in any order.

    :param floor: size of the packets that show that the path is alive at all.
    :param ceiling: the largest size that can be of use.
    """

    def __init__(self, floor: int, ceiling: int) -> None:
        self._floor = floor
        self._ceiling = max(floor, ceiling)
        self._carried = 0
        self._too_large: set[int] = set()
        self._lost: dict[int, int] = {}
        self._batch: tuple[int, ...] = (self._ceiling,)

    @property
    def mtu(self) -> int:
        """The largest size that has passed so far; 0: none."""
        return self._carried

    @property
    def is_done(self) -> bool:
        """Whether the next larger size than :attr:`mtu` is known not to pass."""
        return self._limit() - self._known_to_pass() <= 1

    def sizes(self) -> tuple[int, ...]:
        """What to send now, largest last; empty when it is done."""
        limit = self._limit()
        self._batch = tuple(size for size in self._batch if self._carried < size < limit)
        if not self._batch and not self.is_done:
            self._batch = _between(self._known_to_pass(), limit)
        return self._batch

    def note_passed(self, size: int) -> None:
        """A packet of that size arrived, so all smaller ones would."""
        self._carried = max(self._carried, size)
        self._too_large = {one for one in self._too_large if one > size}

    def note_lost(self, size: int) -> None:
        """A packet of that size did not arrive, and a small one sent after it did."""
        self._lost[size] = self._lost.get(size, 0) + 1
        if self._lost[size] >= TRIES:
            self.note_too_large(size)

    def note_too_large(self, size: int) -> None:
        """The sender's own NIC does not take that size, or too many were lost."""
        if size > self._carried:
            self._too_large.add(size)

    def _known_to_pass(self) -> int:
        """Nothing below the floor is of interest."""
        return max(self._carried, self._floor - 1)

    def _limit(self) -> int:
        return min(self._too_large, default=self._ceiling + 1)


def _between(low: int, high: int) -> tuple[int, ...]:
    """Some sizes above `low` and below `high`, between which there is one at least."""
    usual = {size for usual in _USUAL for size in (usual, usual + 1) if low < size < high}
    if usual:
        return tuple(sorted(usual))
    step = max(1, (high - low) // (_CUTS + 1))
    return tuple(range(low + step, high, step))[: _CUTS + 1]


@dataclass(frozen=True, slots=True)
class PathMeasure:
    """What was found out about a path before the copy.

    :param mtu_out: largest packet from source to destination, up to what was tried; 0: nothing came through.
    :param mtu_in: the same from destination to source.
    :param round_trip_s: of the quickest small packet; None: no answer.
    :param alive: whether answers came to the end.
    :param reason: why it could not be tried at all; empty: it was.
    """

    mtu_out: int = 0
    mtu_in: int = 0
    round_trip_s: float | None = None
    alive: bool = False
    reason: str = ""


class OnBlackHole(Enum):
    """What to do with a path that carries less than its NICs are set to."""

    CLAMP = "clamp"
    LEAVE_OUT = "leave-out"
    REFUSE = "refuse"


class Use(Enum):
    """What becomes of a path."""

    USE = "use"
    CLAMP = "clamp"
    LEAVE_OUT = "leave-out"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class End:
    """A NIC at one end of a path, and the MTU that it is set to."""

    host: str
    link: str
    mtu: int


def end_of(host: HostNetworks, link: str) -> End:
    """That end of a path of which `host` has the NIC `link`."""
    return End(host.host, link, next(each.mtu for each in host.links if each.name == link))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a path, and why.

    :param mtu: the largest packet to use.
    :param sentence: what is wrong, as a sentence; empty: nothing.
    :param remedy: what mends it.
    """

    use: Use
    mtu: int
    sentence: str = ""
    remedy: str = ""


def judge(
    measure: PathMeasure,
    source: End,
    destination: End,
    setting: OnBlackHole,
    *,
    ipv6: bool = False,
    heard: bool = False,
) -> Verdict:
    """What to do with a path that was measured up to the smaller MTU of its ends.

    :param heard: the destination received something of a path that gave the source no answer.
    """
    there, back = f"{source.host} to {destination.host}", f"{destination.host} to {source.host}"
    if not measure.alive:
        ends = f"{source.link} of {source.host} and {destination.link} of {destination.host}"
        silent = f"What {source.host} sends arrives, but {back} nothing does" if heard else "No answer comes"
        why = measure.reason or f"{silent} between {ends}."
        return Verdict(Use.LEAVE_OUT, 0, why, "Check the cables, the switch and packet filters of that network.")
    usable = min(source.mtu, destination.mtu)
    carried = min(measure.mtu_out, measure.mtu_in)
    if carried >= usable:
        return Verdict(Use.USE, usable, *_unlike_ends(source, destination))
    words = [
        f"{direction} carries {mtu or 'no'} bytes"
        for direction, mtu in ((there, measure.mtu_out), (back, measure.mtu_in))
        if mtu < usable
    ]
    if measure.mtu_out == measure.mtu_in:
        words = [f"{there} and back carries {carried} bytes"]
    elif len(words) == 1:
        words.append(f"the other direction {max(measure.mtu_out, measure.mtu_in)}")
    if source.mtu == destination.mtu:
        words.append(f"both NICs ({source.link}, {destination.link}) are set to {usable}")
    else:
        words.append(f"{source.link} is set to {source.mtu} and {destination.link} to {destination.mtu}")
    remedy = f"Set {usable} on every switch between them, or {carried} on the NICs{_for_windows(usable)}."
    can_clamp = carried >= (_LEAST_IPV6 if ipv6 else _LEAST_IPV4)
    use = Use(setting.value) if can_clamp or setting is not OnBlackHole.CLAMP else Use.LEAVE_OUT
    return Verdict(use, carried, f"{', '.join(words)}.", remedy)


def _unlike_ends(source: End, destination: End) -> tuple[str, str]:
    """TCP tells both ends the smaller size, so it works; but one of the NICs is not set as somebody meant it to be."""
    if source.mtu == destination.mtu:
        return "", ""
    small, large = sorted((source, destination), key=lambda end: end.mtu)
    return (
        f"{small.link} of {small.host} is set to {small.mtu} and {large.link} of {large.host} to {large.mtu}, so that "
        f"packets of {small.mtu} bytes are used.",
        f"Set {small.link} of {small.host} to {large.mtu} as well{_for_windows(large.mtu)}, and the switches between.",
    )


def clamp_of_unmeasured(mtu: int) -> int:
    """The largest packet to use on a path of which nothing is known but the MTU of its NICs; 0: as they are set."""
    return USUAL_MTU if mtu > USUAL_MTU else 0


def name_filtered(destination_address: str, port: int) -> tuple[str, str]:
    """Sentence and remedy for a path whose connections pass and whose datagrams do not: a site's packet filter."""
    return (
        f"UDP port {port} of {destination_address} does not answer, though TCP port {port} does: a packet filter seems to "
        "drop it.",
        "Open 'port_range' of the destination for UDP as well, for the source's addresses.",
    )


def name_unlike(paths: Sequence[Path], mtus: Mapping[Path, int]) -> list[str]:
    """A sentence for each path of a journey that carries smaller packets than another one of it (#53, #150).

    Both are used, each for what it carries; but jumbo frames were meant for all, or for none.

    :param mtus: of each path, as used.
    """
    best = max(paths, key=lambda path: mtus[path], default=None)
    if best is None:
        return []
    return [
        f"Network {path.name or path.network} ({path.source_link}, {path.destination_link}) uses packets of {mtus[path]} "
        f"bytes, {best.name or best.network} of {mtus[best]}; set {mtus[best]} there too{_for_windows(mtus[best])}."
        for path in paths
        if mtus[path] < mtus[best]
    ]


def _for_windows(mtu: int) -> str:
    """Windows counts the Ethernet header in (its 9014 is 9000 here)."""
    return f" (Windows calls {mtu} {mtu + _ETHERNET_HEADER})" if mtu > 1500 else ""
