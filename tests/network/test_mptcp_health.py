"""Why MPTCP was not used: the setting is named where a counter tells."""

from __future__ import annotations

import pytest

from livemove.network.mptcp_health import parse_counters, read_counters, read_setting, why_missing, why_plain


@pytest.mark.parametrize(
    ("grew", "enabled", "words"),
    [
        ({}, "0", "net.mptcp.enabled"),
        ({}, "", "net.mptcp.enabled"),
        ({"MPCapableSYNTXDisabled": 1, "Blackhole": 1}, "1", "had switched MPTCP off"),
        ({"Blackhole": 1, "MPCapableSYNTXDrop": 1}, "1", "net.mptcp.blackhole_timeout (3600 s)"),
        ({"MPCapableSYNTXDrop": 1}, "1", "net.mptcp.syn_retrans_before_tcp_fallback"),
        ({"MPCapableFallbackSYNACK": 1}, "1", "net.mptcp.enabled is not 1 there"),
        ({"MPCapableFallbackACK": 1}, "1", "in the handshake"),
        ({"DssFallback": 2}, "1", "changes TCP options"),
        ({"MPCapableDataFallback": 2}, "1", "changes TCP options"),
        ({"Other": 2}, "1", "does not say why"),
    ],
)
def test_plain(grew: dict[str, int], enabled: str, words: str) -> None:
    before = dict.fromkeys(grew, 5)
    after = {name: 5 + count for name, count in grew.items()}
    assert words in why_plain(before, after, enabled, "3600")
    # counters from before the journey accuse nobody
    if enabled == "1":
        assert "does not say why" in why_plain(after, after, enabled, "3600")


@pytest.mark.parametrize(
    ("grew", "manager", "source", "words"),
    [
        ({}, "0", True, "net.mptcp.pm_type"),
        ({"MPJoinRejected": 1}, "0", False, "ip mptcp limits"),
        ({"MPJoinSynAckHMacFailure": 1}, "1", True, "do not agree"),
        ({"MPJoinNoTokenFound": 1}, "1", False, "do not agree"),
        ({"MPJoinSynTxBindErr": 1}, "1", True, "could not reach"),
        ({"MPJoinSynTxConnectErr": 1}, "1", True, "could not reach"),
        ({"MPJoinSynTx": 1}, "1", True, "does not answer"),
        ({"MPJoinSynTx": 1, "MPJoinSynAckRx": 1}, "", True, "does not say why"),
    ],
)
def test_missing(grew: dict[str, int], manager: str, source: bool, words: str) -> None:
    assert words in why_missing({}, grew, manager, source=source)


def test_counters_are_parsed_or_left() -> None:
    assert parse_counters(["MPTcpExt: A B C", "MPTcpExt: 1 22 -3"]) == {"A": 1, "B": 22}
    assert parse_counters(["MPTcpExt: A B", "MPTcpExt: 1"]) == {"A": 1}
    for lines in ([], ["MPTcpExt: A"], ["a", "b", "c"]):
        assert parse_counters(lines) == {}


def test_this_kernel_is_read() -> None:
    assert "MPCapableSYNTX" in read_counters()
    assert read_setting("enabled") in ("0", "1") and read_setting("no_such_setting") == ""
