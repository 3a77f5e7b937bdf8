"""A host without room: disks that are full or read-only, no descriptors, no huge pages. The VM never notices.

Real agents on small file systems. What is looked at beforehand is refused with a sentence; what fills up in mid-journey
ends the journey before the hand-over, and leaves the question open after it until there is space again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from livemove.base.fault_points import FILE_NAME, VARIABLE
from livemove.hypervisor.process import start_ticks
from livemove.lab import agents

from .test_bad_input import refused, unchanged
from .world import SLOW, STEADY, Guest, World, other

pytestmark = pytest.mark.qemu

SIDES = ("source", "destination")


class Disk:
    """A small file system under an agent's state directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        with (self.path / "filler").open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    assert error.errno == errno.ENOSPC

    def free(self) -> None:
        (self.path / "filler").unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(world: World, host: str, tmp_path: Path) -> Iterator[Disk]:
    """The agent of `host`, restarted with its state on a file system of 24 MiB, and with its fault points armed."""
    state, aside = world.lab.directory(host) / "state", tmp_path / f"state-{host}"
    world.signal_agent(host, signal.SIGTERM)
    shutil.copytree(state, aside)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "none", state], check=True)
    disk = Disk(state)
    try:
        shutil.copytree(aside, state, dirs_exist_ok=True)
        os.environ[VARIABLE] = "1"
        world.start_agent(host)
        yield disk
    finally:
        os.environ.pop(VARIABLE, None)
        disk.free()
        world.ensure_agents()
        world.signal_agent(host, signal.SIGTERM)
        shutil.rmtree(aside)
        shutil.copytree(state, aside)
        subprocess.run(["umount", state], check=True)
        shutil.copytree(aside, state, dirs_exist_ok=True)
        world.start_agent(host)


def side(guest: Guest, which: str) -> str:
    return guest.host if which == "source" else other(guest.host)


def limit_files(pid: int, soft: int) -> tuple[int, int]:
    """Set a process's limit of open files; what it was."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, before[1]))
    return before


def halt_at(world: World, host: str, point: str) -> None:
    (world.run_dir(host) / FILE_NAME).write_text(point)


def wait_halted(world: World, host: str) -> None:
    stat = Path(f"/proc/{world.agent_pid(host)}/stat")
    world.wait(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", f"the agent of {host} stands still")


# Before the VM is touched -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", SIDES)
def test_a_full_disk_is_said_before_anything_is_done(world: World, guest: Guest, which: str, tmp_path: Path) -> None:
    host, destination = side(guest, which), other(guest.host)
    with small_disk(world, host, tmp_path) as disk:
        disk.fill()
        with unchanged(world, guest):
            for words in ((), ("--dry-run",)):
                error = refused(world, "state-unwritable", "migrate", guest.name, "--to", destination, *words)
                assert f"'state_dir' of {host}" in error["message"] and "16.0 MiB" in error["message"], error
                assert "disk_reserve" in error["remedy"], error
        disk.free()
        guest.move()


@pytest.mark.parametrize("which", SIDES)
def test_a_read_only_state_directory(world: World, guest: Guest, which: str) -> None:
    host = side(guest, which)
    state = world.lab.directory(host) / "state"
    subprocess.run(["mount", "--bind", state, state], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", state], check=True)
        with unchanged(world, guest):
            error = refused(world, "state-unwritable", "migrate", guest.name, "--to", other(guest.host))
            assert "read-only" in error["message"] and host in error["message"], error
            assert "writable" in error["remedy"], error
    finally:
        subprocess.run(["umount", state], check=True)
    guest.move()


@pytest.mark.parametrize("which", SIDES)
def test_descriptors_that_are_used_up(world: World, guest: Guest, which: str) -> None:
    host = side(guest, which)
    pid = world.agent_pid(host)
    used = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    before = limit_files(pid, used + 20)
    try:
        assert before[0] >= 4096, "the agent raises its own limit"
        with unchanged(world, guest):
            error = refused(world, "missing-prerequisite", "migrate", guest.name, "--to", other(guest.host))
            assert "more files" in error["message"] and host in error["message"], error
            assert "LimitNOFILE" in error["remedy"], error
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    guest.move()


def test_a_destination_without_a_single_descriptor(world: World, guest: Guest) -> None:
    """It cannot even be spoken to; the journey fails and the VM runs on."""
    pid = world.agent_pid(other(guest.host))
    before = limit_files(pid, 3)
    try:
        ended = world.livemove("migrate", guest.name, "--to", other(guest.host), "--json", expect=None)
        assert ended.code in (32, 40), ended
        assert guest.runs()
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    guest.move()


def test_a_destination_without_huge_pages(world: World, guest: Guest, tmp_path: Path) -> None:
    """Both hosts share this machine's pages: as many are there as the VM takes at its source."""
    name, pages = guest.name.replace("db1", "huge"), Path("/proc/sys/vm/nr_hugepages")
    path, reserved = tmp_path / "huge.toml", pages.read_text()
    path.write_text(f'name = "{name}"\n[memory]\nsize = "64MiB"\nbacking = "hugetlb"\npopulate = true\n')
    world.livemove("vm", "define", str(path), "--host", "A")
    try:
        pages.write_text(str(32))
        assert int(pages.read_text()) == 32, "this machine has no 64 MiB in one place"
        world.livemove("vm", "start", name)
        free = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
        world.wait(lambda: int(free.read_text()) == 0, "its memory is populated")
        with unchanged(world, guest):
            error = refused(world, "hugepages-missing", "migrate", name, "--to", "B")
            assert "B has 0 MiB" in error["message"] and "64 MiB" in error["message"], error
            assert "nr_hugepages" in error["remedy"], error
            view = world.vm("A", name)
            assert view is not None and view.state == "running"
    finally:
        world.livemove("vm", "stop", "--force", name, expect=None)
        world.livemove("vm", "remove", name, expect=None)
        pages.write_text(reserved)


