"""The agent's HTTP API, asked by members of the cluster who talk rubbish: an answer that says why, never a fault of ours.

The application is a host's own, without a network and without a QEMU to start, so no request can leave anything behind.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from livemove.agent.app import make_app
from livemove.agent.grants import issue_grant
from livemove.agent.host import Host
from livemove.agent.join import LabHost, make_lab_cluster
from livemove.agent.rates import Rates
from livemove.agent.tls_server import MAX_BODY_BYTES, PEER_KEY, bounded
from livemove.api.client_identity import Identity, Peer, Role
from livemove.base.clock import ManualClock, SystemClock
from livemove.base.errors import by_code
from livemove.base.settings import HostSettings
from livemove.cli.reference_more import _routes

from .frozen import FACTS, UUID, frozen_vm
from .profile import anything, fuzz

JOURNEY = "0d9a1c5e-0001"
#: What makes a request get further than its first check.
KNOWN = (
    "web1",
    "db1",
    JOURNEY,
    "A",
    "B",
    UUID,
    "auto",
    'name = "web1"\n',
    "300ms",
    frozen_vm().model_dump_json(),
    "tcg",
)


class Agent:
    """A host B that believes whoever asks to be the peer that the test names."""

    def __init__(self, root: Path) -> None:
        self.loop = asyncio.new_event_loop()
        state = root / "B" / "state"
        people = {"ann": (Role.ADMIN, root / "ann")}
        hosts = [LabHost("A", root / "A", "127.0.0.1:9"), LabHost("B", state, "127.0.0.1:7443")]
        identities: dict[str, Identity] = make_lab_cluster(hosts, people=people, clock=SystemClock())
        self.peers: tuple[Peer, ...] = (identities["ann"].peer, identities["A"].peer)
        self.identities = identities
        settings = HostSettings(
            name="B",
            listen="127.0.0.1:7443",
            state_dir=state,
            run_dir=root / "run",
            qemu="/nonexistent/qemu",
            accelerator="tcg",
        )
        config = root / "agent.toml"
        config.write_text(f'name = "B"\nstate_dir = "{state}"\nrun_dir = "{root / "run"}"\n')
        self.host = self.loop.run_until_complete(self._make(config, settings))
        self.app = make_app(self.host)
        self.routes = [route for route in _routes(self.app) if isinstance(route, APIRoute)]
        self.peer: Peer | None = None

    @staticmethod
    async def _make(config: Path, settings: HostSettings) -> Host:
        host = Host(config, settings, FACTS, SystemClock())
        host.arrivals.default_address = "127.0.0.1"
        await host.database.open()
        await host.records.load()
        await host.vms.define('name = "web1"\n')
        return host

    async def _asked(self, method: str, path: str, content: bytes, kind: str) -> httpx.Response:
        async def with_peer(scope: Any, receive: Any, send: Any) -> None:
            scope["state"] = {PEER_KEY: self.peer}
            await bounded(self.app, MAX_BODY_BYTES, Rates(ManualClock(), self.host.refusals))(scope, receive, send)

        # an exception that leaves the application fails the test
        transport = httpx.ASGITransport(app=with_peer)
        async with httpx.AsyncClient(transport=transport, base_url="https://localhost") as client, asyncio.timeout(20):
            return await client.request(method, path, content=content, headers={"content-type": kind})

    def ask(
        self, peer: Peer | None, method: str, path: str, content: bytes, kind: str = "application/json"
    ) -> httpx.Response:
        self.peer = peer
        answer = self.loop.run_until_complete(self._asked(method, path, content, kind))
        said = f"{method} {path[:100]} {content[:200]!r}: {answer.status_code} {answer.text[:300]}"
        assert answer.status_code < 500, said
        if answer.status_code >= 400 and "detail" not in answer.json():
            error = answer.json()
            assert by_code()[error["code"]].exit_code == error["exit_code"] != 1, said
            assert error["message"] and error["remedy"] and "Traceback" not in error["message"], said
        return answer

    def grant(self) -> str:
        return issue_grant(
            self.identities["B"], vm_uuid=UUID, vm_name="web1", source="A", person=self.peers[0],
            now_wall_s=self.host.clock.wall_s(),
        )  # fmt: skip

    def close(self) -> None:
        self.loop.run_until_complete(self.host.close())
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    made = Agent(tmp_path_factory.mktemp("api"))
    yield made
    made.close()


@st.composite
def bodies(draw: st.DrawFn, model: type[BaseModel] | None) -> Any:
    """Anything, or something with the model's own keys."""
    if model is None or draw(st.integers(0, 3)) == 0:
        return draw(anything)
    values = st.sampled_from(KNOWN) | anything
    names = [name for name in model.model_fields if draw(st.integers(0, 5))]
    return {name: draw(values) for name in names}


