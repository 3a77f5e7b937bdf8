"""The places in the kernel that a journey changes: read, changed, and put back to what was read.

A *spot* is one such place; what it holds is a JSON value, so that it can be on record before it is changed. All of it blocks;
see network.netlink.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import socket
import struct
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from livemove.base.errors import MissingPrerequisite
from livemove.network import host_routes, netlink
from livemove.network.mptcp import find_family
from livemove.network.mptcp_endpoints import find_endpoint, remove_implicit_endpoint
from livemove.network.neighbours import forget_neighbour
from livemove.network.netlink import Netlink, attribute, attributes
from livemove.policy.host_setup import (
    Change,
    ForgottenNeighbour,
    HostRoute,
    ImplicitEndpoint,
    MptcpLimits,
    ReceiveBuffer,
    Sysctl,
)

_SYSCTLS = Path("/proc/sys")
# linux/mptcp_pm.h
_SET_LIMITS, _GET_LIMITS, _ADD_ADDRS, _SUBFLOWS = 5, 6, 2, 3


class Spot(Protocol):
    """One place. What it does to the kernel raises OSError with the kernel's reason."""

    @property
    def kind(self) -> str: ...

    @property
    def key(self) -> str: ...

    def read(self) -> Any:
        """What is there now."""

    def is_same(self, now: Any, before: Any) -> bool:
        """Whether nothing but what moves by itself is between two answers of :meth:`read`."""

    def is_ours(self, now: Any, ours: Any) -> bool:
        """Whether `now` is what :meth:`put` with `ours` leaves, and nobody changed it since."""

    def is_as_wanted(self, now: Any, ours: Any) -> bool:
        """Whether there is nothing to do, whoever did it."""

    def put(self, ours: Any) -> None:
        """Make it so."""

    def command(self, ours: Any) -> str:
        """The command by which an administrator does the same."""

    def put_back(self, before: Any) -> None:
        """Make it what :meth:`read` said."""

    def begin(self, before: Any, wanted: Any) -> Any:
        """What the first journey puts there."""

    def agree(self, ours: Any, wanted: Any) -> tuple[Any, str]:
        """What is there when one journey has `ours` and another wants `wanted`; and a sentence when that is not what it wants."""


@dataclass(frozen=True, slots=True)
class SysctlSpot:
    """A kernel parameter. The first journey's value counts."""

    key: str
    kind: str = "sysctl"

    def read(self) -> str:
        return " ".join((_SYSCTLS / self.key).read_text().split())

    def is_same(self, now: str, before: str) -> bool:
        return now == before

    def is_ours(self, now: str, ours: str) -> bool:
        return now == ours

    def is_as_wanted(self, now: str, ours: str) -> bool:
        return now == ours

    def command(self, ours: str) -> str:
        return f"sysctl -w {self.key}={ours}"

    def put(self, ours: str) -> None:
        (_SYSCTLS / self.key).write_text(ours)

    def put_back(self, before: str) -> None:
        self.put(before)

    def begin(self, before: str, wanted: str) -> str:
        return wanted

    def agree(self, ours: str, wanted: str) -> tuple[str, str]:
        told = f"{self.key} stays {ours}, which another journey needs; {wanted} was wanted."
        return ours, "" if ours == wanted else told


@dataclass(frozen=True, slots=True)
class ReceiveBufferSpot(SysctlSpot):
    """The receive buffers of TCP, ``LEAST DEFAULT MOST``: a journey wants a least DEFAULT in bytes. The larger number counts."""

    key: str = "net/ipv4/tcp_rmem"
    kind: str = "receive-buffer"

    def command(self, ours: str) -> str:
        return f"sysctl -w '{self.key}={ours}'"

    def begin(self, before: str, wanted: str) -> str:
        least, default, most = map(int, before.split())
        return f"{least} {max(default, min(int(wanted), most))} {most}"

    def agree(self, ours: str, wanted: str) -> tuple[str, str]:
        return self.begin(ours, wanted), ""


