"""Memory compared between pause and GO, with real QEMUs: clean journeys, and damage of every kind, which is always found."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from livemove.api.models import ReportView
from livemove.base.errors import MemoryDiffers
from livemove.base.fault_points import FILE_NAME, VARIABLE
from livemove.hypervisor.process import QemuProcess

from .corrupting_proxy import RULES, TABLE, CorruptingProxy
from .inside import Inside
from .world import HOSTS, STEADY, Guest, World, other

pytestmark = pytest.mark.qemu
PAGE_BYTES = 4096
MIB = 1 << 20


# Clean journeys -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["full", "sample"])
def test_memory_that_arrived_whole_is_the_same(guest: Guest, mode: Literal["full", "sample"]):
    report = verified_move(guest, mode)
    found = report.verification
    assert found is not None and (found.mode, found.result) == (mode, "same")
    assert found.blocks["ram0"] == 128 * MIB and {"pc.bios", "/rom@etc/acpi/tables"} <= found.blocks.keys()
    assert (found.left_out, found.different_pages, found.explained) == ([], [], [])
    whole = sum(found.blocks.values())
    assert found.compared_bytes == whole if mode == "full" else MIB // 4 < found.compared_bytes < whole // 2
    assert found.ms is not None and report.downtime_ms is not None and found.ms < report.downtime_ms
    assert report.blackout_parts_ms["verification"] == pytest.approx(found.ms, abs=0.01)
    # both hosts share this machine's processors; a host of its own takes half of it
    assert mode == "full" or found.ms < 60


def test_the_hosts_setting_holds_where_the_command_says_nothing(guest: Guest):
    source = guest.host
    guest.world.settings(source, {"verify": "sample"})
    try:
        report = guest.move()
        assert report.verification is not None and report.verification.mode == "sample"
    finally:
        guest.world.settings(source, {"verify": "off"})
    assert guest.move().verification is None


def test_private_memory_is_verified_as_well(world: World, private_guest: Guest):
    for _ in HOSTS:
        source = private_guest.host
        report = world.report(source, world.start_journey(private_guest.name, source, verify="full"))
        assert (report.outcome, private_guest.host) == ("completed", other(source)), report
        private_guest.check()
        assert report.verification is not None
        assert report.verification.result == "same" and report.verification.blocks["ram0"] == 128 * MIB


def test_a_paused_guest_is_verified_and_arrives_paused(guest: Guest):
    world, source = guest.world, guest.host
    guest.pause()
    report = world.report(source, world.start_journey(guest.name, source, verify="full"))
    assert (report.outcome, report.arrived_as) == ("completed", "paused"), report
    assert report.verification is not None and report.verification.result == "same"
    guest.exactly_one(other(source), state="paused")
    guest.resume()
    guest.check()


def test_the_command_and_its_report(guest: Guest):
    world, source = guest.world, guest.host
    plan = world.livemove("migrate", guest.name, "--to", other(source), "--verify", "full", "--dry-run")
    assert "all of the memory" in plan.out
    done = world.livemove("migrate", guest.name, "--to", other(source), "--verify", "full", "--json")
    assert done.json["verification"]["result"] == "same"
    assert "verification (full): the same on both hosts" in world.livemove("report", guest.name).out


# Damage ---------------------------------------------------------------------------------------------------------------


def test_a_byte_flipped_in_the_destinations_memory_is_found(guest: Guest, armed: Callable[[str], Stop]):
    world, source = guest.world, guest.host
    stop = armed(source)
    stop.at("source.before.VerifyMemory")
    journey = world.start_journey(guest.name, source, verify="full")
    stop.wait()
    at = 77 * MIB + 5 * PAGE_BYTES + 1234
    flip(guest_memory(guest, other(source)), at)
    stop.go_on()
    report = refused(guest, source, journey)
    assert report.verification is not None
    assert report.verification.different_pages == [f"ram0 at {at // PAGE_BYTES * PAGE_BYTES:#x}"]
    assert "1 page differs" in report.reason


def test_a_lost_region_is_found_by_a_sample_too(guest: Guest, armed: Callable[[str], Stop]):
    world, source = guest.world, guest.host
    stop = armed(source)
    stop.at("source.before.VerifyMemory")
    journey = world.start_journey(guest.name, source, verify="sample")
    stop.wait()
    with guest_memory(guest, other(source)).open("r+b", buffering=0) as memory:
        memory.seek(32 * MIB)
        memory.write(b"\xa5" * (64 * MIB))
    stop.go_on()
    report = refused(guest, source, journey)
    assert report.verification is not None and len(report.verification.different_pages) == 16
    assert "at least 16 pages differ" in report.reason


def test_a_page_left_out_is_found(guest: Guest, armed: Callable[[str], Stop]):
    """A write that QEMU's dirty log does not see, after the page was sent: what a lost dirty bit looks like."""
    world, source = guest.world, guest.host
    # so that no other write of the guest has the page sent again
    guest.load(0, 1)
    stop = armed(source)
    stop.at("source.before.OpenLatch")
    memory = guest_memory(guest, source)
    journey = world.start_journey(guest.name, source, STEADY, verify="full")
    stop.wait()
    at = free_page(memory)
    flip(memory, at)
    try:
        stop.go_on()
        report = refused(guest, source, journey, again=False)
    finally:
        flip(memory, at)
    assert report.verification is not None and report.verification.different_pages == [f"ram0 at {at:#x}"]
    guest.check()
    verified_move(guest, "full")


