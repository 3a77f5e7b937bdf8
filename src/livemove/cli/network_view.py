"""The cluster's networks as a person sees them: which hosts are on each, by which NICs, and what the list says. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from livemove.base.units import format_rate
from livemove.cli.output import columns
from livemove.policy.network_rules import rule_for, why_not_allowed
from livemove.policy.subnets import sort_subnets, subnet_of

if TYPE_CHECKING:
    from livemove.policy.paths import HostNetworks, LinkFacts, NetworkRule

_HEADERS = ["HOST", "NIC", "ADDRESS", "SPEED", "MTU", "CARRIER", "KIND", "DRIVER", "QUEUES", "CAN", "INCOMING"]


@dataclass(frozen=True, slots=True)
class End:
    """An address of a host.

    :param incoming: whether the host lets migrations use it.
    """

    host: str
    address: str
    incoming: bool
    link: LinkFacts


@dataclass(frozen=True, slots=True)
class Network:
    """A subnet with the hosts on it.

    :param rule: that counts for it; of a wider subnet perhaps.
    :param excluded: why the cluster's list does not allow it; empty: it does.
    """

    subnet: str
    rule: NetworkRule | None
    excluded: str
    ends: tuple[End, ...]

    @property
    def title(self) -> str:
        name = f" ({self.rule.name})" if self.rule is not None and self.rule.name else ""
        allowed = f"metric {self.rule.metric}" if self.rule is not None and not self.excluded else ""
        return f"{self.subnet}{name}: {self.excluded or ', '.join(filter(None, ('allowed', allowed)))}"


def networks_of(hosts: Mapping[str, HostNetworks], rules: Sequence[NetworkRule]) -> list[Network]:
    """Every network that a host is on or the list names: allowed ones first, by metric, then by subnet."""
    ends: dict[str, list[End]] = {rule.subnet: [] for rule in rules}
    for name, host in sorted(hosts.items()):
        for link in host.links:
            for text in link.addresses:
                address = text.partition("/")[0]
                wanted = not host.incoming or address in host.incoming
                ends.setdefault(subnet_of(text), []).append(End(name, address, wanted, link))
    found = [
        Network(subnet, rule_for(subnet, rules), why_not_allowed(subnet, rules), tuple(ends[subnet]))
        for subnet in sort_subnets(ends)
    ]
    return sorted(found, key=lambda each: (bool(each.excluded), each.rule.metric if each.rule is not None else 0))


def network_lines(networks: Sequence[Network]) -> list[str]:
    """A title for each network, then its NICs; columns are the same in all."""
    cells = [_HEADERS] + [_cells(end) for network in networks for end in network.ends]
    rows = iter(columns(cells))
    header = next(rows)
    lines: list[str] = []
    for network in networks:
        lines += ["", network.title] if lines else [network.title]
        if not network.ends:
            lines.append("  no host that answered is on it")
            continue
        lines += [f"  {header}", *(f"  {next(rows)}" for _ in network.ends)]
        if len({end.link.mtu for end in network.ends}) > 1:
            lines.append("  the MTU is not the same on all of these NICs")
    return lines


def network_json(network: Network) -> dict[str, Any]:
    """The network for ``--json``."""
    rule = network.rule
    return {
        "subnet": network.subnet,
        "name": rule.name if rule is not None else "",
        "metric": rule.metric if rule is not None else None,
        "allowed": not network.excluded,
        "reason": network.excluded,
        "ends": [
            {"host": end.host, "address": end.address, "incoming": end.incoming, "link": asdict(end.link)}
            for end in network.ends
        ],
    }


def hosts_left_out(hosts: Mapping[str, HostNetworks], rules: Sequence[NetworkRule]) -> list[str]:
    """Hosts that are on a network, but on none that the list allows and they themselves let migrations use."""
    networks = networks_of(hosts, rules)
    usable = {end.host for network in networks if not network.excluded for end in network.ends if end.incoming}
    return sorted({end.host for network in networks for end in network.ends} - usable)


def _cells(end: End) -> list[str]:
    link = end.link
    kind = f"{link.kind} of {'+'.join(link.members)}" if link.members else link.kind
    return [
        end.host, link.name, end.address, format_rate(link.speed_bytes_per_s) if link.speed_bytes_per_s else "unknown",
        str(link.mtu), "yes" if link.carrier else "no", kind, link.driver or "-", str(link.queues),
        ",".join(link.capabilities) or "-", "yes" if end.incoming else "no",
    ]  # fmt: skip