@dataclass(frozen=True, slots=True)
class LimitsSpot:
    """The limits of MPTCP connections as ``[subflows, add_addr_accepted]``. The larger numbers count."""

    key: str = "limits"
    kind: str = "mptcp"

    def read(self) -> list[int]:
        with Netlink(netlink.GENERIC) as kernel:
            said: dict[int, bytes] = {}
            for answer in kernel.ask(find_family(kernel)[0], struct.pack("=BBH", _GET_LIMITS, 1, 0)):
                said = dict(attributes(answer[4:]))
            return [struct.unpack("=I", said[kind])[0] for kind in (_SUBFLOWS, _ADD_ADDRS)]

    def is_same(self, now: list[int], before: list[int]) -> bool:
        return now == before

    def is_ours(self, now: list[int], ours: list[int]) -> bool:
        return now == ours

    def is_as_wanted(self, now: list[int], ours: list[int]) -> bool:
        return now == ours

    def command(self, ours: list[int]) -> str:
        return f"ip mptcp limits set subflow {ours[0]} add_addr_accepted {ours[1]}"

    def put(self, ours: list[int]) -> None:
        with Netlink(netlink.GENERIC) as kernel:
            wanted = attribute(_ADD_ADDRS, ours[1]) + attribute(_SUBFLOWS, ours[0])
            kernel.change(find_family(kernel)[0], struct.pack("=BBH", _SET_LIMITS, 1, 0) + wanted)

    def put_back(self, before: list[int]) -> None:
        self.put(before)

    def begin(self, before: list[int], wanted: list[int]) -> list[int]:
        return [max(pair) for pair in zip(before, wanted, strict=True)]

    def agree(self, ours: list[int], wanted: list[int]) -> tuple[list[int], str]:
        return self.begin(ours, wanted), ""


@dataclass(frozen=True, slots=True)
class RouteSpot:
    """The exact route to an address, read as the kernel's message. The first journey's NIC and the smaller packets count."""

    key: str
    kind: str = "route"

    def read(self) -> str | None:
        found = host_routes.find_route(self.key)
        return None if found is None else base64.b64encode(found).decode()

    def is_same(self, now: str | None, before: str | None) -> bool:
        if now is None or before is None:
            return now == before
        return host_routes.is_same(_raw(now), _raw(before))

    def is_ours(self, now: str | None, ours: dict[str, Any]) -> bool:
        return now is not None and host_routes.is_ours(_raw(now))

    def is_as_wanted(self, now: str | None, ours: dict[str, Any]) -> bool:
        return now is not None and host_routes.is_like(_raw(now), HostRoute(**ours))

    def command(self, ours: dict[str, Any]) -> str:
        return host_routes.command_for(HostRoute(**ours))

    def put(self, ours: dict[str, Any]) -> None:
        host_routes.put_route(HostRoute(**ours))

    def put_back(self, before: str | None) -> None:
        if before is None:
            host_routes.remove_route(self.key)
        else:
            host_routes.put_back_route(_raw(before))

    def begin(self, before: str | None, wanted: dict[str, Any]) -> dict[str, Any]:
        return wanted

    def agree(self, ours: dict[str, Any], wanted: dict[str, Any]) -> tuple[dict[str, Any], str]:
        mine, other = HostRoute(**ours), HostRoute(**wanted)
        both = replace(mine, mtu=_smaller(mine.mtu, other.mtu), advmss=_smaller(mine.advmss, other.advmss))
        same = (mine.link, mine.source, mine.congctl) == (other.link, other.source, other.congctl)
        told = f"The route to {self.key} stays on {mine.link} with {mine.source}, as another journey needs it."
        return asdict(both), "" if same else told


@dataclass(frozen=True, slots=True)
class EndpointSpot:
    """The kernel's own endpoint of an address, as ``[number, whether it is implicit]``: nothing is put there, only taken away."""

    key: str
    kind: str = "endpoint"

    def read(self) -> list[int] | None:
        try:
            found = find_endpoint(self.key)
        except PermissionError:
            return None  # who may not look could not take it away either
        return None if found is None else [found[0], int(found[1])]

    def is_same(self, now: list[int] | None, before: list[int] | None) -> bool:
        return now == before

    def is_ours(self, now: list[int] | None, ours: None) -> bool:
        return now is None or bool(now[1])

    def is_as_wanted(self, now: list[int] | None, ours: None) -> bool:
        return True

    def command(self, ours: None) -> str:
        return ""

    def put(self, ours: None) -> None:
        pass

    def put_back(self, before: list[int] | None) -> None:
        if before is None:
            remove_implicit_endpoint(self.key)

    def begin(self, before: list[int] | None, wanted: None) -> None:
        return None

    def agree(self, ours: None, wanted: None) -> tuple[None, str]:
        return None, ""


