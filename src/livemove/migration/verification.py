"""What is compared before a hand-over, and what a difference means. Pure; verifying.py asks the two hosts.

A block's digest is that of its chunks' digests, in their order, so a difference is found from the top down: 256 pieces at
a time are asked for, of the sizes in LADDER, until single pages are named. A huge VM costs a few small answers more.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

from blake3 import blake3

from livemove.base.units import GIB, KIB, MIB

PAGE_BYTES = 4 * KIB
#: Sizes of pieces, each at most 256 of the one before it.
LADDER = (PAGE_BYTES, 256 * KIB, 64 * MIB, 16 * GIB, 4096 * GIB)
#: What one question may ask for, hence how long an answer can be.
MOST_PIECES = 256
#: A sample is of pieces of this size: single pages cost three times as much a byte, larger pieces see fewer places.
SAMPLE_PIECE_BYTES = 16 * KIB
#: What both hosts may spend on hashing a sample; questions, answers and threads take about as long again.
SAMPLE_S = 0.002
#: Pieces of 16 KiB are read and hashed at about this part of the rate that was measured with larger ones.
SMALL_PIECES = 0.5
FEWEST_SAMPLES, MOST_SAMPLES = 16, 4096
#: Pages that a report names; there may be more.
MOST_PAGES = 16


def sample_count(rate_bytes_per_s: float) -> int:
    """How many pieces the slower of two hosts reads and hashes in SAMPLE_S."""
    fit = int(rate_bytes_per_s * SMALL_PIECES * SAMPLE_S / SAMPLE_PIECE_BYTES)
    return max(FEWEST_SAMPLES, min(MOST_SAMPLES, fit))


def sample_offsets(seed: bytes, lengths: Mapping[str, int], count: int) -> dict[str, list[int]]:
    """Where to look in each block: one piece of each, and `count` more all over the memory, the same for the same seed.

    :param lengths: bytes to look at by block; blocks of no length have no piece.
    """
    names = sorted(name for name, length in lengths.items() if length > 0)
    pieces = [-(-lengths[name] // SAMPLE_PIECE_BYTES) for name in names]
    ends = list(accumulate(pieces))
    stream = blake3(seed).digest(length=8 * (len(names) + count))
    draws = [int.from_bytes(stream[at : at + 8], "big") for at in range(0, len(stream), 8)]
    chosen: dict[str, set[int]] = {
        name: {draw % number} for name, number, draw in zip(names, pieces, draws, strict=False)
    }
    for draw in draws[len(names) :]:
        piece = draw % ends[-1]
        index = bisect_right(ends, piece)
        chosen[names[index]].add(piece - (ends[index] - pieces[index]))
    return {name: [piece * SAMPLE_PIECE_BYTES for piece in sorted(found)] for name, found in chosen.items()}


def sampled_bytes(lengths: Mapping[str, int], offsets: Mapping[str, Sequence[int]]) -> int:
    """How much of the memory a sample covers."""
    return sum(min(SAMPLE_PIECE_BYTES, lengths[name] - at) for name, found in offsets.items() for at in found)


def first_level(length: int) -> int:
    """The index in LADDER of the pieces that a block of `length` bytes is first divided into."""
    return next((level for level, size in enumerate(LADDER) if size * MOST_PIECES >= length), len(LADDER) - 1)


def piece_offsets(start: int, end: int, piece_bytes: int) -> list[int]:
    """Where the pieces of a range begin."""
    return list(range(start, end, piece_bytes))


def describe(vm: str, pages: Sequence[tuple[str, int]], *, more: bool) -> str:
    """The sentence that ends a journey whose memory differs."""
    places = ", ".join(f"{block} at {address:#x}" for block, address in pages)
    if not pages:
        return f"The destination's copy of the memory of VM '{vm}' differs from the source's."
    count = f"at least {len(pages)}" if more else str(len(pages))
    kind = "page differs" if count == "1" else "pages differ"
    return f"The destination's copy of the memory of VM '{vm}' is not what the source sent: {count} {kind} ({places})."


# What loading device state changes ------------------------------------------------------------------------------------

_CLOCK = struct.Struct("<III")
#: The wall clock that KVM computes anew may have drifted since the guest's start, and been set.
_CLOCK_STEP_S = 3600
#: 2001 and 2096: what a guest's boot time can be.
_EARLIEST_S, _LATEST_S = 1_000_000_000, 4_000_000_000


def explain_wall_clock(source: bytes, destination: bytes, *, cpus: int) -> bool:
    """Whether two copies of a page differ in KVM's wall clock alone.

    When QEMU loads the registers of a virtual CPU it sets MSR_KVM_WALL_CLOCK, newer ones MSR_KVM_WALL_CLOCK_NEW too, and
    at each KVM writes 12 bytes into the guest's page: a version that grows by 2 and is even at rest, and the host's wall
    time at the guest's boot in seconds and nanoseconds (kvm_write_wall_clock in Linux's arch/x86/kvm/x86.c, kvm_put_msrs
    in QEMU's target/i386/kvm/kvm.c). Both must have changed as they change them, and nothing else on the page: a flipped
    byte cannot do so, because the version and the time are different words.
    """
    if len(source) != len(destination):
        return False
    differing = [at for at in range(len(source)) if source[at] != destination[at]]
    if not differing:
        return False
    start = differing[0] & ~3
    if differing[-1] >= start + _CLOCK.size or start + _CLOCK.size > len(source):
        return False
    (version, sec, nsec), (new_version, new_sec, new_nsec) = (
        _CLOCK.unpack_from(page, start) for page in (source, destination)
    )
    return (
        version % 2 == 0
        and new_version - version in range(2, 4 * cpus + 1, 2)
        and (sec, nsec) != (new_sec, new_nsec)
        and abs(new_sec - sec) <= _CLOCK_STEP_S
        and all(_EARLIEST_S < seconds < _LATEST_S for seconds in (sec, new_sec))
        and max(nsec, new_nsec) < 1_000_000_000
    )