def test_bytes_flipped_in_transit_are_found(guest: Guest):
    """Without TLS, since nothing in a TLS stream can be flipped unnoticed; QEMU itself notices nothing."""
    world, source = guest.world, guest.host
    for host in HOSTS:
        # compressed pages carry checksums of their own
        world.settings(host, {"trusted_networks": "0.0.0.0/0", "option": "tcp"})
    try:
        with bad_network(world, source, every_bytes=3 * MIB, most=4) as proxy:
            journey = world.start_journey(guest.name, source, verify="full")
            report = refused(guest, source, journey, again=False)
            assert not report.tls and proxy.flipped == 4
        assert report.verification is not None and 1 <= len(report.verification.different_pages) <= 4
        with bad_network(world, source, every_bytes=MIB, most=0) as proxy:
            assert verified_move(guest, "full").verification is not None
            assert proxy.carried_bytes > 8 * MIB, "the proxy was in the way, and did no harm"
    finally:
        for host in HOSTS:
            world.settings(host, {"trusted_networks": "", "option": "auto"})


# A destination or an agent that is lost meanwhile -----------------------------------------------------------------------


def test_a_destination_that_dies_while_it_is_compared(guest: Guest, armed: Callable[[str], Stop]):
    world, source = guest.world, guest.host
    stop = armed(source)
    stop.at("source.before.VerifyMemory")
    journey = world.start_journey(guest.name, source, verify="full")
    stop.wait()
    process = world.qemu(other(source), guest.name)
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    stop.go_on()
    report = world.report(source, journey)
    assert report.outcome == "failed" and report.owner == "source", report
    guest.exactly_one(source)
    guest.check()


def test_an_agent_that_dies_while_it_compares(guest: Guest, armed: Callable[[str], Stop]):
    world, source = guest.world, guest.host
    stop = armed(source)
    stop.at("source.before.VerifyMemory")
    journey = world.start_journey(guest.name, source, verify="full")
    stop.wait()
    world.restart_agent(source, signal.SIGKILL)
    report = world.report(source, journey)
    assert report.outcome == "failed" and report.owner == "source", report
    guest.exactly_one(source)
    guest.check()
    verified_move(guest, "full")


# Tools ----------------------------------------------------------------------------------------------------------------


@dataclass
class Stop:
    """An agent that stands still at the fault point that is named."""

    world: World
    host: str

    def at(self, point: str) -> None:
        (self.world.run_dir(self.host) / FILE_NAME).write_text(point)

    def wait(self) -> None:
        stat = Path(f"/proc/{self.world.agent_pid(self.host)}/stat")
        self.world.wait(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "the agent stands still")

    def go_on(self) -> None:
        self.world.signal_agent(self.host, signal.SIGCONT)


