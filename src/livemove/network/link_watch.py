"""Changes of this namespace's links and addresses, as they happen.

The kernel tells of every change by netlink. What it says is taken as a sign only: the links are then read anew and compared
with what was known, so that a message that was lost (the socket's buffer is small, ENOBUFS says so) or came in a burst
makes no difference. Signs of links that carry no address, such as VMs' taps, are passed over.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from livemove.base.errors import LivemoveError, MissingPrerequisite
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.network.links import read_links
from livemove.policy.paths import LinkFacts

_log = logging.getLogger(__name__)

# linux/rtnetlink.h
_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100
_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_HEADER = struct.Struct("IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_INDEX = struct.Struct("i")  # of struct ifinfomsg, 4 bytes into it
_MESSAGE_BYTES = 64 << 10

#: A NIC that goes comes as several messages; they are read as one change. Dead paths are found by heartbeats, not here.
_SETTLE_S = 0.02
_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class LinkChange:
    """One link that is no longer what it was.

    :param before: None: it was not there, or had no address.
    :param after: None: it is gone, or has no address any more.
    """

    name: str
    before: LinkFacts | None
    after: LinkFacts | None

    @property
    def came_up(self) -> bool:
        return self._carries(self.after) and not self._carries(self.before)

    @property
    def went_down(self) -> bool:
        return self._carries(self.before) and not self._carries(self.after)

    @property
    def added(self) -> tuple[str, ...]:
        """Addresses (``ADDRESS/PREFIX``) that are new."""
        return tuple(each for each in self._of(self.after) if each not in self._of(self.before))

    @property
    def removed(self) -> tuple[str, ...]:
        """Addresses that are no longer there."""
        return tuple(each for each in self._of(self.before) if each not in self._of(self.after))

    @staticmethod
    def _carries(facts: LinkFacts | None) -> bool:
        return facts is not None and facts.carrier

    @staticmethod
    def _of(facts: LinkFacts | None) -> tuple[str, ...]:
        return facts.addresses if facts is not None else ()


class LinkWatch:
    """Made by :meth:`open`; :meth:`close` may be called twice. Idle, it waits in the event loop and does nothing."""

    def __init__(self, speeds: Mapping[str, int], on_change: Callable[[LinkChange], None]) -> None:
        self._speeds = dict(speeds)
        self._on_change = on_change
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._sign = asyncio.Event()
        self._watched: set[int] = set()
        self.links: tuple[LinkFacts, ...] = ()
        """The links as they are now, as far as known."""

    @classmethod
    async def open(cls, speeds: Mapping[str, int], on_change: Callable[[LinkChange], None]) -> LinkWatch:
        """Begin; `on_change` is called in the event loop for every change against :attr:`links` as read here.

        Raises MissingPrerequisite when netlink does not answer.
        """
        watch = cls(speeds, on_change)
        try:
            signs = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
            watch._socket = signs
            signs.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
            asyncio.get_running_loop().add_reader(signs.fileno(), watch._read_signs)
            # read after the socket is there: what changes in between gives a sign
            watch._know(await read_links(watch._speeds))
        except OSError as error:
            await watch.close()
            raise MissingPrerequisite(f"Changes of this host's NICs cannot be followed: {error}.") from error
        except BaseException:
            await watch.close()
            raise
        watch._task = spawn(watch._compare(), name="watch the links")
        return watch

    async def close(self) -> None:
        """No change is told any more."""
        await cancel_and_wait(self._task)
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _know(self, links: tuple[LinkFacts, ...]) -> None:
        self.links = links
        names = {name for link in links for name in (link.name, *link.members)}
        self._watched = {index for index, name in socket.if_nameindex() if name in names}
        self._watched |= {link.index for link in links}

    def _read_signs(self) -> None:
        assert self._socket is not None
        try:
            while True:
                if any(self._concerns(kind, index) for kind, index in _messages(self._socket.recv(_MESSAGE_BYTES))):
                    self._sign.set()
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: signs were lost, and the socket goes on
            self._sign.set()

    def _concerns(self, kind: int, index: int) -> bool:
        return kind not in (_RTM_NEWLINK, _RTM_DELLINK) or index in self._watched

    async def _compare(self) -> None:
        while True:
            await self._sign.wait()
            await asyncio.sleep(_SETTLE_S)
            self._sign.clear()
            try:
                found = await read_links(self._speeds)
            except LivemoveError as error:
                _log.warning("%s", error)
                await asyncio.sleep(_RETRY_S)
                self._sign.set()
                continue
            known = self.links
            self._know(found)
            for change in changes_between(known, found):
                try:
                    self._on_change(change)
                except Exception:  # a fault of the listener's must not end the watch
                    _log.exception("the change of %s was not taken", change.name)


def changes_between(before: tuple[LinkFacts, ...], after: tuple[LinkFacts, ...]) -> Iterator[LinkChange]:
    """What differs, link by link; a link that was made anew under the same name is one change."""
    then, now = ({link.name: link for link in links} for links in (before, after))
    for name in sorted(then.keys() | now.keys()):
        if then.get(name) != now.get(name):
            yield LinkChange(name, then.get(name), now.get(name))


def _messages(data: bytes) -> Iterator[tuple[int, int]]:
    """Type of each message, and the index of the link that those about links name."""
    offset = 0
    while offset + _HEADER.size + 8 <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, offset)
        yield kind, _INDEX.unpack_from(data, offset + _HEADER.size + 4)[0]
        if length < _HEADER.size:
            return
        offset += (length + 3) & ~3
