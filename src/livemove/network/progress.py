"""Whether the subflows of a path get anything through, and whether a journey has the subflows that were planned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from livemove.network.keeper_words import FellBack, Report, SubflowsMissing, SubflowsVerified
from livemove.network.ledger import Pair
from livemove.network.sockets import SocketFacts
from livemove.network.subflows import Connections


@dataclass(frozen=True, slots=True)
class _Still:
    """A socket's counters, and since which dump they have been the same."""

    path: int
    count: int
    since_s: float
    waiting: bool


class Progress:
    """For how long each path's subflows have moved nothing, from dumps that are taken every now and then.

    Progress is what the other host acknowledged, or what was taken from it in order; retransmissions are none.

    :param pairs: path by (local, remote) address.
    :param continuous_s: two dumps farther apart than this prove nothing about the time between them.
    """

    def __init__(self, pairs: Mapping[Pair, int], continuous_s: float) -> None:
        self._pairs = dict(pairs)
        self._continuous_s = continuous_s
        self._read_s = float("-inf")
        self._still: dict[int, _Still] = {}

    def note(self, found: Iterable[SocketFacts], now_s: float) -> None:
        """A dump of the journey's sockets."""
        before = self._still if now_s - self._read_s <= self._continuous_s else {}
        self._still, self._read_s = {}, now_s
        for facts in found:
            path = self._pairs.get((facts.local, facts.remote))
            if path is None or not facts.measured:
                continue
            count = facts.bytes_acked + facts.bytes_received
            old = before.get(facts.cookie)
            since_s = old.since_s if old is not None and old.count == count else now_s
            self._still[facts.cookie] = _Still(path, count, since_s, facts.unacked_segments > 0)

    def unmoved_s(self, path: int) -> float | None:
        """How long nothing at all had moved by the last dump; None when the path has no subflow."""
        since_s = [still.since_s for still in self._still.values() if still.path == path]
        return self._read_s - max(since_s) if since_s else None

    def stuck(self, path: int, at_least_s: float) -> set[int]:
        """Cookies of the path's sockets that wait for acknowledgements and had none for so long."""
        return {
            cookie
            for cookie, still in self._still.items()
            if still.path == path and still.waiting and self._read_s - still.since_s >= at_least_s
        }


class Verification:
    """Whether the connections became what was planned, told once, and again when it changes.

    :param patience_s: how long a connection may lack a subflow before that is told.
    """

    def __init__(self, patience_s: float = 1.5) -> None:
        self._patience_s = patience_s
        self._good = False
        self._told = False
        self._lacking_since_s: float | None = None

    def check(
        self, connections: Connections, plain: int, expected: int, living: tuple[int, ...], now_s: float
    ) -> list[Report]:
        """What is to be told now; the reasons of faults are left empty.

        :param plain: connections that are plain TCP now.
        :param expected: how many connections there should be; 0: not known, so nothing is told.
        """
        count = len(connections)
        if not expected or count + plain == 0:
            return []
        lacking = {path: missing for path in living if (missing := connections.without(path))}
        # QEMU closes its channels one by one at the end: fewer than expected is a fault at the beginning only
        unopened = 0 if self._good else max(expected - count - plain, 0)
        if not lacking and not plain and not unopened:
            self._lacking_since_s = None
            if self._good and not self._told:
                return []
            self._good, self._told = True, False
            return [SubflowsVerified(count, living)]
        if self._lacking_since_s is None:
            self._lacking_since_s = now_s
        if self._told or now_s - self._lacking_since_s < self._patience_s:
            return []
        self._told = True
        reports: list[Report] = [FellBack(plain, count + plain, "")] if plain else []
        if unopened:
            reports.append(
                SubflowsMissing(-1, unopened, expected, f"{unopened} of {expected} connections were not opened.")
            )
        return reports + [SubflowsMissing(path, missing, count, "") for path, missing in lacking.items()]
