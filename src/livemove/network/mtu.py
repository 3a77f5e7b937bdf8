"""Measures what each path of a journey carries, in both directions, before QEMU uses it (wire.mtu_probe, policy.mtu).

The source sends *flights*: the sizes that are to be tried, of both directions, and a small packet last. When the small
one's answer is here and a large one's is not, that large one is lost; when none is here, somebody was slow, a stopped
process or a full queue, and nothing is learnt. So no verdict hangs on how long anything took, except that a path without
any answer is dead after a while. An answer that comes late counts all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from livemove.base.errors import PeerViolation, PortClosed
from livemove.policy.mtu import MtuSearch, PathMeasure
from livemove.policy.paths import Path
from livemove.wire.mtu_probe import LARGEST_PACKET, Kind, Packet, decode, encode, overhead_bytes, smallest_packet

# linux/in.h and linux/in6.h: set "don't fragment", and let nothing that the kernel has learnt of the path hold us back
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3
#: Two flights of nine jumbo frames; the kernel's default may lose the second.
_BUFFER_BYTES = 1 << 20
_PACKETS_AT_ONCE = 64

#: How long a large packet may take longer than a small one sent after it.
_GRACE_S = 0.005
#: How long a flight is waited for before any round trip is known, and at least afterwards.
_PATIENCE_S = 0.1
#: Between flights that lost the same sizes: longer each time, so that one burst of somebody else's does not take them all.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.002, 0.06
DEAD_AFTER_S = 0.6
#: Of a path that has answered before: then it is rather the peer's agent that stands still for a moment.
_SILENT_AFTER_S = 2.0
#: Whatever happens, the answer is there then: the largest sizes found so far.
LIMIT_S = 5.0

#: Answers per second and in a burst. Eight paths at once send half of that at most.
_ANSWERS_PER_S, _ANSWERS_IN_A_BURST = 4000.0, 1000.0


@dataclass(frozen=True, slots=True)
class Ear:
    """Where the destination listens for the source of one path.

    :param peer: the only address that is answered; empty: any.
    :param link: the NIC that has the address, so that answers leave through it; empty: as the routes say.
    """

    address: str
    port: int
    peer: str = ""
    link: str = ""


class MtuResponder:
    """The destination's side. Answers who knows the nonce, never with more packets than it got, and not without limit.

    :ivar heard: the largest packet that each ear has received; no entry: nothing.
    """

    def __init__(self, nonce: bytes) -> None:
        self._nonce = nonce
        self._sockets: list[socket.socket] = []
        self._allowance = _ANSWERS_IN_A_BURST
        self._refilled_s = 0.0
        self.heard: dict[Ear, int] = {}

    @classmethod
    async def open(cls, ears: Sequence[Ear], nonce: bytes) -> Self:
        """Listen on all of them, or on none.

        :param nonce: of wire.mtu_probe.NONCE_BYTES bytes.
        :raise PortClosed: a port is in use, or an address is not ours.
        """
        made = cls(nonce)
        loop = asyncio.get_running_loop()
        made._refilled_s = loop.time()
        try:
            for ear in dict.fromkeys(ears):
                try:
                    handle = _socket(ear.address, ear.port, ear.link)
                except OSError as error:
                    raise PortClosed(
                        f"The destination cannot listen on UDP port {ear.port} of {ear.address}: {_reason(error)}."
                    ) from error
                made._sockets.append(handle)
                loop.add_reader(handle, made._read, handle, ear)
        except BaseException:
            await made.close()
            raise
        return made

    async def close(self) -> None:
        """Let go of the ports; they are free when this returns. May be called twice."""
        for handle in self._sockets:
            asyncio.get_running_loop().remove_reader(handle)
            handle.close()
        self._sockets.clear()

    def _read(self, handle: socket.socket, ear: Ear) -> None:
        overhead = overhead_bytes(ear.address)
        for data, sender in _received(handle):
            try:
                packet = decode(data, self._nonce, overhead)
            except PeerViolation:
                continue  # a stranger's, or damaged: not worth an answer, or a line in the log that a stranger could fill
            if ear.peer and not _is_same(sender[0], ear.peer):
                continue
            self.heard[ear] = max(self.heard.get(ear, 0), len(data) + overhead)
            if packet.kind not in (Kind.PROBE, Kind.REQUEST) or not self._may_answer():
                continue
            answer = replace(packet, kind=Kind.ACK if packet.kind is Kind.PROBE else Kind.PADDED)
            error = _send(handle, encode(answer, self._nonce, overhead), sender)
            if error == errno.EMSGSIZE:
                _send(handle, encode(replace(packet, kind=Kind.TOO_LARGE), self._nonce, overhead), sender)

    def _may_answer(self) -> bool:
        now_s = asyncio.get_running_loop().time()
        refill = (now_s - self._refilled_s) * _ANSWERS_PER_S
        self._allowance, self._refilled_s = min(_ANSWERS_IN_A_BURST, self._allowance + refill), now_s
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True


async def probe_paths(paths: Sequence[Path], port: int, nonce: bytes) -> dict[Path, PathMeasure]:
    """Measure all paths of a journey at once, from the source. Raises nothing of ours.

    When none answers, the other agent may stand still for a moment: they are tried once more, with more patience.
    """
    found: dict[Path, PathMeasure] = {}
    for dead_after_s in (DEAD_AFTER_S, _SILENT_AFTER_S):
        measures = await asyncio.gather(
            *(
                probe_path(
                    path.source_address, path.destination_address, port, nonce, path.mtu,
                    link=path.source_link, dead_after_s=dead_after_s,
                )
                for path in paths
            )
        )  # fmt: skip
        found = dict(zip(paths, measures, strict=True))
        if any(measure.alive for measure in measures):
            break
    return found


async def probe_path(
    source_address: str,
    destination_address: str,
    port: int,
    nonce: bytes,
    mtu: int,
    *,
    link: str = "",
    dead_after_s: float = DEAD_AFTER_S,
    limit_s: float = LIMIT_S,
) -> PathMeasure:
    """Measure one path from the source; several may be measured at once. Raises nothing of ours.

    A healthy path takes a round trip, a dead one `dead_after_s`, a black hole some hundred milliseconds.

    :param mtu: the largest packet that is of use: of the smaller NIC's MTU.
    :param link: the NIC to send through; empty: as the routes say.
    """
    try:
        handle = _socket(source_address, 0, link)
    except OSError as error:
        return PathMeasure(reason=f"Nothing can be sent from {source_address}: {_reason(error)}.")
    probing = _Probing(handle, (destination_address, port), nonce, min(mtu, LARGEST_PACKET))
    loop = asyncio.get_running_loop()
    loop.add_reader(handle, probing.read)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await probing.run(dead_after_s)
    finally:
        loop.remove_reader(handle)
        handle.close()
    return probing.measure()


class _Probing:
    """One path, seen from the source."""

    def __init__(self, handle: socket.socket, target: tuple[str, int], nonce: bytes, mtu: int) -> None:
        self._handle = handle
        self._target = target
        self._nonce = nonce
        self._overhead = overhead_bytes(target[0])
        self._smallest = smallest_packet(target[0])
        self._out, self._in = MtuSearch(self._smallest, mtu), MtuSearch(self._smallest, mtu)
        self._sequence = 0
        # what has not been answered, with when it was sent
        self._asked: dict[int, tuple[Packet, float]] = {}
        self._news = asyncio.Event()
        self._round_trip_s: float | None = None
        self._slowest_s = 0.0  # the slowest of late: old ones fade
        self._silent_since_s = asyncio.get_running_loop().time()
        self._is_dead = False

    def measure(self) -> PathMeasure:
        alive = self._round_trip_s is not None and not self._is_dead
        return PathMeasure(self._out.mtu, self._in.mtu, self._round_trip_s, alive)

    async def run(self, dead_after_s: float) -> None:
        """Until both directions are known, or nothing has been heard for `dead_after_s`."""
        loop = asyncio.get_running_loop()
        tried, pause_s = None, _FIRST_PAUSE_S
        while not (self._out.is_done and self._in.is_done and self._round_trip_s is not None):
            sizes = (self._out.sizes(), self._in.sizes())
            if tried == sizes:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                tried, pause_s = sizes, _FIRST_PAUSE_S
            await self._fly(*sizes)
            patience_s = dead_after_s if self._round_trip_s is None else max(dead_after_s, _SILENT_AFTER_S)
            if loop.time() - self._silent_since_s >= patience_s:
                self._is_dead = True
                return

    async def _fly(self, sizes_out: Sequence[int], sizes_in: Sequence[int]) -> None:
        """Send one flight, and learn from it what it tells."""
        loop = asyncio.get_running_loop()
        flight: list[int] = []
        for kind, sizes, search in ((Kind.PROBE, sizes_out, self._out), (Kind.REQUEST, sizes_in, self._in)):
            for size in sizes:
                match self._ask(kind, size):
                    case 0:
                        flight.append(self._sequence)
                    case errno.EMSGSIZE:
                        search.note_too_large(size)
        self._ask(Kind.PROBE, self._smallest)
        small = self._sequence
        deadline_s = loop.time() + max(_PATIENCE_S, 3 * self._slowest_s)
        while (now_s := loop.time()) < deadline_s and any(one in self._asked for one in (small, *flight)):
            if small not in self._asked:
                deadline_s = min(deadline_s, now_s + max(_GRACE_S, self._round_trip_s or 0.0))
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline_s - now_s):
                    await self._news.wait()
        if small in self._asked:
            return
        for sequence in flight:
            if sequence in self._asked:
                packet, _ = self._asked[sequence]
                (self._out if packet.kind is Kind.PROBE else self._in).note_lost(packet.size)

    def _ask(self, kind: Kind, size: int) -> int:
        """Send one packet; 0, or what the kernel said."""
        self._sequence += 1
        packet = Packet(kind, self._sequence, size)
        error = _send(self._handle, encode(packet, self._nonce, self._overhead), self._target)
        # what a packet filter or a full queue of ours swallowed is as lost as what one elsewhere did
        if error in (0, errno.EPERM, errno.ENOBUFS):
            self._asked[self._sequence] = (packet, asyncio.get_running_loop().time())
            return 0
        return error

    def read(self) -> None:
        """Packets are here."""
        for data, sender in _received(self._handle):
            if sender[1] != self._target[1] or not _is_same(sender[0], self._target[0]):
                continue
            with contextlib.suppress(PeerViolation):
                self._take(decode(data, self._nonce, self._overhead))
        self._news.set()

    def _take(self, answer: Packet) -> None:
        asked, sent_s = self._asked.get(answer.sequence, (None, 0.0))
        if asked is None or asked.size != answer.size or _ANSWERED.get(answer.kind) is not asked.kind:
            return
        del self._asked[answer.sequence]
        now_s = asyncio.get_running_loop().time()
        self._silent_since_s = now_s
        # whatever it was, a small packet went one way and at least a small one came back
        self._out.note_passed(self._smallest)
        self._in.note_passed(self._smallest)
        match answer.kind:
            case Kind.ACK:
                self._out.note_passed(asked.size)
                if asked.size == self._smallest:
                    took_s = now_s - sent_s
                    self._slowest_s = max(0.8 * self._slowest_s, took_s)
                    self._round_trip_s = took_s if self._round_trip_s is None else min(self._round_trip_s, took_s)
            case Kind.PADDED:
                self._in.note_passed(asked.size)
            case Kind.TOO_LARGE:
                self._in.note_too_large(asked.size)


#: What each kind of answer answers.
_ANSWERED = {Kind.ACK: Kind.PROBE, Kind.PADDED: Kind.REQUEST, Kind.TOO_LARGE: Kind.REQUEST}


def _socket(address: str, port: int, link: str) -> socket.socket:
    """A datagram socket that sends packets whole or not at all. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    handle = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        if family == socket.AF_INET6:
            handle.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            handle.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        else:
            handle.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            handle.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        if link:
            # without the right to it the routes decide
            with contextlib.suppress(PermissionError):
                handle.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
        handle.bind((address, port))
    except BaseException:
        handle.close()
        raise
    return handle


def _send(handle: socket.socket, data: bytes, target: tuple[str, int]) -> int:
    """0, or what the kernel said."""
    try:
        handle.sendto(data, target)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _received(handle: socket.socket) -> list[tuple[bytes, tuple[str, int]]]:
    """What is there, but not more than a bit at a time: others use the loop as well."""
    found: list[tuple[bytes, tuple[str, int]]] = []
    with contextlib.suppress(OSError):
        while len(found) < _PACKETS_AT_ONCE:
            data, sender = handle.recvfrom(LARGEST_PACKET)
            found.append((data, sender[:2]))
    return found


def _is_same(one: str, other: str) -> bool:
    return one == other or ipaddress.ip_address(one) == ipaddress.ip_address(other)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
