"""A bad network: a proxy between a source and its destination's QEMU that flips bytes of pages, and of nothing else.

It stands on the source's host, so that the destination sees the source's own address. nftables redirects new connections
to the ports of migrations to it, except its own, which carry a mark.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

PORT = 5999
MARK = 7
MIGRATION_PORTS = "49152-49215"
TABLE = "lm_e2e_proxy"
RULES = f"""table ip {TABLE} {{
  chain output {{
    type nat hook output priority -100;
    tcp dport {MIGRATION_PORTS} meta mark != {MARK} redirect to :{PORT}
  }}
}}
"""
_SO_ORIGINAL_DST = 80
_MULTIFD_MAGIC = bytes.fromhex("11223344")
#: The header of a packet with its list of pages (facts about QEMU's multifd): behind it there is page data only.
_HEADER_BYTES = 1344
_READ_BYTES = 1 << 18


class CorruptingProxy:
    """Flips a bit every `every_bytes` of page data, `most` times."""

    def __init__(self, *, every_bytes: int, most: int) -> None:
        self.flipped = 0
        self.carried_bytes = 0
        self._every_bytes = every_bytes
        self._most = most
        self._next = every_bytes
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accepted, "0.0.0.0", PORT, limit=_READ_BYTES)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        given = writer.get_extra_info("socket").getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
        port, address = struct.unpack("!2xH4s8x", given)
        onward = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        onward.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        onward.setblocking(False)
        writers = [writer]
        try:
            await asyncio.get_running_loop().sock_connect(onward, (socket.inet_ntoa(address), port))
            to_reader, to_writer = await asyncio.open_connection(sock=onward, limit=_READ_BYTES)
            writers.append(to_writer)
            await asyncio.gather(
                self._carry(reader, to_writer, damage=True), self._carry(to_reader, writer, damage=False)
            )
        except OSError:
            onward.close()
        finally:
            for one in writers:
                one.close()
                with contextlib.suppress(OSError):
                    await one.wait_closed()
            self._tasks.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, damage: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_READ_BYTES):
                writer.write(self._damaged(data) if damage else data)
                await writer.drain()
            writer.write_eof()

    def _damaged(self, data: bytes) -> bytes:
        self.carried_bytes += len(data)
        if self.flipped == self._most or self.carried_bytes < self._next or len(data) < 8192:
            return data
        at = len(data) - 100
        if _MULTIFD_MAGIC in data[at - _HEADER_BYTES - 4 : at + 4]:
            return data
        self.flipped += 1
        self._next = self.carried_bytes + self._every_bytes
        return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
