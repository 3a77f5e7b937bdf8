"""One host's agent put together: settings, identity, database, VMs, journeys in both directions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from pathlib import Path

import psutil

from livemove import __version__
from livemove.agent.arrivals import Arrivals
from livemove.agent.bandwidth_store import BandwidthStore
from livemove.agent.departures import Departures
from livemove.agent.following import WARN_DAYS, Follower
from livemove.agent.found_again import FoundAgain
from livemove.agent.governor import Governor
from livemove.agent.identity import host_identity_dir
from livemove.agent.leftovers import PROBE_DIR, Leftovers
from livemove.agent.membership import Membership
from livemove.agent.network_test import NetworkTests
from livemove.agent.networking import AgentNetworking, why_no_mptcp
from livemove.agent.nics import host_nics
from livemove.agent.overruled import Overruled
from livemove.agent.privacy import keep_private
from livemove.agent.qos import Qos
from livemove.agent.refusals import Refusals
from livemove.agent.resolution import Resolution
from livemove.agent.vm_records import VmRecords
from livemove.agent.vms import Vms
from livemove.api import trust
from livemove.api.client import AgentClient
from livemove.api.client_identity import Identity, load_identity
from livemove.api.cluster_map import ClusterMap, load_map
from livemove.api.incoming_models import OfferBody
from livemove.api.models import HostView
from livemove.base.clock import Clock, SystemClock, wall_text
from livemove.base.database import Database
from livemove.base.errors import LivemoveError
from livemove.base.settings import HostSettings, change_settings, load_settings
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.hypervisor.machine_facts import cpu_count, memory_available_bytes, memory_total_bytes
from livemove.hypervisor.probe import QemuFacts, probe_qemu
from livemove.migration.journal import Journal
from livemove.migration.preparing import offer_from
from livemove.network.shaping import Shaping, remove_everything
from livemove.policy.transport import Offer

_log = logging.getLogger(__name__)

HOUSEKEEPING_S = 3600.0


class Host:
    """Made by :meth:`start`; :meth:`close` lets go of everything that others can find again."""

    def __init__(self, config: Path, settings: HostSettings, facts: QemuFacts, clock: Clock) -> None:
        self.config = config
        self.settings = settings
        self.facts = facts
        self.clock = clock
        self.identity_dir = host_identity_dir(settings.state_dir)
        self.identity = load_identity(self.identity_dir)
        self.membership = Membership(self.identity_dir)
        self.refusals = Refusals(clock)
        self.follower = Follower(
            settings.state_dir, settings.name, clock, self.membership, lambda: self.identity, self.client_to
        )
        self.database = Database(settings.state_dir / "livemove.db")
        self.records = VmRecords(self.database)
        self.vms = Vms(lambda: self.settings, facts, self.records)
        self.journal = Journal(self.database, clock, settings.name)
        self.qos = Qos(lambda: self.settings)
        self.bandwidth = BandwidthStore(settings.state_dir)
        self.governor = Governor(
            lambda: self.bandwidth.limits,
            lambda: host_nics(self.settings),
            clock,
            Shaping(int(settings.listen.rpartition(":")[2])),
            read_marking=lambda: self.qos.marking,
        )
        self.networking = AgentNetworking(
            lambda: self.settings, self.follower.learn, self.cluster, self._agent_address, self.governor
        )
        self.arrivals = Arrivals(lambda: self.settings, self.vms, self.journal, clock, self.offer, self.networking)
        self.network_tests = NetworkTests(
            lambda: self.settings, self.networking, self.client_to, self.arrivals.taken_ports
        )
        self.departures = Departures(
            lambda: self.settings, self.vms, self.journal, clock, self.client_to, self.follower.learn, self._own_offer,
            self.networking,
        )  # fmt: skip
        self.found_again = FoundAgain(self.departures, self.vms, self.journal, clock, self.client_to)
        self.leftovers = Leftovers(
            lambda: self.settings, self.vms, self.journal, self._open_journeys, self.networking.changes
        )
        self.overruled = Overruled(self.database, self.journal, self.client_to)
        self.departures.remind = self.overruled.remind
        self.resolution = Resolution(
            settings.name,
            self.departures,
            self.arrivals,
            self.journal,
            self.overruled,
            self.client_to,
            lambda: self.cluster().hosts,
        )
        self._context: ssl.SSLContext | None = None
        self._housekeeping: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, config: Path, *, clock: Clock | None = None) -> Host:
        """Read everything, find running VMs and open journeys again.

        Raises BadSetting, NoIdentity, MissingPrerequisite, QemuTooOld, StateUnwritable.
        """
        settings = load_settings(config)
        keep_private(settings.state_dir)
        facts = await probe_qemu(
            settings.qemu,
            settings.accelerator,
            cache_dir=settings.state_dir / "cache",
            work_dir=settings.run_dir / PROBE_DIR,
        )
        host = cls(config, settings, facts, clock or SystemClock())
        await host.database.open()
        try:
            await remove_everything()
            await host.qos.set_again()
            await host.records.load()
            await host.vms.find_again()
            await host.arrivals.find_again()
            await host.found_again.find_all()
            await host.vms.stop_powered_off()
            await host.leftovers.sweep()
            host.overruled.start()
        except BaseException:
            await host.close()
            raise
        psutil.cpu_percent()  # the first call only sets the start of the interval that the next one measures
        host._housekeeping = spawn(host._keep_house(), name="housekeeping")
        host.follower.start()
        return host

    def _open_journeys(self) -> set[str]:
        leaving = {departure.record.id for departure in self.departures.open()}
        return leaving | {arrival.record.id for arrival in self.arrivals.all()} | self.network_tests.under_way

    async def close(self) -> None:
        await cancel_and_wait(self._housekeeping)
        await self.follower.close()
        await self.overruled.close()
        await self.departures.close()
        await self.arrivals.close()
        await self.network_tests.close()
        await self.governor.close()
        await self.vms.close()
        await self.database.close()

    async def _keep_house(self) -> None:
        while True:
            with contextlib.suppress(LivemoveError):
                await self.journal.forget_before(self.clock.wall_s() - self.settings.history_days * 86400)
            await asyncio.sleep(HOUSEKEEPING_S)

    # Others ---------------------------------------------------------------------------------------------------------

    def cluster(self) -> ClusterMap:
        """Hosts and addresses, as last learnt."""
        return load_map(self.identity.map_path)

    def client_to(self, host: str) -> AgentClient:
        """Requests to another agent with this host's certificate. Raises UnknownHost, NoIdentity."""
        if self._context is None:
            self._context = trust.client_context(self.identity)
        address, revoked = self.cluster().address_of(host), self.membership.is_revoked
        return AgentClient(self.identity, host, address, context=self._context, is_revoked=revoked)

    def use_identity(self, identity: Identity) -> None:
        """Show this certificate from now on; journeys under way keep the connections that they have."""
        self.identity = identity
        self._context = None

    # What this host says of itself ----------------------------------------------------------------------------------

    def _agent_address(self) -> str:
        """The address by which the cluster knows this agent."""
        return self.cluster().address_of(self.settings.name).rpartition(":")[0].strip("[]")

    def offer(self) -> OfferBody:
        """What this host's QEMU can do, and how busy the host is; the speed of its links depends on the journey's paths."""
        facts = self.facts
        return OfferBody(
            version=facts.version, accelerator=facts.accelerator, capabilities=sorted(facts.capabilities),
            parameters=sorted(facts.parameters), compressions=sorted(facts.compressions), tls_psk=facts.has_tls_psk,
            cores=cpu_count(), idle_cores=round(cpu_count() * (1 - psutil.cpu_percent() / 100), 2),
            link_bytes_per_s=0, no_mptcp=why_no_mptcp(self.settings.name, in_qemu=facts.has_mptcp),
        )  # fmt: skip

    async def _own_offer(self) -> Offer:
        return offer_from(self.offer())

    def view(self) -> HostView:
        outgoing, incoming = self.departures.queue, self.arrivals.queue
        offer = self.offer()
        return HostView(
            name=self.settings.name, livemove_version=__version__, settings=self.settings.model_dump(mode="json"),
            qemu={
                "path": self.facts.path, "version": self.facts.version_text, "package": self.facts.package,
                "accelerator": self.facts.accelerator, "accelerator_reason": self.facts.accelerator_reason,
                "compressions": sorted(self.facts.compressions), "warnings": list(self.facts.warnings),
            },
            memory_total_bytes=memory_total_bytes(), memory_available_bytes=memory_available_bytes(),
            memory_promised_bytes=self.vms.promised_bytes(), cores=offer.cores, idle_cores=offer.idle_cores,
            certificate=self._certificate(), outgoing=list(outgoing.active), outgoing_waiting=list(outgoing.waiting), incoming=list(incoming.active),
            incoming_waiting=list(incoming.waiting),
        )  # fmt: skip

    def _certificate(self) -> dict[str, str | float]:
        left = self.follower.certificate_days_left()
        return {
            "serial": self.identity.peer.serial, "ends": wall_text(self.identity.peer.not_after_wall_s),
            "days_left": round(left, 2), "authority_silent_s": round(self.follower.silent_s(), 1),
            "warning": f"This host's certificate has {left:.0f} days left." if left < WARN_DAYS else "",
        }  # fmt: skip

    def change_settings(self, changes: dict[str, str]) -> None:
        """Write new settings; those that are read at the start (addresses, directories, QEMU) count from the next one."""
        self.settings = change_settings(self.config, changes)
