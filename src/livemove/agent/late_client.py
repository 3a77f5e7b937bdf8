"""Requests to a host of which an open journey knows the name only: it may have left the cluster, and may come back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

from livemove.api import trust
from livemove.api.client import AgentClient
from livemove.api.models import Model
from livemove.base.errors import AgentUnreachable, LinkError, UnknownHost
from livemove.base.tasks import spawn

Query = Mapping[str, str | int | bool]


class LateClient(AgentClient):
    """The host is looked up with the first request, and again after one that it did not answer; until found it is silent.

    Requests raise what those of AgentClient do. A host that the cluster does not have is AgentUnreachable, for ``go`` and
    ``ask`` LinkLost: it may own the VM or not, as any host that does not answer.
    """

    def __init__(self, host: str, client_to: Callable[[str], AgentClient]) -> None:
        super().__init__(None, host, "")
        self._client_to = client_to
        self._found: AgentClient | None = None

    async def __aenter__(self) -> Self:
        return self

    async def aclose(self) -> None:
        found, self._found = self._found, None
        if found is not None:
            await found.aclose()

    async def _exchange(
        self, method: str, path: str, body: Model | None = None, *, query: Query | None = None,
        timeout_s: float = trust.ANSWER_TIMEOUT_S, hand_over: bool = False,
    ) -> bytes:  # fmt: skip
        if self._found is None:
            try:
                found = self._client_to(self.host_name)
            except UnknownHost as error:
                silent = AgentUnreachable(
                    f"'{self.host_name}' is not in the cluster any more.",
                    remedy="If it is off for good, 'livemove resolve VM --host-is-dead HOST' settles what it left open.",
                    where=self.host_name,
                )
                raise self._no_answer(silent, hand_over) from error
            self._found = await found.__aenter__()
        found = self._found
        try:
            return await found._exchange(method, path, body, query=query, timeout_s=timeout_s, hand_over=hand_over)
        except LinkError:
            # it may be at another address by now, or our certificate be a new one
            if self._found is found:
                self._found = None
                spawn(found.aclose(), name=f"close connections to {self.host_name}")
            raise
