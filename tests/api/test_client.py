"""The agent's client: every request as the API has it, and each way in which an answer may fail."""

from __future__ import annotations

import asyncio
import inspect
import json
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from livemove.api import client_connection
from livemove.api.bandwidth_models import BandwidthLimit
from livemove.api.client import AgentClient
from livemove.api.incoming_models import (
    AskBuild,
    AskDigests,
    AskFitness,
    AskGo,
    AskIncoming,
    AskListen,
    AskPage,
    AskPieces,
    OwnershipAnswer,
)
from livemove.api.models import AskJourney, ConsoleChunk, RenewRequest
from livemove.api.network_models import AskDoors, SetNetworks
from livemove.api.qos_models import QosWishBody
from livemove.api.resolution_models import DeclareDead
from livemove.base.errors import (
    AgentUnreachable,
    Bug,
    LinkLost,
    LivemoveError,
    NotPermitted,
    PeerViolation,
    UnknownJourney,
    UnknownVm,
)

Handler = Callable[[httpx.Request], httpx.Response]
OWNED = OwnershipAnswer(owned=True, running=True)


def client_over(handler: Handler) -> AgentClient:
    def unread(request: httpx.Request) -> httpx.Response:
        response = handler(request)
        # a response made from content counts as read already; one from a connection does not
        if hasattr(response, "_content"):
            stream = httpx.ByteStream(response.content)
            response = httpx.Response(response.status_code, headers=response.headers, stream=stream)
        return response

    http = httpx.AsyncClient(transport=httpx.MockTransport(unread), base_url="https://192.0.2.1:7443")
    return AgentClient(None, "B", "192.0.2.1:7443", http=http)


def fails_with(error: BaseException) -> Handler:
    def handler(_: httpx.Request) -> httpx.Response:
        raise error

    return handler


def answers(status: int = 200, body: Any = None, **more: Any) -> Handler:
    return lambda _: httpx.Response(status, json=body, **more) if body is not None else httpx.Response(status, **more)


PATH = {"source": "10.0.0.1", "destination": "10.0.0.2"}
BUILD = AskBuild.model_validate({"paths": [PATH]})
LISTEN = AskListen.model_validate({"capabilities": [], "parameters": {"a": 1}, "psk_hex": "", "paths": [PATH]})
FITNESS = AskFitness(frozen="{}", definition="", source_accelerator="tcg")
DOORS = AskDoors.model_validate({"networks": {"host": "A", "links": []}})
JOURNEY = AskJourney(vm="db1", destination="B", grant="g")

