"""What is compared, and what a difference means: samples, pieces, KVM's wall clock."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemove.migration.verification import (
    FEWEST_SAMPLES,
    LADDER,
    MOST_PIECES,
    MOST_SAMPLES,
    PAGE_BYTES,
    SAMPLE_PIECE_BYTES,
    describe,
    explain_wall_clock,
    first_level,
    piece_offsets,
    sample_count,
    sample_offsets,
    sampled_bytes,
)

MIB = 1 << 20
LENGTHS = {"ram0": 128 * MIB, "pc.rom": 131072, "tables": 4096, "empty": 0}


def test_a_sample_is_in_every_block_follows_from_its_seed_and_is_another_for_another_seed():
    sample = sample_offsets(b"seed", LENGTHS, 200)
    assert set(sample) == {"ram0", "pc.rom", "tables"}
    assert sample == sample_offsets(b"seed", dict(reversed(LENGTHS.items())), 200), "both hosts draw the same"
    assert sample != sample_offsets(b"other", LENGTHS, 200)
    assert 150 < len(sample["ram0"]) <= 201 and sample["tables"] == [0]


@given(
    st.binary(min_size=1, max_size=32),
    st.dictionaries(st.text(min_size=1, max_size=5), st.integers(1, 1 << 44), min_size=1, max_size=9),
    st.integers(0, 500),
)
def test_every_piece_of_a_sample_is_inside_of_its_block(seed: bytes, lengths: dict[str, int], count: int):
    sample = sample_offsets(seed, lengths, count)
    for name, offsets in sample.items():
        assert offsets == sorted(set(offsets)) and offsets
        assert all(0 <= offset < lengths[name] and offset % SAMPLE_PIECE_BYTES == 0 for offset in offsets)
    assert sampled_bytes(lengths, sample) <= sum(lengths.values())


def test_samples_are_spread_evenly():
    chosen = [
        offset for seed in range(40) for offset in sample_offsets(bytes([seed]), {"ram0": 128 * MIB}, 100)["ram0"]
    ]
    quarters = [sum(1 for offset in chosen if offset // (32 * MIB) == quarter) for quarter in range(4)]
    assert all(850 < count < 1150 for count in quarters), quarters


def test_a_faster_host_samples_more_within_bounds():
    assert sample_count(1.0) == FEWEST_SAMPLES
    assert sample_count(1e15) == MOST_SAMPLES
    assert FEWEST_SAMPLES < sample_count(2e9) < sample_count(8e9) < MOST_SAMPLES


@pytest.mark.parametrize("length", [1, 4096, MIB, MIB + 1, 128 * MIB, 1 << 40, 1 << 46])
def test_pieces_of_every_level_fit_into_one_question(length: int):
    sizes = list(reversed(LADDER[: first_level(length) + 1]))
    assert len(piece_offsets(0, length, sizes[0])) <= MOST_PIECES
    for larger, smaller in pairwise(sizes):
        assert larger // smaller <= MOST_PIECES
    assert sizes[-1] == PAGE_BYTES


def test_the_sentence_names_what_differs():
    assert "1 page differs (ram0 at 0x5000)" in describe("db1", [("ram0", 0x5000)], more=False)
    assert "at least 1 pages differ" in describe("db1", [("ram0", 0x5000)], more=True)
    assert "2 pages differ" in describe("db1", [("ram0", 0), ("pc.rom", 4096)], more=False)


# KVM's wall clock -----------------------------------------------------------------------------------------------------


def page(*words: int, at: int = 0x7C0) -> bytes:
    return bytes(at) + struct.pack("<III", *words) + b"\x55" * (PAGE_BYTES - at - 12)


CLOCK = (4, 1_790_000_000, 123_456_789)


@pytest.mark.parametrize(
    "new", [(6, 1_790_000_000, 123_460_000), (6, 1_790_000_001, 2), (6, 1_790_000_001, 123_456_789)]
)
def test_a_wall_clock_that_kvm_computed_anew_is_understood(new: tuple[int, int, int]):
    assert explain_wall_clock(page(*CLOCK), page(*new), cpus=1)


@pytest.mark.parametrize(
    "new",
    [
        CLOCK,
        (6, 1_790_000_000, 123_456_789),
        (4, 1_790_000_001, 5),
        (5, 1_790_000_001, 5),
        (10, 1_790_000_001, 5),
        (6, 1_790_009_000, 5),
        (6, 1_790_000_000, 1_000_000_000),
    ],
)
def test_anything_else_is_a_difference(new: tuple[int, int, int]):
    assert not explain_wall_clock(page(*CLOCK), page(*new), cpus=1)


def test_every_processor_may_write_it():
    assert explain_wall_clock(page(*CLOCK), page(4 + 4 * 8, 1_790_000_000, 5), cpus=8)
    assert not explain_wall_clock(page(*CLOCK), page(4 + 4 * 8 + 2, 1_790_000_000, 5), cpus=8)


def test_a_wall_clock_that_changed_excuses_nothing_else_on_its_page():
    changed = bytearray(page(6, 1_790_000_000, 123_460_000))
    changed[9] ^= 1
    assert not explain_wall_clock(page(*CLOCK), bytes(changed), cpus=1)
    assert not explain_wall_clock(page(3, 5, 7), page(5, 6, 8), cpus=1), (
        "no guest booted in 1970, and the version is even"
    )
    assert not explain_wall_clock(page(*CLOCK), page(*CLOCK)[:-1], cpus=1)


@given(st.integers(0, PAGE_BYTES - 1), st.integers(1, 255))
def test_no_single_byte_is_ever_explained(at: int, flip: int):
    """A flipped byte is found, also on the page that holds the clock."""
    source = page(*CLOCK)
    damaged = bytearray(source)
    damaged[at] ^= flip
    assert not explain_wall_clock(source, bytes(damaged), cpus=1)
