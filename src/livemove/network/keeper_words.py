"""What an agent and its path keeper say to each other: one JSON object a line, over the keeper's stdin and stdout.

The first line to the keeper is its configuration, further ones are commands: ``{"do": "allow", "by_address": {ADDRESS: N}}``,
``{"do": "expect", "connections": N}``, ``{"do": "finish"}``. What it says are the reports below, each with its ``event``.
Both ends are of one version and one machine; still, :func:`report_of` takes a line that it does not know for a Bug.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from livemove.base.errors import Bug


@dataclass(frozen=True, slots=True)
class KeptPath:
    """One planned path as this host sees it.

    :param path: its number in the plan, the same on both hosts, 0 to 31.
    :param local: our address, `remote`: the other host's.
    :param link: name of our NIC.
    :param index: its interface index; 0: found by its name.
    :param dead: known not to work at the start: used only once it has healed.
    """

    path: int
    local: str
    remote: str
    link: str
    index: int = 0
    dead: bool = False


@dataclass(frozen=True, slots=True)
class KeeperConfig:
    """What a keeper is started with.

    :param role: ``source`` or ``destination``.
    :param port: of the journey: TCP for its connections, UDP for heartbeats, on the destination's addresses.
    :param key: 32 hexadecimal digits, secret, the same on both hosts.
    :param multipath: connections are MPTCP and shall use all paths; otherwise nothing is made, removed or missed.
    :param connections: how many are expected; 0: not known yet.
    """

    role: str
    journey: str
    port: int
    key: str
    paths: tuple[KeptPath, ...]
    multipath: bool = True
    connections: int = 0
    interval_s: float = 0.050
    dead_after_s: float = 0.150
    heal_after_s: float = 0.400


@dataclass(frozen=True, slots=True)
class PathCounters:
    """What one pair of addresses carried, by the kernel's counters of its TCP sockets.

    :param path: -1 for a pair that was not planned.
    :param bytes_acked: sent and acknowledged; SYN and FIN of each subflow count as one byte where we sent them.
    :param bytes_sent: retransmissions included.
    :param subflows: how many there were, `plain` of them plain TCP.
    :param open_subflows: how many there are now.
    :param removed: how often it was taken for dead.
    :param longest_silence_ms: of its heartbeats, in the worse direction, as far as we watched.
    """

    path: int
    local: str
    remote: str
    bytes_acked: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0
    retransmitted_segments: int = 0
    subflows: int = 0
    open_subflows: int = 0
    plain: int = 0
    living: bool = True
    removed: int = 0
    longest_silence_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Ready:
    """Sockets are bound, events are followed."""

    pid: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The keeper cannot work and ends."""

    reason: str


@dataclass(frozen=True, slots=True)
class PathDied:
    """The path's subflows on this host were ended."""

    path: int
    silence_ms: float
    reason: str
    destroyed: int


@dataclass(frozen=True, slots=True)
class PathHealed:
    """The source makes subflows on it again.

    :param down_ms: since it died.
    """

    path: int
    down_ms: float


@dataclass(frozen=True, slots=True)
class PathStalled:
    """Nothing comes through the path, and there is no other one to go on with: the copy stands still, or the other keeper."""

    path: int
    silence_ms: float


@dataclass(frozen=True, slots=True)
class PathRevived:
    """A stalled path carries again.

    :param renewed: how many subflows, of those that would have waited for their retransmission, are made anew.
    """

    path: int
    silence_ms: float
    renewed: int


@dataclass(frozen=True, slots=True)
class SubflowsVerified:
    """All expected connections are there, each with a subflow on each living path."""

    connections: int
    paths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FellBack:
    """Some connections are plain TCP, on one path, although MPTCP was planned.

    :param plain: how many, of `connections`.
    :param reason: a sentence; names the setting where it is known.
    """

    plain: int
    connections: int
    reason: str


@dataclass(frozen=True, slots=True)
class SubflowsMissing:
    """Some connections have no subflow on a living path; the source goes on trying.

    :param missing: how many, of `connections`.
    """

    path: int
    missing: int
    connections: int
    reason: str


