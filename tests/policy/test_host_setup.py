"""What each side of a journey needs of its host's kernel, as a table."""

from __future__ import annotations

import pytest

from livemove.policy.host_setup import (
    Change,
    ForgottenNeighbour,
    HostRoute,
    ImplicitEndpoint,
    MptcpLimits,
    ReceiveBuffer,
    Side,
    Sysctl,
    changes_for,
)
from livemove.policy.paths import LinkFacts, Path

FIRST = Path("10.0.0.1", "10.0.0.11", "10.0.0.0/24", "", "a0", "b0", 2, 0, 9000)
SECOND = Path("10.1.0.1", "10.1.0.11", "10.1.0.0/24", "", "a1", "b1", 3, 0, 1500)
SIXTH = Path("fd00::1", "fd00::11", "fd00::/64", "", "a2", "b2", 4, 0, 9000)
SHARED = Path("10.0.0.2", "10.0.0.12", "10.0.0.0/24", "", "a3", "b3", 5, 0, 1500, shared_subnet=True)
SHARED_SIXTH = Path("fd00::2", "fd00::12", "fd00::/64", "", "a4", "b4", 6, 0, 1500, shared_subnet=True)
#: a second NIC of the source to the one that the destination has there
CROSSED = Path("10.0.0.3", "10.0.0.11", "10.0.0.0/24", "", "a5", "b0", 7, 0, 1500, shared_subnet=True)
CROSSED_SIXTH = Path("fd00::3", "fd00::12", "fd00::/64", "", "a6", "b4", 8, 0, 1500, shared_subnet=True)

ON = Sysctl("net/mptcp/enabled", "1")
BY_HAND = Sysctl("net/mptcp/path_manager", "userspace", fallback=Sysctl("net/mptcp/pm_type", "1"))
NEVER_OFF = Sysctl("net/mptcp/blackhole_timeout", "0", optional=True)


def own_arp(link: str) -> list[Change]:
    return [Sysctl(f"net/ipv4/conf/{link}/arp_ignore", "1"), Sysctl(f"net/ipv4/conf/{link}/arp_announce", "2")]


@pytest.mark.parametrize(
    ("paths", "side", "clamp", "multipath", "expected"),
    [
        ([], Side.SOURCE, {}, False, []),
        ([FIRST], Side.SOURCE, {}, False, []),
        ([FIRST], Side.SOURCE, {FIRST: 1500}, False, [HostRoute("10.0.0.11", "a0", "10.0.0.1", mtu=1500, advmss=1460)]),
        ([SIXTH], Side.DESTINATION, {SIXTH: 1400}, False, [HostRoute("fd00::1", "b2", "fd00::11", mtu=1400, advmss=1340)]),
        (
            [FIRST, SECOND], Side.SOURCE, {SECOND: 1400}, True,
            [ON, BY_HAND, NEVER_OFF, HostRoute("10.0.0.11", "a0", "10.0.0.1"),
             HostRoute("10.1.0.11", "a1", "10.1.0.1", mtu=1400, advmss=1360)],
        ),
        (
            [FIRST, SECOND], Side.DESTINATION, {}, True,
            [ON, MptcpLimits(8), ReceiveBuffer(524288), ImplicitEndpoint("10.0.0.11"), HostRoute("10.0.0.1", "b0", "10.0.0.11"),
             ImplicitEndpoint("10.1.0.11"), HostRoute("10.1.0.1", "b1", "10.1.0.11")],
        ),
        (
            [SHARED], Side.SOURCE, {}, False,
            [*own_arp("a3"), HostRoute("10.0.0.12", "a3", "10.0.0.2"), ForgottenNeighbour("10.0.0.12", "a3")],
        ),
        ([SHARED_SIXTH], Side.SOURCE, {}, False, [HostRoute("fd00::12", "a4", "fd00::2")]),
        (
            [FIRST, CROSSED, CROSSED], Side.SOURCE, {FIRST: 1500}, False,
            [HostRoute("10.0.0.11", "a0", "10.0.0.1", mtu=1500, advmss=1460), *own_arp("a5"),
             Sysctl("net/ipv4/conf/a5/rp_filter", "2"), ForgottenNeighbour("10.0.0.11", "a5")],
        ),
        (
            [FIRST, CROSSED], Side.DESTINATION, {FIRST: 1500}, False,
            [HostRoute("10.0.0.1", "b0", "10.0.0.11", mtu=1500, advmss=1460), *own_arp("b0"),
             HostRoute("10.0.0.3", "b0", "10.0.0.11"), ForgottenNeighbour("10.0.0.3", "b0")],
        ),
        ([SHARED_SIXTH, CROSSED_SIXTH], Side.SOURCE, {}, False, [HostRoute("fd00::12", "a4", "fd00::2")]),
    ],
)  # fmt: skip
def test_what_a_side_needs(
    paths: list[Path], side: Side, clamp: dict[Path, int], multipath: bool, expected: list[Change]
) -> None:
    assert changes_for(paths, side, clamp=clamp, multipath=multipath) == expected


def test_a_nic_that_no_path_uses_does_not_answer_for_the_one_in_its_subnet_that_a_path_does() -> None:
    def link(name: str, *addresses: str) -> LinkFacts:
        return LinkFacts(name, 1, "physical", 0, 1500, True, "", 1, addresses)

    links = [link("a1", "10.1.0.1/24"), link("a3", "10.0.0.2/24"), link("a9", "10.2.0.1/24", "10.0.0.9/24")]
    assert changes_for([SHARED], Side.SOURCE, clamp={}, multipath=False, links=links)[:4] == [
        *own_arp("a3"),
        *own_arp("a9"),
    ]
    assert changes_for([FIRST], Side.SOURCE, clamp={}, multipath=False, links=links) == []