REQUESTS: dict[str, tuple[Callable[[AgentClient], Any], str, dict[str, str]]] = {
    "host": (lambda c: c.host(), "GET /host", {}),
    "change_settings": (lambda c: c.change_settings({"simultaneous": "3"}), "PATCH /host", {}),
    "leftovers": (lambda c: c.leftovers(), "GET /leftovers", {}),
    "remove_leftovers": (lambda c: c.remove_leftovers(), "DELETE /leftovers", {}),
    "cluster": (lambda c: c.cluster(), "GET /cluster", {}),
    "networks": (lambda c: c.networks(), "GET /networks", {}),
    "set_networks": (lambda c: c.set_networks(SetNetworks(serial=1, rules=())), "PUT /cluster/networks", {}),
    "test_network": (lambda c: c.test_network("B"), "POST /network-tests", {}),
    "open_doors": (lambda c: c.open_doors(DOORS), "POST /network-tests/doors", {}),
    "close_doors": (lambda c: c.close_doors("test-1"), "DELETE /network-tests/doors/test-1", {}),
    "renew": (lambda c: c.renew(RenewRequest(signing_request="x")), "POST /cluster/renew", {}),
    "metrics": (lambda c: c.metrics(), "GET /metrics", {}),
    "vms": (lambda c: c.vms(), "GET /vms", {}),
    "define_vm": (lambda c: c.define_vm("name = 'x'"), "POST /vms", {}),
    "vm": (lambda c: c.vm("db1"), "GET /vms/db1", {}),
    "remove_vm": (lambda c: c.remove_vm("db1"), "DELETE /vms/db1", {}),
    "start_vm": (lambda c: c.start_vm("db1"), "POST /vms/db1/start", {}),
    "stop_vm": (lambda c: c.stop_vm("db1", force=True), "POST /vms/db1/stop", {"force": "true"}),
    "pause_vm": (lambda c: c.pause_vm("db1"), "POST /vms/db1/pause", {}),
    "resume_vm": (lambda c: c.resume_vm("db1"), "POST /vms/db1/resume", {}),
    "reset_vm": (lambda c: c.reset_vm("db1"), "POST /vms/db1/reset", {}),
    "console": (lambda c: c.console("db1", 7), "GET /vms/db1/console", {"offset": "7"}),
    "type_on_console": (lambda c: c.type_on_console("db1", "ls\n"), "POST /vms/db1/console", {}),
    "bandwidth": (lambda c: c.bandwidth(), "GET /bandwidth", {}),
    "set_bandwidth": (
        lambda c: c.set_bandwidth(BandwidthLimit(category="Default", min_percent=40), dry_run=True),
        "PUT /bandwidth",
        {"dry_run": "true"},
    ),
    "remove_bandwidth": (lambda c: c.remove_bandwidth("Default"), "DELETE /bandwidth/Default", {"dry_run": "false"}),
    "qos": (lambda c: c.qos(), "GET /qos", {}),
    "apply_qos": (lambda c: c.apply_qos(QosWishBody(dscp=8), dry_run=True), "PUT /qos", {"dry_run": "true"}),
    "remove_qos": (lambda c: c.remove_qos(), "DELETE /qos", {"dry_run": "false"}),
    "ask_grant": (lambda c: c.ask_grant("db1", "uuid-1", "A"), "POST /grants", {}),
    "plan_journey": (lambda c: c.plan_journey(JOURNEY), "POST /plans", {}),
    "start_journey": (lambda c: c.start_journey(JOURNEY), "POST /journeys", {}),
    "journeys": (lambda c: c.journeys(ended=True), "GET /journeys", {"all": "true"}),
    "journey": (lambda c: c.journey("j-1"), "GET /journeys/j-1", {}),
    "cancel_journey": (lambda c: c.cancel_journey("j-1"), "POST /journeys/j-1/cancel", {}),
    "journey_events": (lambda c: c.journey_events("j-1", after=3), "GET /journeys/j-1/events", {"after": "3"}),
    "events": (lambda c: c.events(after=3, limit=9), "GET /events", {"after": "3", "limit": "9"}),
    "report": (lambda c: c.report("j-1"), "GET /journeys/j-1/report", {}),
    "reports": (lambda c: c.reports(limit=2), "GET /reports", {"limit": "2"}),
    "add_client_blackout": (lambda c: c.add_client_blackout("j-1", 12.5), "POST /journeys/j-1/client-blackout", {}),
    "begin_incoming": (
        lambda c: c.begin_incoming(AskIncoming(journey="j-01", vm="db1", vm_uuid="uuid-1", grant="g")),
        "POST /incoming",
        {},
    ),
    "check_fitness": (
        lambda c: c.check_fitness("j-1", FITNESS, dry_run=True),
        "POST /incoming/j-1/fitness",
        {"dry_run": "true"},
    ),
    "build_skeleton": (lambda c: c.build_skeleton("j-1", BUILD), "POST /incoming/j-1/skeleton", {}),
    "listen": (lambda c: c.listen("j-1", LISTEN), "POST /incoming/j-1/listen", {}),
    "arm": (lambda c: c.arm("j-1"), "POST /incoming/j-1/arm", {}),
    "open_memory": (lambda c: c.open_memory("j-1"), "POST /incoming/j-1/memory", {}),
    "digests": (
        lambda c: c.digests("j-1", AskDigests(blocks={"ram0": 4096}), timeout_s=5),
        "POST /incoming/j-1/digests",
        {},
    ),
    "piece_digests": (
        lambda c: c.piece_digests("j-1", AskPieces(block="ram0", piece_bytes=4096, offsets=[0])),
        "POST /incoming/j-1/pieces",
        {},
    ),
    "page": (lambda c: c.page("j-1", AskPage(block="ram0", offset=0)), "POST /incoming/j-1/page", {}),
    "go": (lambda c: c.go("j-1", AskGo(resume=True)), "POST /incoming/j-1/go", {}),
    "ask": (lambda c: c.ask("j-1"), "POST /incoming/j-1/ask", {}),
    "abandon": (lambda c: c.abandon("j-1"), "POST /incoming/j-1/abandon", {}),
    "resolution": (lambda c: c.resolution("db1"), "GET /vms/db1/resolution", {}),
    "declare_dead": (lambda c: c.declare_dead("db1", DeclareDead(host="B")), "POST /vms/db1/resolution", {}),
    "overrule": (lambda c: c.overrule("j-1"), "POST /incoming/j-1/overrule", {}),
    "holding": (lambda c: c.holding("uuid-1", timeout_s=1.0), "GET /holdings/uuid-1", {}),
    "facts": (lambda c: c.facts("j-1"), "GET /incoming/j-1/facts", {}),
}
NOT_REQUESTS = {"aclose", "keep_report"}  # keep_report has a test of its own: its body is a whole report


def test_every_method_is_in_the_table() -> None:
    methods = {name for name, _ in inspect.getmembers(AgentClient, inspect.iscoroutinefunction) if name[0] != "_"}
    assert methods - NOT_REQUESTS == set(REQUESTS)


