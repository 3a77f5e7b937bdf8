"""The MPTCP connections of a journey: which subflows each has, and which it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from livemove.network.mptcp import EventKind, MptcpEvent
from livemove.network.sockets import ESTABLISHED, SYN_SENT, SocketFacts

Ends = tuple[str, int, str, int]
# A listener that has not accepted its last connections yet drops joins without a word, as QEMU's does at the start of a
# copy, and TCP asks again after a second only: too late for a path that is needed at once.
_FIRST_RETRY_S = 0.15
_LAST_RETRY_S = 2.0
# QEMU opens at most some dozens of channels.
_MOST_CONNECTIONS = 1024


@dataclass(slots=True)
class _Asked:
    at_s: float
    tries: int = 1


@dataclass(slots=True)
class Connection:
    """One connection.

    :param subflows: the path (None: not a planned one) of each established subflow by its ends.
    """

    token: int
    subflows: dict[Ends, int | None] = field(default_factory=dict)
    asked: dict[int, _Asked] = field(default_factory=dict)
    beginning: set[int] = field(default_factory=set)

    @property
    def paths(self) -> set[int]:
        return {path for path in self.subflows.values() if path is not None}


class Connections:
    """All connections of one journey on this host, from the kernel's events, and from dumps where events were missed.

    :param pairs: path by (local, remote) address.
    :param listening: this is the destination.
    """

    def __init__(self, pairs: Mapping[tuple[str, str], int], port: int, *, listening: bool) -> None:
        self._pairs = dict(pairs)
        self._remotes = {remote for _, remote in pairs}
        self._port, self._listening = port, listening
        self._known: dict[int, Connection] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[Connection]:
        return iter(tuple(self._known.values()))

    def note(self, event: MptcpEvent) -> None:
        """Something happened to a connection of this host, perhaps one of ours."""
        match event.kind:
            case EventKind.CLOSED:
                self._known.pop(event.token, None)
            case EventKind.ESTABLISHED | EventKind.SUBFLOW_ESTABLISHED if self._is_ours(event):
                self._add(event.token, _ends(event))
            case EventKind.SUBFLOW_CLOSED:
                connection = self._known.get(event.token)
                if connection is not None:
                    connection.subflows.pop(_ends(event), None)

    def adopt(self, found: Iterable[SocketFacts]) -> None:
        """What a dump just showed counts for subflows; a connection without any lives on until it is said to be closed."""
        for connection in self._known.values():
            connection.subflows.clear()
            connection.beginning.clear()
        for facts in found:
            if not facts.mptcp or not facts.token:
                continue
            ends = facts.local, facts.local_port, facts.remote, facts.remote_port
            if facts.state == ESTABLISHED:
                self._add(facts.token, ends)
            elif facts.state == SYN_SENT and facts.token in self._known:
                path = self._pairs.get((facts.local, facts.remote))
                if path is not None:
                    self._known[facts.token].beginning.add(path)

    def lacking(self, living: Iterable[int], now_s: float) -> list[tuple[int, int]]:
        """(token, path) of each subflow that should be made now; each is given again only after a while.

        One of an earlier try may still be under way where it was :meth:`tried`.
        """
        wanted = []
        for connection in self._known.values():
            for path in living:
                if path in connection.paths:
                    connection.asked.pop(path, None)
                    continue
                asked = connection.asked.get(path)
                if asked is None:
                    connection.asked[path] = _Asked(now_s)
                    if path in connection.beginning:
                        continue
                elif now_s - asked.at_s < min(_FIRST_RETRY_S * 2 ** (asked.tries - 1), _LAST_RETRY_S):
                    continue
                else:
                    asked.at_s, asked.tries = now_s, asked.tries + 1
                wanted.append((connection.token, path))
        return wanted

    def tried(self, token: int, path: int) -> bool:
        """Whether that subflow was asked for more than once."""
        connection = self._known.get(token)
        asked = connection.asked.get(path) if connection is not None else None
        return asked is not None and asked.tries > 1

    def without(self, path: int) -> int:
        """How many connections have no subflow on the path."""
        return sum(path not in connection.paths for connection in self._known.values())

    def clear(self) -> None:
        """Events were lost: what :meth:`adopt` finds next is all that there is."""
        self._known.clear()

    def path_died(self, path: int) -> None:
        """Its subflows were ended; once it heals they are made without waiting."""
        for connection in self._known.values():
            connection.asked.pop(path, None)
            connection.beginning.discard(path)
            connection.subflows = {ends: of for ends, of in connection.subflows.items() if of != path}

    def _is_ours(self, event: MptcpEvent) -> bool:
        if event.token in self._known:
            return True
        if self._listening:
            return event.local_port == self._port
        return event.remote_port == self._port and event.remote in self._remotes

    def _add(self, token: int, ends: Ends) -> None:
        connection = self._known.get(token)
        if connection is None:
            if len(self._known) >= _MOST_CONNECTIONS:
                return
            connection = self._known[token] = Connection(token)
        connection.subflows[ends] = self._pairs.get((ends[0], ends[2]))


def _ends(event: MptcpEvent) -> Ends:
    return event.local, event.local_port, event.remote, event.remote_port
