"""MPTCP's path manager by generic netlink: subflows made one by one, and the kernel's events about connections.

Family ``mptcp_pm``, linux/mptcp.h and linux/mptcp_pm.h. A connection is named by its token, which is each host's own. A
subflow can be made by command only where the connection began under the path manager of user space
(``net.mptcp.pm_type=1`` at that time); the events are told under either.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from enum import Enum

from livemove.network.netlink import GENERIC, Netlink, attribute, attributes, nested
from livemove.network.netlink_notes import Listener, number, text_address

_CONTROL_FAMILY = 16  # GENL_ID_CTRL
_GET_FAMILY = 3
_FAMILY_ID, _FAMILY_NAME, _MULTICAST_GROUPS = 1, 2, 7
_GROUP_NAME, _GROUP_ID = 1, 2
_NAME, _EVENTS = "mptcp_pm", "mptcp_pm_events"
_VERSION = 1

_SUBFLOW_CREATE, _SUBFLOW_DESTROY = 10, 11
_ADDRESS, _TOKEN, _ADDRESS_REMOTE = 1, 4, 6
_A_FAMILY, _A_ID, _A_ADDRESS4, _A_ADDRESS6, _A_PORT, _A_INTERFACE = 1, 2, 3, 4, 5, 7

_E_TOKEN, _E_LOCAL_ID, _E_REMOTE_ID = 1, 3, 4
_E_LOCAL4, _E_LOCAL6, _E_REMOTE4, _E_REMOTE6, _E_LOCAL_PORT, _E_REMOTE_PORT = 5, 6, 7, 8, 9, 10
_E_ERROR, _E_INTERFACE, _E_RESET_REASON = 12, 15, 16


class EventKind(Enum):
    """What happened: the numbers of enum mptcp_event_type."""

    CREATED = 1
    ESTABLISHED = 2
    CLOSED = 3
    SUBFLOW_ESTABLISHED = 10
    SUBFLOW_CLOSED = 11


@dataclass(frozen=True, slots=True)
class MptcpEvent:
    """One event of a connection or of one of its subflows.

    :param token: of the connection on this host.
    :param local: address; empty where the event has none (CLOSED).
    :param error: the errno that ended the subflow; 0 for none.
    """

    kind: EventKind
    token: int
    local: str = ""
    local_port: int = 0
    remote: str = ""
    remote_port: int = 0
    local_id: int = 0
    remote_id: int = 0
    error: int = 0


def parse_event(payload: bytes) -> MptcpEvent | None:
    """The event in a message of the events group; None for other ones, and for what is too short to be one."""
    if len(payload) < 4:
        return None
    try:
        kind = EventKind(payload[0])
    except ValueError:
        return None
    found = dict(attributes(payload[4:]))
    return MptcpEvent(
        kind,
        number(found.get(_E_TOKEN)),
        text_address(found.get(_E_LOCAL4) or found.get(_E_LOCAL6, b"")),
        int.from_bytes(found.get(_E_LOCAL_PORT, b"")[:2], "big"),
        text_address(found.get(_E_REMOTE4) or found.get(_E_REMOTE6, b"")),
        int.from_bytes(found.get(_E_REMOTE_PORT, b"")[:2], "big"),
        number(found.get(_E_LOCAL_ID)),
        number(found.get(_E_REMOTE_ID)),
        number(found.get(_E_ERROR)),
    )


class Mptcp:
    """The kernel's MPTCP in this network namespace: commands, and a descriptor that is readable when there are events.

    Raises OSError: ENOENT when the kernel has no MPTCP path manager, PermissionError without CAP_NET_ADMIN in the namespace.
    """

    def __init__(self) -> None:
        self._commands = Netlink(GENERIC)
        try:
            self._family, group = find_family(self._commands)
            self._events = Listener(GENERIC, [group])
        except OSError:
            self._commands.close()
            raise

    def fileno(self) -> int:
        return self._events.fileno()

    def close(self) -> None:
        """May be called twice."""
        self._commands.close()
        self._events.close()

    def events(self) -> tuple[list[MptcpEvent], bool]:
        """What happened since the last call, and whether some events were lost. Raises OSError."""
        said, lost = self._events.heard()
        found = [parse_event(message.payload) for message in said if message.kind == self._family]
        return [event for event in found if event is not None], lost

    def create_subflow(
        self, token: int, local: str, remote: str, port: int, *, address_id: int = 0, interface: int = 0
    ) -> None:
        """Begin a subflow of the connection; that it works is told by the event SUBFLOW_ESTABLISHED.

        :param address_id: 1 to 255: the same for the same local address as long as the connection lives.
        :param interface: index of the NIC it is bound to; 0: the route decides.
        Raises OSError: EINVAL when there is no such connection, or it does not belong to the path manager of user space,
        ENOTCONN when it is closing, PermissionError without CAP_NET_ADMIN.
        """
        parts = _address(local)
        if address_id:
            parts += attribute(_A_ID, bytes([address_id]))
        if interface:
            parts += attribute(_A_INTERFACE, struct.pack("=i", interface))
        self._command(
            _SUBFLOW_CREATE,
            attribute(_TOKEN, struct.pack("=I", token))
            + nested(_ADDRESS, parts)
            + nested(_ADDRESS_REMOTE, _address(remote), attribute(_A_PORT, struct.pack("=H", port))),
        )

    def destroy_subflow(self, token: int, local: str, local_port: int, remote: str, remote_port: int) -> None:
        """End a subflow and tell the other host so. Raises OSError as :meth:`create_subflow`."""
        self._command(
            _SUBFLOW_DESTROY,
            attribute(_TOKEN, struct.pack("=I", token))
            + nested(_ADDRESS, _address(local), attribute(_A_PORT, struct.pack("=H", local_port)))
            + nested(_ADDRESS_REMOTE, _address(remote), attribute(_A_PORT, struct.pack("=H", remote_port))),
        )

    def _command(self, command: int, payload: bytes) -> None:
        self._commands.change(self._family, _generic(command, _VERSION) + payload)


def find_family(commands: Netlink) -> tuple[int, int]:
    """The numbers of the family and of its group of events. Raises OSError when the kernel has no MPTCP (ENOENT)."""
    name = attribute(_FAMILY_NAME, _NAME.encode() + b"\0")
    for payload in commands.ask(_CONTROL_FAMILY, _generic(_GET_FAMILY, 1) + name):
        found = dict(attributes(payload[4:]))
        for value in dict(attributes(found.get(_MULTICAST_GROUPS, b""))).values():
            group = dict(attributes(value))
            if group.get(_GROUP_NAME, b"").rstrip(b"\0") == _EVENTS.encode():
                return number(found.get(_FAMILY_ID)), number(group.get(_GROUP_ID))
    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def _generic(command: int, version: int) -> bytes:
    return struct.pack("=BBH", command, version, 0)


def _address(text: str) -> bytes:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    kind = _A_ADDRESS6 if family == socket.AF_INET6 else _A_ADDRESS4
    return attribute(_A_FAMILY, struct.pack("=H", family)) + attribute(kind, socket.inet_pton(family, text))
