"""One command's way to the agents: who calls, which hosts there are, and questions to many of them at once.

A VM or journey is looked for on all hosts at the same time. When it was found, the hosts that have not answered get
:data:`GRACE_S` more, so that a dead host does not cost the command its connection timeout; they are named in a warning.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from livemove.api.client import AgentClient
from livemove.api.client_identity import Identity, find_identity
from livemove.api.cluster_map import ClusterMap, load_map, map_from_json, merge_maps, parse_address, save_map
from livemove.api.models import JourneyView, VmView
from livemove.api.trust import client_context
from livemove.base.errors import (
    AgentUnreachable,
    Conflict,
    LinkError,
    LivemoveError,
    UnknownHost,
    UnknownJourney,
    UnknownVm,
)
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.cli.output import Usage, warn

# Long enough for a host on the other side of a WAN that is up, short beside the 1.5 s that a migration may take to begin.
GRACE_S = 0.3
AWAY = ("moved", "arriving")
"""States of a VM on a host that is not the one to turn to."""

T = TypeVar("T")


@dataclass
class Answers(Generic[T]):
    """What each host said."""

    given: dict[str, T] = field(default_factory=dict)
    refused: dict[str, LivemoveError] = field(default_factory=dict)

    @property
    def silent(self) -> dict[str, str]:
        """The hosts that gave no answer at all, and why."""
        return {host: error.message for host, error in self.refused.items() if isinstance(error, LinkError)}

    def warn_of_failures(self, *, expected: tuple[type[LivemoveError], ...] = ()) -> None:
        """Name the hosts whose answer is missing, on standard error."""
        for host, error in sorted(self.refused.items()):
            if not isinstance(error, expected):
                warn(f"{host} is left out: {error.message}")

    def or_raise(self) -> dict[str, T]:
        """The answers, with a warning for each that is missing. Raises the first error when there is no answer."""
        if not self.given and self.refused:
            raise next(iter(self.refused.values()))
        self.warn_of_failures()
        return self.given


class Session:
    """The agents of a cluster, as one person sees them. Made by :func:`open_session`."""

    def __init__(self, identity: Identity, cluster: ClusterMap, stack: contextlib.AsyncExitStack) -> None:
        self._identity = identity
        self._context = client_context(identity)
        self._cluster = cluster
        self._hosts = dict(cluster.hosts)
        self._learnt = False
        self._stack = stack
        self._agents: dict[str, AgentClient] = {}

    @property
    def hosts(self) -> list[str]:
        """The cluster's hosts by name."""
        return sorted(self._hosts)

    @property
    def authority(self) -> str:
        """The host that holds the cluster's authority."""
        return self._cluster.authority

    def address_of(self, host: str) -> str:
        """``IP:PORT`` of the host's agent. Raises UnknownHost."""
        address = self._hosts.get(host)
        if address is None:
            raise UnknownHost(f"The cluster has no host '{host[:80]}'; it has {', '.join(self.hosts) or 'none'}.")
        return address

    async def agent(self, host: str) -> AgentClient:
        """The agent of a host; no connection is made before it is asked something. Raises UnknownHost."""
        address = self.address_of(host)
        if host not in self._agents:
            client = AgentClient(self._identity, host, address, context=self._context)
            self._agents[host] = await self._stack.enter_async_context(client)
        return self._agents[host]

    async def check_host(self, host: str) -> None:
        """Return when the cluster has that host, by our map or, if it is older, by the agents'. Raises UnknownHost."""
        if host not in self._hosts:
            await self._learn_hosts()
        self.address_of(host)

    def own_host(self, named: str | None = None) -> str:
        """The host to act on: the one named, this machine's own, or the cluster's only one. Raises Usage."""
        if named is not None:
            return named
        own = [host for host in self.hosts if _is_ours(self._hosts[host])]
        if len(own) == 1 or len(self._hosts) == 1:
            return (own or self.hosts)[0]
        raise Usage("Which host is meant?", remedy=f"Name one of {', '.join(self.hosts)} with --host.")

    async def ask(
        self,
        question: Callable[[AgentClient], Awaitable[T]],
        *,
        hosts: Iterable[str] | None = None,
        enough: Callable[[T], bool] | None = None,
    ) -> Answers[T]:
        """Ask several hosts (all if none are named) at once; raises nothing but UnknownHost.

        :param enough: once an answer satisfies this, the others have :data:`GRACE_S` left.
        """
        if hosts is None and enough is None and not self._learnt:
            # who lists everything must not miss the hosts that joined since our map was written
            await self._learn_hosts()
        answers: Answers[T] = Answers()

        async def ask_one(host: str, agent: AgentClient) -> bool:
            try:
                answer = await question(agent)
            except LivemoveError as error:
                answers.refused[host] = error
                return False
            answers.given[host] = answer
            return enough is not None and enough(answer)

        agents = {host: await self.agent(host) for host in (self.hosts if hosts is None else hosts)}
        tasks = {host: spawn(ask_one(host, agent), name=f"ask {host}") for host, agent in agents.items()}
        try:
            waiting = set(tasks.values())
            timeout_s = None
            while waiting:
                done, waiting = await asyncio.wait(
                    waiting,
                    timeout=timeout_s,
                    return_when=asyncio.FIRST_COMPLETED if timeout_s is None else "ALL_COMPLETED",
                )
                if timeout_s is not None:
                    break
                if any(task.result() for task in done):
                    timeout_s = GRACE_S
        finally:
            await cancel_and_wait(*tasks.values())
        for host in agents:
            if host not in answers.given and host not in answers.refused:
                answers.refused[host] = AgentUnreachable(
                    f"The agent of '{host}' did not answer as soon as the others.", where=host
                )
        return answers

    async def find_vm(self, name: str, host: str | None = None) -> VmView:
        """The VM where it is now: on `host`, or looked for on all hosts.

        Raises UnknownVm when no host has it; AgentUnreachable when none that answered has it and some did not; Conflict
        when several have one of that name; UnknownHost.
        """
        if host is not None:
            await self.check_host(host)
            return _at(host, await (await self.agent(host)).vm(name))
        answers = await self.ask(lambda agent: agent.vm(name), enough=lambda view: view.state not in AWAY)
        views = [_at(found_on, view) for found_on, view in answers.given.items()]
        here = [view for view in views if view.state not in AWAY]
        if not here:
            here = [view for view in views if view.state == "arriving"]
        if not here:
            if await self._learn_hosts():
                return await self.find_vm(name)
            raise self._not_found(name, answers)
        answers.warn_of_failures(expected=(UnknownVm,))
        unresolved = [view for view in here if view.state == "unknown"]
        if len(here) > 1 and not unresolved:
            hosts = " and ".join(sorted(view.host for view in here))
            raise Conflict(f"{hosts} have a VM '{name}' each.", remedy="Say which one with --host.")
        return (unresolved or here)[0]

    async def find_journey(self, name: str) -> tuple[str, JourneyView]:
        """A journey by its id, or the newest of a VM by the VM's name, and the host that told it: the source if that answers.

        Raises UnknownJourney when no host knows it; AgentUnreachable when none that answered does and some did not.
        """
        answers = await self.ask(lambda agent: agent.journey(name), enough=lambda view: not view.terminal)
        if not answers.given:
            self._raise_other_failures(answers, UnknownJourney, f"A journey '{name}'")
            raise UnknownJourney(f"No host knows a journey or VM '{name}'.")
        answers.warn_of_failures(expected=(UnknownJourney,))
        return max(answers.given.items(), key=lambda found: (found[1].started, found[0] == found[1].source))

    def _not_found(self, name: str, answers: Answers[VmView]) -> LivemoveError:
        self._raise_other_failures(answers, UnknownVm, f"VM '{name}'")
        for host, view in answers.given.items():
            if view.moved_to:
                return UnknownVm(f"VM '{name}' moved from {host} to {view.moved_to}, which no longer has it.")
        return UnknownVm(f"None of the hosts {', '.join(self.hosts)} has a VM '{name}'.")

    def _raise_other_failures(self, answers: Answers[T], unknown: type[LivemoveError], what: str) -> None:
        failures = {host: error for host, error in answers.refused.items() if not isinstance(error, unknown)}
        for error in failures.values():
            if not isinstance(error, LinkError):
                raise error
        if failures:
            rest = sorted(set(self.hosts) - set(failures))
            raise AgentUnreachable(
                f"{what} is not on {' or '.join(rest) or 'any host that answered'}, and "
                f"{' and '.join(sorted(failures))} cannot be asked: {' '.join(e.message for e in failures.values())}",
                details={"silent": sorted(failures)},
            )

    async def _learn_hosts(self) -> bool:
        """Take over hosts that the agents know and our map does not; whether there were any.

        An address is only a place to knock: whoever answers there must prove the host's name by certificate.
        """
        self._learnt = True
        answers = await self.ask(lambda agent: agent.cluster(), enough=lambda _: True)
        before = set(self._hosts)
        for view in answers.given.values():
            with contextlib.suppress(LivemoveError):
                self._cluster = merge_maps(self._cluster, map_from_json(view.model_dump(exclude={"revocations"})))
        self._hosts |= self._cluster.hosts
        new = set(self._hosts) - before
        if new:
            with contextlib.suppress(LivemoveError):  # a map that cannot be kept is learnt again next time
                save_map(self._identity.map_path, self._cluster)
        return bool(new)


def _is_ours(address: str) -> bool:
    """Whether the address belongs to this machine (or network namespace): the kernel lets us bind to those only."""
    ip, _ = parse_address(address)
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as trial:
        try:
            trial.bind((ip, 0))
        except OSError:
            return False
    return True


def _at(host: str, view: VmView) -> VmView:
    """The view with the host that gave it, whatever it calls itself."""
    return view.model_copy(update={"host": host})


@contextlib.asynccontextmanager
async def open_session() -> AsyncIterator[Session]:
    """The cluster of the identity that this user has. Raises NoIdentity, BadSetting."""
    identity = find_identity()
    cluster = load_map(identity.map_path)
    async with contextlib.AsyncExitStack() as stack:
        yield Session(identity, cluster, stack)
