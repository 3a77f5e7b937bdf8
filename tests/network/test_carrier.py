"""The carriers of NICs, as they change."""

from __future__ import annotations

import select
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemove.network.carrier import Carriers, parse_link
from livemove.network.netlink_notes import Note

from .test_sockets import attribute
from .two_hosts import TwoHosts, run


def link(flags: int, *, kind: int = 16, family: int = 0) -> Note:
    return Note(kind, struct.pack("=BxHiII", family, 1, 7, flags, 0) + attribute(3, b"eth0\0"))


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        (link(0x10001), ("eth0", 7, True)),
        (link(0x10000), ("eth0", 7, False)),
        (link(0x1), ("eth0", 7, False)),
        (link(0x10001, kind=17), ("eth0", 7, False)),
        (link(0x10001, kind=20), None),
        (link(0x10001, family=7), None),
        (Note(16, b"short"), None),
    ],
)
def test_links(note: Note, expected: tuple[str, int, bool] | None) -> None:
    assert parse_link(note) == expected


@given(st.binary(max_size=100), st.sampled_from([16, 17]))
def test_garbage_is_read_without_fear(data: bytes, kind: int) -> None:
    parse_link(Note(kind, data))


@pytest.mark.qemu
def test_real_nics_lose_and_regain_their_carrier_and_come_back() -> None:
    hosts = TwoHosts(2)
    ours = hosts.link("source", 0)
    try:
        with hosts.inside("source"):
            carriers = Carriers([ours, "nothere0", ""])

        def settled(expected: bool) -> None:
            for _ in range(50):
                if carriers.carries(ours) is expected:
                    return
                select.select([carriers], [], [], 0.1)
                with hosts.inside("source"):
                    carriers.read()
            raise AssertionError(f"carrier is not {expected}")

        settled(True)
        assert not carriers.carries("nothere0") and carriers.index("nothere0") == 0
        assert carriers.carries("")  # a path whose NIC is not known is judged by its heartbeats
        before = carriers.index(ours)
        hosts.pull(0)
        settled(False)
        hosts.heal(0)
        settled(True)
        run("ip", "-n", hosts.source, "link", "del", ours)
        settled(False)
        run("ip", "-n", hosts.source, "link", "add", "ballast0", "type", "veth", "peer", "name", "ballast1")
        hosts.lay(0, "")
        settled(True)
        assert carriers.index(ours) not in (0, before)
        carriers.close()
    finally:
        hosts.close()