# In mid-journey -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "point"),
    [("destination", "destination.journal.before.armed"), ("destination", "destination.journal.before.building"),
     ("source", "source.before.ArmHandOver")],
)  # fmt: skip
def test_a_disk_that_fills_up_before_the_hand_over(
    world: World, guest: Guest, which: str, point: str, tmp_path: Path
) -> None:
    source = guest.host
    host = side(guest, which)
    with small_disk(world, host, tmp_path) as disk:
        halt_at(world, host, point)
        journey = world.start_journey(guest.name, source, SLOW)
        wait_halted(world, host)
        disk.fill()
        world.signal_agent(host, signal.SIGCONT)
        world.wait(lambda: world.phase(source, journey) in ("failed", "aborting"), "the journey ends", timeout_s=20)
        assert guest.runs()
        disk.free()
        world.wait(lambda: not world.journeys(source), "it has ended")
        guest.exactly_one(source)
        guest.check()
        guest.move()


def test_a_destination_that_cannot_note_that_it_owns_does_not_run_the_vm(
    world: World, guest: Guest, tmp_path: Path
) -> None:
    source, destination = guest.host, other(guest.host)
    with small_disk(world, destination, tmp_path) as disk:
        halt_at(world, destination, "destination.journal.before.owned")
        journey = world.start_journey(guest.name, source, STEADY)
        wait_halted(world, destination)
        disk.fill()
        world.signal_agent(destination, signal.SIGCONT)
        world.wait(lambda: world.phase(source, journey) == "unresolved", "the source asks")
        # the QEMU there goes with the first question, and no answer is given before that is on record
        world.wait(lambda: world.qemu(destination, guest.name) is None, "the destination gives its QEMU up")
        assert world.phase(source, journey) == "unresolved"
        view = world.vm(source, guest.name)
        assert view is not None and view.state == "unknown", view
        disk.free()
        report = world.report(source, journey)
        assert (report.outcome, report.owner) == ("failed", "source"), report
        guest.exactly_one(source)
        guest.check()
        guest.move()


def test_a_source_that_cannot_note_that_the_vm_left_starts_it_for_nobody(
    world: World, guest: Guest, tmp_path: Path
) -> None:
    source, destination = guest.host, other(guest.host)
    with small_disk(world, source, tmp_path) as disk:
        halt_at(world, source, "source.journal.before.DestinationOwned")
        journey = world.start_journey(guest.name, source, STEADY)
        wait_halted(world, source)
        disk.fill()
        world.signal_agent(source, signal.SIGCONT)
        world.wait(lambda: guest.runs(), "it runs at the destination")
        view = world.vm(destination, guest.name)
        assert view is not None and view.state == "running", view
        refused(world, "outcome-unknown", "vm", "start", guest.name, "--host", source)
        disk.free()
        assert world.report(source, journey).outcome == "completed"
        guest.exactly_one(destination)
        guest.check()


@pytest.mark.parametrize("which", SIDES)
def test_an_agent_on_a_full_disk_says_so_and_its_vms_run_on(
    world: World, guest: Guest, which: str, tmp_path: Path
) -> None:
    host = side(guest, which)
    with small_disk(world, host, tmp_path) as disk:
        world.signal_agent(host, signal.SIGKILL)
        disk.fill()
        argv = [sys.executable, "-m", "livemove", "agent", "--config", str(agents.config_path(world.lab, host))]
        pid = world.lab.start_process(host, argv, log=tmp_path / "log", label="full")
        world.wait(lambda: start_ticks(pid) is None, "it ends", timeout_s=20)
        said = (tmp_path / "log").read_text()
        assert "cannot be written" in said and "Free space" in said and "Traceback" not in said, said
        assert guest.address and guest.world.guest(guest.address, "stat")
        disk.free()
        world.start_agent(host)
        guest.exactly_one()
