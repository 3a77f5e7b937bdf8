"""VMs of which nobody knows who owns them: the evidence of this host, and what it does on an operator's word.

The word is that the *other* host is dead: fenced or without power, so that it does not run the VM. It is not taken while
that host's agent answers, because then the hosts find out by themselves. What the other host has to learn when it comes
back is told to it until it has heard (:class:`Overruled`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from livemove.agent.arrivals import Arrivals
from livemove.agent.departures import Departures
from livemove.agent.holdings import refuse_held
from livemove.agent.overruled import Overruled
from livemove.api.client import AgentClient
from livemove.api.resolution_models import DeclareDead, ResolutionView
from livemove.base.errors import Conflict, LinkError, LivemoveError, OutcomeUnknown, UnknownHost, UnknownVm
from livemove.migration import events as on
from livemove.migration.journal import DESTINATION, Journal, Record
from livemove.migration.model import GuestRun, IncomingPhase, Owner, Phase

_log = logging.getLogger(__name__)

ANSWER_S = 3.0
TAKEN_BACK_S = 30.0


class Resolution:
    """Answers and carries out ``livemove resolve`` for one host."""

    def __init__(
        self, host: str, departures: Departures, arrivals: Arrivals, journal: Journal, overruled: Overruled,
        client_to: Callable[[str], AgentClient], hosts: Callable[[], Iterable[str]],
    ) -> None:  # fmt: skip
        self._host = host
        self._departures = departures
        self._arrivals = arrivals
        self._journal = journal
        self._overruled = overruled
        self._client_to = client_to
        self._hosts = hosts

    async def look(self, vm: str) -> ResolutionView:
        """The evidence. Raises UnknownVm when no hand-over of `vm` is unresolved here."""
        return await self._leaving(vm) or await self._gone(vm) or await self._arriving(vm) or self._nothing(vm)

    def _nothing(self, vm: str) -> ResolutionView:
        raise UnknownVm(f"No hand-over of a VM '{vm}' is unresolved on {self._host}.", remedy="See 'livemove status'.")

    async def declare_dead(self, vm: str, said: DeclareDead, person: str) -> ResolutionView:
        """Act on the operator's word, or say with ``dry_run`` what would be done.

        Raises UnknownVm; Conflict when the word is about another host, or that host answers, or this one has not all of
        the VM; OutcomeUnknown when what was begun has not ended in time.
        """
        view = await self.look(vm)
        other = view.destination if view.role == "source" else view.source
        if said.host != other:
            raise Conflict(f"The other host of this journey is {other}, not {said.host}.", remedy=f"Ask {said.host}.")
        if view.other_answers:
            raise Conflict(
                f"{other} is not dead: its agent answers.", remedy="Wait: the hosts resolve it by themselves."
            )
        if view.role == DESTINATION and not view.has_all:
            raise Conflict(
                f"{self._host} has not received all of VM '{vm}', so it cannot run it.",
                remedy=f"Only {other} had all of it. When {other} is lost for good, start the VM anew from its disks.",
            )
        if view.phase == Phase.HANDING_OVER.value:
            raise Conflict(f"VM '{vm}' is being handed over just now.", remedy="Ask again in ten seconds.")
        if said.dry_run:
            return view
        done = await self._take(vm, view, person, paused=said.paused)
        return view.model_copy(update={"done": done})

    async def _take(self, vm: str, view: ResolutionView, person: str, *, paused: bool) -> str:
        if view.role == DESTINATION:
            # the word is about the source alone, and this copy may be older than what happened since
            others = [host for host in self._hosts() if host not in (self._host, view.source)]
            await refuse_held(vm, view.vm_uuid, others, self._client_to)
            return await self._arrivals.take(view.journey, person, resume=not paused)
        departure = self._departures.find(vm)
        if departure is None:
            record = await self._departures.recovery.take_back(vm, person)
            await self._overruled.add(record, "overrule")
            return f"VM {vm} is stopped on {self._host}; it may be started."
        try:
            async with asyncio.timeout(TAKEN_BACK_S):
                departure.runner.post(on.DestinationDeclaredDead(person, paused))
                await departure.runner.done.wait()
        except TimeoutError as error:
            raise OutcomeUnknown(f"VM '{vm}' is not back yet after {TAKEN_BACK_S:.0f} s.") from error
        if departure.runner.state.owner is not Owner.SOURCE:
            return f"{view.destination} answered after all: VM {vm} is there."
        await self._overruled.add(departure.record, "overrule")
        return f"VM {vm} is {self._host}'s again."

    # Evidence -------------------------------------------------------------------------------------------------------

    async def _leaving(self, vm: str) -> ResolutionView | None:
        departure = self._departures.find(vm)
        if departure is None or departure.runner.state.phase not in (Phase.UNRESOLVED, Phase.HANDING_OVER):
            return None
        state, record = departure.runner.state, departure.record
        try:
            status = await departure.effects.engine.monitor.execute("query-status", timeout_s=ANSWER_S)
            qemu, alive = f"holds the whole VM, {status['status']}", True
        except LivemoveError as error:
            qemu, alive = f"does not answer: {error.message}", not state.source_gone
        runs = "run it" if state.guest is GuestRun.RUNNING else f"keep it {state.guest.value}"
        would = f"take the VM back and {runs}" if alive else "note that the VM crashed here, so that it may be started"
        return await self._view(
            record, record.destination, role="source", phase=state.phase.value, qemu=qemu, has_all=alive,
            last_word=departure.runner.decisions[-1] if departure.runner.decisions else "", if_other_is_dead=would,
        )  # fmt: skip

    async def _gone(self, vm: str) -> ResolutionView | None:
        asking = self._departures.recovery.asking.get(vm)
        if asking is None:
            return None
        return await self._view(
            asking.record, asking.record.destination, role="source", phase=Phase.UNRESOLVED.value,
            qemu="is gone; it ended while the agent was away", has_all=False, last_word=asking.last_word,
            if_other_is_dead="note that the VM crashed here, so that it may be started anew from its disks",
        )  # fmt: skip

    async def _arriving(self, vm: str) -> ResolutionView | None:
        for arrival in self._arrivals.all():
            if arrival.record.vm != vm or arrival.state.phase is not IncomingPhase.ARMED:
                continue
            loaded = arrival.loaded is not None and arrival.loaded.status == "completed"
            if not loaded:
                would = "nothing: it has not received all of the VM"
            else:
                would = "run the VM as it was when its source stopped it"
            return await self._view(
                arrival.record, arrival.record.source, role=DESTINATION, phase=arrival.state.phase.value,
                qemu="has loaded the whole VM and waits" if loaded else "has not received all of the VM",
                has_all=loaded, last_word="", if_other_is_dead=would,
            )  # fmt: skip
        return None

    async def _view(
        self, record: Record, other: str, *, role: str, phase: str, qemu: str, has_all: bool, last_word: str,
        if_other_is_dead: str,
    ) -> ResolutionView:  # fmt: skip
        return ResolutionView(
            host=self._host, vm=record.vm, vm_uuid=record.vm_uuid, journey=record.id, role=role, source=record.source,
            destination=record.destination, phase=phase, owner="unknown", qemu=qemu[:4000], has_all=has_all,
            other_answers=await self._answers(other), last_word=last_word[:4000],
            if_other_is_dead=if_other_is_dead,
        )  # fmt: skip

    async def _answers(self, host: str) -> bool:
        """Whether the agent of `host` says anything now; one that left the cluster cannot, whatever it does."""
        try:
            client = self._client_to(host)
        except UnknownHost:
            return False
        try:
            async with client:
                await client.cluster(timeout_s=ANSWER_S)
        except LinkError:
            return False
        except LivemoveError:
            pass  # a refusal is an answer
        return True
