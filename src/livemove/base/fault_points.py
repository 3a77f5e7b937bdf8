"""Named places at which a test makes an agent stand still, so that what it then kills dies exactly there. For tests only.

They are armed by the environment variable LIVEMOVE_FAULT_POINTS=1 when the agent starts, never by a setting, a request or
a peer. An armed agent that reaches the point named in the file ``fault-point`` of its run directory removes that file and
stops itself with SIGSTOP: the test sees state T in /proc, kills or stops whom it wants, and ends or continues the agent.
An armed agent's log names every point that it reaches. Unarmed, a point costs one comparison.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

_log = logging.getLogger(__name__)

VARIABLE = "LIVEMOVE_FAULT_POINTS"
FILE_NAME = "fault-point"

_reached: Callable[[str], None] | None = None


def arm(run_dir: Path, environment: Mapping[str, str]) -> bool:
    """Arm the points of this process if `environment` says so; whether they are armed."""
    global _reached
    _reached = None
    if environment.get(VARIABLE) == "1":
        _reached = functools.partial(_stop_at, run_dir / FILE_NAME)
    return _reached is not None


def reach(point: str) -> None:
    """The code is at `point`. Returns at once, unless a test waits for this one."""
    if _reached is not None:
        _reached(point)


@contextlib.contextmanager
def around(where: str, what: str) -> Iterator[None]:
    """The points ``WHERE.before.WHAT`` and ``WHERE.after.WHAT``; the second one also when what is between raises."""
    reach(f"{where}.before.{what}")
    try:
        yield
    finally:
        reach(f"{where}.after.{what}")


def _stop_at(path: Path, point: str) -> None:
    _log.info("fault point %s", point)
    try:
        wanted = path.read_text().strip()
    except FileNotFoundError:
        return
    if wanted == point:
        path.unlink()
        # to this thread, so that nothing more of it runs; the others stop with it
        signal.raise_signal(signal.SIGSTOP)
