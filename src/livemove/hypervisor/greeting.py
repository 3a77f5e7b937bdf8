"""Whether a QEMU that was just started obeys already."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

_POLL_S = 0.005


async def until_it_obeys(socket: Path) -> None:
    """Return when a QEMU carries out commands there; for ever when none comes, so callers watch its end as well."""
    while not await _obeys(socket):  # noqa: ASYNC110  (QEMU tells nobody when its socket is there)
        await asyncio.sleep(_POLL_S)


async def _obeys(socket: Path) -> bool:
    """Whether a QEMU obeys there; waits for it once it has accepted the connection.

    The greeting alone proves little: a thread of the monitor sends it while the machine is still being built, which may
    fail yet. Commands are carried out by the main loop, which starts when the machine stands.
    """
    if not socket.exists():
        return False
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
    except OSError:
        return False
    try:
        if not (await reader.readline()).startswith(b'{"QMP"'):
            return False
        writer.write(b'{"execute": "qmp_capabilities"}')
        return (await reader.readline()).startswith(b'{"return"')
    except (OSError, ValueError):
        return False
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
