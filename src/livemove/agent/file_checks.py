"""Looking at the files of VMs: storage that does not answer costs the VM that needs it a refusal, and nobody else anything.

A call on a network file system whose server is gone returns when that is back, or never. In the agent's loop one of them
would hold up every journey of the host, so each look has a thread, and an end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from livemove.base.errors import DiskUnreachable
from livemove.base.threads import in_own_thread

T = TypeVar("T")

#: Long for a server that is slow, and far below what a journey's preparation may take.
PATIENCE_S = 10.0
#: Threads at once. Those that hang stay until their storage answers.
MOST = 16
_REMEDY = "Mend the storage, or unmount it ('umount -f -l'), on that host."


class Look:
    """One look; it knows at which path it is."""

    def __init__(self) -> None:
        self.at = ""

    def each(self, paths: Iterable[str]) -> Iterator[str]:
        """The paths, each noted before it is handed out."""
        for path in paths:
            self.at = path
            yield path


class FileChecks:
    """All looks of an agent."""

    def __init__(self, *, patience_s: float = PATIENCE_S, most: int = MOST) -> None:
        self._patience_s = patience_s
        self._most = most
        self._under_way: dict[asyncio.Future[Any], Look] = {}

    async def look(self, work: Callable[[Look], T], host: str) -> T:
        """What `work` returns or raises; it takes its paths from :meth:`Look.each`.

        Raises DiskUnreachable when it does not end in time, or has to wait too long for others that do not.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._patience_s
        while len(self._under_way) >= self._most:
            left_s = until_s - loop.time()
            if left_s <= 0:
                raise self._refusal(next(iter(self._under_way.values())), host)
            await asyncio.wait(self._under_way, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        look = Look()
        result = in_own_thread(lambda: work(look), name="look at files")
        self._under_way[result] = look
        result.add_done_callback(self._ended)
        # waiting for it, in time or not, does not cancel it: its thread is counted until it has ended
        await asyncio.wait([result], timeout=max(until_s - loop.time(), 0))
        if not result.done():
            raise self._refusal(look, host)
        return result.result()

    def _refusal(self, look: Look, host: str) -> DiskUnreachable:
        return DiskUnreachable(
            f"{look.at or 'A path'} does not answer on {host}: it was looked at for {self._patience_s:g} s in vain.",
            remedy=_REMEDY, where=host,
        )  # fmt: skip

    def _ended(self, result: asyncio.Future[Any]) -> None:
        del self._under_way[result]
        if not result.cancelled():
            result.exception()  # somebody who has gone away meanwhile does not ask for it
