"""Heartbeats on every path: sockets bound to the path's address and NIC, and what came through in each direction.

At the destination they are on the journey's port; the source's ports are any, and the destination answers to where a
heartbeat with the journey's key came from. They go in the high-priority band, so that a full queue of ours is no silence.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from livemove.base.errors import PeerViolation
from livemove.network.keeper_words import KeptPath
from livemove.wire.heartbeat import SIZE, Heartbeat, Role, pack, unpack

_TOS_CS6 = 0xC0
_PRIORITY = 6  # TC_PRIO_INTERACTIVE: the first band of pfifo_fast; 7 would need CAP_NET_ADMIN
# Read of one path at one go: what a stopped keeper finds in its buffers, and a bound for a flood.
_MOST_AT_ONCE = 256


@dataclass(slots=True)
class Heard:
    """What came through one path: a round, 0 for none yet, and when it was heard of."""

    round_number: int = 0
    at_s: float = float("-inf")


class Exchange:
    """What both sides' heartbeats told so far: pure bookkeeping for one journey and side.

    :param life: a random number other than 0, new for each start of this process.
    """

    def __init__(self, role: Role, paths: Sequence[int], life: int) -> None:
        self._role, self._life = role, life
        self._peer_life = 0
        self._peer_round = 0
        self._round = 0
        #: The other side's rounds on each path, and ours that it answered there.
        self.heard = {path: Heard() for path in paths}
        self.answered = {path: Heard() for path in paths}
        self.peer_dead: frozenset[int] = frozenset()
        #: by path what the peer wants to be sent at most, bytes per second; no entry: no limit
        self.allowances: dict[int, int] = {}
        #: When the newest heartbeat was heard, on any path; None: none yet.
        self.heard_s: float | None = None

    def next_round(self) -> None:
        """Begin a round: its heartbeats, one for each path, are :meth:`beat`'s."""
        self._round += 1

    def beat(self, path: int, dead: frozenset[int], allowance_bytes_per_s: int | None) -> Heartbeat:
        return Heartbeat(
            self._role,
            path,
            self._life,
            self._round,
            self._peer_life,
            self.heard[path].round_number,
            dead,
            allowance_bytes_per_s,
        )

    def take(self, path: int, beat: Heartbeat, now_s: float) -> bool:
        """A heartbeat came on `path`; False when it is not the other side's, or of another path."""
        if beat.role is not self._role.other or beat.path != path or path not in self.heard:
            return False
        if beat.life != self._peer_life:
            # the other keeper has started (again): its rounds begin anew
            self._peer_life, self._peer_round = beat.life, 0
            for known in self.heard.values():
                known.round_number = 0
        self.heard_s = now_s
        if beat.round_number > self.heard[path].round_number:
            self.heard[path] = Heard(beat.round_number, now_s)
            self.allowances.pop(path, None)
            if beat.allowance_bytes_per_s is not None:
                self.allowances[path] = beat.allowance_bytes_per_s
        if beat.heard_life == self._life and self.answered[path].round_number < beat.heard_round <= self._round:
            self.answered[path] = Heard(beat.heard_round, now_s)
        if beat.round_number > self._peer_round:
            self._peer_round = beat.round_number
            self.peer_dead = beat.dead
        return True


class PathSocket:
    """The UDP socket of one path on this host. Raises OSError when address, port or NIC cannot be bound.

    :ivar index: of the NIC that it is bound to; 0: of none.
    """

    def __init__(self, path: KeptPath, role: Role, port: int, key: bytes) -> None:
        self.path = path
        self._role, self._port, self._key = role, port, key
        self._peer: tuple[str, int] | None = (path.remote, port) if role is Role.SOURCE else None
        self._newest = (0, 0)
        self._socket, self.index = self._opened()

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """May be called twice."""
        self._socket.close()

    def send(self, beat: Heartbeat) -> None:
        """Send it, to whoever is known on the other side."""
        if self._peer is not None:
            # no route, no room, refused: all that is silence, and judged as such
            with contextlib.suppress(OSError):
                self._socket.sendto(pack(beat, self._key), self._peer)

    def receive(self) -> list[Heartbeat]:
        """The journey's heartbeats that came since; others are dropped."""
        beats = []
        for _ in range(_MOST_AT_ONCE):
            try:
                data, sender = self._socket.recvfrom(SIZE + 1)
            except BlockingIOError:
                break
            except OSError:
                continue  # an ICMP error of an earlier send
            if sender[0] != self.path.remote:
                continue
            with contextlib.suppress(PeerViolation):
                beat = unpack(data, self._key)
                if beat.path == self.path.path and beat.role is self._role.other:
                    beats.append(beat)
                    if beat.life != self._newest[0] or beat.round_number > self._newest[1]:
                        # a repeated one may come from anywhere
                        self._newest, self._peer = (beat.life, beat.round_number), (sender[0], sender[1])
        return beats

    def open_again(self) -> bool:
        """A new socket, for a NIC that was removed and made again; False when that cannot be yet."""
        stale = self._socket
        try:
            self._socket, self.index = self._opened()
        except OSError:
            return False
        stale.close()
        return True

    def _opened(self) -> tuple[socket.socket, int]:
        family = socket.AF_INET6 if ":" in self.path.local else socket.AF_INET
        made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            # without the right to, the address and the route alone choose the NIC
            with contextlib.suppress(PermissionError):
                made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.path.link.encode() + b"\0")
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _TOS_CS6)
            else:
                made.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _TOS_CS6)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, _PRIORITY)
            index = socket.if_nametoindex(self.path.link) if self.path.link else 0
            made.bind((self.path.local, 0 if self._role is Role.SOURCE else self._port))
        except OSError:
            made.close()
            raise
        return made, index