@dataclass(frozen=True, slots=True)
class UnplannedPair:
    """There is a socket of the journey between addresses that are no path of the plan.

    :param ended: it was an extra subflow, and we ended it.
    """

    local: str
    remote: str
    ended: bool


@dataclass(frozen=True, slots=True)
class AllowanceHeard:
    """What the destination wants to be sent at most, by its addresses, bytes per second. Said again every 500 ms.

    :param by_address: an address without an entry: as fast as can be.
    """

    by_address: dict[str, int]


@dataclass(frozen=True, slots=True)
class Counters:
    """Once a second."""

    paths: tuple[PathCounters, ...]
    unplanned: tuple[PathCounters, ...] = ()


@dataclass(frozen=True, slots=True)
class KeeperTotals:
    """The last word of a keeper that was told to finish."""

    paths: tuple[PathCounters, ...]
    unplanned: tuple[PathCounters, ...] = ()


@dataclass(frozen=True, slots=True)
class KeeperTrouble:
    """The kernel refused something; the keeper goes on.

    :param text: a sentence.
    """

    text: str


Report = (
    Ready
    | Refused
    | PathDied
    | PathHealed
    | PathStalled
    | PathRevived
    | SubflowsVerified
    | FellBack
    | SubflowsMissing
    | UnplannedPair
    | AllowanceHeard
    | Counters
    | KeeperTotals
    | KeeperTrouble
)

_EVENTS: dict[str, type[Report]] = {
    "ready": Ready,
    "refused": Refused,
    "path-dead": PathDied,
    "path-healed": PathHealed,
    "path-stalled": PathStalled,
    "path-revived": PathRevived,
    "verified": SubflowsVerified,
    "fallback": FellBack,
    "subflows-missing": SubflowsMissing,
    "unplanned": UnplannedPair,
    "allowance": AllowanceHeard,
    "counters": Counters,
    "totals": KeeperTotals,
    "trouble": KeeperTrouble,
}
_NAMES = {cls: name for name, cls in _EVENTS.items()}


def line_of(report: Report) -> bytes:
    """The report as a line."""
    return json.dumps({"event": _NAMES[type(report)], **asdict(report)}, separators=(",", ":")).encode() + b"\n"


def report_of(line: bytes) -> Report:
    """The report in a line. Raises Bug."""
    try:
        data = json.loads(line)
        return _built(_EVENTS[data.pop("event")], data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Bug(f"A path keeper said what is no report: {line[:200]!r}.") from error


def config_line(config: KeeperConfig) -> bytes:
    """The configuration as a line."""
    return json.dumps(asdict(config)).encode() + b"\n"


def config_of(line: bytes) -> KeeperConfig:
    """The configuration in a line. Raises ValueError when it is none, or says what cannot be."""
    try:
        data = json.loads(line)
        paths = tuple(_canonical(KeptPath(**path)) for path in data.pop("paths"))
        config = KeeperConfig(paths=paths, **data)
        key = bytes.fromhex(config.key)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a configuration: {error}") from error
    numbers = {path.path for path in paths}
    if len(key) != 16 or config.role not in ("source", "destination") or not 0 < config.port < 1 << 16:
        raise ValueError("key, role or port cannot be")
    if not paths or len(numbers) != len(paths) or not numbers <= set(range(32)):
        raise ValueError("paths need numbers of their own, 0 to 31")
    return config


def _canonical(path: KeptPath) -> KeptPath:
    """Addresses as the kernel's are written here, so that they compare as text. Raises ValueError."""
    return replace(path, local=_address(path.local), remote=_address(path.remote))


def _address(text: str) -> str:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, text))
    except OSError as error:
        raise ValueError(f"{text!r} is no address") from error


def _built(cls: type[Report], data: Mapping[str, Any]) -> Report:
    known = {field.name for field in fields(cls)}
    values: dict[str, Any] = {name: value for name, value in data.items() if name in known}
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(PathCounters(**item) if isinstance(item, dict) else item for item in value)
    return cls(**values)
