"""The routes of bandwidth limits: what is refused changes nothing, what is set is kept and governed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from livemove.agent import routes_bandwidth
from livemove.agent.app import _livemove_error
from livemove.agent.bandwidth_store import BandwidthStore
from livemove.agent.tls_server import PEER_KEY
from livemove.api.bandwidth_models import BandwidthLimit
from livemove.api.client_identity import Peer, Role
from livemove.base.errors import LivemoveError, MissingPrerequisite
from livemove.base.settings import HostSettings
from livemove.policy.bandwidth import Category, Limit, Nic
from livemove.policy.governing import Direction

GBIT = 125_000_000
DEFAULT = {"category": "Default", "min_percent": 40}


class World:
    """The routes over a store of their own and two NICs; `changed` counts what the governor was told."""

    def __init__(self, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.changed = 0
        self.nics = [Nic("eth1", 10 * GBIT), Nic("eth2", 10 * GBIT, living=False)]
        self.store = BandwidthStore(state_dir)
        monkeypatch.setattr(routes_bandwidth, "host_nics", self._nics)
        monkeypatch.setattr(routes_bandwidth, "check_rights", lambda: None)
        governor = SimpleNamespace(
            limits_changed=self._limits_changed, notes={"eth1": "eth1 has a tbf."}, shaped=frozenset({"eth1"}),
            shares=lambda: [("j-1", "source", 5e6), ("j-2", "destination", float("inf"))],
            others={("eth1", Direction.OUT): 1.5, ("eth1", Direction.IN): 2.5},
        )  # fmt: skip
        host = SimpleNamespace(settings=HostSettings(name="A"), governor=governor, bandwidth=self.store)
        self._app = FastAPI()
        self._app.add_exception_handler(LivemoveError, _livemove_error)
        self._app.include_router(routes_bandwidth.make_router(host))  # type: ignore[arg-type]

    async def _nics(self, _: HostSettings) -> list[Nic]:
        return self.nics

    async def _limits_changed(self) -> None:
        self.changed += 1

    async def ask(self, method: str, path: str = "", **words: Any) -> tuple[int, Any]:
        peer = Peer("ann", Role.ADMIN, "f" * 64, "1", 2e9)

        async def with_peer(scope: Any, receive: Any, send: Any) -> None:
            await self._app({**scope, "state": {PEER_KEY: peer}}, receive, send)

        transport = httpx.ASGITransport(with_peer)
        async with httpx.AsyncClient(transport=transport, base_url="http://agent") as client:
            answer = await client.request(method, f"/bandwidth{path}", **words)
        return answer.status_code, answer.json()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


async def test_what_is_set_is_shown_and_kept(world: World, tmp_path: Path) -> None:
    status, view = await world.ask("PUT", json=DEFAULT)
    assert status == 200
    assert [(limit["category"], limit["min_percent"], limit["buffer_percent"]) for limit in view["limits"]] == [
        ("Default", 40, 10)
    ]
    assert world.changed == 1
    assert BandwidthStore(tmp_path).limits == {Category.DEFAULT: Limit(Category.DEFAULT, min_share=0.4)}
    assert (await world.ask("GET"))[1]["limits"] == view["limits"]


async def test_the_same_again_changes_nothing(world: World) -> None:
    first = await world.ask("PUT", json=DEFAULT)
    assert await world.ask("PUT", json=DEFAULT) == first
    assert world.changed == 1


async def test_one_category_leaves_the_others(world: World) -> None:
    await world.ask("PUT", json=DEFAULT)
    _, view = await world.ask("PUT", json={"category": "livemigration", "max_bytes_per_s": GBIT})
    assert [limit["category"] for limit in view["limits"]] == ["LiveMigration", "Default"]
    _, view = await world.ask("DELETE", "/default")
    assert [limit["category"] for limit in view["limits"]] == ["LiveMigration"]
    await world.ask("DELETE", "/Default")
    assert world.changed == 3, "what is not there need not be removed"


async def test_how_it_is_shared_now(world: World) -> None:
    _, view = await world.ask("GET")
    assert view["nics"] == [
        {"name": "eth1", "speed_bytes_per_s": 10 * GBIT, "living": True, "shaped": True,
         "others_out_bytes_per_s": 1, "others_in_bytes_per_s": 2},
        {"name": "eth2", "speed_bytes_per_s": 10 * GBIT, "living": False, "shaped": False,
         "others_out_bytes_per_s": 0, "others_in_bytes_per_s": 0},
    ]  # fmt: skip
    assert view["journeys"] == [
        {"journey": "j-1", "role": "source", "bytes_per_s": 5_000_000},
        {"journey": "j-2", "role": "destination", "bytes_per_s": 0},
    ]
    assert view["notes"] == ["eth1 has a tbf."]


async def test_a_dry_run_prints_what_would_be_done_and_does_nothing(world: World) -> None:
    _, view = await world.ask(
        "PUT", json={"category": "VirtualMachine", "min_percent": 40, "presets": ["nfs"]}, params={"dry_run": True}
    )
    assert "tc qdisc add dev eth1 root handle 4c4d: htb default 30" in view["commands"]
    assert not any("eth2" in line for line in view["commands"]), "it has no carrier"
    assert any("2049" in line for line in view["commands"])
    assert world.store.limits == {} and world.changed == 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"category": "Storage", "min_percent": 1}, "no category 'Storage'"),
        ({"category": "Default"}, "Nothing is said"),
        ({"category": "Default", "min_bytes_per_s": 21 * GBIT}, "the NICs carry 20 Gbit/s"),
        ({"category": "LiveMigration", "min_percent": 61}, "101% of the bandwidth together"),
    ],
)
async def test_what_is_refused_changes_nothing(world: World, body: dict[str, Any], said: str) -> None:
    await world.ask("PUT", json=DEFAULT)
    status, error = await world.ask("PUT", json=body)
    assert (status, error["code"]) == (422, "bad-setting") and said in error["message"]
    assert world.store.limits.keys() == {Category.DEFAULT} and world.changed == 1


async def test_without_the_right_nothing_is_set_but_limits_may_go(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.ask("PUT", json=DEFAULT)

    def no_right() -> None:
        raise MissingPrerequisite("The agent has no CAP_NET_ADMIN, which bandwidth limits need.")

    monkeypatch.setattr(routes_bandwidth, "check_rights", no_right)
    status, error = await world.ask("PUT", json={"category": "LiveMigration", "max_bytes_per_s": GBIT})
    assert (status, error["code"]) == (409, "missing-prerequisite")
    assert world.store.limits.keys() == {Category.DEFAULT}
    assert (await world.ask("DELETE", "/Default"))[0] == 200
    assert world.store.limits == {}


async def test_a_nic_whose_speed_is_unknown_is_warned_of(world: World) -> None:
    world.nics.append(Nic("veth0", 0))
    _, view = await world.ask("PUT", json=DEFAULT)
    assert ["veth0" in warning for warning in view["warnings"]] == [True]


def test_models_and_limits_say_the_same() -> None:
    body = BandwidthLimit(category="Default", min_percent=33.3, buffer_percent=7)
    from livemove.api.bandwidth_models import limit_body

    assert limit_body(body.to_limit()) == body
