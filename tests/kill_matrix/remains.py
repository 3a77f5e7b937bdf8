"""Everything of agents, VMs and journeys that is on the two hosts of a lab, by names that do not depend on which is which."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.e2e.world import CGROUPS, HOSTS, Guest, World

from livemove.lab import namespaces, processes


def remains(world: World, guest: Guest, here: str) -> list[str]:
    """Processes, links, listening sockets, packet filters, routes, files, namespaces, cgroups; sorted.

    `here` is where the guest is. Numbers of processes, addresses of hosts and logs are left out.
    """
    spec, found = world.lab.spec, Counter[str]()
    for host in HOSTS:
        place = "here" if host == here else "there"
        for line in world.run(host, "ss", "-Hltun").splitlines():
            found[f"{place}: socket {_anonymous(' '.join(line.split()[:5:4]), world, host)}"] += 1
        for line in world.run(host, "ip", "-br", "link").splitlines():
            found[f"{place}: link {_anonymous(line.split()[0].partition('@')[0], world, host)}"] += 1
        for family in ("-4", "-6"):
            for line in world.run(host, "ip", family, "rule").splitlines():
                found[f"{place}: rule {line}"] += 1
        for line in world.run(host, "nft", "list", "ruleset").splitlines():
            if "livemove_lab" not in line and ("table" in line or "chain" in line):
                found[f"{place}: {_anonymous(line.strip(), world, host)}"] += 1
        for line in world.run(host, "tc", "qdisc", "show").splitlines():
            found[f"{place}: qdisc {line.split()[1]} {_anonymous(line.split()[4], world, host)}"] += 1
        for path in world.run_dir(host).rglob("*"):
            if path.suffix not in (".log", ".old") and path.name != "fault-point" and not path.is_dir():
                found[f"{place}: file {path.relative_to(world.run_dir(host))}"] += 1
    names = namespaces.existing(spec.name)
    found[f"{len(names)} namespaces"] += 1
    for pid in processes.find(spec.name, namespaces.ids_of(names)):
        try:
            program = Path(f"/proc/{pid}/exe").readlink().name
        except OSError:
            continue  # it has just ended
        # commands of this very check come and go
        if program.startswith(("qemu", "python")):
            found[f"process {program}"] += 1
    found[f"{len(list(CGROUPS.glob(f'vm-{guest.name}-*')))} cgroups"] += 1
    return sorted(f"{count} x {what}" for what, count in found.items())


def _anonymous(text: str, world: World, host: str) -> str:
    spec = world.lab.spec
    for address in (spec.control_address(host), spec.link_address(host, 0)):
        text = text.replace(str(address), "ADDRESS")
    return text.removesuffix(f"-{host}")
