"""A thread with an event loop of its own in a network namespace: agents and guests are reached only from inside."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000


class Inside:
    """Runs coroutines in `namespace` (in ours with None), each to its end, whoever asks."""

    def __init__(self, namespace: Path | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._error: OSError | None = None
        entered = threading.Event()
        self._thread = threading.Thread(target=self._live, args=(namespace, entered), name=f"inside {namespace}")
        self._thread.start()
        entered.wait()
        if self._error is not None:
            self._thread.join()
            self._loop.close()
            raise self._error

    def _live(self, namespace: Path | None, entered: threading.Event) -> None:
        try:
            if namespace is not None:
                enter(namespace)
        except OSError as error:
            self._error = error
            return
        finally:
            entered.set()
        self._loop.run_forever()

    def run(self, work: Coroutine[Any, Any, T], *, timeout_s: float = 120.0) -> T:
        """The result of `work`; raises what it raises, TimeoutError when it takes longer."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            future.cancel()
            raise

    def close(self) -> None:
        """End the loop and the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def enter(namespace: Path) -> None:
    """Put the calling thread into a network namespace."""
    descriptor = os.open(namespace, os.O_RDONLY)
    try:
        # os.setns is there from Python 3.12 on
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(namespace))
    finally:
        os.close(descriptor)
