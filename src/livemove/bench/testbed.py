"""Where a benchmark runs: a lab of two hosts with their agents, the links of all scenarios, and a guest for each engine.

Both guests live in the lab all the time, the one that is not measured paused, so that it takes no processor: booting and
filling hundreds of MiB before every sample would take far longer than the sample, and samples should follow each other
closely.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import os
import sys
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Protocol

from livemove.base.clock import Clock
from livemove.base.errors import JourneyFailed, LinkError, QemuGone, error_from_json
from livemove.base.units import MIB
from livemove.bench.machine import Busyness, cpu_seconds_of
from livemove.bench.report import Sample
from livemove.bench.scenario import Comparison, Engine, Scenario
from livemove.bench.wire import WireMeter, bulk_s, carried_bytes
from livemove.hypervisor.launch import cgroup2_mount
from livemove.hypervisor.probe import QemuFacts, probe_qemu
from livemove.hypervisor.process import remove_cgroup
from livemove.lab import agents, namespaces, processes
from livemove.lab.client_probe import ClientProbe
from livemove.lab.image import GuestImage, ensure_image
from livemove.lab.lab import Lab
from livemove.lab.reference import ConsoleSummary, parse_fields, read_console
from livemove.lab.topology import GUEST_BRIDGE, LabSpec

HOSTS = ("A", "B")
COMMAND_TIMEOUT_S = 180.0
READY_TIMEOUT_S = 90.0
CHECK_TIMEOUT_S = 120.0
# The probe writes its result twice a second and is read after its end, so what follows the copy is seen as well.
AFTER_COPY_S = 0.6
# Messages that the client has had answered before a copy begins: it is then in its stride.
ANSWERS_BEFORE = 20
# From linux/mman.h: fault all pages in for writing, which writes nothing. Kernels since 5.14 have it.
_MADV_POPULATE_WRITE = 23
# Some 30 ms each: our loop hears QEMU's events in between.
WARM_CHUNK_BYTES = 64 * MIB
_POLL_S = 0.05
# Of all bytes: probes and answers of a journey on links that do not carry it are far less, a link in use far more.
NEXT_TO_NOTHING = 0.01


@dataclass(frozen=True, slots=True)
class GuestIdentity:
    """How one engine's guest differs from the other's."""

    name: str
    address: str
    mac: str


IDENTITIES: dict[Engine, GuestIdentity] = {
    "stock": GuestIdentity("stock", "10.77.0.11", "52:54:00:00:be:01"),
    "ours": GuestIdentity("ours", "10.77.0.12", "52:54:00:00:be:02"),
}


class MeasuredGuest(Protocol):
    """A guest in the lab, and the engine that moves it.

    :ivar host: where it is.
    """

    identity: GuestIdentity
    host: str

    async def start(self) -> None:
        """Boot it on the first host; returns when its memory is filled."""

    async def pause(self) -> None:
        """Its processors stand still."""

    async def resume(self) -> None:
        """It runs on."""

    async def pid(self) -> int:
        """The process id of its QEMU."""

    async def move(self, destination: str, scenario: Scenario) -> Sample:
        """Move it as a scenario of the testbed's comparison says, and what that took. Raises LivemoveError when it did not arrive running."""

    def consoles(self) -> list[Path]:
        """The files of its console."""

    async def close(self) -> None:
        """End what the lab's removal would not end in order; may be called twice and at any time."""


