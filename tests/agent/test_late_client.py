"""A destination that left the cluster while a journey to it was open: silent, until it is there again."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from livemove.agent.late_client import LateClient
from livemove.api.client import AgentClient
from livemove.base.errors import AgentUnreachable, LinkLost, UnknownHost


async def test_it_is_silent_until_the_cluster_has_it_again() -> None:
    there: dict[str, AgentClient] = {}
    made: list[str] = []

    def client_to(host: str) -> AgentClient:
        if host not in there:
            raise UnknownHost(f"The cluster has no host '{host}'; it has A.")
        made.append(host)
        return there[host]

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=httpx.ByteStream(b'{"owned": true, "running": true}'))

    async with LateClient("B", client_to) as client:
        with pytest.raises(AgentUnreachable, match="not in the cluster any more"):
            await client.abandon("j-1")
        # who owns the VM is not known: never an error that could be taken for a no
        with pytest.raises(LinkLost, match="not in the cluster any more"):
            await client.ask("j-1")
        transport = httpx.MockTransport(answer)
        http = httpx.AsyncClient(transport=transport, base_url="https://127.0.0.1")
        there["B"] = AgentClient(None, "B", "192.0.2.2:7443", http=http)
        assert (await client.ask("j-1")).owned
        assert (await client.ask("j-1")).owned
        assert made == ["B"], "looked up once"
    assert http.is_closed


async def test_one_that_does_not_answer_is_looked_up_again() -> None:
    """It may have come back at another address."""
    made: list[httpx.AsyncClient] = []

    def client_to(host: str) -> AgentClient:
        def answer(request: httpx.Request) -> httpx.Response:
            if request.url.host == "192.0.2.2":
                raise httpx.ConnectError("no route")
            return httpx.Response(200, stream=httpx.ByteStream(b'{"owned": true, "running": true}'))

        address = "192.0.2.2" if not made else "192.0.2.3"
        made.append(httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url=f"https://{address}"))
        return AgentClient(None, host, f"{address}:7443", http=made[-1])

    async with LateClient("B", client_to) as client:
        with pytest.raises(LinkLost):
            await client.ask("j-1")
        assert (await client.ask("j-1")).owned
        await asyncio.sleep(0.01)
        assert len(made) == 2 and made[0].is_closed
