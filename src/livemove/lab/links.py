"""Cables, bridges and shaping, in six passes over all namespaces at once: make, connect, shape, filter, trim, wait.

1. make: bridges, veth pairs, and the uplinks of `switched` links.
2. connect: ports, MTUs, addresses, routes.
3. shape: tbf where the link's rate is made. That is both ends of every cable; behind a switch a packet so passes the
   sender's NIC and the receiver's port, as in a real network. On a `switched` link it is the receiver's port and, in place
   of the sender's NIC, the uplink.
4. filter: what the hosts send is led through the uplinks, and packets vanish that are too large for the switch.
5. trim: offloads off where a link says so.
6. wait: until every cable carries packets.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from livemove.base.errors import MissingPrerequisite
from livemove.lab import ingress
from livemove.lab.link_spec import DEFAULT_MTU, MAX_MTU, LinkSpec
from livemove.lab.namespaces import Tools, offloads_off, together
from livemove.lab.topology import GUEST_BRIDGE, SWITCH, Cable, End, LabSpec, Network

#: What the switch itself does with packets; faults have a table of their own.
TABLE = "livemove_switch"
_UPLINK = "uplink"
_POLL_S = 0.02


async def make(tools: Tools, spec: LabSpec) -> None:
    """Join the namespaces, which must exist and be empty. Raises MissingPrerequisite."""
    made, connected, shaped = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list), shaping(spec)
    for host in spec.hosts:
        made[host] += _bridge(GUEST_BRIDGE)
    for network in spec.networks:
        if network.own_bridge is not None:
            # the switch's ports, not the bridge, decide what passes
            made[SWITCH] += _bridge(network.own_bridge, MAX_MTU)
        for cable in network.cables:
            near, far = cable.near, cable.far
            made[near.member].append(
                f"link add {near.interface} mtu {near.mtu} type veth "
                f"peer name {far.interface} mtu {far.mtu} netns {spec.namespace(far.member)}"
            )
            if cable.uplink is not None:
                made[SWITCH] += [f"link add {cable.uplink} type ifb", f"link set {cable.uplink} up"]
            for end in cable.ends:
                connected[end.member] += connection(end, network)
    await _everywhere(spec, made, tools.ip)
    await _everywhere(spec, connected, tools.ip)
    await _everywhere(spec, shaped, tools.tc)
    if rules := filtering(spec):
        await tools.nft(spec.namespace(SWITCH), rules)
    for network in spec.networks:
        if not network.spec.offloads:
            trim(spec, network)
    await wait_ready(tools, spec, spec.networks)


async def wait_ready(tools: Tools, spec: LabSpec, networks: Iterable[Network], *, timeout_s: float = 10.0) -> None:
    """Return when all ends of the networks carry packets, and ports of bridges forward them.

    The kernel acts on a carrier up to a second after it came, and drops what is sent before. Raises
    MissingPrerequisite naming the interfaces that do not come up.
    """
    await wait_ends(tools, spec, [end for network in networks for end in network.ends], timeout_s=timeout_s)


async def wait_ends(tools: Tools, spec: LabSpec, ends: Sequence[End], *, timeout_s: float = 10.0) -> None:
    """:func:`wait_ready` for some ends."""
    waiting: dict[str, list[End]] = {}
    try:
        async with asyncio.timeout(timeout_s):
            for member in {end.member for end in ends}:
                waiting[member] = [end for end in ends if end.member == member]
                while waiting[member]:
                    shown = json.loads(await tools.run(["ip", "-d", "-j", "-n", spec.namespace(member), "link"]))
                    ready = {link["ifname"] for link in shown if _is_ready(link)}
                    waiting[member] = [end for end in waiting[member] if end.interface not in ready]
                    if waiting[member]:
                        await asyncio.sleep(_POLL_S)
    except TimeoutError as error:
        names = ", ".join(end.interface for rest in waiting.values() for end in rest)
        raise MissingPrerequisite(
            f"Interfaces of lab '{spec.name}' did not come up within {timeout_s:g} s: {names}.",
            remedy="Repeat the command when the machine is less busy.",
        ) from error


def _is_ready(link: Mapping[str, Any]) -> bool:
    port = link.get("linkinfo", {}).get("info_slave_kind") == "bridge"
    return link["operstate"] == "UP" and (not port or link["linkinfo"]["info_slave_data"]["state"] == "forwarding")


def connection(end: End, network: Network) -> list[str]:
    """The `ip` commands that bring an end up; may be repeated."""
    lines = [f"link set {end.interface} master {end.bridge}"] if end.bridge else []
    if end.address is not None:
        # the kernel's own route would be one more of the first NIC's metric
        lines.append(f"addr replace {end.address} dev {end.interface}{' noprefixroute' if end.metric else ''}")
    lines.append(f"link set {end.interface} up")
    if end.address is not None:
        lines.append(route(end, network))
    return lines


def route(end: End, network: Network) -> str:
    """The `ip` command for the end's route to its network, with cubic.

    The machine's default may be bbr, which stalls on fast links, and a namespace may not set the sysctl; a route may.
    The kernel makes a route without it whenever the interface comes up, so this is repeated then.
    """
    assert end.address is not None
    metric = f" metric {end.metric}" if end.metric else ""
    return (
        f"route replace {network.subnet} dev {end.interface} proto kernel scope link src {end.address.ip}{metric} "
        "congctl cubic"
    )


def shaping(spec: LabSpec) -> dict[str, list[str]]:
    """The `tc` commands of each member."""
    lines = defaultdict[str, list[str]](list)
    for network in spec.networks:
        if network.spec.rate_bytes_per_s is not None:
            for member, interface in (place for cable in network.cables for place in cable.shaped):
                lines[member].append(shaper(interface, network.spec))
    return lines


def shaper(interface: str, spec: LinkSpec) -> str:
    """The `tc` command that gives an interface its rate, or changes it. The link must have one."""
    assert spec.rate_bytes_per_s is not None
    return (
        f"qdisc replace dev {interface} root tbf rate {spec.rate_bytes_per_s * 8}bit "
        f"burst {spec.burst_bytes} limit {spec.limit_bytes}"
    )


def filtering(spec: LabSpec) -> str:
    """The switch's nftables rules; empty when it needs none."""
    rules = ""
    for network in spec.link_networks:
        for cable in network.cables:
            if network.spec.switch_mtu is not None:
                rule = ingress.larger_than(network.spec.switch_mtu)
                rules += ingress.put(TABLE, "mtu", cable.far, ingress.SWITCH_MTU, rule)
            if cable.uplink is not None and network.spec.rate_bytes_per_s is not None:
                rules += lead_through(cable)
    return rules


def lead_through(cable: Cable) -> str:
    """The nftables rules that lead what a host sends through its uplink; may be repeated."""
    return ingress.put(TABLE, _UPLINK, cable.far, ingress.UPLINK, f'fwd to "{cable.uplink}"')


def lead_past(cable: Cable) -> str:
    """The nftables rules that end :func:`lead_through`; may be repeated."""
    return ingress.take_away(TABLE, _UPLINK, cable.far)


def trim(spec: LabSpec, network: Network) -> None:
    """Switch the offloads of all ends off. Raises MissingPrerequisite when the kernel refuses."""
    for end in network.ends:
        offloads_off(spec.namespace(end.member), [end.interface])


def _bridge(name: str, mtu: int = DEFAULT_MTU) -> list[str]:
    # no spanning tree and no snooping: a port forwards at once, and what a moved guest announces reaches everybody
    return [
        f"link add {name} mtu {mtu} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        f"link set {name} up",
    ]


async def _everywhere(
    spec: LabSpec, lines: Mapping[str, list[str]], run: Callable[[str, list[str]], Coroutine[None, None, None]]
) -> None:
    await together(*(run(spec.namespace(member), lines.get(member, [])) for member in spec.members))
