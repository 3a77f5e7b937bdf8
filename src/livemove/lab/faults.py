"""Breaking a lab's networks while they run, and mending them: what cables, switches and processes do on a bad day.

A network is given by number (a link) or by name: ``link0``, ``control``, ``guests``. Every fault ends with the lab.
"""

from __future__ import annotations

import contextlib
import signal

from livemove.base.errors import MissingPrerequisite
from livemove.lab import links, processes
from livemove.lab.lab import Lab
from livemove.lab.namespaces import together
from livemove.lab.topology import End, LinkSpec, Network

TABLE = "livemove_lab"


async def cut(lab: Lab, which: int | str, *, host: str | None = None) -> None:
    """Pull the cable: `host`, or everybody, loses the carrier of that network. May be repeated.

    On a direct link of two hosts one end has to be set down for the other to lose its carrier: without `host` it is the
    last host's, so the first host sees NO-CARRIER and the last one an interface that is down.
    Raises BadDefinition for an unknown network or host.
    """
    await together(*(_set(lab, end, "down") for end in _far_ends(lab.spec.network(which), host)))


async def heal(lab: Lab, which: int | str) -> None:
    """Plug all cables in again and end the black holes of the network; its rate stays. May be repeated.

    Returns when packets pass. Raises BadDefinition for an unknown network.
    """
    network = lab.spec.network(which)
    ends = [end for cable in network.cables for end in cable.ends]
    await together(*(_open(lab, end) for end in ends))
    # addresses survived; routes of an interface that was down did not
    await together(*(lab.tools.ip(lab.spec.namespace(end.member), links.connection(end, network)) for end in ends))
    await links.wait_ready(lab.tools, lab.spec, [network])


async def black_hole(lab: Lab, which: int | str, *, sender: str | None = None) -> None:
    """What `sender`, or everybody, sends on the network vanishes, ARP included, while all carriers stay. May be repeated.

    Raises BadDefinition for an unknown network or host.
    """
    network = lab.spec.network(which)
    ends = _far_ends(network, sender)
    if sender is None and network.direct:
        ends = list(network.cables[0].ends)
    await together(*(_swallow(lab, end) for end in ends))


async def set_rate(lab: Lab, which: int | str, rate_bytes_per_s: int | None) -> None:
    """Change the network's rate in both directions, with its queue worth as many milliseconds as before; None: unshaped.

    Connections live on. Raises BadDefinition for an unknown network, BadQuantity for a rate out of range.
    """
    network = lab.spec.network(which)
    spec = rescaled(network.spec, rate_bytes_per_s)
    for end in (end for cable in network.cables for end in cable.ends):
        namespace = lab.spec.namespace(end.member)
        if spec.rate_bytes_per_s is not None:
            await lab.tools.tc(namespace, [links.shaper(end.interface, spec)])
        else:
            # fails when there is nothing to remove
            with contextlib.suppress(MissingPrerequisite):
                await lab.tools.tc(namespace, [f"qdisc del dev {end.interface} root"])


def rescaled(spec: LinkSpec, rate_bytes_per_s: int | None) -> LinkSpec:
    """The link with another rate, its queue holding as much time as before. Raises BadQuantity."""
    queue_bytes = None
    if spec.queue_bytes is not None and spec.rate_bytes_per_s and rate_bytes_per_s:
        queue_bytes = max(1, spec.queue_bytes * rate_bytes_per_s // spec.rate_bytes_per_s)
    return LinkSpec(rate_bytes_per_s, queue_bytes, spec.mtu, spec.offloads)


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


async def _swallow(lab: Lab, end: End) -> None:
    # ingress, not input: it takes ARP as well, and works for the ports of a bridge
    await lab.tools.nft(
        lab.spec.namespace(end.member),
        f"add table netdev {TABLE}\n"
        f'add chain netdev {TABLE} {_chain(end)} {{ type filter hook ingress device "{end.interface}" '
        f"priority -500; policy drop; }}\n",
    )


async def _open(lab: Lab, end: End) -> None:
    # adding first makes deleting right whether or not it was there; nft does both or neither
    await lab.tools.nft(
        lab.spec.namespace(end.member),
        f"add table netdev {TABLE}\nadd chain netdev {TABLE} {_chain(end)}\ndelete chain netdev {TABLE} {_chain(end)}\n",
    )


def _chain(end: End) -> str:
    return "drop_" + end.interface.replace("-", "_")
