"""The packet filter of a journey at its destination: nobody but its source reaches the port that QEMU listens on.

Without TLS it is what keeps strangers out. With TLS their handshake fails, but QEMU then ends the whole journey, or waits
for them in a channel's place: the filter keeps a stranger from disturbing it. With several networks QEMU listens on all
addresses of the host, and the filter is what makes the choice of networks strict at this end.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
from collections.abc import Sequence

from livemove.base.errors import HypervisorError, MissingPrerequisite, PeerViolation
from livemove.network.nft import apply_rules


def filter_name(journey: str) -> str:
    """The nftables table of a journey."""
    return f"livemove_{journey.replace('-', '_')}"


def filter_rules(journey: str, pairs: Sequence[tuple[str, str]], port: int) -> str:
    """A ruleset that admits only these pairs of addresses, source and destination, to `port`; for ``nft -f``.

    TCP carries the memory, UDP what watches the paths. Raises PeerViolation when one of them is no address.
    """
    admitted: dict[str, list[str]] = {"ip": [], "ip6": []}
    for pair in pairs:
        source, destination = (_address(text) for text in pair)
        if source.version != destination.version:
            raise PeerViolation(f"{source} and {destination} cannot be the ends of one path.")
        admitted["ip6" if source.version == 6 else "ip"].append(f"{source} . {destination}")
    lines = []
    for protocol in ("tcp", "udp"):
        for family, ends in admitted.items():
            if ends:
                lines.append(f"{protocol} dport {port} {family} saddr . {family} daddr {{ {', '.join(ends)} }} accept")
        lines.append(f"{protocol} dport {port} drop")
    rules = "".join(f"    {line}\n" for line in lines)
    return (
        f"table inet {filter_name(journey)} {{\n"
        "  chain input {\n"
        "    type filter hook input priority -10; policy accept;\n"
        f"{rules}"
        "  }\n"
        "}\n"
    )


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError as error:
        raise PeerViolation(f"{text!r:.60} is no address that a path can have.") from error


async def admit_only(journey: str, pairs: Sequence[tuple[str, str]], port: int) -> None:
    """Put the packet filter in place before QEMU listens. Raises MissingPrerequisite when nft cannot."""
    await _nft(filter_rules(journey, pairs, port))


async def remove_filter(journey: str) -> None:
    """Take the packet filter away; harmless when there is none."""
    with contextlib.suppress(HypervisorError, MissingPrerequisite):
        await _nft(f"table inet {filter_name(journey)}\ndelete table inet {filter_name(journey)}\n")


async def list_filters() -> list[str]:
    """The tables that may be filters of journeys, anybody's; none where there is no nft."""
    try:
        process = await asyncio.create_subprocess_exec(
            "nft", "-j", "list", "tables",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        return []
    said, _ = await process.communicate()
    return read_filters(said)


def read_filters(said: bytes) -> list[str]:
    """:func:`list_filters` on the text that nft printed; none when it printed something else."""
    try:
        entries = json.loads(said or b"{}").get("nftables", [])
        tables = [entry["table"] for entry in entries if "table" in entry]
        return [str(table["name"]) for table in tables if table["family"] == "inet"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []


async def _nft(rules: str) -> None:
    remedy = "Install nftables and give the agent CAP_NET_ADMIN, or use TLS (empty 'trusted_networks')."
    await apply_rules(rules, "The packet filter of a journey", remedy)
