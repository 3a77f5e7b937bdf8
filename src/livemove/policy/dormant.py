"""Paths of a plan that would be used if their NICs had a carrier: they are taken up when they get one (N2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from livemove.base.errors import LivemoveError
from livemove.policy.path_choice import MAX_PATHS, choose_paths
from livemove.policy.paths import HostNetworks, NetworkRule, Path, PathPlan, PathWish, UsePaths


def dormant_paths(
    plan: PathPlan, source: HostNetworks, destination: HostNetworks, rules: Sequence[NetworkRule], wish: PathWish
) -> tuple[Path, ...]:
    """What `plan` lacks only for want of a carrier; none where one path was asked for."""
    if wish.use is UsePaths.ONE:
        return ()
    try:
        whole = choose_paths(_all_up(source), _all_up(destination), rules, wish)
    except LivemoveError:
        return ()
    used = {address for path in plan.paths for address in (path.source_address, path.destination_address)}
    found = [path for path in whole.paths if not used & {path.source_address, path.destination_address}]
    return tuple(found[: MAX_PATHS - len(plan.paths)])


def _all_up(host: HostNetworks) -> HostNetworks:
    return replace(host, links=tuple(replace(link, carrier=True) for link in host.links))
