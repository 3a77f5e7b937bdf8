"""What a destination makes of the paths that a source asks for: its own settings and the cluster's list count here too.

The source has decided by what it knew; a setting may have changed since, or its agent may be another than ours. The
destination opens nothing that it would not have chosen itself (#46).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from livemove.base.errors import NetworkMissing, PeerViolation, PolicyRefused
from livemove.policy.network_rules import why_not_allowed
from livemove.policy.path_choice import MAX_PATHS
from livemove.policy.paths import HostNetworks, NetworkRule
from livemove.policy.subnets import subnet_of


def check_pairs(pairs: Sequence[tuple[str, str]], own: HostNetworks, rules: Sequence[NetworkRule]) -> None:
    """Return when this host, as destination, may be reached by all of these pairs (source's address, own address).

    Raises PolicyRefused naming the pair and the setting or rule that excludes it; NetworkMissing when an address has gone
    since the source made its plan; PeerViolation for pairs that no plan
    has: none, too many, an address twice, two families.
    """
    ends = [end for pair in pairs for end in pair]
    if not 0 < len(pairs) <= MAX_PATHS or len(set(ends)) < len(ends) or len({":" in end for end in ends}) > 1:
        raise PeerViolation(
            f"The source asks for {len(pairs)} paths that do not go together: 1 to {MAX_PATHS} of one family, each "
            "address once."
        )
    subnets = {text.partition("/")[0]: subnet_of(text) for link in own.links for text in link.addresses}
    for theirs, ours in pairs:
        if ours not in subnets:
            raise NetworkMissing(
                f"The path {theirs} to {ours} cannot be used: {own.host} has no address {ours} (any more).",
                where=own.host,
                remedy="'livemove network list' shows the NICs as they are; run the command again.",
            )
        if why := _why_not(theirs, ours, own, subnets, rules):
            raise PolicyRefused(
                f"The path {theirs} to {ours} is not admitted: {why}.",
                where=own.host,
                remedy="See 'livemove network list'; ask for other paths, or allow this network.",
            )


def _why_not(theirs: str, ours: str, own: HostNetworks, subnets: dict[str, str], rules: Sequence[NetworkRule]) -> str:
    subnet = subnets[ours]
    if own.incoming and ours not in own.incoming:
        return f"{ours} is not in {own.host}'s 'incoming', which has {', '.join(own.incoming)}"
    if ipaddress.ip_address(theirs) not in ipaddress.ip_network(subnet):
        return f"{theirs} is not on {subnet}, as {ours} is"
    if why := why_not_allowed(subnet, rules):
        return f"{subnet} is {why}"
    return ""