@pytest.fixture
def armed(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Stop]]:
    """Arms the fault points of a host's agent, until the end of the test."""
    changed: list[str] = []

    def arm(host: str) -> Stop:
        changed.append(host)
        monkeypatch.setenv(VARIABLE, "1")
        world.restart_agent(host)
        monkeypatch.delenv(VARIABLE)
        return Stop(world, host)

    yield arm
    for host in changed:
        (world.run_dir(host) / FILE_NAME).unlink(missing_ok=True)
        world.ensure_agents()
        world.restart_agent(host)


@pytest.fixture
def private_guest(world: World, resident: Guest) -> Iterator[Guest]:
    """A guest beside the resident one, with private memory and the other kind of machine."""
    world.ensure_agents()
    guest = PrivateGuest(world, f"{resident.name}-private", "10.77.0.11", resident.workload)
    guest.workload = type(guest.workload)(**{**vars_of(guest.workload), "address": "10.77.0.11/24"})
    guest.ensure_running()
    yield guest
    host = guest.host
    world.ask(host, lambda agent: agent.stop_vm(guest.name, force=True))
    for place in HOSTS:
        if world.vm(place, guest.name) is not None:
            world.ask(place, lambda agent: agent.remove_vm(guest.name))


class PrivateGuest(Guest):
    """With private memory, on an i440FX machine."""

    @property
    def definition(self) -> str:
        return 'machine = "pc"\n' + super().definition.replace("[memory]\n", '[memory]\nbacking = "private"\n')


def vars_of(workload: object) -> dict[str, object]:
    return {name: getattr(workload, name) for name in workload.__slots__}  # type: ignore[attr-defined]


def verified_move(guest: Guest, mode: Literal["full", "sample"]) -> ReportView:
    """A verified journey to the other host, which must complete."""
    world, source = guest.world, guest.host
    report = world.report(source, world.start_journey(guest.name, source, verify=mode))
    assert report.outcome == "completed", report
    guest.exactly_one(other(source))
    guest.check()
    return report


def refused(guest: Guest, source: str, journey: str, *, again: bool = True) -> ReportView:
    """The report of a journey whose damage was found: the guest runs on at the source, and may then be moved undamaged."""
    report = guest.world.report(source, journey)
    assert (report.outcome, report.code, report.owner) == ("failed", MemoryDiffers.code, "source"), report
    assert report.verification is not None and report.verification.result == "different"
    guest.exactly_one(source)
    assert guest.runs()
    if again:
        guest.check()
        verified_move(guest, "full")
    return report


def guest_memory(guest: Guest, host: str) -> Path:
    """The file of the memory of the guest's QEMU on that host."""
    process = guest.world.qemu(host, guest.name)
    assert isinstance(process, QemuProcess)
    for entry in Path(f"/proc/{process.pid}/fd").iterdir():
        if str(entry.readlink()).startswith("/memfd:") and entry.stat().st_size == 128 * MIB:
            return entry
    raise AssertionError(f"QEMU on {host} has no memfd")


def flip(memory: Path, at: int) -> None:
    """Flip one bit; QEMU does not see it."""
    with memory.open("r+b", buffering=0) as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))


def free_page(memory: Path) -> int:
    """A page of zeros among pages of zeros: nothing of the guest is there, nor likely to come there soon."""
    with memory.open("rb", buffering=0) as file:
        for start in range(100 * MIB, 16 * MIB, -MIB):
            file.seek(start)
            if not any(file.read(MIB // 2)):
                return start + MIB // 4
    raise AssertionError("the guest has no free memory")


class bad_network:
    """A proxy that flips bytes between `source` and the other host."""

    def __init__(self, world: World, source: str, *, every_bytes: int, most: int) -> None:
        self._world, self._source = world, source
        self._proxy = CorruptingProxy(every_bytes=every_bytes, most=most)
        self._inside = Inside(Path("/run/netns") / world.lab.spec.namespace(source))

    def __enter__(self) -> CorruptingProxy:
        try:
            self._inside.run(self._proxy.start())
            self._world.run(self._source, "nft", RULES)
        except BaseException:
            self._inside.close()
            raise
        return self._proxy

    def __exit__(self, *unused: object) -> None:
        try:
            self._world.run(self._source, "nft", "delete", "table", "ip", TABLE)
            self._inside.run(self._proxy.stop())
        finally:
            self._inside.close()
