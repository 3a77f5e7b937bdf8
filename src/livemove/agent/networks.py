"""What this host offers to migrations, and the cluster's list of networks on the host that keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from livemove.agent import invitations
from livemove.agent.authority import load_authority
from livemove.agent.identity import authority_dir, host_identity_dir
from livemove.api.client_identity import MAP_FILE
from livemove.api.cluster_map import ClusterMap, load_map, save_map
from livemove.base.errors import Conflict
from livemove.base.settings import HostSettings
from livemove.network.links import read_links
from livemove.policy.paths import HostNetworks, NetworkRule


async def host_networks(settings: HostSettings, default_address: str = "") -> HostNetworks:
    """This host's links and what it lets migrations use.

    :param default_address: comes first where neither the cluster's list nor ``migration_address`` says otherwise.
    :raise MissingPrerequisite: the links cannot be listed.
    """
    links = await read_links(settings.speeds_bytes_per_s)
    return HostNetworks(settings.name, links, settings.admitted, settings.migration_address or default_address)


def set_networks(state_dir: Path, serial: int, rules: Sequence[NetworkRule]) -> ClusterMap:
    """Give the cluster a new list of networks, made from the map of `serial`; the agents follow.

    Nothing is written when the list is what it was. Raises NoIdentity when this host does not hold the cluster's
    authority, Conflict when the map has changed since, BadSetting for what is no list, StateUnwritable.
    """
    authority = load_authority(authority_dir(state_dir))
    map_path = host_identity_dir(state_dir) / MAP_FILE
    # the lock that everybody takes who changes the map
    with invitations.locked(authority.directory):
        cluster = load_map(map_path)
        changed = cluster.with_networks(rules)
        if changed is cluster:
            return cluster
        if cluster.serial != serial:
            raise Conflict(
                f"The cluster's map was changed meanwhile: it is number {cluster.serial}, not {serial}.",
                remedy="Repeat the command; it begins with the map as it is now.",
            )
        save_map(map_path, changed)
        return changed
