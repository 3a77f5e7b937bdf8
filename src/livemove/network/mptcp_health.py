"""Why MPTCP was not used, or not fully, as far as this host's kernel tells: settings and counters, as a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from livemove.network.keeper_words import FellBack, Report, SubflowsMissing

_COUNTERS = Path("/proc/self/net/netstat")
_SETTINGS = Path("/proc/sys/net/mptcp")
_PREFIX = "MPTcpExt:"


def explained(report: Report, before: Mapping[str, int], *, source: bool) -> Report:
    """The report with its reason, where it has none yet and needs one.

    :param before: counters from before the journey's connections began.
    :param source: whether this is the source, which makes the subflows.
    """
    if isinstance(report, FellBack):
        enabled, timeout = read_setting("enabled"), read_setting("blackhole_timeout")
        return replace(report, reason=why_plain(before, read_counters(), enabled, timeout))
    if isinstance(report, SubflowsMissing) and not report.reason:
        return replace(report, reason=why_missing(before, read_counters(), read_setting("pm_type"), source=source))
    return report


def read_counters() -> dict[str, int]:
    """MPTCP's counters of this network namespace; empty where the kernel has none."""
    try:
        lines = [line for line in _COUNTERS.read_text().splitlines() if line.startswith(_PREFIX)]
    except OSError:
        return {}
    return parse_counters(lines)


def parse_counters(lines: list[str]) -> dict[str, int]:
    """The counters of a line of names and a line of numbers; empty when it is something else."""
    if len(lines) != 2:
        return {}
    names, values = (line.split()[1:] for line in lines)
    return {name: int(value) for name, value in zip(names, values, strict=False) if value.isdecimal()}


def read_setting(name: str) -> str:
    """A sysctl below net.mptcp; empty where it is not there."""
    try:
        return (_SETTINGS / name).read_text().strip()
    except OSError:
        return ""


def why_plain(before: Mapping[str, int], after: Mapping[str, int], enabled: str, blackhole_timeout: str) -> str:
    """Why a connection is plain TCP: a sentence for people.

    :param before: counters from before the connection began.
    :param enabled: net.mptcp.enabled of this host.
    """
    if enabled != "1":
        return "MPTCP is switched off on this host: net.mptcp.enabled is not 1."

    def grew(name: str) -> bool:
        return after.get(name, 0) > before.get(name, 0)

    if grew("MPCapableSYNTXDisabled"):
        return (
            "The kernel of this host had switched MPTCP off because connections with it were lost before "
            f"(net.mptcp.blackhole_timeout is {blackhole_timeout or 'unknown'} s)."
        )
    if grew("Blackhole"):
        return (
            "First packets with MPTCP were lost while one without arrived, so the kernel of this host has switched MPTCP "
            f"off for net.mptcp.blackhole_timeout ({blackhole_timeout or 'unknown'} s)."
        )
    if grew("MPCapableSYNTXDrop"):
        return "First packets were lost, so the kernel gave MPTCP up (net.mptcp.syn_retrans_before_tcp_fallback)."
    if grew("MPCapableFallbackSYNACK"):
        return "The other host answered without MPTCP: net.mptcp.enabled is not 1 there, or something between strips it off."
    if grew("MPCapableFallbackACK"):
        return "The other host, or something between, went back to plain TCP in the handshake."
    if grew("MPCapableDataFallback") or grew("DssFallback"):
        return "Something between the hosts changes TCP options or data, so the kernel gave MPTCP up."
    return "The kernel does not say why."


def why_missing(before: Mapping[str, int], after: Mapping[str, int], path_manager: str, *, source: bool) -> str:
    """Why a connection lacks a subflow: a sentence for people."""

    def grew(name: str) -> bool:
        return after.get(name, 0) > before.get(name, 0)

    if source and path_manager not in ("", "1"):
        return "The source's net.mptcp.pm_type is not 1, so subflows cannot be made by command."
    if grew("MPJoinRejected"):
        return "This host refused to join: its limit of subflows ('ip mptcp limits') is reached."
    if grew("MPJoinSynAckHMacFailure") or grew("MPJoinAckHMacFailure") or grew("MPJoinNoTokenFound"):
        return "The hosts do not agree about the connection: something between changes its addresses or TCP options."
    if grew("MPJoinSynTxBindErr") or grew("MPJoinSynTxConnectErr"):
        return "The kernel of this host could not reach the other address from this one."
    if grew("MPJoinSynTx") and not grew("MPJoinSynAckRx"):
        return "The other host does not answer: its limits ('ip mptcp limits'), its packet filter or its listener's address."
    return "The kernel does not say why."