def model_of(route: APIRoute) -> type[BaseModel] | None:
    annotation = route.body_field.field_info.annotation if route.body_field is not None else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


@st.composite
def requests(draw: st.DrawFn, routes: list[APIRoute]) -> tuple[str, str, bytes]:
    route = draw(st.sampled_from(routes))
    word = st.sampled_from(KNOWN) | st.text(min_size=1, max_size=20)
    path = route.path
    for name in route.param_convertors:
        path = path.replace(f"{{{name}}}", quote(draw(word), safe=""))
    if draw(st.booleans()):
        names = [field.name for field in route.dependant.query_params] or ["x"]
        path += f"?{draw(st.sampled_from(names))}={quote(draw(word | st.integers().map(str)), safe='')}"
    body = draw(bodies(model_of(route)).map(json.dumps).map(str.encode) | st.binary(max_size=40))
    return draw(st.sampled_from(sorted(route.methods))), path, body


@fuzz
@given(data=st.data())
def test_any_request_of_any_member(agent: Agent, data: st.DataObject) -> None:
    for _ in range(4):
        method, path, body = data.draw(requests(agent.routes))
        agent.ask(data.draw(st.sampled_from([*agent.peers, None])), method, path, body)


@fuzz
@given(data=st.data())
def test_any_request_about_a_journey_that_was_admitted(agent: Agent, data: st.DataObject) -> None:
    """The source's agent is a member too: what it says after its grant was taken is no more to be trusted."""
    source = agent.peers[1]
    journey = f"journey-{data.draw(st.integers(0, 1 << 60))}"
    body = {"journey": journey, "vm": "web1", "vm_uuid": UUID, "grant": agent.grant()}
    answer = agent.ask(source, "POST", "/incoming", json.dumps(body).encode())
    assert answer.status_code in (200, 409), answer.text
    fitness = {"frozen": frozen_vm().model_dump_json(), "definition": 'name = "web1"\n', "source_accelerator": "tcg"}
    agent.ask(source, "POST", f"/incoming/{journey}/fitness", json.dumps(fitness).encode())
    incoming = [route for route in agent.routes if route.path.startswith("/incoming/{journey}")]
    for _ in range(4):
        route = data.draw(st.sampled_from(incoming))
        text = data.draw(bodies(model_of(route)).map(json.dumps)).encode()
        agent.ask(source, sorted(route.methods)[0], route.path.replace("{journey}", journey), text)
    agent.ask(source, "POST", f"/incoming/{journey}/abandon", b"")
    view = agent.ask(agent.peers[0], "GET", "/host", b"").json()
    assert journey not in view["incoming"] and view["memory_promised_bytes"] == 0


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"text": ' * 20_000, b"\xff\xfe", b'"\\ud800"', b'{"text": "\\ud800"}', b"1e400", b"NaN"]
)
def test_bodies_that_parsers_stumble_over(agent: Agent, body: bytes) -> None:
    for route in agent.routes:
        if route.body_field is not None:
            path = route.path
            for name in route.param_convertors:
                path = path.replace(f"{{{name}}}", "web1")
            assert agent.ask(agent.peers["incoming" in path], sorted(route.methods)[0], path, body).status_code >= 400


def test_a_body_that_is_too_long_is_refused(agent: Agent) -> None:
    assert agent.ask(agent.peers[0], "POST", "/vms", b'{"text": "' + b"x" * (2 << 20)).status_code == 400
