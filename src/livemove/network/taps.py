"""Tap devices of VMs, in the agent's own network namespace; by ioctl, because each one is on the path of a starting VM."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from livemove.base.errors import NetworkMissing

# From linux/if_tun.h and linux/sockios.h; Python does not have them.
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCGIFMTU, _SIOCSIFMTU = 0x8913, 0x8914, 0x8921, 0x8922
_SIOCGIFINDEX, _SIOCBRADDIF = 0x8933, 0x89A2
_IFF_UP = 0x1
_TRIES, _PAUSE_S = 100, 0.03

NAME_BYTES = 16


def tap_name(vm_name: str, uuid: str, index: int) -> str:
    """Name of the tap of a VM's n-th network card: the same on every host, at most 15 characters."""
    return f"lm{hashlib.sha256(f'{vm_name}/{uuid}'.encode()).hexdigest()[:8]}{index}"


def taps_of(vm_name: str, uuid: str) -> list[str]:
    """The taps of a VM that are there."""
    prefix = tap_name(vm_name, uuid, 0)[:-1]
    names = (name for _, name in socket.if_nameindex())
    return [name for name in names if name.startswith(prefix) and name.removeprefix(prefix).isdecimal()]


def make_tap(name: str, bridge: str, *, owner_uid: int | None = None) -> None:
    """Make a tap, give it the bridge's MTU, join it to the bridge and set it up; an idle one of that name is replaced.

    :param owner_uid: the user that QEMU runs as, when it is not root.
    :raise NetworkMissing: the bridge is not there or is none, the tap is in use, or there is no right to make one.
        No tap is left behind.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            mtu = _get(control, _SIOCGIFMTU, bridge)
        except OSError as error:
            raise NetworkMissing(f"There is no bridge '{bridge}' on this host.") from error
        remove_tap(name)
        try:
            _make_persistent(name, owner_uid)
        except OSError as error:
            reason = "it is in use" if error.errno == errno.EBUSY else error.strerror
            raise NetworkMissing(
                f"The tap '{name}' cannot be made: {reason}.",
                remedy="livemove needs root and /dev/net/tun to make taps.",
            ) from error
        try:
            _silence_ipv6(name)
            _set(control, _SIOCSIFMTU, name, mtu)
            _set(control, _SIOCBRADDIF, bridge, _get(control, _SIOCGIFINDEX, name))
            flags = _get(control, _SIOCGIFFLAGS, name) & 0xFFFF
            _set(control, _SIOCSIFFLAGS, name, flags | _IFF_UP)
        except OSError as error:
            remove_tap(name)
            reason = f"'{bridge}' is no bridge" if error.errno == errno.EOPNOTSUPP else error.strerror
            raise NetworkMissing(f"The tap '{name}' cannot join '{bridge}': {reason}.") from error


def remove_tap(name: str) -> None:
    """Remove a tap; one that is not there is no fault.

    :raise NetworkMissing: a process still uses it.
    """
    if not _exists(name):
        return
    try:
        with _attached(name) as tap:
            fcntl.ioctl(tap, _TUNSETPERSIST, 0)
    except OSError as error:
        raise NetworkMissing(
            f"The tap '{name}' cannot be removed: {'it is in use' if error.errno == errno.EBUSY else error.strerror}.",
            remedy="Stop the VM that uses it.",
        ) from error


def _exists(name: str) -> bool:
    with suppress(OSError):
        return socket.if_nametoindex(name) > 0
    return False


def _make_persistent(name: str, owner_uid: int | None) -> None:
    with _attached(name) as tap:
        if owner_uid is not None:
            fcntl.ioctl(tap, _TUNSETOWNER, owner_uid)
        fcntl.ioctl(tap, _TUNSETPERSIST, 1)


@contextmanager
def _attached(name: str) -> Iterator[int]:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        # the same flags that QEMU uses: a persistent tap keeps them
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH14x", _encoded(name), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
        yield tap
    finally:
        os.close(tap)


def _silence_ipv6(name: str) -> None:
    """The host has no address on a tap, and its neighbour discovery would be seen by the guest."""
    with suppress(FileNotFoundError):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")


def _get(control: socket.socket, request: int, name: str) -> int:
    answer = fcntl.ioctl(control, request, struct.pack("16si20x", _encoded(name), 0))
    return int(struct.unpack("16si20x", answer)[1])


def _set(control: socket.socket, request: int, name: str, value: int) -> None:
    fcntl.ioctl(control, request, struct.pack("16si20x", _encoded(name), value))


def _encoded(name: str) -> bytes:
    encoded = os.fsencode(name)
    if not 0 < len(encoded) < NAME_BYTES:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    return encoded


async def remove_tap_patiently(name: str) -> None:
    """Remove the tap of a QEMU that has just ended: the kernel lets go of it a little after the process has gone.

    Raises NetworkMissing when it is in use still after some seconds.
    """
    for tried in range(_TRIES):
        try:
            return await asyncio.to_thread(remove_tap, name)
        except NetworkMissing:
            if tried == _TRIES - 1:
                raise
            await asyncio.sleep(_PAUSE_S)
