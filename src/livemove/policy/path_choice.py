"""The decision over paths: which addresses of two hosts carry a journey, which stand by, and why the others do not.

    every subnet that either host is on
      1  the cluster's list           the rule of the smallest subnet that contains it counts; once a network is allowed
                                      there, only allowed ones are used (#39, #40)
      2  what the user asked for      `--paths LIST`: these and no others (#45, #47)
      3  both hosts' `incoming`       in both directions alike (#43, #46); and carrier
      4  subnets that overlap         on two NICs of one host, or with different prefixes on the two hosts: not used
      5  pairs                        NIC by NIC, each address once
      6  order                        metric (#42), the destination's preferred address, capacity, subnet
      7  one family, one or all       unequal paths are used together (#52, #53)

Everything that falls out on the way is named with its reason. The same settings give the same networks in both directions
(#157), but for the order where two hosts prefer different ones.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from livemove.base.errors import BadSetting, NoCommonNetwork, PolicyRefused
from livemove.policy.network_rules import is_strict, rule_for, why_not_allowed
from livemove.policy.paths import HostNetworks, LeftOut, LinkFacts, NetworkRule, Path, PathPlan, PathWish, UsePaths
from livemove.policy.subnets import Subnet, contains, order_of

#: An MPTCP connection has at most that many subflows beside its first (MPTCP_PM_ADDR_MAX, linux/mptcp_pm.h).
MAX_PATHS = 8


@dataclass(frozen=True, slots=True)
class _End:
    """An address that one of the hosts may use."""

    link: LinkFacts
    address: str


def choose_paths(
    source: HostNetworks, destination: HostNetworks, rules: Sequence[NetworkRule], wish: PathWish
) -> PathPlan:
    """The plan of a journey from `source` to `destination`; at least one path is in it.

    Raises BadSetting when the wish names a network that neither host nor the cluster's list knows, or all addresses of a
    host's ``incoming`` are on none of its NICs; PolicyRefused when the wish names one that the list or a host's
    ``incoming`` excludes; NoCommonNetwork when no path is left.
    """
    hosts = (source, destination)
    left_out = [LeftOut(*each) for host in hosts for each in _addresses_on_no_link(host)]
    subnets = sorted({subnet for host in hosts for _, _, subnet in _addresses(host)}, key=order_of)
    places = _places(subnets, rules, wish, hosts)
    ends: dict[Subnet, tuple[list[_End], list[_End]]] = {}
    for subnet in subnets:
        if why := why_not_allowed(subnet, rules) or ("" if subnet in places else "not among the networks asked for"):
            left_out.append(LeftOut(_named(subnet, rules), why))
            continue
        here = _ends(source, subnet, destination, left_out)
        there = _ends(destination, subnet, source, left_out)
        if here or there:
            ends[subnet] = (here, there)
    for subnet, why in _overlapping(ends, hosts):
        left_out.append(LeftOut(_named(subnet, rules), why))
        del ends[subnet]
    ranked: list[tuple[tuple[object, ...], Path]] = []
    for subnet, (here, there) in ends.items():
        for number, path in enumerate(_pair(subnet, here, there, hosts, rules, left_out)):
            ranked.append(((places[subnet], *_rank(path, subnet, rules, destination.preferred), number), path))
    paths = [path for _, path in sorted(ranked, key=lambda item: item[0])]
    paths = _one_family(paths, left_out)
    if wish.use is UsePaths.ALL:
        paths = _each_pair_of_links_once(paths, left_out)
    if not paths:
        raise _no_path(source, destination, left_out)
    left_out += [LeftOut(_pair_text(path), f"a journey has at most {MAX_PATHS} paths") for path in paths[MAX_PATHS:]]
    if wish.use is UsePaths.ONE:
        return PathPlan(tuple(paths[:1]), tuple(paths[1:MAX_PATHS]), tuple(left_out))
    return PathPlan(tuple(paths[:MAX_PATHS]), (), tuple(left_out))


# The cluster's list and the wish --------------------------------------------------------------------------------------


def _named(subnet: Subnet, rules: Sequence[NetworkRule]) -> str:
    rule = rule_for(subnet, rules)
    return f"{subnet} ({rule.name})" if rule is not None and rule.name else str(subnet)


def _places(
    subnets: Sequence[Subnet], rules: Sequence[NetworkRule], wish: PathWish, hosts: tuple[HostNetworks, HostNetworks]
) -> dict[Subnet, int]:
    """The subnets asked for, with the place of each in the list; raises as choose_paths when one cannot be had."""
    if wish.use is not UsePaths.LISTED:
        return dict.fromkeys(subnets, 0)
    places: dict[Subnet, int] = {}
    for place, word in enumerate(wish.listed):
        meant = [subnet for subnet in subnets if _means(word, subnet, rules)]
        if not meant:
            raise _unknown(word, subnets, rules, hosts)
        refusals = [_refusal(word, subnet, rules, hosts) for subnet in meant]
        if None not in refusals:
            raise next(refusal for refusal in refusals if refusal is not None)
        for subnet, refusal in zip(meant, refusals, strict=True):
            if refusal is None:
                places.setdefault(subnet, place)
    return places


def _means(word: str, subnet: Subnet, rules: Sequence[NetworkRule]) -> bool:
    rule = rule_for(subnet, rules)
    if rule is not None and rule.name and rule.name.lower() == word.lower():
        return True
    asked = _subnet_or_none(word)
    return asked is not None and contains(asked, subnet)


def _subnet_or_none(word: str) -> Subnet | None:
    try:
        return ipaddress.ip_network(word, strict=False)
    except ValueError:
        return None


def _unknown(
    word: str, subnets: Sequence[Subnet], rules: Sequence[NetworkRule], hosts: tuple[HostNetworks, HostNetworks]
) -> BadSetting | NoCommonNetwork:
    source, destination = (host.host for host in hosts)
    asked = _subnet_or_none(word)
    if any(word.lower() == rule.name.lower() or str(asked) == rule.subnet for rule in rules):
        return NoCommonNetwork(f"Neither {source} nor {destination} is on the network '{word}'.")
    known = ", ".join(_named(subnet, rules) for subnet in subnets[:16]) or "none"
    return BadSetting(
        f"There is no network '{word[:80]}'; {source} and {destination} are on {known}.",
        remedy="Name networks as 'livemove network list' does, by subnet or by name.",
    )


def _refusal(
    word: str, subnet: Subnet, rules: Sequence[NetworkRule], hosts: tuple[HostNetworks, HostNetworks]
) -> PolicyRefused | NoCommonNetwork | None:
    """Why somebody does not want the network that was asked for; carrier is none of this: it comes and goes."""
    called = f"'{word}'" if word == str(subnet) else f"'{word}' ({subnet})"
    if why := why_not_allowed(subnet, rules):
        return PolicyRefused(
            f"The network {called} cannot be used: it is {why}.",
            remedy=f"Allow it with 'livemove network allow {subnet}'.",
        )
    own = {host.host: [address for _, address, its in _addresses(host) if its == subnet] for host in hosts}
    for host in hosts:
        if not own[host.host]:
            return NoCommonNetwork(f"The network {called} cannot be used: {host.host} is not on it.")
    for host in hosts:
        if host.incoming and not set(own[host.host]) & set(host.incoming):
            return PolicyRefused(
                f"The network {called} cannot be used: {host.host}'s {' and '.join(own[host.host])} is not in its "
                f"{_setting(host)}, which has {', '.join(host.incoming)}.",
                where=host.host,
                remedy=f"Add it with 'livemove network incoming ADDRESS... --host {host.host}'.",
            )
    return None


# One host -------------------------------------------------------------------------------------------------------------


def _addresses(host: HostNetworks) -> Iterable[tuple[LinkFacts, str, Subnet]]:
    for link in host.links:
        for text in link.addresses:
            interface = ipaddress.ip_interface(text)
            yield link, str(interface.ip), interface.network


def _addresses_on_no_link(host: HostNetworks) -> list[tuple[str, str]]:
    """What ``incoming`` names in vain. A NIC may be gone: the other addresses still count. Raises BadSetting for all."""
    present = [address for _, address, _ in _addresses(host)]
    missing = [address for address in host.incoming if address not in present]
    if missing and len(missing) == len(host.incoming):
        raise BadSetting(
            f"The setting {_setting(host)} of {host.host} names {', '.join(missing)}, which is on none of its NICs; they have "
            f"{', '.join(present[:16]) or 'no address'}.",
            where=host.host,
            remedy=f"Set it with 'livemove network incoming ADDRESS... --host {host.host}', or to 'any'.",
        )
    return [(f"{host.host} {address}", f"in {host.host}'s 'incoming', but on none of its NICs") for address in missing]


def _ends(host: HostNetworks, subnet: Subnet, peer: HostNetworks, left_out: list[LeftOut]) -> list[_End]:
    """At most one address a NIC: the preferred one, else the first in ``incoming``, else that of the fastest NIC."""
    found: list[tuple[tuple[object, ...], _End]] = []
    for number, (link, address, its_subnet) in enumerate(_addresses(host)):
        if its_subnet != subnet:
            continue
        if why := _unusable(host, link, address, peer):
            left_out.append(LeftOut(_end_text(host, link, address), why))
            continue
        wanted = host.incoming.index(address) if host.incoming else 0
        place = (address != host.preferred, wanted, -link.speed_bytes_per_s, link.index, number)
        found.append((place, _End(link, address)))
    chosen: dict[str, _End] = {}
    for _, end in sorted(found, key=lambda item: item[0]):
        if end.link.name in chosen:
            taken = chosen[end.link.name].address
            left_out.append(LeftOut(_end_text(host, end.link, end.address), f"the NIC takes part with {taken}"))
        else:
            chosen[end.link.name] = end
    return list(chosen.values())


def _unusable(host: HostNetworks, link: LinkFacts, address: str, peer: HostNetworks) -> str:
    if any(address == its for _, its, _ in _addresses(peer)):
        return f"{peer.host} has the same address"  # of a bridge for containers, say
    if host.incoming and address not in host.incoming:
        return f"not in {host.host}'s {_setting(host)}"
    return "" if link.carrier else f"no carrier on {host.host}'s {link.name}"


def _setting(host: HostNetworks) -> str:
    """What to call the setting that restricts a host: without 'incoming' an address of its own counts alone."""
    return "'incoming' or 'migration_address'" if host.incoming == (host.preferred,) else "'incoming'"


def _end_text(host: HostNetworks, link: LinkFacts, address: str) -> str:
    return f"{host.host} {link.name} {address}"


def _overlapping(
    ends: dict[Subnet, tuple[list[_End], list[_End]]], hosts: tuple[HostNetworks, HostNetworks]
) -> list[tuple[Subnet, str]]:
    """Subnets that a host's routes cannot keep apart, or that the hosts do not agree on, with the reason."""
    pairs = [(one, other) for one in ends for other in ends if one != other and one.overlaps(other)]
    found: dict[Subnet, str] = {}
    for one, other in pairs:
        if one not in found and (why := _overlap(one, other, ends, hosts)):
            found[one] = why
    return list(found.items())


