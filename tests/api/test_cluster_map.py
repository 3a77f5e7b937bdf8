"""The networks in the cluster's map; its hosts are tried in test_trust.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from livemove.api.cluster_map import ClusterMap, load_map, map_from_json, merge_maps, save_map
from livemove.api.models import ClusterView
from livemove.base.errors import BadSetting, PeerViolation
from livemove.policy.network_rules import MAX_RULES
from livemove.policy.paths import NetworkRule

RULES = (NetworkRule("10.1.0.0/24", 10, name="fast"), NetworkRule("fd00::/64", 20, allowed=False))
CLUSTER = ClusterMap("alpha", 3, {"alpha": "192.0.2.1:7443"})


def test_networks_survive_file_and_wire_and_changes_of_hosts(tmp_path: Path) -> None:
    cluster = CLUSTER.with_networks(RULES[::-1])
    assert (cluster.serial, cluster.networks) == (4, RULES), "by metric"
    save_map(tmp_path / "cluster.toml", cluster)
    assert load_map(tmp_path / "cluster.toml") == cluster == map_from_json(cluster.to_json())
    assert map_from_json(ClusterView.model_validate(cluster.to_json()).model_dump(exclude={"revocations"})) == cluster
    assert cluster.with_host("beta", "192.0.2.2:1").without_host("beta").networks == RULES
    assert merge_maps(CLUSTER, cluster) is cluster


def test_the_same_list_is_no_new_map() -> None:
    cluster = CLUSTER.with_networks(RULES)
    assert cluster.with_networks(RULES[::-1]) is cluster
    assert cluster.with_networks(()).serial == cluster.serial + 1


def test_a_map_from_before_there_were_networks(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text('serial = 3\nauthority = "alpha"\n\n[hosts]\n"alpha" = "192.0.2.1:7443"\n')
    assert load_map(path) == CLUSTER
    assert map_from_json({"authority": "alpha", "serial": 3, "hosts": {"alpha": "192.0.2.1:7443"}}) == CLUSTER


@pytest.mark.parametrize(
    "networks",
    [
        None,
        "10.1.0.0/24",
        {},
        ["10.1.0.0/24"],
        [{"subnet": "10.1.0.0/24"}],
        [{"subnet": "10.1.0.0/24", "metric": True}],
        [{"subnet": "10.1.0.0/24", "metric": "1"}],
        [{"subnet": "10.1.0.0/24", "metric": -1}],
        [{"subnet": "10.1.0.7/24", "metric": 1}],
        [{"subnet": 7, "metric": 1}],
        [{"subnet": "10.1.0.0/24", "metric": 1, "allowed": 1}],
        [{"subnet": "10.1.0.0/24", "metric": 1, "name": 1}],
        [{"subnet": "10.1.0.0/24", "metric": 1, "name": "a b"}],
        [{"subnet": "10.1.0.0/24", "metric": 1, "colour": "red"}],
        [{"subnet": "10.1.0.0/24", "metric": 1}] * 2,
        [{"subnet": "10.1.0.0/24", "metric": 1}] * (MAX_RULES + 1),
    ],
)
def test_networks_that_are_none(networks: Any, tmp_path: Path) -> None:
    with pytest.raises(PeerViolation):
        map_from_json({**CLUSTER.to_json(), "networks": networks})


def test_a_file_that_was_edited_badly_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    save_map(path, CLUSTER.with_networks(RULES))
    path.write_text(path.read_text().replace('"fd00::/64"', '"fd00::1/64"'))
    with pytest.raises(BadSetting, match=r"cluster\.toml: .*'fd00::1/64' is an address on fd00::/64"):
        load_map(path)
