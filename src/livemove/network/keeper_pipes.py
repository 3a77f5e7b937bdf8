"""The path keeper's end of the pipes to its agent, which may be busy, stopped or gone: nothing here waits for it."""

from __future__ import annotations

import contextlib
import os

from livemove.network.keeper_words import AllowanceHeard, Counters, Report, line_of

# What waits for an agent that does not read; past this, counters and allowances are dropped, which say themselves again.
_OUTBOX_BYTES = 1 << 18


class Outbox:
    """Reports on their way to the agent."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting = b""
        os.set_blocking(descriptor, False)

    def say(self, report: Report) -> None:
        if len(self._waiting) > _OUTBOX_BYTES and isinstance(report, Counters | AllowanceHeard):
            return
        self._waiting += line_of(report)
        self.flush()

    def flush(self) -> None:
        """Write what can be written; an agent that is gone is noticed at the other pipe."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._waiting:
                self._waiting = self._waiting[os.write(self._descriptor, self._waiting) :]

    def drain(self) -> None:
        """Write all: the last words, for which there is nothing else left to do than to wait until they are read."""
        os.set_blocking(self._descriptor, True)
        self.flush()


class Inbox:
    """Lines from the agent; the descriptor is readable when there may be some.

    :ivar ended: the agent is gone, or wants us to go.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = b""
        self.ended = False

    def first(self) -> bytes:
        """The first line, waited for; empty when there is none."""
        while b"\n" not in self._buffer and not self.ended:
            self._read()
        line, newline, rest = self._buffer.partition(b"\n")
        self._buffer = rest
        return line if newline else b""

    def lines(self, *, readable: bool = True) -> list[bytes]:
        """Whole lines that came since; with `readable` the descriptor is read first, which does not wait when it is."""
        if readable:
            self._read()
        *lines, self._buffer = self._buffer.split(b"\n")
        return lines

    def _read(self) -> None:
        data = os.read(self._descriptor, 1 << 16)
        self.ended = not data
        self._buffer += data
