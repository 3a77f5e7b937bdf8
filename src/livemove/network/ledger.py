"""What each pair of addresses carried for a journey, from the kernel's counters of its TCP sockets.

Sockets come and go while a path dies and heals. A dump tells what those that live have done so far; of one that ended the
kernel itself sends the last counters (a *note*), so that these are exact. A connection's first subflow is the exception: MPTCP
clears its counters before the note, so it counts with the last dump before its end. Whoever destroys one scans first; and at
the end of a copy the connections are quiet for longer than two dumps are apart, while the destination takes over.
"""

from __future__ import annotations

import select
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from livemove.base.clock import Clock, SystemClock
from livemove.network import sockets
from livemove.network.keeper_words import KeeperConfig, PathCounters
from livemove.network.netlink_notes import SOCK_DIAG, Listener
from livemove.network.sockets import SocketDiag, SocketFacts

Pair = tuple[str, str]
# Sockets of one journey that ended: more than all its channels on all paths, made again once a second for an hour.
_MOST_ENDED = 1 << 17


@dataclass(frozen=True, slots=True)
class PairTotals:
    """Sums over all sockets between two addresses; the counters are those of :class:`SocketFacts`.

    :param subflows: sockets seen, `plain` of them plain TCP while we looked, `open_subflows` still there.
    """

    bytes_acked: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    bytes_retransmitted: int = 0
    retransmitted_segments: int = 0
    subflows: int = 0
    plain: int = 0
    open_subflows: int = 0


class Tally:
    """The sums, from facts alone."""

    def __init__(self) -> None:
        self._open: dict[int, SocketFacts] = {}
        self._ended: dict[Pair, PairTotals] = {}
        self._gone: set[int] = set()
        self._shown: set[int] = set()

    def seen(self, dump: Iterable[SocketFacts]) -> None:
        """All living sockets, as a dump shows them."""
        self._shown.clear()
        for facts in dump:
            # the note of its end may have overtaken the dump
            if facts.measured and facts.cookie not in self._gone:
                before = self._open.get(facts.cookie)
                self._open[facts.cookie] = facts if before is None else _later(before, facts)
                self._shown.add(facts.cookie)

    def ended(self, facts: SocketFacts) -> None:
        """A socket's last counters, as the kernel tells them."""
        if facts.cookie in self._gone:
            return
        before = self._open.pop(facts.cookie, None)
        last = facts if before is None else _later(before, facts)
        if len(self._gone) < _MOST_ENDED:
            self._gone.add(facts.cookie)
        self._ended[last.local, last.remote] = _plus(self._ended.get((last.local, last.remote), PairTotals()), last)

    def knows(self, cookie: int) -> bool:
        """Whether it is one of the living sockets seen so far."""
        return cookie in self._open

    def unsettled(self) -> bool:
        """Whether sockets are missing in the last dump of whose end nothing was said yet."""
        return not self._open.keys() <= self._shown

    def totals(self) -> dict[Pair, PairTotals]:
        """By local and remote address."""
        sums = dict(self._ended)
        for facts in self._open.values():
            pair = facts.local, facts.remote
            total = _plus(sums.get(pair, PairTotals()), facts)
            sums[pair] = replace(total, open_subflows=total.open_subflows + (facts.cookie in self._shown))
        return sums


