"""What a network namespace holds that a journey may change: taken before and after, the two must be equal."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

_QUESTIONS = {
    "sysctls": "grep -rs '' /proc/sys/net/mptcp /proc/sys/net/core /proc/sys/net/ipv4 /proc/sys/net/ipv6",
    "routes": "ip -4 -d route show table all",
    "routes6": "ip -6 -d route show table all",
    "rules": "ip rule; ip -6 rule",
    "mptcp": "ip mptcp limits; ip mptcp endpoint",
    "qdiscs": "tc qdisc show",
    "classes": "for nic in $(ls /proc/sys/net/ipv4/conf); do tc class show dev $nic 2>/dev/null; tc filter show dev $nic 2>/dev/null; done",
    "filters": "nft list ruleset",
}
#: What moves by itself: lifetimes, what the kernel counts, and the seed that it draws once somebody needs it.
_MOVES = re.compile(
    r" expires \d+sec| expires 0sec|^/proc/sys/net/[^ ]*(stable_secret|/tcp_fastopen_key|/route/flush)[^ ]*:.*$", re.M
)
_SECTION = "=== "


def snapshot(namespace: str) -> dict[str, str]:
    """What is there now, by kind.

    :param namespace: a name below /run/netns.
    """
    script = "; ".join(f"echo '{_SECTION}{kind}'; {question}" for kind, question in _QUESTIONS.items())
    done = subprocess.run(
        ["nsenter", f"--net={Path('/run/netns') / namespace}", "--", "sh", "-c", script],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    parts = done.stdout.split(_SECTION)[1:]
    found = {kind: _MOVES.sub("", text) for kind, _, text in (part.partition("\n") for part in parts)}
    assert list(found) == list(_QUESTIONS) and "net/mptcp/enabled" in found["sysctls"], done.stderr
    return found


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """The lines that came and went, each with its kind; empty: as before."""
    found = []
    for kind in _QUESTIONS:
        old, new = before[kind].splitlines(), after[kind].splitlines()
        found += [f"{kind}: - {line}" for line in old if line not in new]
        found += [f"{kind}: + {line}" for line in new if line not in old]
        if sorted(old) == sorted(new) and old != new:
            found.append(f"{kind}: in another order")
    return found
