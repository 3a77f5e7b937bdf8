"""Journeys that arrive here: the destination's side, driven by the source's requests and the rules of migration.incoming.

Every request holds the journey's lock, asks the rules, carries out their effects in their order, and only then answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pwd
import time
from collections.abc import Callable

from livemove.agent.arrival_connection import ArrivalConnection, refuse_unknown
from livemove.agent.arrival_effects import DYING_S, SOURCE_ENDED, Arrival, ArrivalEffects
from livemove.agent.arrival_memory import ArrivalMemory
from livemove.agent.fitness import check_files, check_fitness, read_frozen
from livemove.agent.grants import Grant
from livemove.agent.networking import AgentNetworking
from livemove.agent.vms import Vms
from livemove.api.incoming_models import (
    AskBuild,
    AskFitness,
    AskListen,
    BuildAnswer,
    DestinationFacts,
    FitnessAnswer,
    ListenAnswer,
    OfferBody,
    OwnershipAnswer,
)
from livemove.api.network_models import HostNetworksBody
from livemove.base.clock import Clock
from livemove.base.errors import (
    Conflict,
    LeaseMismatch,
    LivemoveError,
    NotPermitted,
    PeerViolation,
    UnknownJourney,
)
from livemove.base.fault_points import around
from livemove.base.settings import HostSettings
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.fleet.admission import AdmissionQueue
from livemove.migration.direct import configure_qemu, remove_keys
from livemove.migration.incoming import Effect, RefusedRequest, Request
from livemove.migration.journal import DESTINATION, Journal, Record
from livemove.migration.model import Incoming, IncomingPhase
from livemove.migration.packet_filter import remove_filter
from livemove.migration.receiving import LoadedWatch, listen_in_qemu

_log = logging.getLogger(__name__)


class Arrivals:
    """Owner of the QEMUs that wait here for a VM."""

    def __init__(
        self, settings: Callable[[], HostSettings], vms: Vms, journal: Journal, clock: Clock,
        offer: Callable[[], OfferBody], networking: AgentNetworking,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._vms = vms
        self._journal = journal
        self._clock = clock
        self._offer = offer
        self._networking = networking
        self._arrivals: dict[str, Arrival] = {}
        self.queue = AdmissionQueue(settings().simultaneous)
        self._asked_s: dict[str, float] = {}
        self._effects = ArrivalEffects(
            settings, vms, journal, clock, self.queue, lambda journey: self._arrivals.pop(journey, None)
        )
        self.memory = ArrivalMemory(self._get, clock)

    def all(self) -> list[Arrival]:
        return list(self._arrivals.values())

    def _get(self, journey: str, source: str) -> Arrival:
        arrival = self._arrivals.get(journey)
        if arrival is None:
            raise UnknownJourney(f"This host knows no arriving journey {journey}.")
        if arrival.record.source != source:
            raise NotPermitted(f"Journey {journey} comes from {arrival.record.source}, not from {source}.")
        arrival.last_contact_s = self._clock.monotonic_s()
        return arrival

    def knows(self, journey: str) -> bool:
        """Whether the journey was admitted already."""
        return journey in self._arrivals

    def taken_ports(self) -> set[int]:
        """Ports of journeys that arrive: one between our listener and QEMU's looks free, and is not."""
        return {arrival.connection.port for arrival in self._arrivals.values() if arrival.connection is not None}

    # Steps 2 to 5 ---------------------------------------------------------------------------------------------------

    def place(self, journey: str) -> int:
        """0 when the journey has a slot here, else its place in the queue; it is forgotten when not asked for 15 s."""
        now_s = self._clock.monotonic_s()
        for waiting in self.queue.waiting:
            if now_s - self._asked_s.get(waiting, now_s) > 15:
                self.queue.release(waiting)
                self._asked_s.pop(waiting, None)
        self._asked_s[journey] = now_s
        self.queue.set_limit(self._settings().simultaneous)
        place = self.queue.request(journey)
        if place == 0:
            self._asked_s.pop(journey, None)
        return place

    async def admit(self, journey: str, grant: Grant) -> None:
        """The journey has a slot and a grant: it is on record from now on. Raises Conflict when a VM of that name arrives."""
        if journey in self._arrivals:
            return
        for other in self._arrivals.values():
            if (
                other.record.vm == grant.vm_name
                and other.state.phase is not IncomingPhase.ABANDONED
                and not other.state.phase.owns
            ):
                raise Conflict(f"VM '{grant.vm_name}' is arriving here already, by journey {other.record.id}.")
        record = Record(
            journey, DESTINATION, grant.vm_name, grant.vm_uuid, grant.source, grant.destination, grant.person,
            self._clock.wall_s(), {"role": grant.role},
        )  # fmt: skip
        arrival = Arrival(record, Incoming(IncomingPhase.RESERVED), grant_role=grant.role)
        with around("destination.journal", arrival.state.phase.value):
            await self._journal.create(record, arrival.state)
        self._keep(arrival)

    def _keep(self, arrival: Arrival) -> None:
        arrival.last_contact_s = self._clock.monotonic_s()
        self._arrivals[arrival.record.id] = arrival
        self._vms.arriving.add(arrival.record.vm)
        arrival.watch = spawn(self._effects.watch_source(arrival), name=f"watch the source of {arrival.record.id}")

    async def fitness(self, journey: str, source: str, asked: AskFitness, *, dry_run: bool) -> FitnessAnswer:
        """Step 3. Raises an OperatorError naming what is missing; the memory is reserved afterwards unless `dry_run`."""
        frozen = read_frozen(asked.frozen)
        await self._refuse_other_leases(source, asked.lease_domain)
        if dry_run:
            await check_files(frozen, self._vms, self._settings())
            return await self._fitness_answer(
                check_fitness(frozen, asked.source_accelerator, self._vms, self._settings())
            )
        arrival = self._get(journey, source)
        if (frozen.name, frozen.uuid) != (arrival.record.vm, arrival.record.vm_uuid):
            raise NotPermitted("The grant is for another VM than the one that was sent.")
        if frozen.extra_arguments and arrival.grant_role != "admin":
            raise NotPermitted(f"VM '{frozen.name}' has extra QEMU arguments; only an admin may bring it here.")
        # without the lock: storage that does not answer must not hold up the source's cancellation
        await check_files(frozen, self._vms, self._settings())
        async with arrival.lock:
            notes = check_fitness(frozen, asked.source_accelerator, self._vms, self._settings())
            # a request that the source's cancellation overtook must not reserve what nobody would give back
            self._expect(arrival, IncomingPhase.RESERVED)
            self._vms.reserved_bytes[journey] = frozen.memory_bytes
            arrival.frozen, arrival.definition = frozen, asked.definition
        return await self._fitness_answer(notes)

    async def _refuse_other_leases(self, source: str, theirs: str) -> None:
        ours = await self._vms.lease_domain()
        if ours != theirs:
            here = self._settings().name
            raise LeaseMismatch(
                f"{source} and {here} do not keep the leases of their VMs in the same directory: "
                f"{source}'s is {'shared' if theirs else 'its own'}, {here}'s is {'shared' if ours else 'its own'}.",
                where=here,
            )

    @staticmethod
    def _expect(arrival: Arrival, phase: IncomingPhase) -> None:
        if arrival.state.phase is not phase:
            raise PeerViolation(f"Journey {arrival.record.id} is {arrival.state.phase.value}, not {phase.value}.")

    async def _fitness_answer(self, notes: list[str]) -> FitnessAnswer:
        return FitnessAnswer(
            offer=self._offer(), networks=HostNetworksBody.of(await self._networking.own()), limited=self._networking.is_limited,
            trusted_networks=list(self._settings().trusted_networks), notes=tuple(notes),
        )  # fmt: skip

    async def build(self, journey: str, source: str, asked: AskBuild) -> BuildAnswer:
        """Step 4: the skeleton VM, and our own listeners on the port that QEMU will take."""
        arrival = self._get(journey, source)
        async with arrival.lock:
            if arrival.frozen is None:
                raise PeerViolation("The skeleton was asked for before the fitness check.")
            self._expect(arrival, IncomingPhase.RESERVED)
            await self._networking.check(asked.paths)
            started_s = self._clock.monotonic_s()
            await self._effects.request(arrival, Request.BUILD)
            arrival.connection = await ArrivalConnection.open(
                journey,
                asked.paths,
                self._settings().ports,
                self.taken_ports(),
                self._networking,
                self._journal.teller(arrival.record),
            )
            await self._effects.request(arrival, Request.BUILT)
            return BuildAnswer(
                probe_port=arrival.connection.port,
                probe_nonce=arrival.connection.nonce,
                qemu_ms=(self._clock.monotonic_s() - started_s) * 1e3,
            )

    async def listen(self, journey: str, source: str, asked: AskListen) -> ListenAnswer:
        """Step 5: our listener makes room and QEMU listens, behind a packet filter, with the key of this journey."""
        refuse_unknown(asked)
        arrival = self._get(journey, source)
        async with arrival.lock:
            self._expect(arrival, IncomingPhase.BUILT)
            assert arrival.connection is not None and arrival.running is not None
            monitor = arrival.running.monitor
            settings = self._settings()
            address = await arrival.connection.hand_to_qemu(asked)
            arrival.loaded = LoadedWatch(monitor)
            await configure_qemu(
                monitor, tuple(asked.capabilities), dict(asked.parameters), psk_hex=asked.psk_hex,
                psk_dir=self._effects.key_dir(journey), endpoint="server",
                owner_uid=pwd.getpwnam(settings.qemu_user).pw_uid if settings.qemu_user else None,
            )  # fmt: skip
            await listen_in_qemu(monitor, address, arrival.connection.port, mptcp=asked.mptcp)
            await self._effects.request(arrival, Request.LISTEN)
            return ListenAnswer(port=arrival.connection.port, notes=arrival.connection.notes)

    # Steps 7 to 9: ownership ----------------------------------------------------------------------------------------

    async def arm(self, journey: str, source: str) -> OwnershipAnswer:
        """Journal, durably, that the VM may be handed over."""
        return await self._ownership(journey, source, Request.ARM)

    async def go(self, journey: str, source: str, *, resume: bool) -> OwnershipAnswer:
        """The ownership passes: OWNED is durable, then the guest runs, then the source is answered."""
        return await self._ownership(journey, source, Request.GO, resume=resume)

    async def take(self, journey: str, person: str, *, resume: bool) -> str:
        """The ownership passes on an operator's word that the source is dead; what happened, as a sentence.

        Raises UnknownJourney, PeerViolation when the journey is past that; Conflict when the VM could not be taken.
        """
        arrival = self._arrivals.get(journey)
        if arrival is None:
            raise UnknownJourney(f"This host knows no arriving journey {journey}.")
        record = arrival.record
        text = f"{person} declared {record.source} dead: this host takes VM {record.vm}, which it had loaded."
        await self._journal.add_event(record, text, level="warning")
        answer = await self._ownership(journey, record.source, Request.TAKE, resume=resume)
        if not answer.owned:
            raise Conflict(f"VM '{record.vm}' could not be taken: {answer.reason}.")
        return f"VM {record.vm} is this host's and {'runs' if answer.running else 'is paused'}."

    async def overrule(self, journey: str, source: str) -> None:
        """The source took the VM back on an operator's word that this host was dead.

        Only as long as nobody has used it here since it arrived: the word of a host alone takes nobody's VM away. Raises
        Conflict when somebody did, and when it runs here.
        """
        found = await self._journal.incoming(journey)
        if found is None:
            return
        record, state = found
        if record.source != source:
            raise NotPermitted(f"Journey {journey} comes from {record.source}, not from {source}.")
        # what it may have loaded is of the past now, and must never run
        back = f"{source} took the VM back"
        if not (state.phase.owns or (await self._ownership(journey, source, Request.ABANDON, reason=back)).owned):
            return
        async with self._vms.lock(record.vm):
            vm = self._vms.records.find(record.vm)
            if vm is None or vm.uuid != record.vm_uuid or vm.moved_to:
                return
            if self._vms.find_running(record.vm) is not None or vm.process is not None:
                raise Conflict(
                    f"VM '{record.vm}' runs on {record.destination}, which was declared dead, and on {source} too: its disks are in danger.",
                    remedy=f"Stop one of them at once: 'livemove vm stop --force --host HOST {record.vm}'.",
                )
            if vm.arrived_in != journey:
                raise Conflict(
                    f"{source} says that it took VM '{record.vm}' back, but it was started or stopped on {record.destination} since.",
                    remedy=f"If {source} has it, remove it here: 'livemove vm remove --host {record.destination} {record.vm}'.",
                )
            await self._vms.stopped_in_order(record.vm, moved_to=source)
            # told again because its answer was lost, it means nothing for a VM that has come here anew
            overruled = Incoming(IncomingPhase.ABANDONED, reason=f"{source} took it back on an operator's word")
            await self._journal.save(record, overruled, "overruled", durable=True, closed=True)
        text = f"{source} took VM {record.vm} back on an operator's word while this host was away."
        await self._journal.add_event(record, text, level="warning")

    async def ask(self, journey: str, source: str) -> OwnershipAnswer:
        """Do we own the VM? A no is binding: ABANDONED is durable and our QEMU dead before it is given."""
        return await self._ownership(
            journey, source, Request.ABANDON, reason="the source asked before it was handed over"
        )

    async def abandon(self, journey: str, source: str) -> OwnershipAnswer:
        """The source ended the journey; the answer says so when it was our QEMU that ended first."""
        arrival = self._arrivals.get(journey)
        reason = SOURCE_ENDED
        if arrival is None:
            # it may still be waiting for a slot
            self.queue.release(journey)
            self._asked_s.pop(journey, None)
        elif arrival.running is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DYING_S):
                    await arrival.running.monitor.closed.wait()
                    reason = self._effects.last_words(arrival)
        return await self._ownership(journey, source, Request.ABANDON, reason=reason)

    async def _ownership(
        self, journey: str, source: str, request: Request, *, resume: bool = False, reason: str = ""
    ) -> OwnershipAnswer:
        arrival = self._arrivals.get(journey)
        if arrival is None:
            return await self._from_the_records(journey, source, request)
        self._get(journey, source)
        async with arrival.lock:
            await self._effects.put_end_on_record(arrival)
            try:
                timings = await self._effects.request(arrival, request, resume=resume, reason=reason)
            except RefusedRequest as error:
                if arrival.state.phase is not IncomingPhase.ABANDONED:
                    raise PeerViolation(f"Journey {journey}: {error}.") from error
                timings = {}
            state = arrival.state
            return OwnershipAnswer(
                owned=state.phase.owns, running=state.continued, reason=state.reason,
                journal_ms=timings.get(Effect.JOURNAL, 0.0), resume_ms=timings.get(Effect.RESUME_GUEST, 0.0),
            )  # fmt: skip

    async def _from_the_records(self, journey: str, source: str, request: Request) -> OwnershipAnswer:
        """About a journey that ended, or that never came here: what the database says is as binding."""
        found = await self._journal.incoming(journey)
        if found is None:
            came = [vm for vm in self._vms.records.all() if vm.arrived_in == journey and vm.moved_to != source]
            if came:
                return OwnershipAnswer(owned=True, reason="its record says that the VM came here")
            # never heard of: a GO for it can never be accepted, because grants are used once
            return OwnershipAnswer(owned=False, reason="this host has no record of the journey")
        record, state = found
        if record.source != source:
            raise NotPermitted(f"Journey {journey} comes from {record.source}, not from {source}.")
        return OwnershipAnswer(owned=state.phase.owns, running=state.continued, reason=state.reason)

    async def facts(self, journey: str, source: str) -> DestinationFacts:
        """What the source's report says of this side; also the source's sign of life during the copy."""
        arrival = self._get(journey, source)
        return DestinationFacts(
            cpu_seconds=arrival.cpu_seconds or 0.0,
            agent_cpu_seconds=time.process_time() - arrival.agent_cpu_start_s if arrival.running else 0.0,
            vm_state=arrival.running.status if arrival.running and arrival.state.phase.owns else "arriving",
            paths=await arrival.connection.totals() if arrival.connection and arrival.state.phase.owns else [],
        )

    # Restart and end ------------------------------------------------------------------------------------------------

    async def find_again(self) -> None:
        """After a restart of the agent: what is owned stays, everything else is abandoned."""
        for record, state in await self._journal.open_incoming():
            arrival = Arrival(record, state)
            await remove_filter(record.id)
            remove_keys(self._effects.key_dir(record.id))
            if not state.phase.owns:
                await self._give_up(arrival)
            elif record.vm in self._vms.mute:
                spawn(self._find_owned_later(arrival), name=f"find journey {record.id} again")
            else:
                await self._effects.find_owned(arrival)

    async def _give_up(self, arrival: Arrival) -> None:
        """After a restart; while its QEMU cannot be ended, nothing is said of the journey, and the agent goes on."""
        try:
            async with arrival.lock:
                await self._effects.request(arrival, Request.RESTARTED, reason="the destination's agent was restarted")
        except LivemoveError as error:
            _log.error("journey %s cannot be abandoned yet: %s", arrival.record.id, error)
            self._keep(arrival)

    async def _find_owned_later(self, arrival: Arrival) -> None:
        """Its QEMU hangs: whether it is dead must be known first."""
        search = self._vms.mute.get(arrival.record.vm)
        if search is not None:
            await asyncio.wait([search])
        await self._effects.find_owned(arrival)

    async def close(self) -> None:
        """The agent ends: let go of everything that others can find again."""
        for arrival in self._arrivals.values():
            await cancel_and_wait(arrival.watch)
            if arrival.running is not None and self._vms.find_running(arrival.record.vm) is not arrival.running:
                await cancel_and_wait(arrival.running.watch)
                await arrival.running.monitor.close()
            if arrival.connection is not None:
                await arrival.connection.leave()
            if arrival.memory is not None:
                await arrival.memory.close()
