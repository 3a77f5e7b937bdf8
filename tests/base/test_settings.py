"""Settings from TOML: defaults, refusals that name the key, changes that keep comments."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemove.base.errors import BadSetting
from livemove.base.settings import HostSettings, change_settings, load_settings, parse_settings


def test_every_setting_is_described_and_has_a_default():
    assert all(field.description for field in HostSettings.model_fields.values())
    assert parse_settings("") == HostSettings.model_validate({})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("colour = 1", "unknown key 'colour'"),
        ("simultaneous = 0", "'simultaneous' is '0'"),
        ('max_bandwidth = "10"', "is not a rate"),
        ('listen = "localhost"', "'listen'"),
        ('port_range = "1-2"', "FIRST-LAST"),
        ('name = "a b"', "'name'"),
        ('trusted_networks = ["10.0.0.0/99"]', "'trusted_networks'"),
        ("a = = 1", "not TOML"),
        ('downtime = ""', "duration"),
        ('migration_address = "everywhere"', "'migration_address'"),
    ],
)
def test_refusals(text: str, says: str):
    with pytest.raises(BadSetting, match="(?s).*" + says.replace("'", ".")) as refused:
        parse_settings(text)
    assert refused.value.remedy


def test_a_change_keeps_comments_and_is_refused_whole(tmp_path: Path):
    path = tmp_path / "agent.toml"
    path.write_text('# the rack says so\nname = "a"\n')
    changed = change_settings(path, {"simultaneous": "4", "trusted_networks": "10.0.0.0/24, 10.1.0.0/24"})
    assert (changed.simultaneous, len(changed.trusted_networks)) == (4, 2)
    assert path.read_text().startswith("# the rack says so")
    before = path.read_text()
    for wrong in ({"simultaneous": "many"}, {"nope": "1"}, {"downtime": "5"}, {"allow_extra_arguments": "maybe"}):
        with pytest.raises(BadSetting):
            change_settings(path, {"channels": "8", **wrong})
    assert path.read_text() == before
    assert load_settings(path).simultaneous == 4


def test_ports():
    assert list(parse_settings('port_range = "50000-50002"').ports) == [50000, 50001, 50002]


@given(st.text(max_size=200))
def test_garbage_is_always_a_bad_setting(text: str):
    try:
        parse_settings(text)
    except BadSetting:
        return
