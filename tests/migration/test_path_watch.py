"""The watch over a journey's paths when its keeper is lost."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from tests.network.test_path_keeper import config, eventually
from tests.network.two_hosts import Traffic, TwoHosts

from livemove.migration.path_watch import KeptPaths, at_least
from livemove.network.keeper_words import KeeperTotals, PathCounters

pytestmark = pytest.mark.qemu


async def test_a_lost_keeper_is_told_of_once_and_what_flows_is_counted_on() -> None:
    hosts = TwoHosts()
    told: list[tuple[str, str]] = []
    watch: KeptPaths | None = None
    try:
        with hosts.inside("destination"):
            watch = await KeptPaths.start(
                config(hosts, "destination"), {}, lambda *said: told.append(said), lambda allowed: None
            )
        traffic = await asyncio.to_thread(Traffic, hosts, 2)
        try:
            watch.expect(2)
            assert watch._keeper is not None
            with hosts.inside("destination"):
                os.kill(watch._keeper.pid, signal.SIGKILL)
                await eventually(lambda: bool(told), "the loss is told")
                watch.expect(2)
                watch.allow({})
        finally:
            await asyncio.to_thread(traffic.stop)
        totals = await watch.finish()
        assert [(each.path, each.subflows) for each in totals.paths] == [(0, 2)] and totals.unplanned == ()
        # what MPTCP sent twice is counted twice
        assert traffic.received <= totals.paths[0].bytes_received <= traffic.received * 1.05
        assert [level for _, level in told] == ["warning"] and "has ended" in told[0][0]
        assert traffic.errors == []
        await watch.close()
    finally:
        if watch is not None:
            await watch.close()
        hosts.close()


async def test_a_keeper_that_was_told_to_end_is_not_lost() -> None:
    hosts = TwoHosts(1)
    told: list[tuple[str, str]] = []
    try:
        for end in ("finish", "close"):
            with hosts.inside("source"):
                watch = await KeptPaths.start(
                    config(hosts, "source"), {}, lambda *said: told.append(said), lambda allowed: None
                )
            await getattr(watch, end)()
            await watch.close()
    finally:
        hosts.close()
    assert told == []


def test_what_only_the_keeper_knew_and_what_came_after_it() -> None:
    before = PathCounters(0, "a", "b", bytes_acked=9, subflows=3, open_subflows=1, removed=1, longest_silence_ms=70.0)
    ended = PathCounters(1, "c", "d", bytes_acked=5)
    later = PathCounters(0, "a", "b", bytes_acked=8, bytes_received=4, subflows=1)
    stray = PathCounters(-1, "e", "f", bytes_received=1)
    found = at_least(KeeperTotals((before, ended)), KeeperTotals((later,), (stray,)))
    one = PathCounters(0, "a", "b", bytes_acked=9, bytes_received=4, subflows=3, removed=1, longest_silence_ms=70.0)
    assert found == KeeperTotals((one, ended), (stray,))
