"""Rules that tell packets apart, as text; test_shaping.py has real packets go through them."""

from __future__ import annotations

from pathlib import Path

import pytest

from livemove.network import shaping_rules
from livemove.network.shaping_rules import ShapedJourney, ShapedPath, rules
from livemove.policy.bandwidth import Selectors
from livemove.policy.qos import Marking

LEAVING = ShapedJourney(0, True, (ShapedPath("e0", "10.9.0.2"), ShapedPath("e1", "fd00::2")), 49152)
ARRIVING = ShapedJourney(1, False, (ShapedPath("e0", "10.9.0.4"),), 49154)
STORAGE = Selectors(ports=("99",), addresses=("10.1.0.0/16", "fd01::/64"), presets=("ceph",))


def test_a_journey_s_packets_have_its_class_and_no_one_else_s() -> None:
    text = rules([LEAVING, ARRIVING], STORAGE, 7443)
    assert (
        'oifname "e0" ip daddr 10.9.0.2 tcp dport 49152 counter name journey0_path0 meta priority set 4c4d:100 return'
        in text
    )
    assert (
        'oifname "e1" ip6 daddr fd00::2 tcp dport 49152 counter name journey0_path1 meta priority set 4c4d:100 return'
        in text
    )
    assert 'iifname "e0" ip saddr 10.9.0.4 tcp dport 49154 counter name journey1_path0\n' in text
    assert 'oifname "e0" ip daddr 10.9.0.4 tcp sport 49154 meta priority set 4c4d:10 return' in text
    for end in ("dport", "sport"):
        assert f'oifname "e0" ip daddr 10.9.0.2 udp {end} 49152 meta priority set 4c4d:10 return' in text
        assert f"    tcp {end} 7443 meta priority set 4c4d:10 return" in text
        assert f"th {end} {{ 3300, 6789, 6800-7568, 99 }} meta priority set 4c4d:20" in text
    assert "    ip6 daddr fd01::/64 meta priority set 4c4d:20" in text
    assert text.index("journey0_path0 meta") < text.index("4c4d:20"), "a journey over a storage network is migration"


def test_without_selectors_nothing_is_the_vms_traffic() -> None:
    assert "4c4d:20" not in rules([LEAVING], None, 7443)


def lines(marking: Marking, *, classes: bool) -> list[str]:
    return [line.strip() for line in rules([LEAVING, ARRIVING], STORAGE, 7443, marking, classes=classes).splitlines()]


def test_marks_go_with_classes_but_802_1p_has_the_same_field() -> None:
    found = lines(Marking(dscp=8, priority=4), classes=True)
    assert (
        'oifname "e0" ip daddr 10.9.0.2 tcp dport 49152 counter name journey0_path0 ip dscp set 8 meta priority set 4c4d:100 return'
        in found
    )
    assert 'oifname "e0" ip daddr 10.9.0.4 tcp sport 49154 ip dscp set 8 meta priority set 4c4d:10 return' in found
    assert any("ip6 dscp set 8" in line for line in found)
    assert not any("0:4" in line for line in found)


def test_a_nic_with_classes_of_its_own_takes_the_priority() -> None:
    found = lines(Marking(priority=4, hardware=frozenset({"e0"})), classes=True)
    assert (
        'oifname "e0" ip daddr 10.9.0.2 tcp dport 49152 counter name journey0_path0 meta priority set 0:4 return'
        in found
    )
    assert any(line.startswith('oifname "e1"') and "4c4d:100" in line for line in found)
    assert not any("udp" in line and '"e0"' in line for line in found)


def test_without_classes_packets_are_marked_and_counted_only() -> None:
    found = lines(Marking(dscp=8, priority=4), classes=False)
    assert (
        'oifname "e0" ip daddr 10.9.0.2 tcp dport 49152 counter name journey0_path0 ip dscp set 8 meta priority set 0:4 return'
        in found
    )
    assert 'oifname "e0" ip daddr 10.9.0.4 tcp sport 49154 ip dscp set 8 meta priority set 0:4 return' in found
    assert not any("4c4d" in line or "udp" in line or "7443" in line for line in found)


def test_a_cgroup_is_named_as_nft_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shaping_rules, "_CGROUPS", tmp_path)
    for path in ("a.slice/b", "unified/c"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "cgroup.controllers").touch()
    text = rules([], Selectors(cgroups=("a.slice", "a.slice/b", "c")), 1)
    assert [line.strip() for line in text.splitlines() if "socket" in line] == [
        'socket cgroupv2 level 2 "a.slice/b" meta priority set 4c4d:20',
        'socket cgroupv2 level 1 "unified/c" meta priority set 4c4d:20',
    ]
