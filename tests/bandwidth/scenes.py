"""What is measured: who sends what from where, and the part of their due that the worst second brought them.

Bulk flows stand for migrations: nothing limits them but the classes, as in the blackout, where QEMU lifts its own limit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bandwidth.wires import Running, Wires

PORT, OTHERS_PORT = 49152, 5001
MINIMUM = 0.4
#: Of what a wire carries, TCP's payload with 1500-byte packets and time stamps.
PAYLOAD = 1448 / 1514
WINDOW_S, SETTLED_S, PAUSE_S = 1.0, 1.0, 1.5


@dataclass(frozen=True, slots=True)
class Scene:
    """One measurement.

    :param others: from which host to which others send while migrations go from A to B; empty: nobody does.
    :param journeys: how many; each has three connections a cable.
    :param first: who begins: ``migration`` or ``others``, a second before the rest.
    :param cut_s: the second cable of A loses its carrier so long after all began; None: it does not.
    :param limited: the host whose limits count; empty: no host has any.
    """

    name: str
    others: str
    limited: str
    journeys: int = 1
    cables: int = 1
    first: str = "migration"
    cut_s: float | None = None


SCENES = (
    Scene("alone", "", "B"),
    Scene("out", "AC", "A"),
    Scene("in", "CB", "B"),
    Scene("three-out", "AC", "A", journeys=3, first="others"),
    Scene("three-in", "CB", "B", journeys=3, first="others"),
    Scene("nic-dies-out", "AC", "A", cables=2, cut_s=2.0),
    Scene("nic-dies-in", "CB", "B", cables=2, cut_s=2.0),
    Scene("without-limits", "CB", ""),
)


@dataclass(frozen=True, slots=True)
class Measured:
    """Parts of what a wire carries, as payload.

    :param others_worst: the worst second of the others, from SETTLED_S after they began, in parts of their minimum.
    :param gave_way_s: from their start until they had 95 % of their minimum for 0.2 s.
    :param migration_before: of the wires, in the second before the others began; alone: at the end.
    :param clean: nothing of classes and rules was left.
    """

    scene: str
    others_worst: float | None
    gave_way_s: float | None
    migration_before: float | None
    clean: bool


def measure(scene: Scene, *, rate_mbit: int = 500, seconds: float = 7.0, name: str = "lmband") -> Measured:
    """Play a scene with real packets; needs root and about `seconds` + 4."""
    with Wires(name, hosts="ABC", cables=scene.cables, rate_mbit=rate_mbit) as wires:
        before = _kernel(wires)
        sinks = {port: _sink(wires, "B", port) for port in range(PORT, PORT + scene.journeys)}
        others = _sink(wires, scene.others[1], OTHERS_PORT) if scene.others else None
        governors = [_governor(wires, scene, host, rate_mbit) for host in "AB"]
        begin: list[Callable[[], list[Running]]] = [
            lambda: [
                wires.start("A", "flow", "send", wires.address("B", cable), str(port), "3", str(seconds))
                for port in sinks for cable in range(scene.cables)
            ]
        ]  # fmt: skip
        if scene.others:
            source, destination = scene.others
            words = ("send", wires.address(destination), str(OTHERS_PORT), "1", str(seconds))
            begin.insert(0 if scene.first == "others" else 1, lambda: [wires.start(source, "flow", *words)])
        started_s: list[float] = []
        for start in begin:
            start()
            started_s.append(time.monotonic())
            time.sleep(PAUSE_S)
        if scene.cut_s is not None:
            time.sleep(scene.cut_s - PAUSE_S)
            wires.ip("switch", "link set pA1 down")
        end_s = started_s[0] + seconds
        time.sleep(max(0.0, end_s - time.monotonic()))
        for governor in governors:
            governor.stop()
        samples = {port: _samples(sink.kill(), wires, "A") for port, sink in sinks.items()}
        clean = _kernel(wires) == before
        wire = rate_mbit * 125_000 * PAYLOAD
        others_at_s = started_s[0 if scene.first == "others" else -1] if scene.others else end_s - 0.3
        moved = [
            _rate_between(of, others_at_s - 1.0, others_at_s) for of in samples.values()
        ] if scene.first != "others" else []  # fmt: skip
        return Measured(
            scene.name,
            *(
                _of_others(_samples(others.kill(), wires, scene.others[0]), others_at_s, end_s, wire)
                if others
                else (None, None)
            ),
            round(sum(moved) / wire / scene.cables, 3) if moved else None,
            clean,
        )


def _sink(wires: Wires, host: str, port: int) -> Running:
    sink = wires.start(host, "flow", "sink", str(port))
    sink.wait_ready()
    return sink


def _governor(wires: Wires, scene: Scene, host: str, rate_mbit: int) -> Running:
    role, peer = ("source", "B") if host == "A" else ("destination", "A")
    paths = [
        {"link": f"e{cable}", "local": wires.address(host, cable), "peer": wires.address(peer, cable)}
        for cable in range(scene.cables)
    ]
    config = {
        "limits": {"Default": {"min_share": MINIMUM}} if host == scene.limited else {},
        "nics": {f"e{cable}": rate_mbit * 125_000 for cable in range(scene.cables)},
        "journeys": {
            f"j{number}": {"role": role, "port": PORT + number, "paths": paths} for number in range(scene.journeys)
        },
    }
    governor = wires.start(host, "governed", json.dumps(config))
    governor.wait_ready()
    return governor


def _kernel(wires: Wires) -> list[str]:
    return [
        wires.output(host, *words)
        for host in wires.hosts
        for words in (("tc", "qdisc", "show"), ("nft", "list", "ruleset"))
    ]


def _samples(lines: Sequence[dict[str, Any]], wires: Wires, source: str) -> list[tuple[float, int]]:
    addresses = [wires.address(source, cable) for cable in range(wires.cables)]
    return [(line["at_s"], sum(line.get(address, 0) for address in addresses)) for line in lines]


def _rate_between(samples: Sequence[tuple[float, int]], start_s: float, end_s: float) -> float:
    inside = [sample for sample in samples if start_s <= sample[0] <= end_s]
    return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])


def _windows(samples: Sequence[tuple[float, int]], length_s: float) -> Iterator[tuple[float, float]]:
    """Start and rate of every window of that length."""
    for number, (start_s, _) in enumerate(samples):
        if later := [sample for sample in samples[number:] if sample[0] >= start_s + length_s]:
            yield start_s, (later[0][1] - samples[number][1]) / (later[0][0] - start_s)


def _of_others(
    samples: Sequence[tuple[float, int]], began_s: float, end_s: float, wire: float
) -> tuple[float, float | None]:
    due = MINIMUM * wire
    settled = [sample for sample in samples if began_s + SETTLED_S <= sample[0] <= end_s - 0.3]
    worst = min(rate for _, rate in _windows(settled, WINDOW_S))
    short = [sample for sample in samples if began_s <= sample[0] <= end_s]
    served = [start_s for start_s, rate in _windows(short, 0.2) if rate >= 0.95 * due]
    return round(worst / due, 3), round(served[0] - began_s, 2) if served else None
