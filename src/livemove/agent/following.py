"""Keeping up with the cluster: its map, its revoked certificates, and this host's own certificate.

    every second     the identity's files: replaced by a command or by us? then the listener takes them
    every 5 s        the authority's host: a newer map, a newer list of revoked certificates
    every hour       this host's certificate: so little of its life left that it is renewed?

When the authority's host does not answer, what is known stays in force, and the metrics say for how long it was silent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path

from livemove.agent.membership import Membership
from livemove.agent.renewal import days_left, is_due, renew_own
from livemove.api.client import AgentClient
from livemove.api.client_identity import Identity
from livemove.api.cluster_map import ClusterMap, load_map, map_from_json, merge_maps, save_map
from livemove.base.clock import Clock
from livemove.base.errors import LivemoveError
from livemove.base.tasks import cancel_and_wait, spawn

_log = logging.getLogger(__name__)

LOOK_S = 1.0
FOLLOW_S = 5.0
RENEW_S = 3600.0
#: A certificate that could not be renewed is warned of from here on, once a day.
WARN_DAYS = 30.0


class Follower:
    """One for a host's agent, from :meth:`start` to :meth:`close`.

    :param identity: the present one; it changes when the files do.
    :param client_to: requests to another agent.
    """

    def __init__(
        self,
        state_dir: Path,
        name: str,
        clock: Clock,
        membership: Membership,
        identity: Callable[[], Identity],
        client_to: Callable[[str], AgentClient],
    ) -> None:
        self._state_dir = state_dir
        self._name = name
        self._clock = clock
        self._membership = membership
        self._identity = identity
        self._client_to = client_to
        self._client: AgentClient | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._heard_s = clock.monotonic_s()
        self._silent = False
        self._warned_s: float | None = None
        #: called when certificate, authority or list of revoked certificates have changed
        self.on_change: list[Callable[[], None]] = []

    def start(self) -> None:
        self._tasks = [
            spawn(self._look(), name="look at the identity's files"),
            spawn(self._follow(), name="follow the cluster"),
            spawn(self._renew(), name="renew the certificate"),
        ]

    async def close(self) -> None:
        await cancel_and_wait(*self._tasks)
        await self._drop_client()

    def silent_s(self) -> float:
        """Seconds since the authority's host last answered; 0 on that host itself."""
        return 0.0 if self.cluster().authority == self._name else self._clock.monotonic_s() - self._heard_s

    def certificate_days_left(self) -> float:
        return days_left(self._identity(), self._clock.wall_s())

    def cluster(self) -> ClusterMap:
        """Hosts and addresses, as last learnt."""
        return load_map(self._identity().map_path)

    async def learn(self) -> ClusterMap:
        """Ask the authority's host for a newer map and list; what is known stays when it does not answer."""
        cluster = self.cluster()
        if cluster.authority == self._name:
            return cluster
        try:
            if self._client is None:
                client = self._client_to(cluster.authority)
                self._client = await client.__aenter__()
            theirs = await self._client.cluster()
            merged = merge_maps(cluster, map_from_json(theirs.model_dump(exclude={"revocations"})))
            learnt = self._membership.learn(theirs.revocations)
            if merged != cluster:
                save_map(self._identity().map_path, merged)
        except LivemoveError as error:
            if not self._silent:
                _log.warning("the authority's host '%s' is not followed: %s", cluster.authority, error)
            self._silent = True
            await self._drop_client()
            return cluster
        if self._silent:
            _log.info("the authority's host '%s' is followed again", cluster.authority)
        self._silent, self._heard_s = False, self._clock.monotonic_s()
        if learnt:
            self._tell()
        return merged

    async def _drop_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(OSError):
                await client.aclose()

    def _tell(self) -> None:
        for call in self.on_change:
            call()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if self._membership.changed():
                await self._drop_client()
                self._tell()

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(LivemoveError):
                await self.learn()
            await asyncio.sleep(FOLLOW_S)

    async def _renew(self) -> None:
        while True:
            try:
                done = await renew_own(self._state_dir, clock=self._clock)
                if done.renewed:
                    _log.info("the certificate of host %s was renewed, for %.0f days", done.host, done.days_left)
            except LivemoveError as error:
                self._warn(error)
            await asyncio.sleep(RENEW_S)

    def _warn(self, error: LivemoveError) -> None:
        left, now_s = self.certificate_days_left(), self._clock.monotonic_s()
        if not is_due(self._identity(), self._clock.wall_s()):
            return
        if self._warned_s is not None and now_s - self._warned_s < 86_400:
            return
        self._warned_s = now_s
        say = _log.error if left < WARN_DAYS else _log.warning
        say("the certificate of this host has %.0f days left and was not renewed: %s", left, error)
