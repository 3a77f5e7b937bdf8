"""Journeys that leave this host: begun, queued, watched, cancelled, taken up again after a restart, remembered."""

from __future__ import annotations

import asyncio
import contextlib
import pwd
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from livemove.agent.asked import bandwidth_of, both_trust, contract_of, paths_of, verify_of, wish_of
from livemove.agent.last_events import keep_end
from livemove.agent.late_client import LateClient
from livemove.agent.leaving import LeavingVm
from livemove.agent.recovery import Recovery
from livemove.agent.room import check_room
from livemove.agent.vm_view import view_vm
from livemove.agent.vms import Vms
from livemove.api.client import AgentClient
from livemove.api.models import AskJourney, ErrorBody, JourneyOptions, JourneyView, NegotiatedRow, PlanView
from livemove.base.clock import Clock, boot_id, wall_text
from livemove.base.errors import (
    AlreadyMoving,
    LivemoveError,
    NotPermitted,
    OutcomeUnknown,
    SameHost,
    UnknownHost,
    UnknownJourney,
    by_code,
)
from livemove.base.fault_points import around
from livemove.base.settings import HostSettings
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.base.units import parse_duration
from livemove.fleet.admission import AdmissionQueue
from livemove.migration import events as on
from livemove.migration.departure import DirectDeparture
from livemove.migration.journal import SOURCE, Journal, Record
from livemove.migration.ledger import Ledger
from livemove.migration.machine import begin
from livemove.migration.model import GuestRun, Owner, State
from livemove.migration.points import CREATED
from livemove.migration.preparing import Route
from livemove.migration.report import make_report, progress_view
from livemove.migration.runner import JourneyRunner
from livemove.migration.source_paths import Networking
from livemove.policy.transport import Offer

#: How long a journey may take to be undone when the agent is told to end.
CLOSE_PATIENCE_S = 5.0


@dataclass(slots=True)
class Departure:
    """A journey under way."""

    record: Record
    runner: JourneyRunner
    effects: DirectDeparture
    ledger: Ledger
    client: AgentClient
    asked_monotonic_s: float | None
    task: asyncio.Task[None] | None = None


