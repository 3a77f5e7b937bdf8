"""Whether NICs of this host carry, told by the kernel as it changes (rtnetlink, linux/rtnetlink.h, linux/if_link.h)."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from livemove.network.netlink import ROUTE, Netlink, attributes
from livemove.network.netlink_notes import Listener, Note

_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_GROUP_LINK = 1
_INFO = struct.Struct("=BxHiII")  # struct ifinfomsg
_IFNAME = 3
_UP, _LOWER_UP = 0x1, 0x10000
_FAMILY_UNSPEC = 0


def parse_link(message: Note) -> tuple[str, int, bool] | None:
    """Name, index and carrier of the link in a message; None when it is about something else or too short."""
    if message.kind not in (_NEWLINK, _DELLINK) or len(message.payload) < _INFO.size:
        return None
    family, _, index, flags, _ = _INFO.unpack_from(message.payload)
    if family != _FAMILY_UNSPEC:
        return None  # a bridge tells of its ports in the same group
    name = dict(attributes(message.payload[_INFO.size :])).get(_IFNAME, b"").rstrip(b"\0")
    carries = message.kind == _NEWLINK and flags & _UP != 0 and flags & _LOWER_UP != 0
    return name.decode(errors="replace"), index, carries


class Carriers:
    """The carriers of some NICs, by name: one that is removed and made again counts as the same.

    Raises OSError when rtnetlink is not there.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._carries = dict.fromkeys(names, False)
        self._indexes: dict[str, int] = {}
        self._events = Listener(ROUTE, [_GROUP_LINK])
        self.read_again()

    def fileno(self) -> int:
        return self._events.fileno()

    def close(self) -> None:
        """May be called twice."""
        self._events.close()

    def carries(self, name: str) -> bool:
        """Whether the NIC is up and its lower layer too; False for one that is not there, True for one without a name."""
        return not name or self._carries.get(name, False)

    def index(self, name: str) -> int:
        """Its interface index; 0 for one that never was there."""
        return self._indexes.get(name, 0)

    def read(self) -> None:
        """Take in what the kernel said since. Raises OSError."""
        said, lost = self._events.heard()
        self._take(said)
        if lost:
            self.read_again()

    def read_again(self) -> None:
        """Ask for all links. Raises OSError."""
        with Netlink(ROUTE) as asking:
            answers = [Note(_NEWLINK, payload) for payload in asking.dump(_GETLINK, _INFO.pack(0, 0, 0, 0, 0))]
        self._carries = dict.fromkeys(self._carries, False)
        self._take(answers)

    def _take(self, said: list[Note]) -> None:
        for message in said:
            link = parse_link(message)
            if link is not None and link[0] in self._carries:
                name, index, carries = link
                self._carries[name], self._indexes[name] = carries, index
