"""Breaking a lab's networks while they run, and mending them: what cables, switches and processes do on a bad day.

A network is given by number (a link) or by name: ``link0``, ``control``, ``guests``. A fault is one host's, or everybody's
when no host is named. Every fault may be repeated, and ends with the lab.
"""

from __future__ import annotations

import signal
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from livemove.base.errors import BadQuantity
from livemove.lab import in_force, ingress, links, processes
from livemove.lab.in_force import BLACK_HOLE, LARGE, LOSS, PURPOSES, TABLE
from livemove.lab.lab import Lab
from livemove.lab.link_spec import LinkSpec, check_mtu
from livemove.lab.namespaces import together
from livemove.lab.topology import Cable, End, Network


async def cut(lab: Lab, which: int | str, *, host: str | None = None) -> None:
    """Pull the cable: `host`, or everybody, loses the carrier of that network.

    On a direct link of two hosts one end has to be set down for the other to lose its carrier: it is the other host's, or
    the last host's without `host`. There the interface is down, and so its routes are gone. Behind a switch every host
    just sees NO-CARRIER.
    Raises BadDefinition for an unknown network or host.
    """
    await together(*(_set(lab, end, "down") for end in _far_ends(lab.spec.network(which), host)))


async def heal(lab: Lab, which: int | str, *, host: str | None = None) -> None:
    """Plug the cables in again and let all packets pass; rates and MTUs stay as they are.

    Returns when packets pass. Raises BadDefinition for an unknown network or host.
    """
    network = lab.spec.network(which)
    ends = [end for cable in network.cables_of(host) for end in cable.ends]
    await _filter(lab, ((end, ingress.take_away(TABLE, purpose, end)) for end in ends for purpose in PURPOSES))
    # addresses survived; routes of an interface that was down did not
    await together(*(lab.tools.ip(lab.spec.namespace(end.member), links.connection(end, network)) for end in ends))
    await links.wait_ends(lab.tools, lab.spec, ends)


async def restore(lab: Lab, which: int | str, *, host: str | None = None) -> None:
    """:func:`heal`, and rates and MTUs as the lab was defined. Raises BadDefinition for an unknown network or host."""
    await heal(lab, which, host=host)
    network = lab.spec.network(which)
    for cable in network.cables_of(host):
        for end in cable.ends:
            await lab.tools.ip(lab.spec.namespace(end.member), [f"link set {end.interface} mtu {end.mtu}"])
        await set_rate(lab, which, network.spec.rate_bytes_per_s, host=cable.near.member)


async def black_hole(lab: Lab, which: int | str, *, sender: str | None = None) -> None:
    """What `sender`, or everybody, sends on the network vanishes, ARP included, while all carriers stay.

    Raises BadDefinition for an unknown network or host.
    """
    await _vanish(lab, lab.spec.network(which), BLACK_HOLE, sender, "drop", "all that it sends vanishes")


async def lose(lab: Lab, which: int | str, percent: float, *, sender: str | None = None) -> None:
    """Packets that `sender`, or everybody, sends on the network vanish at random, `percent` of them; 0 ends that.

    With offloads a packet here is a bundle of up to 64 KiB: links with ``offloads=off`` lose as networks do. Raises
    BadDefinition for an unknown network or host, BadQuantity for a percentage that is none.
    """
    if not 0 <= percent <= 100:
        raise BadQuantity(f"A loss is 0 to 100 percent, not {percent:g}.", remedy="Write such as 1 or 0.5.")
    network, of_10000 = lab.spec.network(which), round(percent * 100)
    if not of_10000:
        await _filter(lab, ((end, ingress.take_away(TABLE, LOSS, end)) for end in _arrivals(network, sender)))
        return
    # nft takes no comparison that is always true
    rule = "drop" if of_10000 == 10_000 else f"numgen random mod 10000 < {of_10000} drop"
    await _vanish(lab, network, LOSS, sender, rule, f"{percent:g} % of what it sends is lost")


async def drop_large(lab: Lab, which: int | str, over_bytes: int, *, sender: str | None = None) -> None:
    """Packets with more than `over_bytes` that `sender`, or everybody, sends on the network vanish: an MTU of one direction.

    Nobody is told. Offloads of the network are switched off for good, since bundles of small packets would vanish too.
    Raises BadDefinition for an unknown network or host, BadQuantity for a size that is no MTU.
    """
    network = lab.spec.network(which)
    check_mtu(over_bytes)
    links.trim(lab.spec, network)
    rule = ingress.larger_than(over_bytes)
    await _vanish(lab, network, LARGE, sender, rule, f"packets over {over_bytes} B that it sends vanish")


