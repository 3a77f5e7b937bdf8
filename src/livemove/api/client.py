"""One agent, as its clients call it: people's commands, and the agent of the host at the other end of a journey."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import quote

from livemove.api import trust
from livemove.api.bandwidth_models import BandwidthLimit, BandwidthView
from livemove.api.client_connection import AgentConnection
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
from livemove.api.models import (
    AskGrant,
    AskJourney,
    ChangeSettings,
    ClientBlackout,
    ClusterView,
    ConsoleChunk,
    ConsoleInput,
    DefineVm,
    EventList,
    GrantAnswer,
    HostView,
    JourneyList,
    JourneyView,
    LeftoverList,
    LeftoverView,
    Model,
    PlanView,
    RenewAnswer,
    RenewRequest,
    ReportList,
    ReportView,
    VmList,
    VmView,
)
from livemove.api.network_models import (
    AskDoors,
    AskNetworkTest,
    DoorsAnswer,
    NetworksView,
    NetworkTestView,
    SetNetworks,
)
from livemove.api.qos_models import QosView, QosWishBody
from livemove.api.resolution_models import DeclareDead, HoldingView, ResolutionView
from livemove.base.errors import (
    UnknownJourney,
    UnknownVm,
)
from livemove.base.settings import NAME

MAX_ANSWER_BYTES = 16 << 20
# a start waits for QEMU to come up, a stop for the guest to go down, a plan for the other host's checks
LONG_ANSWER_S = 120.0

M = TypeVar("M", bound=Model)
Query = Mapping[str, str | int | bool]


class AgentClient(AgentConnection):
    """Every method is one request of the HTTP API, named by its meaning and typed by ``api.models``."""

    # Host and cluster -------------------------------------------------------------------------------------------------

    async def host(self) -> HostView:
        """What the host says of itself."""
        return await self._ask(HostView, "GET", "/host")

    async def change_settings(self, changes: Mapping[str, str]) -> HostView:
        """Change settings, all or none. Raises BadSetting."""
        return await self._ask(HostView, "PATCH", "/host", ChangeSettings(changes=dict(changes)))

    async def bandwidth(self) -> BandwidthView:
        """The host's limits, its NICs, and how journeys share them now."""
        return await self._ask(BandwidthView, "GET", "/bandwidth")

    async def set_bandwidth(self, limit: BandwidthLimit, *, dry_run: bool = False) -> BandwidthView:
        """Set what is said of a category. Raises BadSetting, MissingPrerequisite; nothing is changed then."""
        return await self._ask(BandwidthView, "PUT", "/bandwidth", limit, query={"dry_run": dry_run})

    async def remove_bandwidth(self, category: str, *, dry_run: bool = False) -> BandwidthView:
        """Say nothing of a category any more. Raises BadSetting."""
        path = f"/bandwidth/{quote(category[:128], safe='')}"
        return await self._ask(BandwidthView, "DELETE", path, query={"dry_run": dry_run})

    async def qos(self) -> QosView:
        """Marks on migration's packets, and what the NICs' hardware is set to."""
        return await self._ask(QosView, "GET", "/qos")

    async def apply_qos(self, wish: QosWishBody, *, dry_run: bool = False) -> QosView:
        """Mark packets and set NICs. Raises BadSetting, MissingPrerequisite; nothing is changed then."""
        return await self._ask(QosView, "PUT", "/qos", wish, query={"dry_run": dry_run}, timeout_s=LONG_ANSWER_S)

    async def remove_qos(self, *, dry_run: bool = False) -> QosView:
        """Take both back."""
        return await self._ask(QosView, "DELETE", "/qos", query={"dry_run": dry_run}, timeout_s=LONG_ANSWER_S)

    async def leftovers(self) -> list[LeftoverView]:
        """What lies about on this host and belongs to nobody any more; nothing is touched."""
        return (await self._ask(LeftoverList, "GET", "/leftovers")).leftovers

    async def remove_leftovers(self) -> list[LeftoverView]:
        """Remove it; what was removed, and with `kept` what could not be."""
        return (await self._ask(LeftoverList, "DELETE", "/leftovers", timeout_s=LONG_ANSWER_S)).leftovers

    async def cluster(self, *, timeout_s: float = trust.ANSWER_TIMEOUT_S) -> ClusterView:
        """The hosts that this one knows."""
        return await self._ask(ClusterView, "GET", "/cluster", timeout_s=timeout_s)

    async def networks(self) -> NetworksView:
        """The host's links, its own settings about them, and the cluster's list of networks."""
        return await self._ask(NetworksView, "GET", "/networks")

    async def set_networks(self, body: SetNetworks) -> NetworksView:
        """A new list for the cluster, on the authority's host. Raises Conflict when the map changed since, BadSetting."""
        return await self._ask(NetworksView, "PUT", "/cluster/networks", body)

    async def test_network(self, destination: str, *, timeout_s: float = LONG_ANSWER_S) -> NetworkTestView:
        """Probe every path from this host to another. Raises NoCommonNetwork, AgentBusy and what the other host says."""
        body = AskNetworkTest(destination=destination)
        return await self._ask(NetworkTestView, "POST", "/network-tests", body, timeout_s=timeout_s)

    async def renew(self, request: RenewRequest) -> RenewAnswer:
        """A new certificate for the calling host, from the authority's host."""
        return await self._ask(RenewAnswer, "POST", "/cluster/renew", request)

    async def metrics(self) -> str:
        """Prometheus metrics, as text."""
        return (await self._exchange("GET", "/metrics")).decode(errors="replace")

    # VMs --------------------------------------------------------------------------------------------------------------

    async def vms(self) -> list[VmView]:
        """The VMs of this host, those that moved away included."""
        return (await self._ask(VmList, "GET", "/vms")).vms

    async def define_vm(self, text: str) -> VmView:
        """Define a VM, or change its definition for the next start. Raises BadDefinition."""
        return await self._ask(VmView, "POST", "/vms", DefineVm(text=text))

    async def vm(self, name: str) -> VmView:
        """One VM. Raises UnknownVm."""
        return await self._ask(VmView, "GET", _vm_path(name))

    async def remove_vm(self, name: str) -> None:
        """Forget a stopped VM; its disks stay. Raises UnknownVm, Conflict."""
        await self._exchange("DELETE", _vm_path(name))

    async def start_vm(self, name: str, *, timeout_s: float = LONG_ANSWER_S) -> VmView:
        return await self._ask(VmView, "POST", _vm_path(name, "start"), timeout_s=timeout_s)

    async def stop_vm(self, name: str, *, force: bool = False, timeout_s: float = LONG_ANSWER_S) -> VmView:
        """Ask the guest to power off, or with `force` end its QEMU at once."""
        return await self._ask(VmView, "POST", _vm_path(name, "stop"), query={"force": force}, timeout_s=timeout_s)

    async def pause_vm(self, name: str) -> VmView:
        return await self._ask(VmView, "POST", _vm_path(name, "pause"))

    async def resume_vm(self, name: str) -> VmView:
        return await self._ask(VmView, "POST", _vm_path(name, "resume"))

    async def reset_vm(self, name: str) -> VmView:
        return await self._ask(VmView, "POST", _vm_path(name, "reset"))

    async def console(self, name: str, offset: int = 0) -> ConsoleChunk:
        """A part of the log from byte `offset`, or its last ``-offset`` bytes if negative; empty: nothing more yet."""
        return await self._ask(ConsoleChunk, "GET", _vm_path(name, "console"), query={"offset": offset})

    async def type_on_console(self, name: str, text: str) -> None:
        await self._exchange("POST", _vm_path(name, "console"), ConsoleInput(text=text))

    async def resolution(self, name: str) -> ResolutionView:
        """What this host knows of an unresolved hand-over. Raises UnknownVm when there is none."""
        return await self._ask(ResolutionView, "GET", _vm_path(name, "resolution"))

    async def declare_dead(self, name: str, body: DeclareDead, *, timeout_s: float = LONG_ANSWER_S) -> ResolutionView:
        """The word that the other host of an unresolved hand-over is fenced. Raises UnknownVm, Conflict."""
        return await self._ask(ResolutionView, "POST", _vm_path(name, "resolution"), body, timeout_s=timeout_s)

    # Journeys ---------------------------------------------------------------------------------------------------------

    async def ask_grant(self, vm: str, vm_uuid: str, source: str) -> str:
        """The permission of this host, as destination, for one journey. Raises NotPermitted."""
        return (await self._ask(GrantAnswer, "POST", "/grants", AskGrant(vm=vm, vm_uuid=vm_uuid, source=source))).token

    async def plan_journey(self, body: AskJourney, *, timeout_s: float = LONG_ANSWER_S) -> PlanView:
        """What this host, as source, would do; nothing is changed."""
        return await self._ask(PlanView, "POST", "/plans", body, timeout_s=timeout_s)

    async def start_journey(self, body: AskJourney) -> JourneyView:
        """Begin a journey from this host. Raises AlreadyMoving, UnknownVm and what else the API says."""
        return await self._ask(JourneyView, "POST", "/journeys", body)

    async def journeys(self, *, ended: bool = False) -> list[JourneyView]:
        """The journeys from and to this host; with `ended` also those on record that have ended."""
        return (await self._ask(JourneyList, "GET", "/journeys", query={"all": ended})).journeys

    async def journey(self, name: str) -> JourneyView:
        """One journey by its id, or the newest one of a VM by the VM's name. Raises UnknownJourney."""
        return await self._ask(JourneyView, "GET", _journey_path(name))

    async def cancel_journey(self, name: str) -> JourneyView:
        """Ask for the end of a journey; it has ended when its view is terminal."""
        return await self._ask(JourneyView, "POST", _journey_path(name, "cancel"))

    async def journey_events(self, name: str, *, after: int = 0) -> EventList:
        """Events of one journey on this host with a higher number than `after`."""
        return await self._ask(EventList, "GET", _journey_path(name, "events"), query={"after": after})

    async def events(self, *, after: int = 0, limit: int | None = None) -> EventList:
        """Events of all journeys on this host with a higher number than `after`, `limit` at most."""
        query = {"after": after} if limit is None else {"after": after, "limit": limit}
        return await self._ask(EventList, "GET", "/events", query=query)

    async def report(self, name: str) -> ReportView:
        """The report of a journey that has ended. Raises UnknownJourney, Conflict while it is under way."""
        return await self._ask(ReportView, "GET", _journey_path(name, "report"))

    async def reports(self, *, limit: int | None = None) -> list[ReportView]:
        """The newest reports of this host, `limit` at most."""
        query = {} if limit is None else {"limit": limit}
        return (await self._ask(ReportList, "GET", "/reports", query=query)).reports

    async def add_client_blackout(self, name: str, longest_gap_ms: float) -> ReportView:
        """Add to a report what a probe on the VM's network saw."""
        path = _journey_path(name, "client-blackout")
        return await self._ask(ReportView, "POST", path, ClientBlackout(longest_gap_ms=longest_gap_ms))

    # Between agents: the source's requests to the destination ---------------------------------------------------------

    async def begin_incoming(self, body: AskIncoming) -> IncomingAnswer:
        """Present the grant and ask for a slot; may be repeated to learn the place in the queue."""
        return await self._ask(IncomingAnswer, "POST", "/incoming", body)

    async def check_fitness(
        self, journey: str, body: AskFitness, *, dry_run: bool = False, timeout_s: float = LONG_ANSWER_S
    ) -> FitnessAnswer:
        """Whether the VM can run there; memory is reserved unless `dry_run`."""
        path = _incoming_path(journey, "fitness")
        return await self._ask(FitnessAnswer, "POST", path, body, query={"dry_run": dry_run}, timeout_s=timeout_s)

    async def build_skeleton(self, journey: str, body: AskBuild, *, timeout_s: float = LONG_ANSWER_S) -> BuildAnswer:
        """Make the VM's empty twin and our own listeners for the probes."""
        return await self._ask(BuildAnswer, "POST", _incoming_path(journey, "skeleton"), body, timeout_s=timeout_s)

    async def listen(self, journey: str, body: AskListen) -> ListenAnswer:
        """Let the destination's QEMU listen, set up as agreed."""
        return await self._ask(ListenAnswer, "POST", _incoming_path(journey, "listen"), body)

    async def arm(self, journey: str) -> OwnershipAnswer:
        """Have it journaled that the VM may be handed over."""
        return await self._ask(OwnershipAnswer, "POST", _incoming_path(journey, "arm"))

    async def open_memory(self, journey: str) -> MemoryOpened:
        """Have the destination open its QEMU's memory for the comparison, ahead of the blackout."""
        return await self._ask(MemoryOpened, "POST", _incoming_path(journey, "memory"))

    async def digests(self, journey: str, body: AskDigests, *, timeout_s: float) -> DigestsAnswer:
        """Digests of what the destination has loaded; they take as long as its memory takes to be read."""
        return await self._ask(DigestsAnswer, "POST", _incoming_path(journey, "digests"), body, timeout_s=timeout_s)

    async def piece_digests(self, journey: str, body: AskPieces) -> PiecesAnswer:
        """Digests of pieces of a block, to find what differs."""
        return await self._ask(PiecesAnswer, "POST", _incoming_path(journey, "pieces"), body)

    async def page(self, journey: str, body: AskPage) -> PageAnswer:
        """A page that differs, as the destination has it."""
        return await self._ask(PageAnswer, "POST", _incoming_path(journey, "page"), body)

    async def go(self, journey: str, body: AskGo, *, timeout_s: float = trust.ANSWER_TIMEOUT_S) -> OwnershipAnswer:
        """Hand the VM over. Raises LinkLost when it is not known whether it was; only an answer is binding."""
        path = _incoming_path(journey, "go")
        return await self._ask(OwnershipAnswer, "POST", path, body, timeout_s=timeout_s, hand_over=True)

    async def ask(self, journey: str, *, timeout_s: float = trust.ANSWER_TIMEOUT_S) -> OwnershipAnswer:
        """Who owns the VM? Raises LinkLost when there was no answer; only an answer is binding."""
        path = _incoming_path(journey, "ask")
        return await self._ask(OwnershipAnswer, "POST", path, timeout_s=timeout_s, hand_over=True)

    async def abandon(self, journey: str, *, timeout_s: float = trust.ANSWER_TIMEOUT_S) -> OwnershipAnswer:
        """Have everything of the journey removed there, unless the destination owns the VM; its answer is binding."""
        return await self._ask(OwnershipAnswer, "POST", _incoming_path(journey, "abandon"), timeout_s=timeout_s)

    async def overrule(self, journey: str, *, timeout_s: float = trust.ANSWER_TIMEOUT_S) -> None:
        """Tell a host that was declared dead that the VM is the source's. Raises Conflict when it runs there."""
        await self._exchange("POST", _incoming_path(journey, "overrule"), timeout_s=timeout_s)

    async def holding(self, vm_uuid: str, *, timeout_s: float) -> HoldingView:
        """Whether that host has the VM in a state in which it runs or may run."""
        return await self._ask(HoldingView, "GET", f"/holdings/{quote(vm_uuid, safe='')}", timeout_s=timeout_s)

    async def open_doors(self, body: AskDoors) -> DoorsAnswer:
        """Have that host listen for the probes of a test, for some seconds. Raises NoCommonNetwork, PortClosed, AgentBusy."""
        return await self._ask(DoorsAnswer, "POST", "/network-tests/doors", body)

    async def close_doors(self, test: str) -> None:
        """The test is over."""
        await self._exchange("DELETE", f"/network-tests/doors/{quote(test, safe='')}")

    async def facts(self, journey: str) -> DestinationFacts:
        """What the destination adds to the report."""
        return await self._ask(DestinationFacts, "GET", _incoming_path(journey, "facts"))

    async def keep_report(self, journey: str, report: ReportView) -> None:
        """Give the destination the report, for its own history."""
        await self._exchange("POST", _incoming_path(journey, "report"), report)


def _vm_path(name: str, *rest: str) -> str:
    if not NAME.fullmatch(name):
        raise UnknownVm(f"'{name[:80]}' cannot be a VM's name.")
    return "/".join(("/vms", quote(name, safe=""), *rest))


def _journey_path(name: str, *rest: str) -> str:
    if not NAME.fullmatch(name):
        raise UnknownJourney(f"'{name[:80]}' is neither a journey's id nor a VM's name.")
    return "/".join(("/journeys", quote(name, safe=""), *rest))


def _incoming_path(journey: str, rest: str) -> str:
    return f"/incoming/{quote(journey, safe='')}/{rest}"
