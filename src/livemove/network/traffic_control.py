"""Queueing disciplines, their classes and the counters of nftables, as netlink messages.

Formats: linux/rtnetlink.h (struct tcmsg), linux/pkt_sched.h (struct tc_htb_glob, tc_htb_opt), linux/netfilter/nf_tables.h.
A class is changed ten times a second, so each call is one message of some hundred bytes; `tc` would be a process each.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

from livemove.network.netlink import CREATE, REPLACE, ROUTE, Netlink, attribute, attributes

_NETFILTER = 12
_EXCLUSIVE = 0x200
_NEWQDISC, _DELQDISC, _GETQDISC, _NEWTCLASS, _DELTCLASS = 36, 37, 38, 40, 41
_KIND, _OPTIONS = 1, 2
_HTB_PARMS, _HTB_INIT, _HTB_RATE64, _HTB_CEIL64 = 1, 2, 6, 7
_GETTABLE, _GETOBJ = 10 << 8 | 1, 10 << 8 | 19  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE, NFT_MSG_GETOBJ
_TABLE_NAME = 1
_OBJ_TABLE, _OBJ_NAME, _OBJ_TYPE, _OBJ_DATA, _COUNTER = 1, 2, 3, 4, 1
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2
_INET = 1
ROOT, INGRESS = 0xFFFFFFFF, 0xFFFFFFF1
_ETHERNET = 1
# psched ticks of the kernel, include/net/pkt_sched.h: PSCHED_SHIFT 6
_TICK_S = 64e-9
_TCMSG = struct.Struct("=BxxxiIII")
_HTB_OPT = struct.Struct("=BBHhHIBBHhHIIIIII")
_MOST_U32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Qdisc:
    """One queueing discipline; handle 0: the kernel put it there by itself."""

    index: int
    kind: str
    handle: int
    parent: int


@dataclass(frozen=True, slots=True)
class HtbClass:
    """One class of HTB.

    :param quantum: bytes that it sends in its turn when it borrows.
    :param prio: the lower borrows first.
    """

    handle: int
    parent: int
    rate_bytes_per_s: int
    ceil_bytes_per_s: int
    quantum: int
    prio: int
    burst_bytes: int


class TrafficControl:
    """A netlink socket of the network namespace of the thread that makes it.

    Every method raises OSError with the kernel's reason when it refuses.
    """

    def __init__(self) -> None:
        self._route = Netlink(ROUTE)
        self._netfilter = Netlink(_NETFILTER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """May be called twice."""
        self._route.close()
        self._netfilter.close()

    def qdiscs(self) -> list[Qdisc]:
        """All of the namespace."""
        found = []
        for answer in self._route.dump(_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0)):
            _, index, handle, parent, _ = _TCMSG.unpack_from(answer)
            kind = dict(attributes(answer[_TCMSG.size :])).get(_KIND, b"")
            found.append(Qdisc(index, kind.rstrip(b"\0").decode(errors="replace"), handle, parent))
        return found

    def add_htb_root(self, index: int, handle: int, default_minor: int) -> None:
        """Put HTB where the kernel's default is; EEXIST when something else is there."""
        glob = attribute(_HTB_INIT, struct.pack("=IIIII", 3, 10, default_minor, 0, 0))
        self._change(_NEWQDISC, CREATE | _EXCLUSIVE, index, handle, ROOT, "htb", glob)

    def add_leaf(self, index: int, parent: int, kind: str) -> None:
        """Give a class a queue of that kind in place of its plain one."""
        self._change(_NEWQDISC, CREATE | REPLACE, index, 0, parent, kind)

    def remove_root(self, index: int) -> None:
        """Remove what is at the root; the kernel puts its default in its place."""
        self._route.change(_DELQDISC, _TCMSG.pack(0, index, 0, ROOT, 0))

    def put_class(self, index: int, htb: HtbClass) -> None:
        """Make a class, or change it without touching what waits in it."""

        def spec(rate: int) -> tuple[int, ...]:
            return (0, _ETHERNET, 0, 0, 0, min(rate, _MOST_U32))

        def ticks(rate: int) -> int:
            return min(_MOST_U32, max(1, round(htb.burst_bytes / rate / _TICK_S)))

        rate, ceil = max(1, htb.rate_bytes_per_s), max(1, htb.ceil_bytes_per_s)
        options = attribute(
            _HTB_PARMS,
            _HTB_OPT.pack(*spec(rate), *spec(ceil), ticks(rate), ticks(ceil), htb.quantum, 0, htb.prio),
        )
        for kind, value in ((_HTB_RATE64, rate), (_HTB_CEIL64, ceil)):
            if value > _MOST_U32:
                options += attribute(kind, struct.pack("=Q", value))
        self._change(_NEWTCLASS, CREATE, index, htb.handle, htb.parent, "htb", options)

    def remove_class(self, index: int, handle: int) -> None:
        self._route.change(_DELTCLASS, _TCMSG.pack(0, index, handle, 0, 0))

    def has_table(self, name: str) -> bool:
        """Whether nftables has an inet table of that name."""
        try:
            self._netfilter.ask(
                _GETTABLE, struct.pack("=BBH", _INET, 0, 0) + attribute(_TABLE_NAME, name.encode() + b"\0")
            )
        except FileNotFoundError:
            return False
        return True

    def counters(self, table: str) -> dict[str, tuple[int, int]]:
        """Bytes and packets of the named counters of an inet table; none when there is no such table."""
        question = struct.pack("=BBH", _INET, 0, 0)
        question += attribute(_OBJ_TABLE, table.encode() + b"\0") + attribute(_OBJ_TYPE, struct.pack(">I", _COUNTER))
        found = {}
        for answer in self._netfilter.dump(_GETOBJ, question):
            said = dict(attributes(answer[4:]))
            data = dict(attributes(said.get(_OBJ_DATA, b"")))
            if (
                said.get(_OBJ_TABLE, b"").rstrip(b"\0") == table.encode()
                and {_COUNTER_BYTES, _COUNTER_PACKETS} <= data.keys()
            ):
                name = said.get(_OBJ_NAME, b"").rstrip(b"\0").decode(errors="replace")
                found[name] = (
                    int.from_bytes(data[_COUNTER_BYTES], "big"),
                    int.from_bytes(data[_COUNTER_PACKETS], "big"),
                )
        return found

    def _change(
        self, message: int, flags: int, index: int, handle: int, parent: int, kind: str, options: bytes = b""
    ) -> None:
        payload = _TCMSG.pack(0, index, handle, parent, 0) + attribute(_KIND, kind.encode() + b"\0")
        if options:
            payload += attribute(_OPTIONS, options)
        self._route.change(message, payload, flags)
