"""Heartbeats as bytes: what is packed is unpacked, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemove.base.errors import PeerViolation
from livemove.wire.heartbeat import KEY_BYTES, MOST_PATHS, SIZE, Heartbeat, Role, pack, unpack

KEY = bytes(range(KEY_BYTES))
u32 = st.integers(0, (1 << 32) - 1)
paths = st.integers(0, MOST_PATHS - 1)
beats = st.builds(
    Heartbeat,
    st.sampled_from(Role),
    paths,
    u32.filter(bool),
    u32.filter(bool),
    u32,
    u32,
    st.frozensets(paths),
    st.none() | st.integers(0, (1 << 64) - 2),
)


@given(beats)
def test_round_trip(beat: Heartbeat) -> None:
    data = pack(beat, KEY)
    assert len(data) == SIZE
    assert unpack(data, KEY) == beat


@given(beats, st.integers(0, SIZE * 8 - 1))
def test_no_bit_may_change(beat: Heartbeat, bit: int) -> None:
    data = bytearray(pack(beat, KEY))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PeerViolation):
        unpack(bytes(data), KEY)


@given(beats, st.integers(0, SIZE - 1))
def test_nothing_may_be_missing_or_follow(beat: Heartbeat, length: int) -> None:
    data = pack(beat, KEY)
    for wrong in (data[:length], data + b"\0"):
        with pytest.raises(PeerViolation):
            unpack(wrong, KEY)


@given(beats)
def test_another_journey_s_key(beat: Heartbeat) -> None:
    with pytest.raises(PeerViolation, match="not of this journey"):
        unpack(pack(beat, KEY[::-1]), KEY)


@given(st.binary(max_size=2 * SIZE))
def test_garbage_is_a_violation_and_no_other_error(data: bytes) -> None:
    with pytest.raises(PeerViolation):
        unpack(data, KEY)


BEAT = Heartbeat(Role.SOURCE, 3, life=7, round_number=9)


@pytest.mark.parametrize(
    "wrong", [replace(BEAT, path=MOST_PATHS), replace(BEAT, life=0), replace(BEAT, round_number=0)]
)
def test_what_cannot_be_is_refused_although_its_tag_is_right(wrong: Heartbeat) -> None:
    with pytest.raises(PeerViolation, match="cannot be"):
        unpack(pack(wrong, KEY), KEY)


def test_another_version_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livemove.wire.heartbeat._VERSION", 2)
    data = pack(BEAT, KEY)
    monkeypatch.undo()
    with pytest.raises(PeerViolation, match="version 2"):
        unpack(data, KEY)


def test_more_than_can_be_said_is_nearly_no_limit() -> None:
    assert unpack(pack(replace(BEAT, allowance_bytes_per_s=1 << 70), KEY), KEY).allowance_bytes_per_s == (1 << 64) - 2


def test_the_layout_is_the_documented_one() -> None:
    beat = Heartbeat(Role.DESTINATION, 1, 0x01020304, 5, 6, 7, frozenset({0, 31}), 0x1122)
    data = pack(beat, KEY)
    assert data[:8] == b"LMhb\x01\x02\x01\x00"
    assert data[8:48].hex() == ("01020304000000050000000600000007800000010000000000000000000011220000000000000000")


def test_each_role_has_another() -> None:
    assert {role.other for role in Role} == set(Role)