class Testbed:
    """The lab of one comparison. Made by :func:`testbed`."""

    __test__ = False  # for pytest: the name says what it is, not that it is a test

    def __init__(self, lab: Lab, comparison: Comparison, image: GuestImage, qemu: QemuFacts, clock: Clock) -> None:
        self.lab = lab
        self.comparison = comparison
        self.image = image
        self.qemu = qemu
        self.clock = clock

    def definition(self, identity: GuestIdentity) -> str:
        """The guest in TOML: the same for both engines but for name and addresses."""
        mix, populate = self.comparison.guest, self.comparison.populate
        workload = mix.workload(f"{identity.address}/{self.lab.spec.guest_network.prefixlen}")
        return (
            f'name = "{identity.name}"\n\n'
            f'[memory]\nsize = "{mix.memory_mib}MiB"\npopulate = {str(populate).lower()}\n\n'
            f'[boot]\nkernel = "{self.image.kernel}"\ninitrd = "{self.image.initrd}"\n'
            f'arguments = "{workload.kernel_arguments()}"\n\n'
            f'[[nic]]\nbridge = "{GUEST_BRIDGE}"\nmac = "{identity.mac}"\n'
        )

    async def command(self, host: str, *words: str) -> CompletedProcess[bytes]:
        """Run a command of livemove in a host as the lab's administrator; its exit code is the caller's business."""
        return await self.lab.run_in(
            host, [sys.executable, "-m", "livemove", *words],
            env={"LIVEMOVE_IDENTITY": str(agents.admin_dir(self.lab))}, timeout_s=COMMAND_TIMEOUT_S,
        )  # fmt: skip

    async def livemove(self, host: str, *words: str) -> dict[str, Any]:
        """What a command with ``--json`` prints. Raises the command's own error."""
        done = await self.command(host, *words, "--json")
        try:
            answer: dict[str, Any] = json.loads(done.stdout.decode().splitlines()[-1])
        except (ValueError, IndexError) as error:
            said = done.stderr.decode(errors="replace").strip()[-300:]
            raise JourneyFailed(f"'livemove {' '.join(words)}' ended with {done.returncode}: {said}") from error
        if done.returncode:
            raise error_from_json(answer)
        return answer

    async def until_ready(self, guest: MeasuredGuest) -> None:
        """Return when the guest has filled its memory. Raises JourneyFailed when that takes too long."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while self.console(guest).ready is None:  # noqa: ASYNC110  (a file has no event)
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise JourneyFailed(
                f"The guest '{guest.identity.name}' was not ready after {READY_TIMEOUT_S:.0f} s.",
                remedy="The machine may be too busy for a benchmark; try again when it is quiet.",
            ) from error

    @staticmethod
    def console(guest: MeasuredGuest) -> ConsoleSummary:
        """What the guest has said so far."""
        return read_console(*guest.consoles())

    async def warm(self, guest: MeasuredGuest) -> None:
        """Bring all memory of the guest's QEMU into being, zeroed, without changing any of it.

        A QEMU into which a guest has just moved never touched the guest's zero pages. Its own first move would find them one
        by one and spend more processor time on that than on everything else. Raises QemuGone when QEMU is not there.
        """
        pid, size_bytes = await guest.pid(), self.comparison.guest.memory_mib * MIB
        path = _memory_of(pid, size_bytes)
        with path.open("r+b") as file, mmap.mmap(file.fileno(), size_bytes) as memory:
            for start in range(0, size_bytes, WARM_CHUNK_BYTES):
                memory.madvise(_MADV_POPULATE_WRITE, start, min(WARM_CHUNK_BYTES, size_bytes - start))
                await asyncio.sleep(0)

    async def watched_move(self, guest: MeasuredGuest, destination: str, scenario: Scenario) -> Sample:
        """Move the guest while a client talks to it; the sample tells also what the client saw, and what each link carried.

        Raises JourneyFailed when that were not the scenario's links.
        """
        async with ClientProbe(self.lab, guest.identity.address) as probe:
            await probe.answered(at_least=ANSWERS_BEFORE)
            async with WireMeter(self._agent_of(guest.host), self._links_of(guest.host), self.clock) as wire:
                start_s, busyness = self.clock.monotonic_s(), Busyness(self._own_cpu_s, self.clock)
                sample = await guest.move(destination, scenario)
                end_s, busy = self.clock.monotonic_s(), busyness.cores()
            await asyncio.sleep(AFTER_COPY_S)
        gap = probe.longest_gap(start_s, end_s)
        result = probe.result()
        if result.lost_connections:
            raise LinkError(f"The client of guest '{guest.identity.name}' lost its connection while it moved.")
        carried = dict(enumerate(carried_bytes(wire.readings).values()))
        check_links(carried, self.comparison.links_of(scenario), scenario.name)
        return {
            **sample,
            **busy,
            "client_gap_ms": round(gap.length_s * 1e3, 1) if gap is not None else 0.0,
            "bulk_ms": round(bulk_s(wire.readings) * 1e3, 1),
            "link_bytes": {f"link{index}": number for index, number in carried.items()},
        }

    def _agent_of(self, host: str) -> int:
        return self.lab.processes(host, agents.LABEL)[0].pid

    def _links_of(self, host: str) -> list[str]:
        return [network.end_of(host).interface for network in self.lab.spec.link_networks]

    def _own_cpu_s(self) -> float:
        return cpu_seconds_of([os.getpid(), *processes.find(self.lab.spec.name, self.lab.namespace_ids)])

    async def check(self, guest: MeasuredGuest) -> dict[str, int]:
        """The guest compares all its pages. Raises JourneyFailed when one is not as it must be, LinkError without answer."""
        address = guest.identity.address
        code = (
            "import asyncio; from livemove.lab.reference import ask_guest; "
            f"print(asyncio.run(ask_guest('{address}', 'check', timeout_s={CHECK_TIMEOUT_S})))"
        )
        done = await self.lab.run_in("client", [sys.executable, "-c", code], timeout_s=CHECK_TIMEOUT_S + 10)
        if done.returncode:
            raise LinkError(f"The guest '{guest.identity.name}' did not answer its client's 'check'.")
        said = parse_fields(done.stdout.decode())
        console = self.console(guest)
        bad = max(int(said["bad"]), console.bad)
        if bad:
            first = f"; the first: {console.bad_pages[0]}" if console.bad_pages else ""
            raise JourneyFailed(
                f"The guest '{guest.identity.name}' found {bad} bad pages after it was moved{first}.",
                remedy="Nothing that was measured counts: report it with the lab's logs.",
            )
        return {"checked": int(said["checked"]), "bad": bad}


@contextlib.asynccontextmanager
async def testbed(name: str, comparison: Comparison, clock: Clock) -> AsyncIterator[Testbed]:
    """A lab called `name` with running agents; nothing of it is left afterwards, however the block ends.

    Raises Conflict when a lab of that name is up, MissingPrerequisite without root, QEMU or the guest's image.
    """
    namespaces.require_root()
    image = await asyncio.to_thread(ensure_image)
    links = comparison.lab_links
    lab = Lab(LabSpec(name, HOSTS, tuple(link.spec for link in links)))
    async with lab:
        try:
            settings = agents.settings_of(lab, HOSTS[0])
            # QEMU and accelerator as the agents have them
            qemu = await probe_qemu("qemu-system-x86_64", str(settings["accelerator"]))
            trusted = [str(lab.spec.link_subnet(index)) for index, link in enumerate(links) if not link.tls]
            await agents.start_agents(lab, settings={"trusted_networks": trusted})
            yield Testbed(lab, comparison, image, qemu, clock)
        finally:
            # the agents would remove the control groups of their QEMUs, but the lab's end may reach them first
            groups = _cgroups_of(lab)
            await lab.down()
            for group in groups:
                await remove_cgroup(str(group))


def check_links(carried: Mapping[int, int], wanted: Collection[int], scenario: str) -> None:
    """Raises JourneyFailed when a link that a scenario names carried next to nothing, or another one more than that.

    :param carried: bytes by the number of the link.
    """
    used = {index for index, number in carried.items() if number > NEXT_TO_NOTHING * sum(carried.values())}
    if used != set(wanted):
        names = [", ".join(f"link{index}" for index in sorted(links)) or "no link" for links in (used, wanted)]
        raise JourneyFailed(f"The guest's memory went over {names[0]}, not {names[1]} of {scenario}.")


def _memory_of(pid: int, size_bytes: int) -> Path:
    """The memfd with the guest's memory."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if str(entry.readlink()).startswith("/memfd:") and entry.stat().st_size == size_bytes:
                return entry
    raise QemuGone(f"QEMU (process {pid}) has no memory of {size_bytes >> 20} MiB to warm up.")


def _cgroups_of(lab: Lab) -> set[Path]:
    """The control groups that agents made for the lab's QEMUs."""
    mount = cgroup2_mount(Path("/proc/self/mountinfo").read_text())
    if mount is None:
        return set()
    found = set()
    for pid in processes.find(lab.spec.name, lab.namespace_ids):
        try:
            text = Path(f"/proc/{pid}/cgroup").read_text()
        except OSError:
            continue
        found |= {mount / line[4:] for line in text.splitlines() if line.startswith("0::/livemove/vm-")}
    return found
