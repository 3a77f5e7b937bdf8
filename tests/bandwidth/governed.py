"""A host's governor alone, in the namespace that it is started in: python -m tests.bandwidth.governed CONFIG

CONFIG is a JSON object: `limits` (category to fields of Limit), `nics` (name to bytes/s), `journeys` (name to role, port
and paths). Allowances go from destination to source as UDP packets on the journey's port, as the path keepers' do. One line is
printed for each rate told, and one when everything is in place; it ends, and takes everything back, with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

from livemove.agent.governor import GovernedPath, Governor
from livemove.base.clock import SystemClock
from livemove.network.nic_counters import is_living
from livemove.network.shaping import Shaping
from livemove.policy.bandwidth import Category, Limit, Nic, Selectors


def _say(**said: Any) -> None:
    print(json.dumps({"at_s": time.monotonic(), **said}), flush=True)


class _Listener(asyncio.DatagramProtocol):
    def __init__(self, governor: Governor, journey: str) -> None:
        self._governor, self._journey = governor, journey

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self._governor.heard(self._journey, json.loads(data))


async def run(config: dict[str, Any]) -> None:
    limits = {}
    for name, fields in config["limits"].items():
        if "selectors" in fields:
            fields["selectors"] = Selectors(**{kind: tuple(values) for kind, values in fields["selectors"].items()})
        limits[Category(name)] = Limit(Category(name), **fields)
    journeys: dict[str, Any] = config["journeys"]

    async def read_nics() -> list[Nic]:
        return [Nic(name, rate, is_living(name)) for name, rate in config["nics"].items()]

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as teller:

        def tell(journey: str, allowances: Mapping[str, int]) -> None:
            _say(journey=journey, allowances=allowances)
            for path in journeys[journey]["paths"]:
                try:
                    teller.sendto(json.dumps(allowances).encode(), (path["peer"], journeys[journey]["port"]))
                except OSError:
                    continue  # that path is dead; the others tell it too

        governor = Governor(
            lambda: limits,
            read_nics,
            SystemClock(),
            Shaping(7443),
            on_rate=lambda journey, rate: _say(journey=journey, rate=rate),
            on_allowance=tell,
        )
        loop = asyncio.get_running_loop()
        for name, journey in journeys.items():
            paths = [GovernedPath(**path) for path in journey["paths"]]
            if journey["role"] == "source":
                await loop.create_datagram_endpoint(
                    lambda name=name: _Listener(governor, name),
                    ("0.0.0.0", journey["port"]),  # type: ignore[misc]
                )
            await governor.join(name, role=journey["role"], paths=paths, port=journey["port"])
        _say(ready=True)
        await asyncio.to_thread(sys.stdin.read)
        _say(notes=governor.notes)
        await governor.close()


if __name__ == "__main__":
    asyncio.run(run(json.loads(sys.argv[1])))