class Departures:
    """Owner of this host's outgoing journeys."""

    def __init__(
        self, settings: Callable[[], HostSettings], vms: Vms, journal: Journal, clock: Clock,
        client_to: Callable[[str], AgentClient], learn_cluster: Callable[[], Awaitable[object]], own_offer: Callable[[], Awaitable[Offer]],
        networking: Networking,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._vms = vms
        self._journal = journal
        self._clock = clock
        self._client_to = client_to
        self._learn_cluster = learn_cluster
        self.recovery = Recovery(vms, journal, clock, client_to)
        self._own_offer = own_offer
        self._networking = networking
        self._open: dict[str, Departure] = {}
        self.queue = AdmissionQueue(settings().simultaneous)
        self._slot_freed = asyncio.Event()
        #: totals for the metrics: outcome -> count
        self.ended: dict[str, int] = {}
        #: puts on record that the destination must still be told to forget a journey
        self.remind: Callable[[Record], Awaitable[None]] = _nothing_more
        vms.on_death.append(self._vm_died)

    def open(self) -> list[Departure]:
        return list(self._open.values())

    # Begin ----------------------------------------------------------------------------------------------------------

    async def start(self, asked: AskJourney, person: str, role: str) -> JourneyView:
        """Begin a journey. Raises UnknownVm, NotRunning, SameHost, AlreadyMoving, UnknownHost, NotPermitted."""
        started_s = self._clock.monotonic_s()
        if asked.destination != self._settings().name:
            await self._find_client(asked.destination)
        # nothing is waited for from here until the VM is claimed: two may want to move it
        vm = self._leaving(asked, role)
        client = LateClient(asked.destination, self._client_to)
        settings = self._settings()
        record = Record(
            str(uuid.uuid4()), SOURCE, asked.vm, vm.frozen.uuid, settings.name, asked.destination,
            person, self._clock.wall_s(), {"options": asked.options.model_dump(mode="json"), "grant": ""},
        )  # fmt: skip
        self._vms.journeys[asked.vm] = record.id
        try:
            status = str((await vm.monitor.execute("query-status"))["status"])
            state = begin(contract_of(asked.options, self._settings()), verify_of(asked.options, self._settings()))
            with around("source.journal", CREATED):
                await self._journal.create(record, state)
            await client.__aenter__()
        except BaseException:
            self._vms.journeys.pop(asked.vm, None)
            raise
        departure = self._assemble(record, state, vm, client, asked, started_s)
        departure.effects.watch()
        text = f"Journey of VM {asked.vm} from {settings.name} to {asked.destination} initiated by {person}."
        await self._journal.add_event(record, text, event_id=20413)
        departure.runner.post(on.JourneyAccepted(GuestRun.of(status)))
        departure.task = spawn(self._run(departure), name=f"journey {record.id}")
        return self.view(departure)

    async def _find_client(self, host: str) -> AgentClient:
        """Requests to `host`, also when it joined the cluster after we last looked. Raises UnknownHost."""
        try:
            return self._client_to(host)
        except UnknownHost:
            await self._learn_cluster()
            return self._client_to(host)

    def _leaving(self, asked: AskJourney, role: str) -> LeavingVm:
        settings = self._settings()
        if asked.destination == settings.name:
            raise SameHost(f"VM '{asked.vm}' is on {settings.name} already.")
        running = self._vms.running(asked.vm)
        if asked.vm in self._vms.unresolved:
            raise OutcomeUnknown(f"The hand-over of VM '{asked.vm}' is not resolved.")
        if asked.vm in self._vms.journeys and not asked.dry_run:
            raise AlreadyMoving(f"VM '{asked.vm}' is being moved already, by journey {self._vms.journeys[asked.vm]}.")
        if running.frozen.extra_arguments and role != "admin":
            raise NotPermitted(f"VM '{asked.vm}' has extra QEMU arguments; only an admin may move it.")
        check_room(settings)
        record = self._vms.records.get(asked.vm)
        return LeavingVm(
            self._vms,
            asked.vm,
            running.frozen,
            record.definition,
            running.monitor,
            running.process,
            record.accelerator,
        )

    def _assemble(
        self, record: Record, state: State, vm: LeavingVm, client: AgentClient, asked: AskJourney, started_s: float
    ) -> Departure:
        ledger = Ledger(started_s)
        waiting: list[on.Event] = []
        runner: JourneyRunner | None = None

        def post(event: on.Event) -> None:
            if runner is None:
                waiting.append(event)
            else:
                runner.post(event)

        effects = DirectDeparture(
            record,
            vm,
            client,
            self._route(asked, record),
            ledger,
            self._clock,
            post,
            lambda: self._slot(record.id),
            self._journal.teller(record),
        )
        runner = JourneyRunner(
            record, state, effects, self._journal, ledger, self._clock, lambda now, cause: self._changed(record, now)
        )
        same_machine = asked.asked_boot_id == boot_id() != ""
        asked_s = asked.asked_monotonic_s if same_machine else None
        departure = Departure(record, runner, effects, ledger, client, asked_s)
        self._open[record.id] = departure
        return departure

    def _route(self, asked: AskJourney, record: Record) -> Route:
        settings, options = self._settings(), asked.options
        return Route(
            grant=asked.grant, wish=wish_of(options, settings), max_bandwidth_bytes_per_s=bandwidth_of(options, settings),
            prepare_timeout_s=parse_duration(settings.prepare_timeout), key_dir=settings.run_dir / "keys" / record.id,
            qemu_uid=pwd.getpwnam(settings.qemu_user).pw_uid if settings.qemu_user else None, trusted=lambda address, theirs: both_trust(address, self._settings().trusted_networks, theirs),
            own_offer=self._own_offer, paths=paths_of(options, settings), networking=self._networking,
        )  # fmt: skip

    async def plan(self, asked: AskJourney, role: str) -> PlanView:
        """Everything that would be checked and negotiated; nothing is changed on either host."""
        vm = self._leaving(asked.model_copy(update={"dry_run": True}), role)
        settings = self._settings()
        record = Record(
            "plan-" + uuid.uuid4().hex[:12],
            SOURCE,
            asked.vm,
            vm.frozen.uuid,
            settings.name,
            asked.destination,
            "",
            0.0,
            {},
        )
        contract = contract_of(asked.options, self._settings())
        route = self._route(asked, record)
        async with await self._find_client(asked.destination) as client:
            effects = DirectDeparture(
                record,
                vm,
                client,
                route,
                Ledger(self._clock.monotonic_s()),
                self._clock,
                lambda event: None,
                _nothing,
                lambda text, level: None,
            )
            await effects.preparation.refuse_blocked()
            fitness = await client.check_fitness(record.id, await effects.preparation.fitness_question(), dry_run=True)
            agreement = await effects.preparation.negotiate(fitness)
        notes = list(effects.findings.notes)
        view = view_vm(self._vms, self._vms.records.get(asked.vm), settings.name)
        if view.edited:
            notes.append("The definition was edited since the VM's start; the one frozen at the start is used.")
        return PlanView(
            vm=asked.vm, source=settings.name, destination=asked.destination, option=agreement.option,
            option_reason=agreement.option_reason, engine="direct", channels=agreement.channels,
            compression=agreement.compression, tls=agreement.tls,
            tls_reason="a key made for this journey" if agreement.tls else "the network is marked as trusted on both hosts",
            migration_address=effects.paths.in_use[0].destination_address, paths=effects.paths.views(),
            paths_left_out=effects.paths.left_out(), memory_bytes=vm.frozen.memory_bytes,
            downtime_s=contract.max_downtime_s, deadline_s=contract.deadline_s,
            max_bandwidth_bytes_per_s=route.max_bandwidth_bytes_per_s, verify=asked.options.verify or settings.verify,
            negotiated=[
                NegotiatedRow(feature=r.feature, source=r.source, destination=r.destination, used=r.used, reason=r.reason)
                for r in agreement.rows
            ],
            notes=notes,
        )  # fmt: skip

    # Run ------------------------------------------------------------------------------------------------------------

    async def _slot(self, journey: str) -> None:
        while True:
            self.queue.set_limit(self._settings().simultaneous)
            if self.queue.request(journey) == 0:
                return
            self._slot_freed.clear()
            try:
                async with asyncio.timeout(1.0):
                    await self._slot_freed.wait()
            except TimeoutError:
                continue

    def _changed(self, record: Record, state: State) -> None:
        """Nobody may run the VM here while its owner is not known to be us."""
        if state.owner is Owner.SOURCE:
            self._vms.unresolved.discard(record.vm)
        else:
            self._vms.unresolved.add(record.vm)

    def _vm_died(self, name: str, reason: str) -> None:
        journey = self._vms.journeys.get(name)
        if journey in self._open:
            self._open[journey].runner.post(on.SourceQemuDied(reason, proven=True))

    async def _run(self, departure: Departure) -> None:
        record = departure.record
        try:
            state = await departure.runner.run()
            report = make_report(
                record, state, departure.effects, departure.ledger, departure.runner.decisions,
                asked_monotonic_s=departure.asked_monotonic_s, now_monotonic_s=self._clock.monotonic_s(),
                now_wall_s=self._clock.wall_s(), memory_bytes=departure.effects.memory_bytes,
            )  # fmt: skip
            if departure.effects.untold:
                await self.remind(record)
            self.ended[report.outcome] = self.ended.get(report.outcome, 0) + 1
            await keep_end(self._journal, record, report)
            if report.outcome == "completed":
                with contextlib.suppress(LivemoveError):
                    await departure.client.keep_report(record.id, report)
        finally:
            self.queue.release(record.id)
            self._slot_freed.set()
            if self._vms.journeys.get(record.vm) == record.id:
                del self._vms.journeys[record.vm]
                if departure.runner.state.phase.terminal:
                    self._vms.unresolved.discard(record.vm)
            self._open.pop(record.id, None)
            await departure.client.aclose()
            # QEMU tells of no run state that its migration ended in
            with contextlib.suppress(LivemoveError):
                await self._vms.refresh(record.vm)
            # a guest that powered off while its journey was being undone is stopped like any other
            await self._vms.stop_powered_off()

    def find(self, name: str) -> Departure | None:
        """The open journey of that id or VM."""
        return self._open.get(name) or next((d for d in self._open.values() if d.record.vm == name), None)

    def cancel(self, name: str, by: str) -> Departure:
        """Ask the journey to end. Raises UnknownJourney."""
        departure = self.find(name)
        if departure is None:
            raise UnknownJourney(f"No journey '{name}' is under way on this host.")
        departure.runner.post(on.CancelRequested(by))
        return departure

    def view(self, departure: Departure) -> JourneyView:
        """What people see of an open journey."""
        record, runner, effects = departure.record, departure.runner, departure.effects
        state, agreement = runner.state, effects.findings.agreement
        queue = self.queue.waiting
        place = queue.index(record.id) + 1 if record.id in queue else effects.findings.place
        error = None
        if state.abort is not None:
            kind = by_code().get(state.abort.code, LivemoveError)
            error = ErrorBody.model_validate(kind(state.abort.reason, remedy=state.abort.remedy or None).to_json())
        return JourneyView(
            id=record.id, vm=record.vm, vm_uuid=record.vm_uuid, role="source", source=record.source,
            destination=record.destination, phase=state.phase.value, owner=state.owner.value, terminal=state.phase.terminal,
            person=record.person, queue_place=place, option=agreement.option if agreement else "",
            steps=departure.ledger.steps(self._clock.monotonic_s()), progress=progress_view(effects, state), error=error,
            started=wall_text(record.started_wall_s), last_note=runner.decisions[-1] if runner.decisions else "",
        )  # fmt: skip

    # Restart and end ------------------------------------------------------------------------------------------------

    def hold(self, record: Record, state: State) -> None:
        """The VM is on a journey that was open when the agent ended, taken up again or not yet."""
        self._vms.journeys[record.vm] = record.id
        self._changed(record, state)

    def take_up(self, record: Record, state: State, vm: LeavingVm, client: AgentClient, *, go_impossible: bool) -> None:
        """After a restart of the agent: go on with an open journey, by asking its destination."""
        options = JourneyOptions.model_validate(record.request.get("options", {}))
        asked = AskJourney(vm=record.vm, destination=record.destination, grant="", options=options)
        departure = self._assemble(record, state, vm, client, asked, self._clock.monotonic_s())
        self.queue.request(record.id)
        departure.effects.watch()
        departure.runner.post(on.AgentRestarted(go_impossible=go_impossible))
        self.hold(record, state)
        departure.task = spawn(self._run(departure), name=f"journey {record.id}")

    async def close(self) -> None:
        """The agent ends: journeys that can still be undone are, so that no guest stops with nobody to wake it.

        Those in their hand-over stay open in the journal and are resolved at the next start.
        """
        tasks = [departure.task for departure in self._open.values() if departure.task is not None]
        for departure in self._open.values():
            departure.runner.post(on.CancelRequested("the end of the source's agent"))
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_PATIENCE_S)
        for departure in list(self._open.values()):
            await cancel_and_wait(departure.task)
            await departure.client.aclose()


async def _nothing() -> None:
    return None


async def _nothing_more(record: Record) -> None:
    return None
