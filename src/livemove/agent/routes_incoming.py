"""Routes that only the agent of another host may use: the destination's side of a journey."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from livemove.agent.grants import check_grant
from livemove.agent.host import Host
from livemove.agent.room import check_room
from livemove.agent.tls_server import require_host
from livemove.api.client_identity import Peer
from livemove.api.incoming_models import (
    AskBuild,
    AskDigests,
    AskFitness,
    AskGo,
    AskIncoming,
    AskListen,
    AskPage,
    AskPieces,
    BuildAnswer,
    DestinationFacts,
    DigestsAnswer,
    FitnessAnswer,
    IncomingAnswer,
    ListenAnswer,
    MemoryOpened,
    OwnershipAnswer,
    PageAnswer,
    PiecesAnswer,
)
from livemove.api.models import ReportView
from livemove.base.errors import AgentBusy, NotPermitted
from livemove.base.fault_points import around
from livemove.fleet.admission import MAX_WAITING

Source = Annotated[Peer, Depends(require_host())]


def make_router(host: Host) -> APIRouter:
    router = APIRouter(prefix="/incoming")
    arrivals = host.arrivals

    @router.post("")
    async def begin(peer: Source, body: AskIncoming) -> IncomingAnswer:
        """A slot for a journey with a grant of ours; asked again while it waits."""
        now_wall_s = host.clock.wall_s()
        grant = check_grant(body.grant, host.identity, vm_uuid=body.vm_uuid, source_peer=peer, now_wall_s=now_wall_s)
        if grant.vm_name != body.vm:
            raise NotPermitted("The grant is for another VM.")
        if not arrivals.knows(body.journey):
            check_room(host.settings)
            waiting = arrivals.queue.waiting
            if len(waiting) >= MAX_WAITING and body.journey not in waiting:
                raise AgentBusy(f"{len(waiting)} journeys wait for a slot on '{host.settings.name}'.")
            place = arrivals.place(body.journey)
            if place:
                return IncomingAnswer(phase="queued", place=place)
            try:
                if not await host.journal.consume_grant(grant.id, grant.expires_wall_s):
                    raise NotPermitted(
                        "The grant has been used already.", remedy="Run the command again for a new one."
                    )
                await arrivals.admit(body.journey, grant)
            except BaseException:
                # nobody would give the slot back of a journey that is not on record
                if not arrivals.knows(body.journey):
                    arrivals.queue.release(body.journey)
                raise
        return IncomingAnswer(phase="reserved")

    @router.post("/{journey}/fitness")
    async def fitness(peer: Source, journey: str, body: AskFitness, dry_run: bool = False) -> FitnessAnswer:
        """Step 3: policy, memory, CPU, machine type, disks, bridges; the memory is reserved unless it is a dry run."""
        with around("destination.request", "fitness"):
            return await arrivals.fitness(journey, peer.name, body, dry_run=dry_run)

    @router.post("/{journey}/skeleton")
    async def skeleton(peer: Source, journey: str, body: AskBuild) -> BuildAnswer:
        """Step 4: start the QEMU that waits for the VM, and our own listeners on the port that it will take."""
        with around("destination.request", "build"):
            return await arrivals.build(journey, peer.name, body)

    @router.post("/{journey}/listen")
    async def listen(peer: Source, journey: str, body: AskListen) -> ListenAnswer:
        """Step 5: our listener leaves the port and QEMU takes it, behind a packet filter, with the journey's key."""
        with around("destination.request", "listen"):
            return await arrivals.listen(journey, peer.name, body)

    @router.post("/{journey}/arm")
    async def arm(peer: Source, journey: str) -> OwnershipAnswer:
        """Step 7: journal, durably, that the VM may be handed over."""
        with around("destination.request", "arm"):
            return await arrivals.arm(journey, peer.name)

    @router.post("/{journey}/memory")
    async def open_memory(peer: Source, journey: str) -> MemoryOpened:
        """Step 7, where the memory is to be verified: open it for reading, ahead of the blackout."""
        with around("destination.request", "memory"):
            return await arrivals.memory.open(journey, peer.name)

    @router.post("/{journey}/digests")
    async def digests(peer: Source, journey: str, body: AskDigests) -> DigestsAnswer:
        """Step 9, before the hand-over: digests of what was loaded, or of a sample of it."""
        with around("destination.request", "digests"):
            return await arrivals.memory.digests(journey, peer.name, body)

    @router.post("/{journey}/pieces")
    async def pieces(peer: Source, journey: str, body: AskPieces) -> PiecesAnswer:
        """Digests of pieces of one block, to find what differs."""
        with around("destination.request", "pieces"):
            return await arrivals.memory.pieces(journey, peer.name, body)

    @router.post("/{journey}/page")
    async def page(peer: Source, journey: str, body: AskPage) -> PageAnswer:
        """One page that differs, to see whether loading the devices' state changed it."""
        with around("destination.request", "page"):
            return await arrivals.memory.page(journey, peer.name, body)

    @router.post("/{journey}/go")
    async def go(peer: Source, journey: str, body: AskGo) -> OwnershipAnswer:
        """Step 9: OWNED becomes durable, the guest runs if it ran, then the answer is given."""
        with around("destination.request", "go"):
            return await arrivals.go(journey, peer.name, resume=body.resume)

    @router.post("/{journey}/ask")
    async def ask(peer: Source, journey: str) -> OwnershipAnswer:
        """Whether this host owns the VM; a no is binding: ABANDONED is durable and QEMU dead before it is given."""
        with around("destination.request", "ask"):
            return await arrivals.ask(journey, peer.name)

    @router.post("/{journey}/abandon")
    async def abandon(peer: Source, journey: str) -> OwnershipAnswer:
        """Forget the journey and all that was made for it; an owner answers that it owns."""
        with around("destination.request", "abandon"):
            return await arrivals.abandon(journey, peer.name)

    @router.post("/{journey}/overrule", status_code=204)
    async def overrule(peer: Source, journey: str) -> None:
        """The source took the VM back while this host was declared dead; refused when the VM runs here."""
        await arrivals.overrule(journey, peer.name)

    @router.get("/{journey}/facts")
    async def facts(peer: Source, journey: str) -> DestinationFacts:
        """CPU time spent here and the VM's state, for the report; in the copy also the source's sign of life."""
        return await arrivals.facts(journey, peer.name)

    @router.post("/{journey}/report", status_code=204)
    async def report(peer: Source, journey: str, body: ReportView) -> None:
        """Keep the source's report of a journey that came here."""
        await host.journal.keep_foreign_report(journey, peer.name, body)

    return router
