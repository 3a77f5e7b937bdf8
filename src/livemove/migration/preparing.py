"""Steps 2 to 5 at the source: permission, fitness, skeleton, connection. Nothing of the VM has left it yet."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from livemove.api.client import AgentClient
from livemove.api.incoming_models import (
    AskBuild,
    AskFitness,
    AskIncoming,
    AskListen,
    DestinationFacts,
    FitnessAnswer,
    OfferBody,
    OwnershipAnswer,
)
from livemove.base.errors import LivemoveError, MigrationBlocked
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.hypervisor.frozen import FrozenVm, refuse_unmigratable
from livemove.hypervisor.qmp import Monitor
from livemove.migration import events as on
from livemove.migration.direct import DirectSource, multifd_parameters
from livemove.migration.events import Event
from livemove.migration.journal import Record
from livemove.migration.path_watch import Tell
from livemove.migration.source_paths import Networking, SourcePaths
from livemove.policy.paths import PathWish
from livemove.policy.transport import Agreement, Offer, Wish, agree


class SourceVm(Protocol):
    """What the owner of the source's VMs offers to a journey."""

    frozen: FrozenVm
    definition: str
    monitor: Monitor
    accelerator: str

    @property
    def pid(self) -> int: ...

    async def has_ended(self) -> bool:
        """Whether its QEMU is dead for certain; waits for one that is just ending."""

    async def lease_domain(self) -> str:
        """The mark of the lease directory that this host shares with others; empty when it shares none."""

    async def hold_lease(self) -> None:
        """This QEMU holds its VM's lease. Raises Conflict when another one does, QemuGone, MissingPrerequisite."""

    async def give_up_lease(self) -> None:
        """This QEMU holds its VM's lease no more: the guest may run elsewhere. Raises as :meth:`hold_lease`."""

    async def remove(self, moved_to: str) -> None:
        """The VM is the destination's: end this QEMU and free what belonged to it."""

    async def stop_powered_off(self) -> None:
        """The guest powered off: end its QEMU in order, keep its definition."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where a journey goes and by what rules.

    :param trusted: whether the network to an address is marked as trusted, here and by the peer's list.
    :param paths: the networks that the user asked for.
    """

    grant: str
    wish: Wish
    max_bandwidth_bytes_per_s: int
    prepare_timeout_s: float
    key_dir: Path
    qemu_uid: int | None
    trusted: Callable[[str, list[str]], bool]
    own_offer: Callable[[], Awaitable[Offer]]
    paths: PathWish
    networking: Networking


@dataclass(slots=True)
class Findings:
    """What became known on the way; the report reads it."""

    fitness: FitnessAnswer | None = None
    agreement: Agreement | None = None
    place: int = 0
    probe_port: int = 0
    probe_nonce: str = ""
    port: int = 0
    hand_over: OwnershipAnswer | None = None
    destination: DestinationFacts | None = None
    notes: list[str] = field(default_factory=list)


def offer_from(body: OfferBody) -> Offer:
    """A peer's offer as the policy reads it."""
    return Offer(
        body.version, body.accelerator, frozenset(body.capabilities), frozenset(body.parameters),
        frozenset(body.compressions), body.tls_psk, body.cores, body.idle_cores, body.link_bytes_per_s, body.no_mptcp,
    )  # fmt: skip