def _overlap(
    one: Subnet,
    other: Subnet,
    ends: dict[Subnet, tuple[list[_End], list[_End]]],
    hosts: tuple[HostNetworks, HostNetworks],
) -> str:
    on_one, on_other = (tuple(map(bool, ends[subnet])) for subnet in (one, other))
    if all(on_one) and all(on_other):
        for side, host in enumerate(hosts):
            here, there = (sorted({end.link.name for end in ends[subnet][side]}) for subnet in (one, other))
            if here != there:
                return (
                    f"{', '.join(here)} of {host.host} overlaps {', '.join(there)} with {other}; choose one of them with "
                    "'--paths' or 'livemove network allow'"
                )
    elif sorted((on_one, on_other)) == [(False, True), (True, False)]:
        has, lacks = hosts if on_one[0] else hosts[::-1]
        return f"{lacks.host} has {other} where {has.host} has {one}: the prefixes must agree"
    return ""


# Pairs ----------------------------------------------------------------------------------------------------------------


def _pair(
    subnet: Subnet,
    here: list[_End],
    there: list[_End],
    hosts: tuple[HostNetworks, HostNetworks],
    rules: Sequence[NetworkRule],
    left_out: list[LeftOut],
) -> list[Path]:
    """First with first: no address is in two paths."""
    source, destination = hosts
    for own, others, host, peer in ((here, there, source, destination), (there, here, destination, source)):
        left_out += [
            LeftOut(_end_text(host, end.link, end.address), _alone(subnet, others, host, peer))
            for end in own[len(others) :]
        ]
    rule = rule_for(subnet, rules)
    shared = any(len({link.name for link, _, its in _addresses(host) if its == subnet}) > 1 for host in hosts)
    paths = []
    for one, other in zip(here, there, strict=False):
        paths.append(
            Path(
                source_address=one.address,
                destination_address=other.address,
                network=str(subnet),
                name=rule.name if rule is not None else "",
                source_link=one.link.name,
                destination_link=other.link.name,
                source_index=one.link.index,
                capacity_bytes_per_s=min(one.link.speed_bytes_per_s, other.link.speed_bytes_per_s),
                mtu=min(one.link.mtu, other.link.mtu),
                shared_subnet=shared,
            )
        )
    return paths


