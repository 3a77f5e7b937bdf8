"""Where the agents of the cluster's hosts answer, and which networks they use: ``cluster.toml`` of an identity directory.

The host that holds the cluster's authority changes the map and counts its ``serial`` up; everybody else takes the map
with the higher serial. An address is only a place to knock: whoever answers must prove the host's name by certificate,
so that a wrong map costs a connection, never a secret.
"""

from __future__ import annotations

import ipaddress
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from livemove.api.client_identity import check_host_name
from livemove.api.private_files import write_private
from livemove.base.errors import BadSetting, Conflict, NoIdentity, PeerViolation, UnknownHost
from livemove.policy.network_rules import MAX_RULES, check_rules
from livemove.policy.paths import NetworkRule

MAX_HOSTS = 1024
_MAX_MAP_BYTES = 256 << 10


def parse_address(text: str) -> tuple[str, int]:
    """IP address and port of ``192.0.2.1:7443`` or ``[2001:db8::1]:7443``. Raises BadSetting."""
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
        if (address.version == 6) != host.startswith("[") or "%" in host:
            raise ValueError("an IPv6 address stands in brackets and has no zone")
        if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65536):
            raise ValueError("the port is between 1 and 65535")
    except ValueError as error:
        raise BadSetting(
            f"'{text[:80]}' is not an address of an agent.", remedy="Write IP:PORT, such as 192.0.2.1:7443."
        ) from error
    return str(address), int(port)


def check_address(text: str) -> str:
    """`text` in its shortest form when others can reach an agent there. Raises BadSetting."""
    host, port = parse_address(text)
    address = ipaddress.ip_address(host)
    if address.is_unspecified or address.is_multicast:
        raise BadSetting(f"{host} is no address at which other hosts can reach an agent.", remedy="Write IP:PORT.")
    return f"[{host}]:{port}" if address.version == 6 else f"{host}:{port}"


@dataclass(frozen=True)
class ClusterMap:
    """Names of the hosts and the addresses of their agents; the networks that migrations may use."""

    authority: str
    """The host that holds the cluster's authority, invites hosts and issues certificates."""
    serial: int = 1
    """Counts the changes; the higher one is the newer map."""
    hosts: Mapping[str, str] = field(default_factory=dict)
    """Name to ``IP:PORT``."""
    networks: tuple[NetworkRule, ...] = ()
    """By metric; empty: all networks are allowed."""

    def address_of(self, name: str) -> str:
        """``IP:PORT`` of the host's agent. Raises UnknownHost."""
        address = self.hosts.get(name)
        if address is None:
            raise UnknownHost(
                f"The cluster has no host '{name[:80]}'; it has {', '.join(sorted(self.hosts)) or 'none'}."
            )
        return address

    def with_host(self, name: str, address: str, *, replace: bool = False) -> ClusterMap:
        """The next map, with that host in it.

        Raises Conflict when the name (in whatever case: TLS compares names without it) is taken and not to be
        replaced, or when another host has that address; BadSetting when name or address has the wrong form.
        """
        check_host_name(name)
        address = check_address(address)
        for known, its_address in self.hosts.items():
            if known.lower() == name.lower() and not (replace and known == name):
                raise Conflict(f"The cluster already has the host '{known}'.", remedy="Choose another name.")
            if its_address == address and known != name:
                raise Conflict(f"{address} is already the address of '{known}'.", remedy="Give the new host's address.")
        if len({*self.hosts, name}) > MAX_HOSTS:
            raise Conflict(f"The cluster has {MAX_HOSTS} hosts, which is the most.", remedy="Begin a second cluster.")
        return self._next(hosts={**self.hosts, name: address})

    def without_host(self, name: str) -> ClusterMap:
        """The next map, without that host. Raises UnknownHost."""
        self.address_of(name)
        left = {host: address for host, address in self.hosts.items() if host != name}
        return self._next(hosts=left)

    def with_networks(self, rules: Sequence[NetworkRule]) -> ClusterMap:
        """The next map, with this list of networks; the same map when it has that list. Raises BadSetting."""
        networks = check_rules(rules)
        return self if networks == self.networks else self._next(networks=networks)

    def _next(self, **changes: Any) -> ClusterMap:
        return replace(self, serial=self.serial + 1, **changes)

    def to_json(self) -> dict[str, Any]:
        """The form in which it crosses the API."""
        return {
            "authority": self.authority,
            "serial": self.serial,
            "hosts": dict(self.hosts),
            "networks": [asdict(rule) for rule in self.networks],
        }