async def set_rate(lab: Lab, which: int | str, rate_bytes_per_s: int | None, *, host: str | None = None) -> None:
    """Change the rate in both directions, of the network or of `host`'s cable, with a queue of as much time; None: unshaped.

    Connections live on. Unless the link is `switched`, a queueing discipline that somebody gave a host's NIC is replaced.
    Raises BadDefinition for an unknown network or host, BadQuantity for a rate out of range.
    """
    network = lab.spec.network(which)
    spec = rescaled(network.spec, rate_bytes_per_s)
    cables = network.cables_of(host)
    await _lead(lab, cables, through_uplinks=rate_bytes_per_s is not None)
    for member, interface in (place for cable in cables for place in cable.shaped):
        namespace = lab.spec.namespace(member)
        if spec.rate_bytes_per_s is not None:
            await lab.tools.tc(namespace, [links.shaper(interface, spec)])
        elif interface in (await in_force.look(lab.tools, namespace)).rates_bytes_per_s:
            await lab.tools.tc(namespace, [f"qdisc del dev {interface} root"])


def rescaled(spec: LinkSpec, rate_bytes_per_s: int | None) -> LinkSpec:
    """The link with another rate, its queue holding as much time as before. Raises BadQuantity."""
    queue_bytes = None
    if spec.queue_bytes is not None and spec.rate_bytes_per_s and rate_bytes_per_s:
        queue_bytes = max(1, spec.queue_bytes * rate_bytes_per_s // spec.rate_bytes_per_s)
    return replace(spec, rate_bytes_per_s=rate_bytes_per_s, queue_bytes=queue_bytes)


async def set_mtu(lab: Lab, which: int | str, host: str, mtu: int) -> None:
    """Change the MTU of one host's NIC, as its administrator would.

    A switch passes all sizes unless it has an MTU of its own. On a direct cable nothing larger than the other host's MTU
    arrives. Raises BadDefinition for an unknown network or host, BadQuantity for an MTU that no NIC has.
    """
    end = lab.spec.network(which).end_of(host)
    await lab.tools.ip(lab.spec.namespace(end.member), [f"link set {end.interface} mtu {check_mtu(mtu)}"])


def kill(lab: Lab, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process of the lab: SIGKILL for a crash, SIGSTOP and SIGCONT for a hang.

    Raises Conflict when it is not a process of the lab, or has ended.
    """
    processes.send(pid, number, lab=lab.spec.name, namespaces=lab.namespace_ids)


def _far_ends(network: Network, host: str | None) -> list[End]:
    """The other ends of the host's cable, or of all: where its carrier comes from and its packets arrive."""
    if host is not None:
        return [network.opposite_of(host)]
    return [cable.far for cable in network.cables]


async def _set(lab: Lab, end: End, state: str) -> None:
    await lab.tools.ip(lab.spec.namespace(end.member), [f"link set {end.interface} {state}"])


async def _vanish(lab: Lab, network: Network, purpose: str, sender: str | None, rule: str, said: str) -> None:
    """Have packets of the sender, or of all, vanish by a rule where they arrive."""
    put = ((end, ingress.put(TABLE, purpose, end, ingress.FAULT, rule, said)) for end in _arrivals(network, sender))
    await _filter(lab, put)


def _arrivals(network: Network, sender: str | None) -> list[End]:
    """The ends where arrives what the sender, or anybody, sends on its own cable."""
    return list(network.ends) if sender is None and network.direct else _far_ends(network, sender)


async def _lead(lab: Lab, cables: Iterable[Cable], *, through_uplinks: bool) -> None:
    """Have what hosts send on a `switched` link pass its queues, or not."""
    switched = [cable for cable in cables if cable.uplink is not None]
    lead = links.lead_through if through_uplinks else links.lead_past
    await _filter(lab, ((cable.far, lead(cable)) for cable in switched))


async def _filter(lab: Lab, rules: Iterable[tuple[End, str]]) -> None:
    """Apply rules where they belong, those of one namespace all at once or not at all."""
    texts = defaultdict[str, str](str)
    for end, text in rules:
        texts[end.member] += text
    await together(*(lab.tools.nft(lab.spec.namespace(member), text) for member, text in texts.items()))
