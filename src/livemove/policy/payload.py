"""How much of what was counted is payload: the only measure in which a NIC and a packet filter agree.

A NIC counts packets as they are on the wire, with the headers of each; a packet filter sees them merged into large ones, with
one header for many. Without the headers both say the same, to within the few bytes by which TCP's options vary: 0.3 % of
a NIC with packets of 1500 bytes. Acknowledgements without data count as nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Two counters are never read at the same moment: packets of a NIC that the filter has not seen yet, or the other way round.
#: What one reading says too little is taken off the next one's excess, up to four of the largest packets.
MOST_OWED_BYTES = float(256 << 10)
#: Ethernet without its checksum, which NICs leave out of their counts.
LINK_HEADER = 14
#: IPv4 or IPv6, and TCP with time stamps (RFC 791, 8200, 9293, 7323).
_IPV4, _IPV6, _TCP = 20, 40, 32
#: The data sequence signal of MPTCP, RFC 8684 section 3.3: 20 to 28 bytes as Linux sends it.
_MPTCP = 24


@dataclass(frozen=True, slots=True)
class Traffic:
    """A count of bytes and packets."""

    bytes: int = 0
    packets: int = 0

    def since(self, earlier: Traffic) -> Traffic:
        """What was added; a counter that began anew counts from 0."""
        if self.bytes < earlier.bytes or self.packets < earlier.packets:
            return self
        return Traffic(self.bytes - earlier.bytes, self.packets - earlier.packets)


def header_bytes(*, ipv6: bool, mptcp: bool) -> int:
    """Headers of one packet on the wire, the link's own included."""
    return LINK_HEADER + (_IPV6 if ipv6 else _IPV4) + _TCP + (_MPTCP if mptcp else 0)


def payload(traffic: Traffic, headers: int, *, linked: bool) -> float:
    """Bytes without headers.

    :param linked: the count has the link's header in it, as a NIC's; a packet filter's has not.
    """
    return max(0.0, traffic.bytes - traffic.packets * (headers if linked else headers - LINK_HEADER))


def rest_of(every_bytes: float, own_bytes: float, owed_bytes: float) -> tuple[float, float]:
    """What of a NIC's payload is not our own, and what the next reading owes.

    :param owed_bytes: of the reading before; MOST_OWED_BYTES before the first.
    """
    rest = every_bytes - own_bytes - owed_bytes
    return max(0.0, rest), min(MOST_OWED_BYTES, max(0.0, -rest))
