"""The NICs whose bandwidth this host shares out: those with an address that migrations may use."""

from __future__ import annotations

from livemove.base.settings import HostSettings
from livemove.network.links import read_links
from livemove.policy.bandwidth import Nic


async def host_nics(settings: HostSettings) -> list[Nic]:
    """Speeds are the kernel's, or those of the setting nic_speeds; 0 where neither says one.

    :raise MissingPrerequisite: the links cannot be listed.
    """
    incoming = set(settings.admitted)
    return [
        Nic(link.name, link.speed_bytes_per_s, link.carrier)
        for link in await read_links(settings.speeds_bytes_per_s)
        if not incoming or incoming & {address.partition("/")[0] for address in link.addresses}
    ]
