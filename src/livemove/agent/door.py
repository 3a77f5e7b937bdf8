"""Between the accepted TCP connection and the agent's HTTP: how many may come, how long TLS may take, who is let in.

    accept -> room for that address? -> TLS, at most 5 s -> certificate not revoked? -> tls_server.PeerProtocol

asyncio can do TLS by itself on a listener, but then nobody learns why a handshake failed, and one that never ends holds
its socket for a minute. Here each handshake is a task of ours with a limit, and its failure is noted with the address.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import Callable

from livemove.agent.refusals import Refusals
from livemove.base.tasks import spawn

#: A handshake takes some milliseconds, on a bad link a second.
HANDSHAKE_S = 5.0
#: Half-open connections of one address, and of all; those of members take a slot for some milliseconds only.
MAX_HANDSHAKES_EACH = 32
MAX_HANDSHAKES = 128
#: A host's agent has a few connections for each journey, and people on it have some more.
MAX_CONNECTIONS_EACH = 128
#: 64 hosts with a few connections each, and some people.
MAX_CONNECTIONS = 512
#: What a client may send with the end of its handshake, before it is given to HTTP: less than one read of the loop.
_MAX_HELD_BYTES = 512 << 10
_CLOSE_S = 1.0


class Door:
    """Counts who is in and who is knocking; one for a listener."""

    def __init__(self, refusals: Refusals, context: Callable[[], ssl.SSLContext]) -> None:
        self.refusals = refusals
        self.context = context
        self._inside: Counter[str] = Counter()
        self._knocking: Counter[str] = Counter()
        self._transports: set[asyncio.Transport] = set()

    def knock(self, address: str) -> str:
        """Begin a handshake; why not, or an empty text when there is room."""
        if self._knocking[address] >= MAX_HANDSHAKES_EACH or self._knocking.total() >= MAX_HANDSHAKES:
            return "too many connections that have not ended their TLS handshake"
        if self._inside[address] >= MAX_CONNECTIONS_EACH or self._inside.total() >= MAX_CONNECTIONS:
            return "too many connections"
        self._knocking[address] += 1
        return ""

    def handshake_ended(self, address: str) -> None:
        _one_less(self._knocking, address)

    def enter(self, address: str) -> None:
        self._inside[address] += 1

    def leave(self, address: str) -> None:
        _one_less(self._inside, address)

    def hold(self, transport: asyncio.Transport) -> None:
        self._transports.add(transport)

    def let_go(self, transport: asyncio.Transport) -> None:
        self._transports.discard(transport)

    def close(self) -> None:
        """End the handshakes that are under way."""
        for transport in self._transports:
            transport.abort()


def _one_less(counter: Counter[str], address: str) -> None:
    counter[address] -= 1
    if counter[address] <= 0:
        del counter[address]


class Knock(asyncio.Protocol):
    """One connection until its TLS handshake has ended; then `inner` takes it over."""

    def __init__(self, door: Door, inner: Callable[[], asyncio.Protocol]) -> None:
        self._door = door
        self._inner = inner

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        address = address_of(transport)
        why = self._door.knock(address)
        if why:
            self._door.refusals.note(address, "connections", why)
            transport.abort()
            return
        self._door.hold(transport)
        spawn(self._shake_hands(transport, address), name=f"TLS handshake with {address}")

    async def _shake_hands(self, transport: asyncio.Transport, address: str) -> None:
        held = _Held()
        refusals = self._door.refusals
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport,
                held,
                self._door.context(),
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=_CLOSE_S,
            )
        except ssl.SSLCertVerificationError as error:
            refusals.note(address, "certificate", f"its certificate is not accepted: {error.verify_message}")
        except ssl.SSLError as error:
            refusals.note(
                address, "handshake", f"what it sent is not TLS as it must be ({error.reason or 'no reason'})"
            )
        except ConnectionAbortedError:
            refusals.note(address, "handshake", f"it did not end its TLS handshake within {HANDSHAKE_S:g} s")
        except OSError:
            refusals.note(address, "handshake", "it closed the connection before the TLS handshake had ended")
        else:
            if secured is not None and not held.lost:
                self._door.enter(address)
                held.hand_over(secured, self._inner())
        finally:
            self._door.let_go(transport)
            self._door.handshake_ended(address)
            if not held.handed_over:
                transport.abort()


class _Held(asyncio.Protocol):
    """Keeps what arrives between the end of the handshake and the hand-over, which is a turn of the loop later."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._eof = False
        self.lost = False
        self.handed_over = False

    def data_received(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > _MAX_HELD_BYTES:
            self.lost = True

    def eof_received(self) -> bool:
        self._eof = True
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True

    def hand_over(self, transport: asyncio.Transport, inner: asyncio.Protocol) -> None:
        self.handed_over = True
        transport.set_protocol(inner)
        inner.connection_made(transport)
        if self._data and not transport.is_closing():
            inner.data_received(bytes(self._data))
        if self._eof and not transport.is_closing():
            transport.close()


def address_of(transport: asyncio.BaseTransport) -> str:
    """The peer's IP address; a text that says so when it has none any more."""
    name = transport.get_extra_info("peername")
    return str(name[0]) if name else "an address that is gone"