def _alone(subnet: Subnet, others: list[_End], host: HostNetworks, peer: HostNetworks) -> str:
    if others:
        return f"{peer.host} has no further NIC on {subnet}"
    if any(its_subnet == subnet for _, _, its_subnet in _addresses(peer)):
        return f"{peer.host} cannot use its address on {subnet}"
    return f"only {host.host} is on {subnet}"


def _rank(path: Path, subnet: Subnet, rules: Sequence[NetworkRule], preferred: str) -> tuple[object, ...]:
    rule = rule_for(subnet, rules)
    metric = rule.metric if rule is not None and is_strict(rules) else 0
    in_preferred = bool(preferred) and ipaddress.ip_address(preferred) in subnet
    return (
        metric,
        path.destination_address != preferred,
        not in_preferred,
        -path.capacity_bytes_per_s,
        order_of(subnet),
    )


def _one_family(paths: list[Path], left_out: list[LeftOut]) -> list[Path]:
    """QEMU listens on the addresses of one family."""
    is_v6 = bool(paths) and ":" in paths[0].source_address
    for path in paths:
        if (":" in path.source_address) != is_v6:
            reason = f"a journey uses one family, and its first path is IPv{6 if is_v6 else 4}"
            left_out.append(LeftOut(_pair_text(path), reason))
    return [path for path in paths if (":" in path.source_address) == is_v6]


