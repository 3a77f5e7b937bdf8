"""A VM's serial console as one line to it: the log as it grows, keys to the guest, wherever the VM is.

What is shown is what the guest sent, control sequences included, as on any serial line. When the VM moves, the console
goes on at its new host.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator

from livemove.api.client import AgentClient
from livemove.cli.session import Session

LEAVE_KEY = b"\x1d"  # Ctrl-], as in telnet and virsh
POLL_S = 0.1
MOVED_CHECK_S = 1.0
"""How often a silent console is asked whether its VM is still there."""
_RECENT_BYTES = 4096
_MAX_TYPED = 4096


class ConsoleFollower:
    """The console's log from byte `offset` on, wherever the VM goes."""

    def __init__(self, session: Session, vm: str, agent: AgentClient) -> None:
        self._session = session
        self._vm = vm
        self._agent = agent
        self._silent_polls = 0
        self.offset = 0

    async def whole(self) -> str:
        """All there is now."""
        parts = []
        while True:
            chunk = await self._agent.console(self._vm, self.offset)
            # a log that was begun anew is shorter; an agent that sends nothing new ends the loop as well
            self.offset, before = chunk.next_offset, self.offset
            parts.append(chunk.text)
            if not chunk.text or chunk.next_offset <= before:
                return "".join(parts)

    async def recent(self) -> str:
        """The newest 4 KiB; :meth:`more` goes on from there."""
        chunk = await self._agent.console(self._vm, -_RECENT_BYTES)
        self.offset = chunk.next_offset
        return chunk.text

    async def more(self) -> str:
        """What came since the last time; empty when nothing did."""
        chunk = await self._agent.console(self._vm, self.offset)
        self.offset = chunk.next_offset
        self._silent_polls = 0 if chunk.text else self._silent_polls + 1
        if self._silent_polls * POLL_S >= MOVED_CHECK_S:
            self._silent_polls = 0
            await self._go_after_vm()
        return chunk.text

    async def type(self, keys: bytes) -> None:
        """Send keys to the guest."""
        text = keys.decode(errors="ignore")
        for start in range(0, len(text), _MAX_TYPED):
            await self._agent.type_on_console(self._vm, text[start : start + _MAX_TYPED])

    async def _go_after_vm(self) -> None:
        if (await self._agent.vm(self._vm)).state != "moved":
            return
        found = await self._session.find_vm(self._vm)
        if found.host != self._agent.host_name:
            self._agent, self.offset = await self._session.agent(found.host), 0


async def print_on(follower: ConsoleFollower) -> None:
    """Print what comes, until cancelled."""
    while True:
        await asyncio.sleep(POLL_S)
        show(await follower.more())


def show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


async def interact(follower: ConsoleFollower) -> None:
    """Keys to the guest, its output to the terminal, until Ctrl-] or the end of the input."""
    keys: asyncio.Queue[bytes] = asyncio.Queue(maxsize=256)
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()

    def typed() -> None:
        with contextlib.suppress(asyncio.QueueFull):  # faster than the agent takes them: a paste that is too long
            keys.put_nowait(os.read(descriptor, 1024) or LEAVE_KEY)

    sys.stderr.write("livemove: Ctrl-] leaves the console.\n")
    with _raw_terminal(descriptor):
        loop.add_reader(descriptor, typed)
        try:
            show(await follower.recent())
            while True:
                with contextlib.suppress(TimeoutError):
                    pressed = await asyncio.wait_for(keys.get(), POLL_S)
                    while not keys.empty():
                        pressed += keys.get_nowait()
                    before, leave, _ = pressed.partition(LEAVE_KEY)
                    if before:
                        await follower.type(before)
                    if leave:
                        return
                show(await follower.more())
        finally:
            loop.remove_reader(descriptor)


@contextlib.contextmanager
def _raw_terminal(descriptor: int) -> Iterator[None]:
    """Pass every key, Ctrl-C too, for the length of ``with``; the terminal is as before afterwards."""
    import termios
    import tty

    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        sys.stderr.write("\n")