class Preparation:
    """What a journey asks of the destination before it copies.

    :ivar abandoned: set when the journey is undone: no slot is asked for any more.
    :ivar holds_lease: the VM's lease is known to be the source's; not after a GO, nor after a restart of the agent.
    :ivar asking_slot: held while a request for a slot is under way.
    :ivar configured: the source's QEMU was set up for the journey, and must be made to forget that.
    """

    def __init__(
        self, record: Record, vm: SourceVm, client: AgentClient, route: Route, engine: DirectSource, tell: Tell
    ) -> None:
        self.findings = Findings()
        self.paths = SourcePaths(record.id, route.paths, route.networking, self._tell)
        self.asking_slot = asyncio.Lock()
        self.abandoned = False
        self.holds_lease = False
        self.configured = False
        self._told_bytes_per_s = 0
        self._connecting: asyncio.Task[None] | None = None
        self._record = record
        self._vm = vm
        self._client = client
        self._route = route
        self._engine = engine
        self._tell_people = tell

    def _tell(self, text: str, level: str) -> None:
        self.findings.notes.append(text)
        self._tell_people(text, level)

    async def ask_permission(self) -> Event | None:
        body = AskIncoming(
            journey=self._record.id, vm=self._record.vm, vm_uuid=self._record.vm_uuid, grant=self._route.grant
        )
        while not self.abandoned:
            async with self.asking_slot:
                answer = await self._client.begin_incoming(body)
            self.findings.place = answer.place
            if answer.place == 0:
                return on.PermissionGiven()
            await asyncio.sleep(0.3)
        return None

    async def check_fitness(self) -> Event:
        refuse_unmigratable(self._vm.frozen)
        await self.refuse_blocked()
        # known now, and not in the blackout, if it cannot be given up and taken
        await self._vm.hold_lease()
        self.holds_lease = True
        fitness = await self._client.check_fitness(
            self._record.id, await self.fitness_question(), timeout_s=self._route.prepare_timeout_s
        )
        await self.negotiate(fitness)
        return on.FitnessConfirmed()

    async def refuse_blocked(self) -> None:
        """Raises MigrationBlocked when QEMU says that it would refuse."""
        reasons = await self._engine.blocked_reasons()
        if reasons:
            said = "; ".join(reasons).rstrip(".")
            raise MigrationBlocked(f"QEMU cannot migrate VM '{self._record.vm}' now: {said}.")

    async def fitness_question(self) -> AskFitness:
        return AskFitness(
            frozen=self._vm.frozen.model_dump_json(),
            definition=self._vm.definition,
            source_accelerator=self._vm.accelerator,
            lease_domain=await self._vm.lease_domain(),
        )

    async def negotiate(self, fitness: FitnessAnswer) -> Agreement:
        """What this journey uses, from both hosts' links and offers.

        Raises what policy.path_choice.choose_paths and policy.transport.agree raise.
        """
        await self.paths.choose(fitness.networks.networks())
        capacity = self.paths.capacity_bytes_per_s
        own, theirs = await self._route.own_offer(), offer_from(fitness.offer)
        wish = self._route.wish
        trusted = self.paths.only_trusted(
            lambda path: self._route.trusted(path.destination_address, fitness.trusted_networks)
        )
        agreement = agree(
            replace(own, link_bytes_per_s=capacity), replace(theirs, link_bytes_per_s=capacity),
            replace(wish, tls=wish.tls and not trusted),
        )  # fmt: skip
        if not agreement.mptcp:
            why = own.no_mptcp or theirs.no_mptcp
            self.paths.use_one(f"MPTCP is not to be had: {why}" if wish.multipath else "")
        self.findings.fitness, self.findings.agreement = fitness, agreement
        self.findings.notes.extend(fitness.notes)
        return agreement

    async def build_skeleton(self) -> Event:
        asked = AskBuild(paths=self.paths.pairs)
        built = await self._client.build_skeleton(self._record.id, asked, timeout_s=self._route.prepare_timeout_s)
        self.findings.probe_port, self.findings.probe_nonce = built.probe_port, built.probe_nonce
        return on.SkeletonBuilt()

    async def open_connection(self) -> Event | None:
        """None when it was given up meanwhile, see :meth:`give_up_connecting`."""
        self._connecting = spawn(self._connect(), name=f"connect {self._record.id}")
        await asyncio.wait({self._connecting})
        if self._connecting.cancelled():
            return None
        self._connecting.result()
        return on.ConnectionOpened()

    async def give_up_connecting(self) -> None:
        """Nothing of it goes on when this returns; nothing happens when it is done or was never begun."""
        await cancel_and_wait(self._connecting)

    async def _connect(self) -> None:
        agreement = self._agreed()
        await self.paths.probe(self.findings.probe_port, self.findings.probe_nonce)
        psk_hex = secrets.token_hex(32) if agreement.tls else ""
        # the probes' nonce went over the network as it is
        heartbeat_key = secrets.token_hex(16) if self._is_kept(agreement) else ""
        asked = AskListen(
            capabilities=[name for name in agreement.capabilities if name != "auto-converge"],
            parameters=multifd_parameters(agreement), psk_hex=psk_hex, paths=self.paths.to_listen, mptcp=agreement.mptcp,
            heartbeat_key=heartbeat_key,
        )  # fmt: skip
        self.configured = True
        name = f"connect {self._record.id}"
        listen = spawn(self._client.listen(self._record.id, asked), name=name)
        configure = spawn(
            self._engine.configure(
                agreement, psk_hex=psk_hex, psk_dir=self._route.key_dir,
                max_bandwidth_bytes_per_s=self._route.max_bandwidth_bytes_per_s, owner_uid=self._route.qemu_uid,
            ),
            name=name,
        )  # fmt: skip
        paths = spawn(self._set_up_paths(agreement, heartbeat_key), name=name)
        try:
            listening, _, _ = await asyncio.gather(listen, configure, paths)
        finally:
            # one of them failed, or the journey is undone: the others must not go on behind its back
            await cancel_and_wait(listen, configure, paths)
        if self._told_bytes_per_s:
            # it may have come before QEMU was set up
            await self._set_rate(self._told_bytes_per_s)
        self.findings.port = listening.port
        self.findings.notes.extend(listening.notes)

    async def _set_up_paths(self, agreement: Agreement, heartbeat_key: str) -> None:
        await self.paths.set_up(multipath=agreement.mptcp)
        await self.paths.watch(
            self.findings.probe_port, multipath=agreement.mptcp, heartbeat_key=heartbeat_key, on_rate=self._limit,
        )  # fmt: skip

    def _is_kept(self, agreement: Agreement) -> bool:
        """A keeper is there for several paths, and where the destination has limits that it must be able to tell."""
        assert self.findings.fitness is not None
        return agreement.mptcp or self.findings.fitness.limited

    def _limit(self, bytes_per_s: int) -> None:
        own = self._route.max_bandwidth_bytes_per_s
        limits = [limit for limit in (bytes_per_s, own) if limit]
        self._told_bytes_per_s = min(limits, default=0)
        spawn(self._set_rate(self._told_bytes_per_s), name=f"rate of {self._record.id}")

    async def _set_rate(self, bytes_per_s: int) -> None:
        # the copy may just have ended
        with contextlib.suppress(LivemoveError):
            await self._engine.limit(bytes_per_s)

    def _agreed(self) -> Agreement:
        assert self.findings.agreement is not None
        return self.findings.agreement
