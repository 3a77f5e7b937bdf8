"""A VM's serial console: its log to read, its socket to type on."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from livemove.api.models import ConsoleChunk
from livemove.base.errors import QemuGone

_CHUNK_BYTES = 65536


def read_console(run_dir: Path, offset: int) -> ConsoleChunk:
    """The log from byte `offset`, or its last ``-offset`` bytes when negative; empty when there is none."""
    try:
        with (run_dir / "console.log").open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            start = max(0, size + offset) if offset < 0 else min(offset, size)
            log.seek(start)
            data = log.read(_CHUNK_BYTES)
    except FileNotFoundError:
        return ConsoleChunk(text="", next_offset=0)
    return ConsoleChunk(text=data.decode(errors="replace"), next_offset=start + len(data))


async def type_on_console(run_dir: Path, text: str) -> None:
    """Send `text` to the guest. Raises QemuGone when nobody takes it."""
    try:
        async with asyncio.timeout(5):
            _, writer = await asyncio.open_unix_connection(run_dir / "console.sock")
            try:
                writer.write(text.encode())
                await writer.drain()
            finally:
                writer.close()
                await writer.wait_closed()
    except (OSError, TimeoutError) as error:
        raise QemuGone(f"The console of this VM does not answer: {error}.") from error
