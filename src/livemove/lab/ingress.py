"""nftables rules for what arrives at an end of a cable: each purpose a chain of its own, put there whole, taken away whole.

Ingress, not input: it takes ARP as well, works for the ports of a bridge, and sees the packets of one cable and direction
only. Pure: texts for ``nft -f``. Every text may be repeated.
"""

from __future__ import annotations

from livemove.lab.topology import End

#: Faults, the first a packet meets; then what the switch does itself.
FAULT, SWITCH_MTU, UPLINK = -500, -200, -100


def put(table: str, purpose: str, end: End, priority: int, rule: str, comment: str = "") -> str:
    """A chain with one rule, in place of the one that is there. `comment` is for people and for 'lab status'."""
    name = chain_name(purpose, end)
    said = f' comment "{comment}"' if comment else ""
    return (
        f"add table netdev {table}\n"
        f'add chain netdev {table} {name} {{ type filter hook ingress device "{end.interface}" priority {priority}; }}\n'
        f"flush chain netdev {table} {name}\n"
        f"add rule netdev {table} {name} {rule}{said}\n"
    )


def take_away(table: str, purpose: str, end: End) -> str:
    """Without the chain, whether or not it is there."""
    name = chain_name(purpose, end)
    return (
        f"add table netdev {table}\nadd chain netdev {table} {name}\n"
        f"flush chain netdev {table} {name}\ndelete chain netdev {table} {name}\n"
    )


def larger_than(size_bytes: int) -> str:
    """The rule by which packets with more than so many bytes vanish, the Ethernet header not counted.

    A bundle of packets that offloads make counts as one: they must be off on the whole link.
    """
    return f"meta length > {size_bytes} drop"


def chain_name(purpose: str, end: End) -> str:
    # names in nftables have no '-'; those of interfaces have one, and no '_'
    return f"{purpose}_{end.interface.replace('-', '_')}"
