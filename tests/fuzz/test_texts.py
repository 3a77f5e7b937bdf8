"""Texts that people, peers and the kernel give: each becomes what it says or an error of ours, never anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from livemove.agent.fitness import read_frozen
from livemove.api.cluster_map import map_from_json
from livemove.api.models import ReportView
from livemove.base.errors import LivemoveError
from livemove.base.settings import HostSettings, change_settings, parse_settings
from livemove.base.units import parse_duration, parse_rate, parse_size
from livemove.hypervisor.definition import Definition, parse_definition
from livemove.hypervisor.frozen import FrozenVm
from livemove.hypervisor.launch import cgroup2_mount
from livemove.hypervisor.machine_facts import memory_available_bytes
from livemove.hypervisor.memory import describe_smaps
from livemove.hypervisor.qmp import is_answer
from livemove.lab.reference import parse_fields
from livemove.migration.packet_filter import read_filters

from .frozen import frozen_vm
from .profile import altered, anything, fuzz

DEFINITION = b"""
name = "web1"
memory.size = "1GiB"
memory.backing = "hugetlb"
cpu = { count = 2, model = "qemu64" }
[[disk]]
path = "/srv/web1.qcow2"
format = "qcow2"
cache = "none"
[[nic]]
bridge = "br0"
mac = "52:54:00:12:34:56"
"""
SETTINGS = b"""
name = "A"
listen = "192.0.2.1:7443"
trusted_networks = ["192.0.2.0/24"]
simultaneous = 4
max_bandwidth = "8Gbit"
deadline = "10m"
allow_extra_arguments = false
disk_reserve = "16MiB"
"""
SMAPS = b"""7f00-7fff rw-s 00000000 00:01 1 /memfd:memory-backend-memfd (deleted)
Rss:   4 kB
ShmemPmdMapped: 0 kB
"""


def text_of(data: bytes) -> str:
    """What a file or a body of those bytes is read as; one that is no UTF-8 is refused before."""
    return data.decode(errors="replace")


@fuzz
@given(altered(DEFINITION).map(text_of))
def test_definitions(text: str) -> None:
    with suppress(LivemoveError):
        assert isinstance(parse_definition(text), Definition)


@fuzz
@given(altered(SETTINGS).map(text_of))
def test_settings(text: str) -> None:
    with suppress(LivemoveError):
        assert isinstance(parse_settings(text), HostSettings)


@fuzz
@given(st.dictionaries(st.sampled_from(sorted(HostSettings.model_fields)), st.text(max_size=20), min_size=1, max_size=3),
       altered(SETTINGS))  # fmt: skip
def test_changes_of_settings_leave_a_file_that_can_be_read_or_the_old_one(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, str], present: bytes
) -> None:
    path = tmp_path_factory.mktemp("etc") / "agent.toml"
    path.write_bytes(present)
    try:
        settings = change_settings(path, changes)
    except LivemoveError:
        assert path.read_bytes() == present
    else:
        assert parse_settings(path.read_text()) == settings


@fuzz
@given(st.text(max_size=20) | st.from_regex(r"\A[0-9.e+-]{1,400}[A-Za-z/]{0,6}\Z"))
def test_quantities(text: str) -> None:
    for parse in (parse_size, parse_rate, parse_duration):
        with suppress(LivemoveError):
            assert parse(text) >= 0


@fuzz
@given(altered(frozen_vm().model_dump_json().encode()).map(text_of) | anything.map(json.dumps))
def test_frozen_definitions_of_a_peer(text: str) -> None:
    with suppress(LivemoveError):
        assert isinstance(read_frozen(text), FrozenVm)


@fuzz
@given(anything)
def test_cluster_maps(data: Any) -> None:
    with suppress(LivemoveError):
        map_from_json(data)


@fuzz
@given(st.dictionaries(st.sampled_from(["authority", "serial", "hosts", "networks"]), anything))
def test_cluster_maps_with_the_right_keys(data: Any) -> None:
    with suppress(LivemoveError):
        map_from_json(data)


@fuzz
@given(anything | st.lists(st.dictionaries(st.sampled_from(["subnet", "metric", "allowed", "name"]), anything)))
def test_networks_of_a_cluster_map(networks: Any) -> None:
    with suppress(LivemoveError):
        map_from_json({"authority": "A", "serial": 1, "hosts": {"A": "192.0.2.1:1"}, "networks": networks})


@fuzz
@given(st.dictionaries(st.sampled_from(sorted(ReportView.model_fields)), anything).map(json.dumps))
def test_reports_of_a_peer(text: str) -> None:
    with suppress(ValidationError):
        ReportView.model_validate_json(text)


@fuzz
@given(st.sampled_from(["query-status", "query-migrate", "query-migrate-capabilities"]), anything)
def test_answers_of_qemu(command: str, answer: Any) -> None:
    assert is_answer(command, answer) in (True, False)


# What the kernel and programs print: nothing there is an error, it is read as far as it can be -----------------------


def _meminfo(text: str, directory: Path) -> None:
    path = directory / "meminfo"
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert memory_available_bytes(path) >= 0


@pytest.mark.parametrize(
    ("sample", "read"),
    [
        (b"41 31 0:38 / /sys/fs/my\\040cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw\n", lambda text, _: cgroup2_mount(text)),
        (SMAPS, lambda text, _: describe_smaps(text, frozen_vm(), allocated_bytes=None, shmem_enabled="never", thp_enabled="never")),
        (b"MemTotal: 100 kB\nMemAvailable:  12 kB\n", _meminfo),
        (b'{"nftables": [{"table": {"family": "inet", "name": "livemove_1"}}]}', lambda text, _: read_filters(text.encode(errors="surrogateescape"))),
        (b"ok pages=4 bad=0 t_ms=5\n", lambda text, _: parse_fields(text)),
    ],
    ids=["mountinfo", "smaps", "meminfo", "nft", "guest"],
)  # fmt: skip
@fuzz
@given(data=st.data())
def test_texts_of_the_machine(
    tmp_path_factory: pytest.TempPathFactory, sample: bytes, read: Callable[[str, Path], object], data: st.DataObject
) -> None:
    with suppress(LivemoveError):
        read(data.draw(altered(sample)).decode(errors="surrogateescape"), tmp_path_factory.getbasetemp())
