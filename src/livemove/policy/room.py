"""What migration leaves free for others, measured and decided anew ten times a second (#90, #91).

Others use what they are promised only now and then, so migration takes all until somebody else is seen. What it then
keeps free grows at once to what they are promised, because TCP fills the room it finds within a round trip; it shrinks only
after they have used less for a while. So a spike costs migration half a second of idle room, and a promise is kept after
two measurements.

Measured: of the three states below only *holding* lasts; a steady flow well under its minimum settles at KEPT times its
rate.

    quiet    others use less than QUIET of the NIC: nothing is kept
    growing  they use most of what is kept: STEP of the NIC at least, then all that they are promised
    holding  they use less: what is kept stays for HOLD_S, and then shrinks to KEPT times what they use
"""

from __future__ import annotations

from dataclasses import dataclass

#: Of a NIC's capacity: less than this is chatter, and within the error of what is counted.
QUIET = 0.01
#: Of a NIC's capacity: the first room for somebody new.
STEP = 0.1
#: How many times what newcomers use they are given at once, up to what they are promised.
GROWTH = 5.0
#: Who uses more than this part of what is kept may want more.
GROWING = 0.75
#: How many times what they use is kept for those who do not grow; 1/KEPT is below GROWING, or it would never settle.
KEPT = 1.5
HOLD_S = 0.5
#: What is kept shrinks by this factor in SHRINK_S.
SHRINK, SHRINK_S = 0.7, 0.1
#: Of a NIC's capacity that all together are given: the queue then forms where classes tell packets apart, and somebody new
#: finds the next switch's queue empty.
USABLE = 0.975


@dataclass(frozen=True, slots=True)
class Room:
    """What is kept free on one NIC in one direction.

    :param calm_s: for how long others have used well under it.
    """

    kept_bytes_per_s: float = 0.0
    calm_s: float = 0.0


def step_room(
    room: Room, *, others_bytes_per_s: float, promised_bytes_per_s: float, capacity_bytes_per_s: float, elapsed_s: float
) -> Room:
    """What is kept from now on, after others used `others_bytes_per_s` for `elapsed_s`.

    :param promised_bytes_per_s: minimum and buffer on this NIC; never more is kept.
    """
    others, promised, kept = others_bytes_per_s, promised_bytes_per_s, min(room.kept_bytes_per_s, promised_bytes_per_s)
    quiet = others <= QUIET * capacity_bytes_per_s
    if not quiet and others > GROWING * kept:
        return Room(min(promised, max(kept, GROWTH * others, STEP * capacity_bytes_per_s)))
    calm_s = room.calm_s + elapsed_s
    if kept and calm_s > HOLD_S:
        goal = 0.0 if quiet else KEPT * others
        kept = max(min(kept, goal), kept * SHRINK ** (elapsed_s / SHRINK_S))
        if quiet and kept <= QUIET * capacity_bytes_per_s:
            kept = 0.0
    return Room(kept, calm_s)