def _each_pair_of_links_once(paths: list[Path], left_out: list[LeftOut]) -> list[Path]:
    """A second subnet on the same two NICs carries no more and survives no longer."""
    kept: dict[tuple[str, str], Path] = {}
    for path in paths:
        first = kept.setdefault((path.source_link, path.destination_link), path)
        if first is not path:
            reason = f"{path.source_link} and {path.destination_link} carry {first.network} already"
            left_out.append(LeftOut(_pair_text(path), reason))
    return list(kept.values())


def _pair_text(path: Path) -> str:
    return f"{path.source_address} to {path.destination_address}"


def _no_path(source: HostNetworks, destination: HostNetworks, left_out: Sequence[LeftOut]) -> NoCommonNetwork:
    def has(host: HostNetworks) -> str:
        addresses = [f"{address} on {link.name}" for link in host.links for address in link.addresses]
        return f"{host.host} has {', '.join(addresses[:8]) or 'no address'}"

    reasons = "; ".join(f"{each.what}: {each.reason}" for each in left_out[:8])
    return NoCommonNetwork(
        f"{source.host} and {destination.host} have no network in common that this migration may use: {has(source)}; "
        f"{has(destination)}." + (f" Left out: {reasons}." if reasons else ""),
        details={"left_out": [{"what": each.what, "reason": each.reason} for each in left_out]},
    )