class SocketLedger:
    """The tally of a journey's sockets in this network namespace, fed by the kernel.

    Usable with any loop: :meth:`fileno` is readable when there are notes, then :meth:`read_notes`.

    :param port: the journey's.
    :param remotes: at the source, the destination's addresses: other destinations may use the same port for other journeys. A
        subflow to another address counts when its connection has one to these. Empty at the destination, where the port is
        the journey's alone.
    Raises OSError when the kernel has no sock_diag.
    """

    def __init__(self, port: int, *, remotes: Collection[str] = ()) -> None:
        self._port, self._remotes = port, frozenset(remotes)
        self._tokens: set[int] = set()
        self._tally = Tally()
        self._notes = Listener(SOCK_DIAG, sockets.ENDED_GROUPS)
        try:
            self._diag = SocketDiag()
        except OSError:
            self._notes.close()
            raise

    def fileno(self) -> int:
        return self._notes.fileno()

    def close(self) -> None:
        """May be called twice."""
        self._notes.close()
        self._diag.close()

    def read_notes(self) -> None:
        """Take in what ended. Raises OSError."""
        said, _ = self._notes.heard()
        for message in said:
            facts = sockets.parse(message.payload, ended=True)
            if facts is not None and self._is_ours(facts):
                self._tally.ended(facts)

    def scan(self) -> list[SocketFacts]:
        """All living sockets of the journey, taken into the tally. Raises OSError."""
        if not self._remotes:
            found = self._diag.dump(local_port=self._port)
        else:
            sharing = self._diag.dump(remote_port=self._port)
            self._tokens |= {facts.token for facts in sharing if facts.remote in self._remotes and facts.token}
            found = [facts for facts in sharing if facts.remote in self._remotes or facts.token in self._tokens]
        self._tally.seen(found)
        return found

    def destroy(self, facts: SocketFacts) -> bool:
        """End a socket at once; False when it has ended by itself. Raises OSError as :meth:`SocketDiag.destroy`."""
        return self._diag.destroy(facts)

    def totals(self) -> dict[Pair, PairTotals]:
        """By local and remote address, as of the last scan and the notes since."""
        return self._tally.totals()

    def settle(self, limit_s: float, clock: Clock | None = None) -> None:
        """Wait, at most `limit_s`, until each socket that has ended is accounted for by its note. Raises OSError."""
        clock = clock or SystemClock()
        end_s = clock.monotonic_s() + limit_s
        while True:
            self.scan()
            self.read_notes()
            left_s = end_s - clock.monotonic_s()
            if not self._tally.unsettled() or left_s <= 0:
                return
            select.select([self._notes], [], [], min(left_s, 0.02))

    def _is_ours(self, ended: SocketFacts) -> bool:
        # one that was disconnected has lost its ports
        if self._tally.knows(ended.cookie):
            return True
        if self._remotes:
            return ended.remote_port == self._port and ended.remote in self._remotes
        return ended.local_port == self._port and ended.remote_port > 0  # and no listener


def ledger_of(config: KeeperConfig) -> SocketLedger:
    """The ledger of a journey on this side. Raises OSError."""
    is_source = config.role == "source"
    return SocketLedger(config.port, remotes=[path.remote for path in config.paths] if is_source else ())


def counters_of(path: int, pair: Pair, total: PairTotals) -> PathCounters:
    """The totals of a pair as agents tell them; see :class:`PathCounters` for `path`."""
    return PathCounters(
        path,
        *pair,
        bytes_acked=total.bytes_acked,
        bytes_received=total.bytes_received,
        bytes_sent=total.bytes_sent,
        retransmitted_segments=total.retransmitted_segments,
        subflows=total.subflows,
        open_subflows=total.open_subflows,
        plain=total.plain,
    )


def _later(before: SocketFacts, after: SocketFacts) -> SocketFacts:
    """One socket's facts: addresses and kind as they were while it lived, counters as high as they came."""
    return replace(
        before,
        state=after.state,
        mptcp=before.mptcp if after.mptcp is None else after.mptcp,
        bytes_acked=max(before.bytes_acked, after.bytes_acked),
        bytes_received=max(before.bytes_received, after.bytes_received),
        bytes_sent=max(before.bytes_sent, after.bytes_sent),
        bytes_retransmitted=max(before.bytes_retransmitted, after.bytes_retransmitted),
        retransmitted_segments=max(before.retransmitted_segments, after.retransmitted_segments),
    )


def _plus(total: PairTotals, facts: SocketFacts) -> PairTotals:
    return PairTotals(
        total.bytes_acked + facts.bytes_acked,
        total.bytes_received + facts.bytes_received,
        total.bytes_sent + facts.bytes_sent,
        total.bytes_retransmitted + facts.bytes_retransmitted,
        total.retransmitted_segments + facts.retransmitted_segments,
        total.subflows + 1,
        total.plain + (facts.mptcp is False),
        total.open_subflows,
    )
