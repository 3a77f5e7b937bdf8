"""The record of network changes: whatever is in it, it is read or set aside, and nothing else happens."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from livemove.base.clock import boot_id
from livemove.network.host_changes import HostChanges
from livemove.network.kernel_state import namespace_cookie

from .profile import altered, anything, fuzz

ENTRIES = [
    {"kind": "sysctl", "key": "net/mptcp/enabled", "before": "0", "ours": "1", "journeys": ["j1"]},
    {"kind": "endpoint", "key": "10.0.0.11", "before": None, "ours": None, "journeys": ["j1"]},
    {"kind": "neighbour", "key": "10.0.0.2 eth0", "before": None, "ours": None, "journeys": ["j1"]},
    {"kind": "mptcp", "key": "limits", "before": [2, 0], "ours": [8, 0], "journeys": ["j1", "j2"]},
    {
        "kind": "route", "key": "10.0.0.2", "before": "AiAAAP4CAAEAAAAACAAPAP4AAAA=", "journeys": ["j1"],
        "ours": {"peer": "10.0.0.2", "link": "eth0", "source": "10.0.0.1", "congctl": "cubic", "mtu": 0, "advmss": 0},
    },
]  # fmt: skip


def record(entries: object) -> bytes:
    return json.dumps({"boot": boot_id(), "namespace": namespace_cookie(), "held": entries}).encode()


entries = st.lists(
    st.sampled_from(ENTRIES).flatmap(
        lambda entry: st.dictionaries(st.sampled_from(sorted(entry)), anything, max_size=2).map(
            lambda odd: {**entry, **odd}
        )
    )
)


@fuzz
@given(st.binary(max_size=60) | anything.map(record) | entries.map(record) | altered(record(ENTRIES)))
@example(record([{**ENTRIES[3], "before": []}]))
@example(record([{**ENTRIES[4], "ours": {"peer": "10.0.0.2", "link": 4, "source": ""}}]))
def test_any_record_is_read_or_set_aside(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "host-changes.json"
        path.write_bytes(data)
        # only looked at: taking back would change this machine's own network
        held = asyncio.run(HostChanges(path).held())
        assert all(held.values())
        assert not (held and not path.exists())


def test_a_whole_one_is_read() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "host-changes.json"
        path.write_bytes(record(ENTRIES))
        assert {journey: len(names) for journey, names in asyncio.run(HostChanges(path).held()).items()} == {
            "j1": 5,
            "j2": 1,
        }
