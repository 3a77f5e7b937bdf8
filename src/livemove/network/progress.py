"""Whether the subflows of a path get anything through, and whether a journey has the subflows that were planned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from livemove.network.keeper_words import FellBack, Report, SubflowsMissing, SubflowsVerified
from livemove.network.ledger import Pair
from livemove.network.sockets import SocketFacts
from livemove.network.subflows import Connections


@dataclass(slots=True)
class _Moved:
    since_s: float
    read_s: float
    counters: dict[int, int] = field(default_factory=dict)


class Progress:
    """For how long each path's subflows have moved nothing, from dumps that are taken every now and then.

    Progress is what the kernel acknowledged to us or took from the other host in order; retransmissions are none.

    :param pairs: path by (local, remote) address.
    :param continuous_s: two dumps farther apart than this prove nothing about the time between them.
    """

    def __init__(self, pairs: Mapping[Pair, int], continuous_s: float) -> None:
        self._pairs = dict(pairs)
        self._continuous_s = continuous_s
        self._moved: dict[int, _Moved] = {}

    def note(self, found: Iterable[SocketFacts], now_s: float) -> None:
        """A dump of the journey's sockets."""
        counters: dict[int, dict[int, int]] = {}
        for facts in found:
            path = self._pairs.get((facts.local, facts.remote))
            if path is not None and facts.measured:
                counters.setdefault(path, {})[facts.cookie] = facts.bytes_acked + facts.bytes_received
        for path in set(self._pairs.values()):
            if path not in counters:
                self._moved.pop(path, None)
                continue
            now = counters[path]
            before = self._moved.get(path)
            if (
                before is None
                or now_s - before.read_s > self._continuous_s
                or any(count > before.counters.get(cookie, count) for cookie, count in now.items())
            ):
                self._moved[path] = _Moved(now_s, now_s, now)
            else:
                before.read_s, before.counters = now_s, now

    def unmoved_s(self, path: int) -> float | None:
        """How long nothing had moved by the last dump; None when the path has no subflow."""
        moved = self._moved.get(path)
        return None if moved is None else moved.read_s - moved.since_s


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
