"""Work in a network namespace of its own, which is gone with everything in it when the work is done."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Coroutine
from typing import Any

_CLONE_NEWNET = 0x40000000


def in_own_namespace(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine in a thread whose sockets and child processes are in a new namespace; raises what it raises.

    Other threads, such as those of asyncio.to_thread, stay outside.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            # os.unshare is there from Python 3.12 on
            if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            asyncio.run(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="in a namespace")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def tool(*words: str, text: str = "") -> str:
    """What a program of the calling thread's namespace prints; it must succeed."""
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_cables(*names: str) -> None:
    """Pairs of virtual NICs: NAME with an address 10.9.N.1/24, up, and its other end NAME-far."""
    for number, name in enumerate(names):
        tool("ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}-far")
        tool("ip", "addr", "add", f"10.9.{number}.1/24", "dev", name)
        for end in (name, f"{name}-far"):
            tool("ip", "link", "set", end, "up")
    tool("ip", "link", "set", "lo", "up")
