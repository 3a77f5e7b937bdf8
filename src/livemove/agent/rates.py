"""How many requests a peer may send: a bucket for each, that fills up steadily and empties by one a request."""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from typing import Any

from livemove.agent.refusals import Refusals
from livemove.api.client_identity import Peer, Role
from livemove.base.clock import Clock
from livemove.base.errors import AgentBusy

#: requests a second, and at once. A host asks a few times a second for each journey, people's commands some ten times.
RATES = {
    Role.HOST: (200.0, 400.0),
    Role.ADMIN: (100.0, 300.0),
    Role.OPERATOR: (100.0, 300.0),
    Role.VIEWER: (50.0, 200.0),
}
#: a join is two requests
STRANGER = (2.0, 10.0)
#: peers that are remembered; an address or certificate beyond them costs a new bucket, which is full
MAX_BUCKETS = 1024
_OWNERSHIP = ("/arm", "/go", "/ask", "/abandon")


class Rates:
    """One for a listener."""

    def __init__(self, clock: Clock, refusals: Refusals) -> None:
        self._clock = clock
        self._refusals = refusals
        self._buckets: dict[str, tuple[float, float]] = {}

    def refusal(self, peer: Peer | None, address: str, path: str) -> AgentBusy | None:
        """The error for one request too many; None, with the request counted, when there is room.

        What the hosts say to each other about who owns a VM is never refused: it is rare, and the hand-over hangs on it.
        """
        if peer is not None and peer.role is Role.HOST and path.startswith("/incoming/") and path.endswith(_OWNERSHIP):
            return None
        rate_per_s, most = STRANGER if peer is None else RATES[peer.role]
        who = address if peer is None else peer.fingerprint
        now_s = self._clock.monotonic_s()
        left, at_s = self._buckets.pop(who, (most, now_s))
        left = min(most, left + (now_s - at_s) * rate_per_s)
        self._buckets[who] = (left - 1 if left >= 1 else left, now_s)
        if len(self._buckets) > MAX_BUCKETS:
            del self._buckets[next(iter(self._buckets))]
        if left >= 1:
            return None
        name = address if peer is None else f"{peer} at {address}"
        self._refusals.note(name, "rate", f"more than {rate_per_s:g} requests a second")
        return AgentBusy(f"{name} sends more than {rate_per_s:g} requests a second.")


async def answer_busy(error: AgentBusy, send: Any) -> None:
    """The error as an ASGI answer."""
    body = json.dumps(error.to_json()).encode()
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"1"), (b"content-length", b"%d" % len(body))]
    start: MutableMapping[str, Any] = {"type": "http.response.start", "status": 429, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": body})
