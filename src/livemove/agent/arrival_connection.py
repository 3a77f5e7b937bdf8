"""What a journey has on this host's network while it arrives: listeners for the probes, the packet filter, the paths.

open           the source knows where to probe: our own listeners take the port, TCP and UDP, on every address that it
               means to use
hand_to_qemu   they make room for QEMU, behind a filter that admits the paths that were found to work
close          everything is as it was
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence

from livemove.agent.networking import AgentNetworking
from livemove.api.incoming_models import AskListen, PathTotals
from livemove.api.network_models import PathPair
from livemove.base.errors import MissingPrerequisite, PeerViolation
from livemove.migration.packet_filter import admit_only, remove_filter
from livemove.migration.path_watch import NOTHING, CountedPaths, KeptPaths, PathWatch, Tell
from livemove.migration.receiving import PortProbe, any_address
from livemove.network.keeper_words import KeeperConfig, KeeperTotals, KeptPath
from livemove.network.mtu import Ear, MtuResponder
from livemove.policy.host_setup import Side, changes_for
from livemove.policy.paths import Path
from livemove.wire.mtu_probe import NONCE_BYTES

_log = logging.getLogger(__name__)

#: Capabilities and parameters a source may set in our QEMU; everything else is the peer's violation.
_CAPABILITIES = frozenset({"events", "return-path", "late-block-activate", "multifd", "auto-converge"})
_PARAMETERS = frozenset({"multifd-channels", "multifd-compression", "multifd-zstd-level", "multifd-zlib-level"})


class ArrivalConnection:
    """One of an arriving journey, from :meth:`open` to :meth:`close`.

    :ivar port: the journey's, on all its addresses.
    """

    def __init__(
        self, journey: str, pairs: Sequence[PathPair], probe: PortProbe, responder: MtuResponder, networking: AgentNetworking,
        tell: Tell,
    ) -> None:  # fmt: skip
        self.port = probe.port
        self.nonce = probe.nonce
        self.notes: tuple[str, ...] = ()
        self._journey = journey
        self._pairs = {(pair.source, pair.destination) for pair in pairs}
        self._probe = probe
        self._responder = responder
        self._networking = networking
        self._filtered = False
        self._watch: PathWatch | None = None
        self._counted: KeeperTotals | None = None
        self._counting = asyncio.Lock()
        self._tell = tell

    @classmethod
    async def open(
        cls, journey: str, pairs: Sequence[PathPair], ports: Iterable[int], taken: set[int], networking: AgentNetworking,
        tell: Tell,
    ) -> ArrivalConnection:  # fmt: skip
        """Listen for the source's probes. Raises PortClosed, NetworkMissing, MissingPrerequisite; nothing is left then."""
        paths, carrying = await networking.as_destination(pairs)
        # a NIC that has gone since the plan takes no other with it
        probe, responder = await _listen([path for path in paths if path.destination_link], ports, taken)
        connection = cls(journey, pairs, probe, responder, networking, tell)
        try:
            # two NICs in one subnet: without routes of the journey's own the probes would all take one of them
            await connection._change(carrying, clamp={}, multipath=False)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _change(self, paths: Sequence[Path], *, clamp: Mapping[Path, int], multipath: bool) -> None:
        links = (await self._networking.own()).links
        changes = changes_for(paths, Side.DESTINATION, clamp=clamp, multipath=multipath, links=links)
        self.notes = tuple(await self._networking.changes.apply(self._journey, changes))

    async def hand_to_qemu(self, asked: AskListen) -> str:
        """Leave the port to QEMU, behind a packet filter; the address on which it is to listen.

        Raises PeerViolation for a path that was not announced, MissingPrerequisite where a filter is needed and cannot be.
        """
        pairs = [(path.source, path.destination) for path in asked.paths]
        if not set(pairs) <= self._pairs or len(set(pairs)) < len(pairs):
            raise PeerViolation("The source asked for a path that it had not announced, or for one twice.")
        for path in asked.paths:
            if not path.dead and self._probe.sources.get(path.destination) != path.source:
                raise PeerViolation(f"The source has not shown that it has the address {path.source}.")
        await self._stop_listening()
        paths = await self._set_up(asked)
        if asked.mptcp:
            await self._networking.follow(self._journey, lambda: self._set_up_again(asked))
        self._filtered = True
        try:
            await admit_only(self._journey, pairs, self.port)
        except MissingPrerequisite as error:
            if not asked.psk_hex or len(asked.paths) > 1:
                raise
            _log.warning("the migration port is open to strangers, who may disturb the journey: %s", error.message)
        await self._start_watching(asked, paths)
        # joins to a listener of another address fail without a word
        return any_address(asked.paths[0].destination) if len(asked.paths) > 1 else asked.paths[0].destination

    async def _set_up(self, asked: AskListen) -> list[Path]:
        paths, carrying = await self._networking.as_destination(asked.paths)
        clamp = {path: listed.clamp_mtu for path, listed in zip(paths, asked.paths, strict=True) if listed.clamp_mtu}
        await self._change(carrying, clamp=clamp, multipath=asked.mptcp)
        return paths

    async def _set_up_again(self, asked: AskListen) -> None:
        await self._set_up(asked)

    async def _start_watching(self, asked: AskListen, paths: Sequence[Path]) -> None:
        kept = tuple(
            KeptPath(number, listed.destination, listed.source, path.destination_link, dead=listed.dead)
            for number, (path, listed) in enumerate(zip(paths, asked.paths, strict=True))
            if path.destination_link
        )
        config = KeeperConfig("destination", self._journey, self.port, asked.heartbeat_key, kept, multipath=asked.mptcp)
        names = {number: f"{listed.source} to {listed.destination}" for number, listed in enumerate(asked.paths)}
        if asked.heartbeat_key:
            self._watch = await KeptPaths.start(config, names, self._tell, lambda by_address: None)
        else:
            self._watch = CountedPaths(config)
        self._watch.expect(0)
        await self._networking.govern_arriving(
            self._journey, paths, self.port, mptcp=asked.mptcp, on_allowance=self._watch.allow
        )

    async def totals(self) -> list[PathTotals]:
        """What every path brought, once the last connection has ended."""
        async with self._counting:
            if self._watch is not None and self._counted is None:
                self._counted = await self._watch.finish()
        counted = self._counted or NOTHING
        return [
            PathTotals(
                source_address=each.remote, destination_address=each.local, received_bytes=each.bytes_received,
                subflows=each.subflows, planned=each.path >= 0, longest_silence_ms=each.longest_silence_ms or None,
            )
            for each in (*counted.paths, *counted.unplanned)
        ]  # fmt: skip

    async def _stop_listening(self) -> None:
        await self._probe.close()
        await self._responder.close()

    async def leave(self) -> None:
        """The agent ends, and QEMU may go on: let go of what is only ours; the next agent removes the rest."""
        await self._stop_listening()
        if self._watch is not None:
            await self._watch.close()

    async def close(self) -> None:
        """Remove everything; may be called twice, and :meth:`totals` afterwards."""
        try:
            await self.totals()
            await self.leave()
        finally:
            try:
                if self._filtered:
                    await remove_filter(self._journey)
            finally:
                await self._networking.put_back(self._journey)


async def _listen(
    paths: Sequence[Path], ports: Iterable[int], taken: Collection[int]
) -> tuple[PortProbe, MtuResponder]:
    """Our listeners for TCP and UDP, on the first port that is free for both. Raises PortClosed."""
    passed_over = set(taken)
    while True:
        probe = await PortProbe.open([path.destination_address for path in paths], ports, passed_over)
        ears = [
            Ear(path.destination_address, probe.port, peer=path.source_address, link=path.destination_link)
            for path in paths
        ]
        try:
            return probe, await MtuResponder.open(ears, bytes.fromhex(probe.nonce)[:NONCE_BYTES])
        except BaseException as error:
            await probe.close()
            # somebody's datagram socket that the kernel gave a port of our range
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.EADDRINUSE:
                raise
            passed_over.add(probe.port)


def refuse_unknown(asked: AskListen) -> None:
    """Raises PeerViolation when the source would set something in our QEMU that a journey does not use."""
    if not set(asked.capabilities) <= _CAPABILITIES or not set(asked.parameters) <= _PARAMETERS:
        raise PeerViolation("The source asked for a capability or parameter that a journey does not use.")
