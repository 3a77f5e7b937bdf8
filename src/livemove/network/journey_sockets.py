"""The TCP sockets of one journey on this host: read, counted, made where a path lacks them, ended where one died."""

from __future__ import annotations

import errno
from collections.abc import Callable

from livemove.base.clock import Clock
from livemove.network.carrier import Carriers
from livemove.network.keeper_words import KeeperConfig, KeeperTrouble, PathCounters, Report, UnplannedPair
from livemove.network.ledger import PairTotals, counters_of, ledger_of
from livemove.network.mptcp import Mptcp
from livemove.network.mptcp_health import explained, read_counters
from livemove.network.progress import Progress, Verification
from livemove.network.sockets import ESTABLISHED, SYN_SENT, SocketFacts
from livemove.network.subflows import Connections

# Reading the sockets means walking all of the host's: on one with very many, no more than this share of the time.
_READING_SHARE = 1 / 40
# A retransmission that is due within this time is waited for.
_STUCK_S = 0.3
_SETTLE_S = 0.3
_MOST_TROUBLES = 64


class JourneySockets:
    """See the module. Nothing here waits, but :meth:`settle`.

    :param carriers: of this host's NICs.
    :param say: takes reports for the agent.
    Raises OSError when the kernel lacks what is needed, PermissionError when a right is missing.
    """

    def __init__(self, config: KeeperConfig, carriers: Carriers, say: Callable[[Report], None], clock: Clock) -> None:
        self._config, self._carriers, self._say, self._clock = config, carriers, say, clock
        self._paths = {path.path: path for path in config.paths}
        self._pairs = {(path.local, path.remote): path.path for path in config.paths}
        self._is_source = config.role == "source"
        self._ledger = ledger_of(config)
        self._mptcp = Mptcp() if config.multipath else None
        self._connections = Connections(self._pairs, config.port, listening=not self._is_source)
        self._progress = Progress(self._pairs, 6 * config.interval_s)
        self._verification = Verification()
        self._counters_before = read_counters()
        # the first address of a connection is 0; another has the same number as long as the connection lives
        locals_ = list(dict.fromkeys(path.local for path in config.paths))
        self._address_ids = {local: number + 1 for number, local in enumerate(locals_)}
        self._found: list[SocketFacts] = []
        self._condemned: set[int] = set()
        self._unplanned: set[tuple[str, str]] = set()
        self._troubles: set[str] = set()
        self._due_s = clock.monotonic_s()

    @property
    def readers(self) -> dict[int, Callable[[], None]]:
        """By descriptor, what is to be called when it is readable. Those raise OSError."""
        readers: dict[int, Callable[[], None]] = {self._ledger.fileno(): self._ledger.read_notes}
        if self._mptcp is not None:
            readers[self._mptcp.fileno()] = self._read_events
        return readers

    def is_due(self, now_s: float) -> bool:
        """Whether reading again costs no more than it may."""
        return now_s >= self._due_s

    def read(self, now_s: float) -> None:
        """All sockets, as the kernel shows them now. Raises OSError."""
        begun_s = self._clock.monotonic_s()
        self._found = self._ledger.scan()
        self._due_s = now_s + (self._clock.monotonic_s() - begun_s) / _READING_SHARE
        self._progress.note(self._found, now_s)
        self._connections.adopt(self._found)
        for facts in self._found:
            if facts.cookie in self._condemned:
                self._end(facts)
            elif self._path_of(facts) is None and facts.state == ESTABLISHED:
                self._unplanned_pair(facts)

    def unmoved_s(self, path: int) -> float | None:
        """How long the path's subflows had moved nothing when they were last read; None when it has none."""
        return self._progress.unmoved_s(path)

    def verify(self, expected: int, living: tuple[int, ...], now_s: float) -> None:
        """Say whether there are as many connections as `expected`, with subflows on all `living` paths; see Verification."""
        plain = sum(facts.mptcp is False and facts.state == ESTABLISHED for facts in self._found)
        for report in self._verification.check(self._connections, plain, expected, living, now_s):
            self._say(explained(report, self._counters_before, source=self._is_source))

    def end_path(self, path: int, now_s: float) -> int:
        """End the path's subflows, and return how many; their connections live on. Raises OSError."""
        self.read(now_s)  # a first subflow's counters are gone once it is ended
        ended = sum(self._end(facts) for facts in self._found if self._path_of(facts) == path)
        self._connections.path_died(path)
        return ended

    def renew(self, path: int, now_s: float) -> int:
        """At the source, end the path's subflows that would wait, perhaps for seconds, before they try again.

        Returns how many; :meth:`make` makes them anew. Raises OSError.
        """
        if not self._is_source:
            return 0
        self.read(now_s)
        stuck = self._progress.stuck(path, _STUCK_S)
        renewed = sum(self._end(facts) for facts in self._found if facts.cookie in stuck)
        if renewed:
            self.read(now_s)
        return renewed

    def make(self, living: tuple[int, ...], now_s: float) -> None:
        """At the source, begin the subflows that connections lack on living paths. Raises OSError."""
        if not self._is_source or self._mptcp is None:
            return
        lacking = self._connections.lacking(living, now_s)
        if any(self._connections.tried(*each) for each in lacking):
            self.read(now_s)
        for token, number in lacking:
            if self._is_to_be_made(token, number):
                self._create(self._mptcp, token, number)

    def settle(self) -> None:
        """Wait a little for the kernel's last word on sockets that ended. Raises OSError."""
        self._ledger.settle(_SETTLE_S, self._clock)

    def counted(self) -> tuple[tuple[PathCounters, ...], tuple[PathCounters, ...]]:
        """What planned paths, in their order, and other pairs of addresses carried."""
        totals = self._ledger.totals()
        planned = tuple(
            counters_of(path.path, (path.local, path.remote), totals.pop((path.local, path.remote), PairTotals()))
            for path in self._config.paths
        )
        return planned, tuple(counters_of(-1, pair, total) for pair, total in totals.items())

    def trouble(self, text: str) -> None:
        """Say it, once."""
        if text not in self._troubles and len(self._troubles) < _MOST_TROUBLES:
            self._troubles.add(text)
            self._say(KeeperTrouble(text))

    def _read_events(self) -> None:
        assert self._mptcp is not None
        events, lost = self._mptcp.events()
        for event in events:
            self._connections.note(event)
        if lost:
            self._connections.clear()
            self.read(self._clock.monotonic_s())

    def _path_of(self, facts: SocketFacts) -> int | None:
        return self._pairs.get((facts.local, facts.remote))

    def _end(self, facts: SocketFacts) -> bool:
        """End a subflow so that its connection lives on; one for which that is not sure yet is ended later."""
        if not facts.mptcp:
            return False
        if not facts.joined and not facts.fully_established:
            self._condemned.add(facts.cookie)
            return False
        self._condemned.discard(facts.cookie)
        try:
            return self._ledger.destroy(facts)
        except OSError as error:
            self.trouble(f"A subflow of a dead path cannot be ended: {error.strerror}.")
            return False

    def _unplanned_pair(self, facts: SocketFacts) -> None:
        ended = self._is_source and facts.joined and self._end(facts)
        if (facts.local, facts.remote) not in self._unplanned:
            self._unplanned.add((facts.local, facts.remote))
            self._say(UnplannedPair(facts.local, facts.remote, ended))

    def _create(self, mptcp: Mptcp, token: int, number: int) -> None:
        path = self._paths[number]
        try:
            mptcp.create_subflow(
                token,
                path.local,
                path.remote,
                self._config.port,
                address_id=self._address_ids[path.local],
                interface=self._carriers.index(path.link) or path.index,
            )
        except OSError as error:
            # it is closing; or it is not ours to extend, which the verification tells
            if error.errno not in (errno.ESRCH, errno.ENOENT, errno.ENOTCONN, errno.EINVAL):
                self.trouble(f"A subflow from {path.local} to {path.remote} cannot be made: {error.strerror}.")

    def _is_to_be_made(self, token: int, number: int) -> bool:
        """Not if the last try came through after all; one that was not answered is ended, which TCP would repeat."""
        if self._connections.tried(token, number):
            for facts in self._found:
                if facts.token == token and self._path_of(facts) == number:
                    if facts.state != SYN_SENT:
                        return False
                    self._end(facts)
        return True