def map_from_json(data: object) -> ClusterMap:
    """The map that a host sent. Raises PeerViolation for anything that :meth:`ClusterMap.to_json` does not make."""
    try:
        return _checked(data)
    except BadSetting as error:
        raise PeerViolation(f"A host sent a map of the cluster that is not one: {error.message}") from error


def merge_maps(ours: ClusterMap, theirs: ClusterMap) -> ClusterMap:
    """The newer of two maps of one cluster; ours when both are as new. Raises PeerViolation for another cluster's."""
    if ours.authority != theirs.authority:
        raise PeerViolation(
            f"A host sent the map of the cluster of '{theirs.authority}'; ours is of '{ours.authority}'."
        )
    return theirs if theirs.serial > ours.serial else ours


def load_map(path: Path) -> ClusterMap:
    """The map in the file. Raises NoIdentity when there is none, BadSetting when it is not one."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_MAP_BYTES).decode()
        return _checked(tomllib.loads(text))
    except FileNotFoundError as error:
        raise NoIdentity(f"There is no {path}, which lists the cluster's hosts.") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadSetting(
            f"{path} cannot be read: {error}.", remedy="Copy it from another host of the cluster."
        ) from error
    except BadSetting as error:
        raise BadSetting(f"{path}: {error.message}", remedy="Copy it from another host of the cluster.") from error


def save_map(path: Path, cluster: ClusterMap) -> None:
    """Replace the file. Raises StateUnwritable."""
    lines = [
        "# The cluster's hosts and where their agents answer. livemove writes this file.",
        f"serial = {cluster.serial}",
        f"authority = {json.dumps(cluster.authority)}",
        "",
        "[hosts]",
        # a JSON string of our names and addresses is a TOML string too
        *(f"{json.dumps(name)} = {json.dumps(address)}" for name, address in sorted(cluster.hosts.items())),
    ]
    for rule in cluster.networks:
        lines += ["", "[[networks]]", *(f"{key} = {json.dumps(value)}" for key, value in asdict(rule).items())]
    write_private(path, ("\n".join(lines) + "\n").encode())


def _checked(data: object) -> ClusterMap:
    if not isinstance(data, dict) or set(data) - {"networks"} != {"authority", "serial", "hosts"}:
        raise BadSetting("A map has 'serial', 'authority' and 'hosts', perhaps 'networks', and nothing else.")
    authority, serial, hosts = data["authority"], data["serial"], data["hosts"]
    if not isinstance(serial, int) or isinstance(serial, bool) or not 0 < serial < 1 << 53:
        raise BadSetting(f"A map's serial is a positive number, not {serial!r:.40}.")
    if not isinstance(authority, str) or not isinstance(hosts, dict) or len(hosts) > MAX_HOSTS:
        raise BadSetting(f"A map's authority is a name, its hosts at most {MAX_HOSTS} names with addresses.")
    checked: dict[str, str] = {}
    for name, address in hosts.items():
        if not isinstance(name, str) or not isinstance(address, str):
            raise BadSetting(f"The address of {name!r:.40} is not a text.")
        checked[check_host_name(name)] = check_address(address)
    if len({name.lower() for name in checked}) < len(checked):
        raise BadSetting("Two hosts of the map have names that differ only in case.")
    return ClusterMap(check_host_name(authority), serial, checked, _checked_networks(data.get("networks", [])))


def _checked_networks(data: object) -> tuple[NetworkRule, ...]:
    if not isinstance(data, list | tuple) or len(data) > MAX_RULES:
        raise BadSetting(f"A map's networks are a list of at most {MAX_RULES}.")
    rules = []
    for each in data:
        match each:
            case {"subnet": str(subnet), "metric": int(metric), **more} if not isinstance(metric, bool):
                allowed, name = more.pop("allowed", True), more.pop("name", "")
                if isinstance(allowed, bool) and isinstance(name, str) and not more:
                    rules.append(NetworkRule(subnet, metric, allowed, name))
                    continue
        raise BadSetting(f"A network of a map has 'subnet', 'metric', 'allowed' and 'name', not {each!r:.80}.")
    return check_rules(rules)