@dataclass(frozen=True, slots=True)
class NeighbourSpot:
    """What the kernel has learned of an address, as ``ADDRESS NIC``: forgotten, and never put back, because it is learned anew."""

    key: str
    kind: str = "neighbour"

    def read(self) -> None:
        return None

    def is_same(self, now: None, before: None) -> bool:
        return True

    def is_ours(self, now: None, ours: None) -> bool:
        return True

    def is_as_wanted(self, now: None, ours: None) -> bool:
        return False

    def command(self, ours: None) -> str:
        address, _, link = self.key.partition(" ")
        return f"ip neigh flush to {address} dev {link}"

    def put(self, ours: None) -> None:
        address, _, link = self.key.partition(" ")
        forget_neighbour(address, link)

    def put_back(self, before: None) -> None:
        pass

    def begin(self, before: None, wanted: None) -> None:
        return None

    def agree(self, ours: None, wanted: None) -> tuple[None, str]:
        return None, ""


def spot_of(change: Change) -> tuple[Spot, Any] | None:
    """Where a change goes and what it puts there; None when this kernel has no such place and need not have it.

    :raise MissingPrerequisite: the kernel has no such place.
    """
    match change:
        case Sysctl():
            path = _sysctl_path(change.name)
            if (_SYSCTLS / path).exists():
                return SysctlSpot(path), change.value
            if change.fallback is not None:
                return spot_of(change.fallback)
            if change.optional:
                return None
            raise MissingPrerequisite(
                f"This kernel has no parameter '{change.name}', which the journey needs.",
                remedy="For MPTCP a kernel with CONFIG_MPTCP is needed; a NIC's parameters are there as long as the NIC is.",
            )
        case MptcpLimits():
            return LimitsSpot(), [change.subflows, change.add_addr_accepted]
        case ReceiveBuffer():
            return ReceiveBufferSpot(), str(change.least_bytes)
        case ImplicitEndpoint():
            return EndpointSpot(change.address), None
        case ForgottenNeighbour():
            return NeighbourSpot(f"{change.peer} {change.link}"), None
        case HostRoute():
            return RouteSpot(change.peer), asdict(change)


def spot_from(kind: str, key: str, before: Any, ours: Any) -> Spot:
    """The spot of a record. Raises ValueError or TypeError when there is none such, or it cannot hold these values."""
    match kind:
        case "sysctl" if key.startswith("net/") and ".." not in key.split("/"):
            if isinstance(before, str) and isinstance(ours, str):
                return SysctlSpot(key)
        case "receive-buffer":
            if _is_triple(before) and _is_triple(ours):
                return ReceiveBufferSpot()
        case "mptcp":
            if _is_pair(before) and _is_pair(ours):
                return LimitsSpot()
        case "endpoint":
            if ours is None and (before is None or _is_pair(before)) and str(ipaddress.ip_address(key)) == key:
                return EndpointSpot(key)
        case "neighbour":
            if before is None and ours is None and ipaddress.ip_address(key.partition(" ")[0]):
                return NeighbourSpot(key)
        case "route":
            route = HostRoute(**ours)
            ipaddress.ip_address(key)
            words, numbers = (route.link, route.source, route.congctl), (route.mtu, route.advmss)
            fits = route.peer == key and all(isinstance(word, str) for word in words) and _is_pair([*numbers])
            if fits and (before is None or host_routes.is_whole(_raw(before))):
                return RouteSpot(key)
    raise ValueError(f"{kind} {key} cannot hold {before!r} and {ours!r}")


def namespace_cookie() -> int:
    """The kernel's name for this network namespace, never given twice in one boot; 0 when it has none (before 5.14)."""
    so_netns_cookie = 71
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, so_netns_cookie, 8), "little")
        except OSError:
            return 0


def _sysctl_path(name: str) -> str:
    """As sysctl(8): whichever separator comes first is the one; with dots, a slash stands for a dot within a name."""
    first = next((letter for letter in name if letter in "./"), "/")
    return name if first == "/" else name.translate(str.maketrans("./", "/."))


def _is_pair(value: Any) -> bool:
    """Whether it is two 32-bit numbers."""
    return (
        isinstance(value, list)
        and [type(one) for one in value] == [int, int]
        and 0 <= min(value) <= max(value) < 1 << 32
    )


def _is_triple(value: Any) -> bool:
    """Whether it is three sizes in bytes."""
    return isinstance(value, str) and re.fullmatch(r"[0-9]{1,10}( [0-9]{1,10}){2}", value) is not None


def _raw(route: str) -> bytes:
    return base64.b64decode(route, validate=True)


def _smaller(one: int, other: int) -> int:
    """Of two limits, of which 0 is none."""
    return min(filter(None, (one, other)), default=0)
