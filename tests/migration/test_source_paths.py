"""What a source makes of its paths before the copy, from what the probes found: every way in which one can be wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from livemove.base.errors import LivemoveError, MtuBlackHole, PortClosed
from livemove.migration import source_paths
from livemove.migration.source_paths import SourcePaths
from livemove.policy.host_setup import Change, HostRoute
from livemove.policy.mtu import PathMeasure
from livemove.policy.paths import HostNetworks, LinkFacts, Path, PathWish, UsePaths

PORT, NONCE = 49152, "ab" * 32
WHOLE = PathMeasure(9000, 9000, 0.001, alive=True)
HOLE = PathMeasure(1500, 9000, 0.001, alive=True)
SILENT = PathMeasure()
#: What may become of a connection.
OPEN, SHUT, MUTE = "open", "shut", "mute"


def host(name: str, last: int, count: int) -> HostNetworks:
    """With NICs n0, n1, ... of MTU 9000 on 10.0.0.0/24, 10.1.0.0/24, ..."""
    return HostNetworks(
        name,
        tuple(
            LinkFacts(f"n{number}", number, "physical", 0, 9000, True, "", 1, (f"10.{number}.0.{last}/24",))
            for number in range(count)
        ),
    )


class Changes:
    def __init__(self) -> None:
        self.applied: list[Change] = []

    async def apply(self, journey: str, changes: Sequence[Change]) -> list[str]:
        self.applied += changes
        return []


class Networking:
    def __init__(self, mtu_fault: str, count: int) -> None:
        self.changes: Any = Changes()
        self.mtu_fault: Any = mtu_fault
        self.count = count

    async def own(self) -> HostNetworks:
        return host("A", 1, self.count)

    async def rules(self) -> tuple[()]:
        return ()

    async def follow(self, *asked: object) -> None: ...
    async def put_back(self, journey: str) -> None: ...
    async def govern_leaving(self, *asked: object, **how: object) -> None: ...
    def heard(self, *asked: object) -> None: ...


Found = Sequence[tuple[PathMeasure, str]]


class Journey:
    """One whose probes find what the test says, path by path."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, found: Found, use: UsePaths, mtu_fault: str = "clamp") -> None:
        self.told: list[str] = []
        self.networking = Networking(mtu_fault, len(found))
        self.paths = SourcePaths("j-1", PathWish(use), self.networking, lambda text, level: self.told.append(text))
        self.found = found

        async def probe_paths(paths: Sequence[Path], port: int, nonce: bytes) -> dict[Path, PathMeasure]:
            return {path: self._of(path.destination_address)[0] for path in paths}

        async def probe_port(address: str, port: int, nonce: str, *, source: str) -> float:
            match self._of(address)[1]:
                case "shut":
                    raise PortClosed(f"TCP port {port} of {address} is shut.")
                case "mute":
                    await asyncio.sleep(60)
            return 0.001

        monkeypatch.setattr(source_paths, "probe_paths", probe_paths)
        monkeypatch.setattr(source_paths, "probe_port", probe_port)
        monkeypatch.setattr(source_paths, "DEAD_PATIENCE_S", 0.02)
        # the kernel sends from the address of the plan; with last number 1 on every network
        monkeypatch.setattr(source_paths, "source_address_towards", lambda peer: peer.rpartition(".")[0] + ".1")

    def _of(self, address: str) -> tuple[PathMeasure, str]:
        return self.found[int(address.split(".")[1])]

    async def probe(self) -> str:
        """The paths in use: numbers, with ``<`` for one with smaller packets, ``?`` for one that may come up later."""
        await self.paths.choose(host("B", 2, len(self.found)))
        await self.paths.probe(PORT, NONCE)
        return " ".join(
            each.path.source_link[1:] + ("<" if each.clamp_mtu == 1500 else "") + ("?" if each.dead else "")
            for each in self.paths.probed
        )

    def left_out(self) -> str:
        return " ".join(each.what.split(".")[1] for each in self.paths.left_out())


