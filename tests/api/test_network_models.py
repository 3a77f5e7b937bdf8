"""Bodies about links and networks: what they carry over, and what they do not let in."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from pydantic import ValidationError

from livemove.api.network_models import HostNetworksBody, NetworkRuleBody
from livemove.policy.paths import HostNetworks, LinkFacts, NetworkRule

LINK = LinkFacts(
    "eth1", 2, "bond", 125_000_000, 9000, True, "ixgbe", 8, ("10.1.0.1/24", "fd00::1/64"), ("eth2",), ("rss",)
)
HOST = HostNetworks("A", (LINK,), ("10.1.0.1",), "10.1.0.1")


def test_a_host_survives_the_wire() -> None:
    body = HostNetworksBody.model_validate_json(HostNetworksBody.of(HOST).model_dump_json())
    assert body.networks() == HOST
    rule = NetworkRule("10.1.0.0/24", 7, False, "fast")
    assert NetworkRuleBody.model_validate_json(NetworkRuleBody.of(rule).model_dump_json()).rule() == rule


def changed(path: tuple[str | int, ...], value: Any) -> Any:
    body: Any = HostNetworksBody.of(HOST).model_dump(mode="json")
    found = body
    for key in path[:-1]:
        found = found[key]
    found[path[-1]] = value
    return body


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("incoming",), ["10.1.0"]),
        (("incoming",), ["fe80::1%eth0"]),
        (("preferred",), "nowhere"),
        (("links", 0, "addresses"), ["10.1.0.1"]),
        (("links", 0, "addresses"), ["10.1.0.1/33"]),
        (("links", 0, "addresses"), ["fe80::1%eth0/64"]),
        (("links", 0, "addresses"), ["10.1.0.1/24"] * 257),
        (("links", 0, "index"), -1),
        (("links", 0, "mtu"), 1 << 21),
        (("links", 0, "speed_bytes_per_s"), -1),
        (("links", 0, "name"), "x" * 65),
        (("links",), [asdict(LINK)] * 257),
        (("colour",), "red"),
    ],
)
def test_what_a_peer_may_not_say(path: tuple[str | int, ...], value: Any) -> None:
    with pytest.raises(ValidationError):
        HostNetworksBody.model_validate(changed(path, value))


def test_addresses_get_their_one_spelling() -> None:
    body = HostNetworksBody.model_validate(changed(("links", 0, "addresses"), ["FD00:0::1/64"]))
    assert body.networks().links[0].addresses == ("fd00::1/64",)
    assert HostNetworksBody.model_validate(changed(("preferred",), "")).preferred == ""
