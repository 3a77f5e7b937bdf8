"""The agent's handle on the path keeper of a journey (keeper.py): started, told, heard, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

from livemove.base.errors import Bug, LivemoveError, MissingPrerequisite
from livemove.base.shortage import shortage_of
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.network.keeper_words import KeeperConfig, KeeperTotals, Ready, Refused, Report, config_line, report_of

_log = logging.getLogger(__name__)
_READY_S = 10.0
_FINISH_S = 3.0
_GRACE_S = 1.0
_LINE_BYTES = 1 << 20


class PathKeeper:
    """A running path keeper. It ends with this process at the latest; connections stay as they are then.

    :meth:`start` makes one.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        on_report: Callable[[Report], None],
        on_loss: Callable[[], None],
    ) -> None:
        self._process, self._on_report, self._on_loss = process, on_report, on_loss
        self._may_end = False
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._totals: asyncio.Future[KeeperTotals | None] = asyncio.get_running_loop().create_future()
        self._reader = spawn(self._read(), name=f"path keeper {process.pid}")

    @classmethod
    async def start(
        cls, config: KeeperConfig, on_report: Callable[[Report], None], on_loss: Callable[[], None] = lambda: None
    ) -> PathKeeper:
        """Start a keeper in this network namespace and return when it sends heartbeats.

        :param on_report: called in the loop with each report but Ready and KeeperTotals; it must not block or raise.
        :param on_loss: called in the same way, once, when the keeper ends although nobody told it to, after this returned.
        Raises MissingPrerequisite when the kernel, a right, an address or a port is not to be had; nothing is left then.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "livemove.network.keeper",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
                limit=_LINE_BYTES,
            )
        except OSError as error:
            raise shortage_of(error) or MissingPrerequisite(
                f"The path keeper cannot be started: {error.strerror}."
            ) from error
        keeper = cls(process, on_report, on_loss)
        try:
            keeper._send(config_line(config))
            async with asyncio.timeout(_READY_S):
                await keeper._ready
        except TimeoutError as error:
            await keeper.close()
            raise MissingPrerequisite(f"The path keeper did not begin within {_READY_S:.0f} s.") from error
        except BaseException:
            await keeper.close()
            raise
        return keeper

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.returncode is None

    def allow(self, by_address: Mapping[str, int]) -> None:
        """At the destination: ask the source to send at most so many bytes per second to each of our addresses.

        :param by_address: one without an entry has no limit.
        """
        self._command(do="allow", by_address=dict(by_address))

    def expect(self, connections: int) -> None:
        """So many connections belong to the journey: from now on it is verified that each has all its subflows."""
        self._command(do="expect", connections=connections)

    async def finish(self) -> KeeperTotals | None:
        """End the keeper, after the connections were closed, and return what it counted; None when it can tell no more.

        May be called twice, and cancelled: the keeper ends all the same.
        """
        self._may_end = True
        self._command(do="finish")
        try:
            async with asyncio.timeout(_FINISH_S):
                return await asyncio.shield(self._totals)
        except TimeoutError:
            _log.warning("path keeper %d did not answer; ending it", self.pid)
            return None
        finally:
            await asyncio.shield(spawn(self.close(), name=f"end path keeper {self.pid}"))

    async def close(self) -> None:
        """End the keeper without its totals, and wait until it is gone. May be called twice."""
        self._may_end = True
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(_GRACE_S):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        # whatever ended the reader is in the log already
        await asyncio.wait({self._reader}, timeout=_GRACE_S)
        await cancel_and_wait(self._reader)

    def _command(self, **words: Any) -> None:
        self._send(json.dumps(words).encode() + b"\n")

    def _send(self, line: bytes) -> None:
        # one that ended is noticed by the reader
        if self._process.stdin is not None and not self._process.stdin.is_closing():
            with contextlib.suppress(OSError):
                self._process.stdin.write(line)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        failure: LivemoveError = MissingPrerequisite("The path keeper ended at once; the agent's log may tell why.")
        try:
            while line := await self._process.stdout.readline():
                report = report_of(line)
                if isinstance(report, Ready):
                    _set(self._ready, None)
                elif isinstance(report, KeeperTotals):
                    _set(self._totals, report)
                elif isinstance(report, Refused):
                    failure = MissingPrerequisite(f"The paths of the journey cannot be kept: {report.reason}.")
                else:
                    self._on_report(report)
        except ValueError as error:  # a line longer than the limit
            raise Bug("A path keeper said more than a line can hold.") from error
        finally:
            _set(self._totals, None)
            if not self._ready.done():
                self._ready.set_exception(failure)
                self._ready.exception()  # it may be that nobody waits
            elif not self._may_end:
                _log.warning("path keeper %d has ended, and nobody told it to", self.pid)
                self._on_loss()


def _set(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)
