"""What agent and keeper say to each other survives being a line."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemove.base.errors import Bug
from livemove.network.keeper_words import (
    KeeperConfig,
    KeptPath,
    Report,
    config_line,
    config_of,
    line_of,
    report_of,
)

CONFIG = KeeperConfig("source", "j1", 49000, "ab" * 16, (KeptPath(0, "10.0.0.1", "10.0.0.2", "eth0"),))


st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))


@given(st.one_of(*(st.from_type(kind) for kind in get_args(Report))))
def test_reports(report: Report) -> None:
    line = line_of(report)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert report_of(line) == report


def test_every_report_has_a_name_of_its_own() -> None:
    st_names = [kind.__name__ for kind in get_args(Report)]
    assert len(set(st_names)) == len(st_names)


@given(st.binary(max_size=60) | st.sampled_from([b"[]", b"{}", b'{"event":"ready"}', b'{"event":"nothing"}', b"null"]))
def test_other_lines_are_a_bug(line: bytes) -> None:
    with pytest.raises(Bug, match="no report"):
        report_of(line)


def test_configurations() -> None:
    assert config_of(config_line(CONFIG)) == CONFIG


def test_addresses_are_written_as_the_kernel_writes_them() -> None:
    path = KeptPath(0, "FD00:0:0::0001", "fd00:0::2", "eth0")
    [path] = config_of(config_line(replace(CONFIG, paths=(path,)))).paths
    assert (path.local, path.remote) == ("fd00::1", "fd00::2")


@pytest.mark.parametrize(
    "change",
    [
        {"role": "both"},
        {"key": "ab"},
        {"key": "zz" * 16},
        {"port": 0},
        {"port": 65536},
        {"paths": []},
        {"paths": [{"path": 32, "local": "10.0.0.1", "remote": "10.0.0.2", "link": "c"}]},
        {"paths": [{"path": 1, "local": "10.0.0.1", "remote": "10.0.0.2", "link": "c"}] * 2},
        {"paths": [{"path": 1}]},
        {"paths": [{"path": 1, "local": "10.0.0.1", "remote": "host2", "link": "c"}]},
        {"paths": 5},
        {"unknown": 1},
    ],
)
def test_configurations_that_cannot_be(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        config_of(json.dumps({**json.loads(config_line(CONFIG)), **change}).encode())


@given(st.binary(max_size=60))
def test_garbage_is_no_configuration(line: bytes) -> None:
    with pytest.raises(ValueError):
        config_of(line)
