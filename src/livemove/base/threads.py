"""Work that may block for long, in a thread of its own.

asyncio's own pool (``asyncio.to_thread``) has a few threads that everybody shares, and the process waits for them when it
ends: what may block for minutes, or for ever, must not be there.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")


def in_own_thread(work: Callable[[], T], *, name: str) -> asyncio.Future[T]:
    """What `work` returns or raises, from a thread that the end of the process does not wait for.

    Cancelling the future ends nobody's work; its result is then dropped.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def tell(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast("T", result))

    def run() -> None:
        result, failure = None, None
        try:
            result = context.run(work)
        except BaseException as error:
            failure = error
        # the loop may have ended meanwhile
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(tell, result, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
