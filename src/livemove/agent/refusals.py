"""What was refused, and how often it is said: once for a peer and a reason, then it is only counted.

Whoever knocks at a port a thousand times a second must not fill the log, nor hide another's attempt in it. So a peer gets
one line for a reason in :data:`WINDOW_S`, and at most :data:`MAX_REASONS` lines in all; the metric counts every one.
"""

from __future__ import annotations

import logging

from livemove.base.clock import Clock

#: After this long a refusal is news again.
WINDOW_S = 600.0
#: Lines that one peer can cause in a window, whatever it invents.
MAX_REASONS = 16
#: Peers that are told apart in a window; those after them share what one peer may cause.
MAX_PEERS = 512

_OTHERS = "other peers"
_log = logging.getLogger(__name__)


class Refusals:
    """One for an agent."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since_s = 0.0
        self._seen: dict[str, set[str]] = {}
        self._silent = 0
        #: how many there were since the agent's start, by kind
        self.counts: dict[str, int] = {}

    def note(self, who: str, kind: str, reason: str) -> None:
        """Count a refusal, and log it when it is news.

        :param who: an address, or a member with its address.
        :param kind: one word of a short list, for the metric.
        :param reason: for people, without what changes from one attempt to the next.
        """
        self.counts[kind] = self.counts.get(kind, 0) + 1
        now_s = self._clock.monotonic_s()
        if self._seen and now_s - self._since_s > WINDOW_S:
            self._end_window()
        if not self._seen:
            self._since_s = now_s
        if who not in self._seen and len(self._seen) >= MAX_PEERS:
            who = _OTHERS
        reasons = self._seen.setdefault(who, set())
        if reason in reasons or len(reasons) >= MAX_REASONS:
            self._silent += 1
            return
        reasons.add(reason)
        _log.warning("refused %s: %s", who, reason)

    def _end_window(self) -> None:
        if self._silent:
            _log.warning("refused %d more times for reasons named before", self._silent)
        self._seen.clear()
        self._silent = 0