@pytest.mark.parametrize("name", REQUESTS)
async def test_request_and_refusal(name: str) -> None:
    """The request is the API's; an error that the agent sends comes out as itself, with the host."""
    call, expected, query = REQUESTS[name]
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(403, json=NotPermitted("viewers may not.").to_json())

    async with client_over(handler) as client:
        with pytest.raises(NotPermitted) as caught:
            await call(client)
    (request,) = seen
    assert f"{request.method} {request.url.path}" == expected
    assert dict(request.url.params) == query
    assert caught.value.where == "B"
    assert caught.value.message == "viewers may not."
    if request.content:
        assert request.headers["content-type"] == "application/json"
        json.loads(request.content)


async def test_answers_are_typed() -> None:
    async with client_over(answers(body=OWNED.model_dump())) as client:
        assert await client.go("j-1", AskGo(resume=True)) == OWNED
    async with client_over(answers(body={"text": "x", "next_offset": 1})) as client:
        assert await client.console("db1") == ConsoleChunk(text="x", next_offset=1)
    async with client_over(answers(204)) as client:
        await client.remove_vm("db1")
    async with client_over(lambda _: httpx.Response(200, text="up 1\n")) as client:
        assert await client.metrics() == "up 1\n"


GARBAGE: dict[str, Handler] = {
    "not JSON": lambda _: httpx.Response(200, text="<html>"),
    "another model": answers(body={"vms": []}),
    "further keys": answers(body={**OWNED.model_dump(), "extra": 1}),
    "an error of another program": answers(404, body={"detail": "Not Found"}),
    "a redirection": answers(307, headers={"location": "https://192.0.2.9/"}),
    "nothing": answers(200),
    "another encoding": lambda _: httpx.Response(
        200, stream=httpx.ByteStream(b"\x1f\x8b"), headers={"content-encoding": "gzip"}
    ),
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_garbage_is_the_peers_violation_and_no_answer_about_ownership(kind: str) -> None:
    async with client_over(GARBAGE[kind]) as client:
        for name in ("arm", "abandon"):
            with pytest.raises(PeerViolation, match=f"'B' answered POST /incoming/j-1/{name}") as caught:
                await REQUESTS[name][0](client)
            assert caught.value.where == "B"
        for name in ("go", "ask"):
            with pytest.raises(LinkLost, match="who owns the VM"):
                await REQUESTS[name][0](client)


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("late"),
        httpx.RemoteProtocolError("closed without an answer"),
        httpx.ReadError("reset"),
        ssl.SSLError(1, "handshake"),
        ConnectionResetError("reset"),
    ],
)
async def test_no_answer(error: BaseException) -> None:
    async with client_over(fails_with(error)) as client:
        with pytest.raises(AgentUnreachable) as caught:
            await client.host()
        assert "'B'" in caught.value.message and "192.0.2.1:7443" in caught.value.message
        for name in ("go", "ask"):
            with pytest.raises(LinkLost) as lost:
                await REQUESTS[name][0](client)
            assert lost.value.__cause__ is not None


async def test_an_agents_own_error_in_the_hand_over_keeps_its_class() -> None:
    async with client_over(answers(500, body=Bug("oops").to_json())) as client:
        with pytest.raises(Bug):
            await client.go("j-1", AskGo(resume=True))
    async with client_over(answers(404, body=UnknownJourney("never heard of").to_json())) as client:
        with pytest.raises(UnknownJourney):
            await client.ask("j-1")


class Slow(httpx.AsyncByteStream):
    """A byte every hundredth of a second, for ever: no single wait is long."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.01)


async def test_an_answer_that_never_ends_is_late() -> None:
    async with client_over(lambda _: httpx.Response(200, stream=Slow())) as client:
        with pytest.raises(AgentUnreachable, match=r"within 0\.1 s"):
            await client.abandon("j-1", timeout_s=0.1)
        with pytest.raises(LinkLost, match=r"within 0\.1 s"):
            await client.ask("j-1", timeout_s=0.1)


async def test_an_answer_that_is_too_long_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, "MAX_ANSWER_BYTES", 1 << 20)
    sent = 0

    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            nonlocal sent
            while True:
                sent += 65536
                yield b" " * 65536

    async with client_over(lambda _: httpx.Response(200, stream=Endless())) as client:
        with pytest.raises(PeerViolation, match="more than 1 MiB"):
            await client.host()
    assert sent <= (1 << 20) + 65536


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "a?x", "ä", "x" * 64])
async def test_names_that_cannot_be_make_no_request(name: str) -> None:
    async with client_over(fails_with(AssertionError("a request was made"))) as client:
        with pytest.raises(UnknownVm):
            await client.vm(name)
        with pytest.raises(UnknownJourney):
            await client.journey(name)


async def test_refusal_without_a_known_code() -> None:
    body = {**NotPermitted("no").to_json(), "code": "of-the-future", "where": "C"}
    async with client_over(answers(409, body=body)) as client:
        with pytest.raises(LivemoveError) as caught:
            await client.host()
    assert type(caught.value) is LivemoveError
    assert (caught.value.message, caught.value.where) == ("no", "C")


async def test_closing_twice() -> None:
    client = client_over(answers(204))
    async with client:
        pass
    await client.aclose()
