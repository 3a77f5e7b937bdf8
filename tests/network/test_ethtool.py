"""What NICs say of themselves: a veth's driver in a namespace, and one that is not there."""

from __future__ import annotations

import pytest

from livemove.network.ethtool import driver_of, link_speed, offloads, receive_queues

from .in_namespace import in_a_namespace


@pytest.mark.qemu
def test_a_real_driver_answers() -> None:
    before, after = in_a_namespace(
        """
from livemove.network.ethtool import driver_of, link_speed, offloads, receive_queues
ip("link", "add", "eth1", "numrxqueues", "4", "numtxqueues", "4", "type", "veth", "peer", "name", "far1")
def asked(): return [driver_of("eth1"), link_speed("eth1"), receive_queues("eth1"), list(offloads("eth1"))]
before = asked()
# ETHTOOL_STSO, which switches it off: `ethtool -K eth1 tso off`
import array, fcntl, socket, struct
value = array.array("B", struct.pack("II", 0x1F, 0))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
    fcntl.ioctl(handle, 0x8946, struct.pack("16sP", b"eth1", value.buffer_info()[0]))
result = [before, asked()]
"""
    )
    assert before[:2] == ["veth", 1_250_000_000]
    assert before[2] >= 1 and "tso" in before[3]
    assert "tso" not in after[3]


@pytest.mark.parametrize("name", ["nosuch0", "a-name-that-is-much-too-long", ""])
def test_a_nic_that_is_not_there_leaves_every_question_open(name: str) -> None:
    assert (driver_of(name), link_speed(name), receive_queues(name), offloads(name)) == ("", 0, 0, ())
