"""Network namespaces: made, listed, entered, removed; and programs run with their failures told.

Programs enter a namespace with ``nsenter --net``, not ``ip netns exec``: the latter also makes a mount namespace of
its own with another /sys, in which mounts of the host (huge pages, cgroups made later) would not appear. With nsenter
only the network differs, so inside a lab's host /sys/class/net still shows the machine's interfaces; netlink, /proc/net
and sysctls show the host's own.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import re
import socket
import struct
import threading
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from livemove.base.errors import MissingPrerequisite
from livemove.base.tasks import spawn
from livemove.lab.topology import is_namespace_of

NETNS_DIRECTORY = Path("/run/netns")
# In the environment of everything a lab starts, so that it is found even before it entered its namespace.
MARK = "LIVEMOVE_LAB"
HOST_MARK = "LIVEMOVE_LAB_HOST"

_CLONE_NEWNET = 0x40000000
_SIOCETHTOOL = 0x8946
_ETHTOOL_SET_OFF = {"gro": 0x2C, "gso": 0x24, "tso": 0x1F}

NamespaceId = tuple[int, int]
"""Device and inode of a namespace: what /proc/PID/ns/net and /run/netns/NAME have in common."""

# Several NICs answer for several subnets, so the reverse path check only harms; the MPTCP black hole detector would
# switch MPTCP off for an hour after a test that cuts a path at the start.
_SYSCTLS = {
    "net/ipv6/conf/all/disable_ipv6": "1",
    "net/ipv6/conf/default/disable_ipv6": "1",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/mptcp/enabled": "1",
    "net/mptcp/blackhole_timeout": "0",
}


@dataclass(frozen=True, slots=True)
class Tools:
    """Runs the programs that make, change and remove a lab.

    They hold the lab's lock through `lock_fd` as long as they run, even when this process is killed, and are in a
    session of their own, so that Ctrl-C does not cut them off in the middle.
    """

    lab: str
    lock_fd: int | None = None

    async def run(self, argv: Sequence[str], *, input_text: str = "") -> str:
        """The program's standard output. Raises MissingPrerequisite when it is not there or fails, with what it said."""
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=() if self.lock_fd is None else (self.lock_fd,),
                start_new_session=True,
                env={**os.environ, MARK: self.lab, "LC_ALL": "C"},
            )
        except FileNotFoundError as error:
            raise MissingPrerequisite(f"The program '{argv[0]}' is not installed.") from error
        talk = spawn(process.communicate(input_text.encode()), name=f"{argv[0]} for lab {self.lab}")
        try:
            output, complaint = await asyncio.shield(talk)
        except asyncio.CancelledError:
            # it ends within milliseconds; cut off, it would leave half a batch done
            await asyncio.wait([talk])
            raise
        if process.returncode != 0:
            said = " ".join((complaint or output).decode(errors="replace").split())[:600]
            if place := re.search(r"Command failed -:([0-9]+)", said):
                said = f"{said} ({input_text.splitlines()[int(place[1]) - 1]})"
            raise MissingPrerequisite(
                f"'{' '.join(argv)}' failed with status {process.returncode}: {said or 'it said nothing'}.",
                remedy="The lab needs root, network namespaces, veth, bridge, tbf, nftables and iproute2.",
            )
        return output.decode(errors="replace")

    async def ip(self, namespace: str, lines: Iterable[str]) -> None:
        """`ip` commands in a namespace, in one batch; nothing when there are none. Raises MissingPrerequisite."""
        if text := "".join(f"{line}\n" for line in lines):
            await self.run(["ip", "-n", namespace, "-batch", "-"], input_text=text)

    async def tc(self, namespace: str, lines: Iterable[str]) -> None:
        """`tc` commands in a namespace, as :meth:`ip`."""
        if text := "".join(f"{line}\n" for line in lines):
            await self.run(["tc", "-n", namespace, "-batch", "-"], input_text=text)

    async def nft(self, namespace: str, rules: str) -> str:
        """nftables commands in a namespace, all or none. Raises MissingPrerequisite."""
        return await self.run([*enter(namespace), "nft", "-f", "-"], input_text=rules)


def require_root() -> None:
    """Raises MissingPrerequisite when this process may not make namespaces."""
    if os.geteuid() != 0:
        raise MissingPrerequisite(
            f"A lab makes network namespaces, which needs root; this is user {os.geteuid()}.",
            remedy="Run it with sudo.",
        )


def enter(namespace: str) -> list[str]:
    """The words that, put before a command, run it in the namespace; the process keeps its id."""
    return ["nsenter", f"--net={NETNS_DIRECTORY / namespace}", "--"]


