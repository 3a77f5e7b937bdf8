"""The cluster's list of networks: changed on the authority's host, followed by the others; and what a host says of itself."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from livemove.agent import following
from livemove.agent.following import Follower
from livemove.agent.identity import host_identity_dir
from livemove.agent.join import JoinRequest, LabHost, finish_join, invite, join_request, make_lab_cluster, redeem
from livemove.agent.membership import Membership
from livemove.agent.networks import host_networks, set_networks
from livemove.api.client import AgentClient
from livemove.api.client_identity import Identity
from livemove.api.cluster_map import load_map
from livemove.base.clock import ManualClock, SystemClock
from livemove.base.errors import BadSetting, Conflict, NoIdentity
from livemove.base.settings import HostSettings
from livemove.policy.paths import NetworkRule

RULES = (NetworkRule("10.1.0.0/24", 10, name="fast"), NetworkRule("10.2.0.0/24", 20))


@pytest.fixture
def identities(tmp_path: Path) -> dict[str, Identity]:
    hosts = [LabHost("alpha", tmp_path / "alpha", "192.0.2.1:1"), LabHost("beta", tmp_path / "beta", "192.0.2.2:1")]
    return make_lab_cluster(hosts, people={}, clock=ManualClock())


def serial_of(identity: Identity) -> int:
    return load_map(identity.map_path).serial


def test_the_list_is_changed_where_the_authority_is(identities: dict[str, Identity], tmp_path: Path) -> None:
    before = serial_of(identities["alpha"])
    changed = set_networks(tmp_path / "alpha", before, RULES[::-1])
    assert (changed.serial, changed.networks) == (before + 1, RULES)
    assert load_map(identities["alpha"].map_path) == changed
    # the same again, even from an old map, is no change
    assert set_networks(tmp_path / "alpha", before, RULES).serial == before + 1
    with pytest.raises(Conflict, match=f"it is number {before + 1}, not {before}"):
        set_networks(tmp_path / "alpha", before, ())
    with pytest.raises(BadSetting):
        set_networks(tmp_path / "alpha", before + 1, (NetworkRule("10.1.0.7/24", 1),))
    with pytest.raises(NoIdentity, match="does not hold the cluster's authority"):
        set_networks(tmp_path / "beta", before, ())
    assert load_map(identities["alpha"].map_path) == changed


def test_who_joins_gets_the_list(identities: dict[str, Identity], tmp_path: Path) -> None:
    clock = ManualClock()
    set_networks(tmp_path / "alpha", serial_of(identities["alpha"]), RULES)
    pending = join_request(invite(tmp_path / "alpha", "gamma", clock=clock), address="192.0.2.3:1")
    answer = redeem(tmp_path / "alpha", JoinRequest(**pending.request.model_dump()), clock=clock)
    joined = finish_join(pending, answer, tmp_path / "gamma")
    assert load_map(joined.map_path).networks == RULES


async def test_the_others_follow(
    identities: dict[str, Identity], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a turn of the follower, which comes every five seconds."""
    assert following.FOLLOW_S <= 5
    monkeypatch.setattr(following, "FOLLOW_S", 0.01)

    def answer(request: httpx.Request) -> httpx.Response:
        body = {**load_map(identities["alpha"].map_path).to_json(), "revocations": ""}
        response = httpx.Response(200, json=body)
        return httpx.Response(200, headers=response.headers, stream=httpx.ByteStream(response.content))

    def client_to(host: str) -> AgentClient:
        http = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="https://192.0.2.1")
        return AgentClient(None, host, "192.0.2.1:1", http=http)

    beta = identities["beta"]
    follower = Follower(
        tmp_path / "beta",
        "beta",
        SystemClock(),
        Membership(host_identity_dir(tmp_path / "beta")),
        lambda: beta,
        client_to,
    )
    follower.start()
    try:
        for rules in (RULES, RULES[:1], ()):
            set_networks(tmp_path / "alpha", serial_of(identities["alpha"]), rules)
            for _ in range(500):
                if load_map(beta.map_path).networks == rules:
                    break
                await asyncio.sleep(0.01)
            assert load_map(beta.map_path) == load_map(identities["alpha"].map_path)
    finally:
        await follower.close()


@pytest.mark.parametrize(
    ("settings", "preferred"),
    [({}, "192.0.2.1"), ({"migration_address": "10.1.0.1", "incoming": ("10.1.0.1",)}, "10.1.0.1")],
)
async def test_what_a_host_offers(settings: dict[str, Any], preferred: str) -> None:
    own = await host_networks(HostSettings(name="A", **settings), "192.0.2.1")
    assert (own.host, own.preferred, own.incoming) == ("A", preferred, settings.get("incoming", ()))
    assert all(link.addresses and link.index > 0 for link in own.links)