@pytest.mark.parametrize(
    ("found", "use", "mtu_fault", "used", "left_out", "says"),
    [
        ([(WHOLE, OPEN)], UsePaths.ALL, "refuse", "0", "", ""),
        ([(WHOLE, OPEN), (WHOLE, OPEN)], UsePaths.ALL, "refuse", "0 1", "", ""),
        ([(WHOLE, OPEN), (WHOLE, OPEN)], UsePaths.ONE, "refuse", "0", "", ""),
        # large packets are lost
        ([(HOLE, OPEN)], UsePaths.ALL, "clamp", "0<", "", "A to B carries 1500 bytes"),
        ([(WHOLE, OPEN), (HOLE, OPEN)], UsePaths.ALL, "clamp", "0 1<", "", "Network 10.1.0.0/24 (n1, n1) uses packets of 1500"),
        ([(HOLE, OPEN), (WHOLE, OPEN)], UsePaths.ALL, "avoid", "1", "0", "is not used: A to B carries 1500 bytes"),
        ([(HOLE, OPEN), (WHOLE, OPEN)], UsePaths.ONE, "avoid", "1", "0", "is not used: A to B carries 1500 bytes"),
        # dead at the start: watched for, unless another path was to be used instead of it
        ([(WHOLE, OPEN), (SILENT, MUTE)], UsePaths.ALL, "clamp", "0 1<?", "1", "the path is dead"),
        ([(WHOLE, OPEN), (SILENT, SHUT)], UsePaths.ALL, "clamp", "0 1<?", "1", "TCP port 49152 of 10.1.0.2 is shut"),
        ([(SILENT, MUTE), (WHOLE, OPEN)], UsePaths.ONE, "clamp", "1", "0", "TCP port 49152 of 10.0.0.2 is shut"),
        # a port that is shut while datagrams pass is no cable that somebody plugs in
        ([(WHOLE, OPEN), (WHOLE, SHUT)], UsePaths.ALL, "clamp", "0", "1", "TCP port 49152 of 10.1.0.2 is shut"),
        # datagrams are filtered and connections pass
        ([(SILENT, OPEN)], UsePaths.ALL, "refuse", "0<", "", "UDP port 49152 of 10.0.0.2 does not answer"),
        ([(SILENT, OPEN), (WHOLE, OPEN)], UsePaths.ALL, "refuse", "1", "0", "It could not be watched beside others."),
        ([(SILENT, OPEN), (WHOLE, OPEN)], UsePaths.ONE, "refuse", "0<", "", "Whether packets of 9000 bytes pass is not known"),
        ([(SILENT, OPEN), (SILENT, OPEN)], UsePaths.ALL, "refuse", "0<", "1", "'port_range'"),
        ([(SILENT, OPEN), (SILENT, MUTE)], UsePaths.ALL, "refuse", "0< 1<?", "1", "the path is dead"),
    ],
)  # fmt: skip
async def test_what_is_used(
    monkeypatch: pytest.MonkeyPatch, found: Found, use: UsePaths, mtu_fault: str, used: str, left_out: str, says: str
) -> None:
    if use is UsePaths.ONE:
        # alone it is waited for as long as TCP does; here it is shut at once
        found = [(measure, SHUT if door == MUTE else door) for measure, door in found]
    journey = Journey(monkeypatch, found, use, mtu_fault)
    assert await journey.probe() == used
    assert journey.left_out() == left_out
    assert any(says in text for text in journey.told) if says else journey.told == []
    listened = journey.paths.to_listen
    assert [(each.clamp_mtu, each.dead) for each in listened] == [
        (each.clamp_mtu, each.dead) for each in journey.paths.probed
    ]
    await journey.paths.set_up(multipath=False)
    routes = [change for change in journey.networking.changes.applied if isinstance(change, HostRoute)]
    assert [route.mtu for route in routes] == [1500] * used.count("<")


@pytest.mark.parametrize(
    ("found", "use", "mtu_fault", "kind", "says", "remedy"),
    [
        ([(HOLE, OPEN)], UsePaths.ALL, "refuse", MtuBlackHole, "A to B carries 1500 bytes", "Set 9000 on every switch"),
        ([(WHOLE, OPEN), (HOLE, OPEN)], UsePaths.ALL, "refuse", MtuBlackHole, "A to B carries 1500 bytes", "Set 9000"),
        ([(HOLE, OPEN)], UsePaths.ALL, "avoid", MtuBlackHole, "No path is left that migrations may use: 10.0.0.1 to 10.0.0.2: A to B carries", "'mtu_fault' to clamp"),
        ([(HOLE, OPEN), (SILENT, MUTE)], UsePaths.ALL, "avoid", MtuBlackHole, "the path is dead", "'mtu_fault' to clamp"),
        ([(HOLE, OPEN), (HOLE, OPEN)], UsePaths.ONE, "avoid", MtuBlackHole, "10.1.0.1 to 10.1.0.2", "'mtu_fault' to clamp"),
        ([(SILENT, SHUT)], UsePaths.ALL, "clamp", PortClosed, "TCP port 49152 of 10.0.0.2 is shut.", "'port_range'"),
        ([(SILENT, MUTE), (WHOLE, SHUT)], UsePaths.ALL, "clamp", PortClosed, "No path to the destination works", "'port_range'"),
    ],
)  # fmt: skip
async def test_what_is_refused(
    monkeypatch: pytest.MonkeyPatch, found: Found, use: UsePaths, mtu_fault: str, kind: type[LivemoveError], says: str,
    remedy: str,
) -> None:  # fmt: skip
    journey = Journey(monkeypatch, found, use, mtu_fault)
    with pytest.raises(kind) as caught:
        await journey.probe()
    assert says in caught.value.message and remedy in caught.value.remedy


async def test_a_path_whose_peer_the_kernel_would_reach_from_another_address_gets_a_route(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """QEMU binds to no address, and the destination's packet filter admits that of the path only."""
    journey = Journey(monkeypatch, [(WHOLE, OPEN)], UsePaths.ONE)
    monkeypatch.setattr(source_paths, "source_address_towards", lambda peer: "10.0.0.77")
    assert await journey.probe() == "0"
    await journey.paths.set_up(multipath=False)
    assert {change.source for change in journey.networking.changes.applied} == {"10.0.0.1"}