def marks(lab: str, member: str) -> dict[str, str]:
    return {MARK: lab, HOST_MARK: member}


async def together(*work: Coroutine[Any, Any, Any]) -> None:
    """Do everything at once and wait for all of it; then raises the first error, as itself and not in a group."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


async def make(tools: Tools, namespaces: Sequence[str]) -> None:
    """Make the namespaces, with their sysctls set and ``lo`` up. Raises MissingPrerequisite."""
    await tools.run(["ip", "-batch", "-"], input_text="".join(f"netns add {name}\n" for name in namespaces))
    script = "".join(
        f"[ ! -e /proc/sys/{key} ] || echo {value} > /proc/sys/{key} || exit 1\n" for key, value in _SYSCTLS.items()
    )
    await together(
        *(tools.run([*enter(name), "sh", "-s"], input_text=script) for name in namespaces),
        *(tools.ip(name, ["link set lo up"]) for name in namespaces),
    )


async def remove(tools: Tools, namespaces: Iterable[str]) -> None:
    """Remove the names of namespaces; those that are not there are passed over.

    A namespace ends, with its interfaces, when its name and its last process have gone; the kernel does so a moment later.
    """
    present = [name for name in namespaces if (NETNS_DIRECTORY / name).exists()]
    if present:
        await tools.run(["ip", "-batch", "-"], input_text="".join(f"netns del {name}\n" for name in present))


def existing(lab: str) -> list[str]:
    """The lab's namespaces that exist, by name, whether or not they are on record."""
    try:
        return sorted(path.name for path in NETNS_DIRECTORY.iterdir() if is_namespace_of(lab, path.name))
    except FileNotFoundError:
        return []


def namespace_id(path: Path) -> NamespaceId | None:
    """Which namespace a name or /proc/PID/ns/net stands for; None when there is none (any more)."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def ids_of(namespaces: Iterable[str]) -> set[NamespaceId]:
    return {found for name in namespaces if (found := namespace_id(NETNS_DIRECTORY / name)) is not None}


def socket_in(
    namespace: str, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0
) -> socket.socket:
    """A socket that belongs to the namespace, whatever thread uses it later. Raises OSError.

    A thread of its own enters the namespace and ends, so no thread of the caller is ever in another one.
    """
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def work() -> None:
        try:
            handle = os.open(NETNS_DIRECTORY / namespace, os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(handle, _CLONE_NEWNET) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number), namespace)
            finally:
                os.close(handle)
            made.append(socket.socket(family, kind, protocol))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=work, name=f"enter {namespace}")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


def offloads_off(namespace: str, interfaces: Iterable[str]) -> None:
    """Switch tso, gso and gro off. Raises MissingPrerequisite when the kernel refuses."""
    try:
        with socket_in(namespace, kind=socket.SOCK_DGRAM) as handle:
            for interface in interfaces:
                for command in _ETHTOOL_SET_OFF.values():
                    value = ctypes.create_string_buffer(struct.pack("II", command, 0))
                    request = struct.pack("16sP", interface.encode(), ctypes.addressof(value)).ljust(40, b"\0")
                    fcntl.ioctl(handle, _SIOCETHTOOL, request)
    except OSError as error:
        raise MissingPrerequisite(f"Offloads of a link in {namespace} cannot be switched off: {error}.") from error


async def run_in(
    namespace: str,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    capture: bool = True,
    input_bytes: bytes | None = None,
    timeout_s: float | None = None,
) -> CompletedProcess[bytes]:
    """Run a command in a namespace to its end; its status is the caller's business.

    With `capture` false it has this process's terminal, and `input_bytes` must be None. A command that is still running
    after `timeout_s`, or when the caller is cancelled, is killed. Raises TimeoutError then, and MissingPrerequisite when
    nsenter is not installed.
    """
    pipe = asyncio.subprocess.PIPE if capture else None
    inherit_or_null = asyncio.subprocess.DEVNULL if capture else None
    try:
        process = await asyncio.create_subprocess_exec(
            *enter(namespace),
            *argv,
            stdin=pipe if input_bytes is not None else inherit_or_null,
            stdout=pipe,
            stderr=pipe,
            env={**os.environ, **env},
        )
    except FileNotFoundError as error:
        raise MissingPrerequisite("The program 'nsenter' is not installed.") from error
    try:
        async with asyncio.timeout(timeout_s):
            output, complaint = await process.communicate(input_bytes)
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    return CompletedProcess(list(argv), process.returncode or 0, output or b"", complaint or b"")
