"""The kernel's TCP sockets by sock_diag: found by port, read, ended.

Layouts and meanings: linux/inet_diag.h, linux/sock_diag.h, linux/tcp.h (struct tcp_info), linux/mptcp.h. An MPTCP
subflow is a TCP socket with the upper layer protocol ``mptcp``.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass

from livemove.network.netlink import Netlink, attributes
from livemove.network.netlink_notes import SOCK_DIAG, number, text_address

_BY_FAMILY, _DESTROY = 20, 21
#: Multicast groups that tell of every TCP socket that ended, with its last counters (what ``ss -E`` reads).
ENDED_GROUPS = (1, 3)

# inet_diag_req_v2 before, inet_diag_msg around the identity of a socket:
# ports (network order), two addresses of 16 bytes, interface, cookie
_REQUEST = struct.Struct("=BBBBI48s")
_MESSAGE = struct.Struct("=BBBB48sIIIII")
_IDENTITY = struct.Struct("=2s2s16s16sI8s")

_INFO, _ULP_INFO, _PROTOCOL = 2, 19, 10
_ULP_NAME, _ULP_MPTCP = 1, 3
_TOKEN_REMOTE, _TOKEN_LOCAL, _FLAGS, _ID_REMOTE, _ID_LOCAL = 1, 2, 8, 9, 10
# MPTCP_SUBFLOW_FLAG_MCAP_REM, _JOIN_REM and _JOIN_LOC: the peer agreed; without any of them the socket is plain TCP
_AGREED = 0b1101
_JOIN, _FULLY = 0b1100, 1 << 6

ESTABLISHED, SYN_SENT = 1, 2
_LISTEN, _TIME_WAIT = 10, 6
_ALL_STATES = 0xFFF & ~(1 << _LISTEN) & ~(1 << _TIME_WAIT)

# offsets in struct tcp_info
_RTT, _UNACKED, _TOTAL_RETRANS = 68, 24, 100
_BYTES_ACKED, _BYTES_RECEIVED, _NOTSENT, _BYTES_SENT, _BYTES_RETRANS = 120, 128, 144, 200, 208


@dataclass(frozen=True, slots=True)
class SocketFacts:
    """One TCP socket.

    :param identity: the kernel's own struct inet_diag_sockid, for :meth:`SocketDiag.destroy`.
    :param cookie: no other socket of this boot has the same.
    :param bytes_acked: sent and acknowledged; a FIN, and the SYN of the side that connected, count as one byte each.
    :param bytes_received: without what came twice; a FIN counts as one byte.
    :param bytes_sent: handed to the network, retransmissions included.
    :param measured: the counters are there; a socket that is still being set up has none.
    :param mptcp: a subflow of an MPTCP connection, or one that is being made; False for plain TCP, also when MPTCP was
        tried and given up; None: not known.
    :param token: of its MPTCP connection on this host; 0 when unknown.
    :param remote_token: the same on the other host, where the kernel says it.
    :param joined: a further subflow, not the connection's first one.
    :param fully_established: both sides know the connection, so that it outlives this subflow.
    """

    family: int
    state: int
    identity: bytes
    cookie: int
    local: str
    local_port: int
    remote: str
    remote_port: int
    measured: bool = False
    bytes_acked: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    bytes_retransmitted: int = 0
    retransmitted_segments: int = 0
    unacked_segments: int = 0
    unsent_bytes: int = 0
    round_trip_us: int = 0
    mptcp: bool | None = None
    token: int = 0
    remote_token: int = 0
    joined: bool = False
    fully_established: bool = False
    local_id: int = 0
    remote_id: int = 0


def parse(payload: bytes, *, ended: bool = False) -> SocketFacts | None:
    """The socket in a sock_diag message; None when it is no TCP socket or too short to be one.

    :param ended: the message is a note of a socket that ended: it does not tell whether it was MPTCP.
    """
    if len(payload) < _MESSAGE.size:
        return None
    family, state, _, _, identity, *_ = _MESSAGE.unpack_from(payload)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    local_port, remote_port, local, remote, _, cookie = _IDENTITY.unpack(identity)
    size = 4 if family == socket.AF_INET else 16
    found = dict(attributes(payload[_MESSAGE.size :]))
    if number(found.get(_PROTOCOL)) not in (0, socket.IPPROTO_TCP):
        return None
    info = found.get(_INFO, b"")
    ulp = dict(attributes(found.get(_ULP_INFO, b"")))
    subflow = dict(attributes(ulp.get(_ULP_MPTCP, b"")))
    is_mptcp = ulp.get(_ULP_NAME, b"").rstrip(b"\0") == b"mptcp"
    flags = number(subflow.get(_FLAGS))
    return SocketFacts(
        family=family,
        state=state,
        identity=identity,
        cookie=int.from_bytes(cookie, "little"),
        local=text_address(local[:size]),
        local_port=int.from_bytes(local_port, "big"),
        remote=text_address(remote[:size]),
        remote_port=int.from_bytes(remote_port, "big"),
        measured=len(info) > _BYTES_RECEIVED + 8,
        bytes_acked=_u64(info, _BYTES_ACKED),
        bytes_received=_u64(info, _BYTES_RECEIVED),
        bytes_sent=_u64(info, _BYTES_SENT),
        bytes_retransmitted=_u64(info, _BYTES_RETRANS),
        retransmitted_segments=_u32(info, _TOTAL_RETRANS),
        unacked_segments=_u32(info, _UNACKED),
        unsent_bytes=_u32(info, _NOTSENT),
        round_trip_us=_u32(info, _RTT),
        mptcp=None if ended else is_mptcp and (bool(flags & _AGREED) or state == SYN_SENT),
        token=number(subflow.get(_TOKEN_LOCAL)),
        remote_token=number(subflow.get(_TOKEN_REMOTE)),
        joined=bool(flags & _JOIN),
        fully_established=bool(flags & _FULLY),
        local_id=number(subflow.get(_ID_LOCAL)),
        remote_id=number(subflow.get(_ID_REMOTE)),
    )


class SocketDiag:
    """Questions about TCP sockets of this network namespace. Raises OSError when the kernel has no sock_diag."""

    def __init__(self) -> None:
        self._netlink = Netlink(SOCK_DIAG)

    def close(self) -> None:
        """May be called twice."""
        self._netlink.close()

    def dump(self, *, local_port: int = 0, remote_port: int = 0) -> list[SocketFacts]:
        """All TCP sockets with those ports (0: any), IPv4 and IPv6, but listeners and those in TIME_WAIT. Raises OSError."""
        identity = _IDENTITY.pack(
            local_port.to_bytes(2, "big"), remote_port.to_bytes(2, "big"), bytes(16), bytes(16), 0, b"\xff" * 8
        )
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 0, _ALL_STATES, identity)
            for payload in self._netlink.dump(_BY_FAMILY, request):
                facts = parse(payload)
                # older kernels did not filter by port everywhere
                if facts and local_port in (0, facts.local_port) and remote_port in (0, facts.remote_port):
                    found.append(facts)
        return found

    def destroy(self, facts: SocketFacts) -> bool:
        """End the socket at once, as ``ss -K`` does; False when it has ended by itself.

        Raises OSError: PermissionError without CAP_NET_ADMIN, EOPNOTSUPP where the kernel has no INET_DIAG_DESTROY.
        """
        request = _REQUEST.pack(facts.family, socket.IPPROTO_TCP, 0, 0, _ALL_STATES, facts.identity)
        try:
            self._netlink.change(_DESTROY, request)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return False
            raise
        return True


def _u32(info: bytes, offset: int) -> int:
    return int(struct.unpack_from("=I", info, offset)[0]) if len(info) >= offset + 4 else 0


def _u64(info: bytes, offset: int) -> int:
    return int(struct.unpack_from("=Q", info, offset)[0]) if len(info) >= offset + 8 else 0
