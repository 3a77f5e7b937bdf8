"""Counters and carrier of NICs, of the namespace of whoever asks."""

from __future__ import annotations

import socket

import pytest

from livemove.network.nic_counters import NicCount, is_living, parse_counts, read_counts

from .own_namespace import in_own_namespace, make_cables, tool

TABLE = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:  126640     968    0    0    0     0          0         0   126640     968    0    0    0     0       0          0
eth0.5:18446744073709551615  2 0 0 0 0 0 0 7 3 0 0 0 0 0 0
"""


def test_the_kernel_s_table() -> None:
    assert parse_counts(TABLE) == {"lo": NicCount(126640, 968, 126640, 968), "eth0.5": NicCount(2**64 - 1, 2, 7, 3)}
    assert parse_counts("") == {}


@pytest.mark.qemu
def test_real_nics() -> None:
    async def work() -> None:
        make_cables("e0")
        assert is_living("e0") and is_living("e0-far") and not is_living("e9")
        before = read_counts()
        assert before.keys() == {"lo", "e0", "e0-far"}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect(("127.0.0.1", 9))
            sender.send(bytes(1000))
        after = read_counts()["lo"]
        assert after.sent_packets - before["lo"].sent_packets >= 1
        assert after.received_bytes - before["lo"].received_bytes >= 1028
        tool("ip", "link", "set", "e0-far", "down")
        assert not is_living("e0"), "its carrier is gone"
        tool("ip", "link", "del", "e0")
        assert not is_living("e0-far")

    in_own_namespace(work)
