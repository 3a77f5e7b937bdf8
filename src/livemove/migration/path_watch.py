"""Watching and counting the paths of one journey on one of its hosts.

Where there are several paths, or something must be told across them ten times a second, a process of its own does it
(network.keeper): a busy or stopped agent then costs no path. A single path has nothing to fail over to; its bytes are counted
by the agent itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol, Self

from livemove.base.tasks import cancel_and_wait, spawn
from livemove.network.keeper_words import (
    AllowanceHeard,
    Counters,
    FellBack,
    KeeperConfig,
    KeeperTotals,
    KeeperTrouble,
    PathDied,
    PathHealed,
    PathRevived,
    PathStalled,
    Report,
    SubflowsMissing,
    SubflowsVerified,
    UnplannedPair,
)
from livemove.network.ledger import SocketLedger, counters_of, ledger_of
from livemove.network.path_keeper import PathKeeper

#: How long the kernel may take to tell of the last socket's end.
SETTLE_S = 0.2
_SCAN_EVERY_S = 0.1

#: Tells people something about the journey: a sentence, and ``info``, ``warning`` or ``error``.
Tell = Callable[[str, str], None]
NOTHING = KeeperTotals(())


class PathWatch(Protocol):
    """From its start to :meth:`close`."""

    def expect(self, connections: int) -> None:
        """How many connections the copy has, now that it begins."""

    def allow(self, by_address: Mapping[str, int]) -> None:
        """At the destination: what the source may send at most to its addresses from now on, bytes per second."""

    async def finish(self) -> KeeperTotals:
        """What every path carried, after the last connection has ended. Never raises."""

    async def close(self) -> None:
        """Let go of everything; may be called twice."""


class KeptPaths:
    """Watched by a keeper. One that is lost costs the journey its watch and nothing else: the agent counts on."""

    def __init__(
        self,
        config: KeeperConfig,
        names: Mapping[int, str],
        tell: Tell,
        on_allowance: Callable[[Mapping[str, int]], None],
    ) -> None:
        self._config, self._names, self._tell, self._on_allowance = config, names, tell, on_allowance
        self._keeper: PathKeeper | None = None
        self._counted: CountedPaths | None = None
        self._last = NOTHING

    @classmethod
    async def start(
        cls,
        config: KeeperConfig,
        names: Mapping[int, str],
        tell: Tell,
        on_allowance: Callable[[Mapping[str, int]], None],
    ) -> Self:
        """Raises MissingPrerequisite when the keeper cannot work here.

        :param names: what people call the paths.
        """
        watch = cls(config, names, tell, on_allowance)
        watch._keeper = await PathKeeper.start(config, watch._heard, watch._lost)
        return watch

    def _heard(self, report: Report) -> None:
        if isinstance(report, AllowanceHeard):
            self._on_allowance(report.by_address)
        elif isinstance(report, Counters):
            self._last = KeeperTotals(report.paths, report.unplanned)
        elif (said := sentence_of(report, self._names)) is not None:
            self._tell(*said)

    def _lost(self) -> None:
        self._counted = CountedPaths(self._config)
        self._counted.expect(0)
        self._tell(
            "The process that watches the paths has ended: the journey goes on, but a path that dies now is noticed by TCP "
            "only, which takes its time.",
            "warning",
        )

    def expect(self, connections: int) -> None:
        if self._keeper is not None:
            self._keeper.expect(connections)
        if self._counted is not None:
            self._counted.expect(connections)

    def allow(self, by_address: Mapping[str, int]) -> None:
        if self._keeper is not None:
            self._keeper.allow(by_address)

    async def finish(self) -> KeeperTotals:
        totals = await self._keeper.finish() if self._keeper is not None else None
        if totals is None and self._counted is not None:
            return at_least(self._last, await self._counted.finish())
        return totals or self._last

    async def close(self) -> None:
        if self._keeper is not None:
            await self._keeper.close()
        if self._counted is not None:
            await self._counted.close()


class CountedPaths:
    """Counted by the agent, watched by nobody."""

    def __init__(self, config: KeeperConfig) -> None:
        self._planned = {(path.local, path.remote): path.path for path in config.paths}
        self._ledger: SocketLedger | None = None
        with contextlib.suppress(OSError):
            self._ledger = ledger_of(config)
            asyncio.get_running_loop().add_reader(self._ledger.fileno(), self._read)
        # the kernel tells nothing of an MPTCP connection's first subflow when it has ended
        self._scanning = spawn(self._scan_on(), name="count bytes of paths") if config.multipath else None

    async def _scan_on(self) -> None:
        while self._ledger is not None:
            self.expect(0)
            await asyncio.sleep(_SCAN_EVERY_S)

    def _read(self) -> None:
        if self._ledger is not None:
            with contextlib.suppress(OSError):
                self._ledger.read_notes()

    def expect(self, connections: int) -> None:
        """They are known to the kernel from now on, and so is their end."""
        if self._ledger is not None:
            with contextlib.suppress(OSError):
                self._ledger.scan()

    def allow(self, by_address: Mapping[str, int]) -> None:
        pass

    async def finish(self) -> KeeperTotals:
        if self._ledger is None:
            return NOTHING
        await cancel_and_wait(self._scanning)
        asyncio.get_running_loop().remove_reader(self._ledger.fileno())
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self._ledger.settle, SETTLE_S)
        counted = [
            counters_of(self._planned.get(pair, -1), pair, total) for pair, total in self._ledger.totals().items()
        ]
        return KeeperTotals(
            tuple(each for each in counted if each.path >= 0), tuple(each for each in counted if each.path < 0)
        )

    async def close(self) -> None:
        ledger, self._ledger = self._ledger, None
        await cancel_and_wait(self._scanning)
        if ledger is not None:
            asyncio.get_running_loop().remove_reader(ledger.fileno())
            ledger.close()


def at_least(last: KeeperTotals, counted: KeeperTotals) -> KeeperTotals:
    """What is certain of each pair when a lost keeper's last word and the agent's own count are all there is.

    The agent has counted what lived when the keeper was lost, from each socket's beginning, and what came later; only the
    keeper knew what had ended before.
    """
    found = {(each.local, each.remote): each for each in (*last.paths, *last.unplanned)}
    for each in (*counted.paths, *counted.unplanned):
        known = found.get((each.local, each.remote), each)
        found[each.local, each.remote] = replace(
            known,
            bytes_acked=max(known.bytes_acked, each.bytes_acked),
            bytes_received=max(known.bytes_received, each.bytes_received),
            bytes_sent=max(known.bytes_sent, each.bytes_sent),
            retransmitted_segments=max(known.retransmitted_segments, each.retransmitted_segments),
            subflows=max(known.subflows, each.subflows),
            open_subflows=each.open_subflows,
            plain=max(known.plain, each.plain),
        )
    return KeeperTotals(
        tuple(each for each in found.values() if each.path >= 0),
        tuple(each for each in found.values() if each.path < 0),
    )


def sentence_of(report: Report, names: Mapping[int, str]) -> tuple[str, str] | None:
    """What a keeper said, as people read it, with its level; None for what is none of theirs."""
    match report:
        case PathDied():
            name = names.get(report.path, f"path {report.path}")
            return f"{name} is dead ({report.reason}); its {report.destroyed} subflows were ended.", "warning"
        case PathHealed():
            name = names.get(report.path, f"path {report.path}")
            return f"{name} works again, {report.down_ms / 1e3:.1f} s after it died.", "info"
        case PathStalled():
            name = names.get(report.path, f"path {report.path}")
            return (
                f"Nothing has come through {name} for {report.silence_ms / 1e3:.1f} s, and no other path works.",
                "warning",
            )
        case PathRevived():
            name = names.get(report.path, f"path {report.path}")
            return f"{name} carries again, after {report.silence_ms / 1e3:.1f} s of silence.", "info"
        case SubflowsVerified():
            count = len(report.paths)
            return f"{report.connections} connections, each on {count} path{'s' if count > 1 else ''}.", "info"
        case FellBack():
            plain = f"{report.plain} of {report.connections} connections are plain TCP on one path: {report.reason}"
            return plain, "warning"
        case SubflowsMissing():
            name = names.get(report.path, f"path {report.path}")
            lacking = f"{report.missing} of {report.connections} connections do not use {name}: {report.reason}"
            return lacking, "warning"
        case UnplannedPair():
            return f"A connection of the journey went from {report.local} to {report.remote}, which is no path of it.", "warning"  # fmt: skip
        case KeeperTrouble():
            return report.text, "warning"
    return None
