"""An agent that was killed while it started a VM: the VM's QEMU is found again, or the VM is stopped."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from livemove.agent.vm_records import VmRecord, VmRecords
from livemove.agent.vms import Vms
from livemove.base.database import Database
from livemove.base.settings import HostSettings
from livemove.hypervisor.command_line import Place, command_line
from livemove.hypervisor.definition import parse_definition
from livemove.hypervisor.frozen import freeze
from livemove.hypervisor.launch import kill, launch
from livemove.hypervisor.probe import probe_qemu

UUID = "11111111-2222-4333-8444-555555555555"
TEXT = 'name = "web1"\n[memory]\nsize = "64MiB"\n'


@pytest.fixture
def base() -> Iterator[Path]:
    """Short, because the path of a UNIX socket is."""
    directory = Path(tempfile.mkdtemp(prefix="lm-test-"))
    yield directory
    shutil.rmtree(directory)


async def vms_with(base: Path) -> tuple[Vms, Database]:
    settings = HostSettings(name="A", state_dir=base / "state", run_dir=base / "run")
    database = Database(base / "state" / "livemove.db")
    await database.open()
    records = VmRecords(database)
    facts = await probe_qemu("qemu-system-x86_64", "tcg", cache_dir=base / "cache")
    frozen = freeze(parse_definition(TEXT), facts, uuid=UUID, mac_for=lambda index: "52:54:00:00:00:01")
    # as start() leaves it before there is a QEMU
    await records.put(VmRecord("web1", UUID, TEXT, frozen, accelerator="tcg"))
    return Vms(lambda: settings, facts, records), database


@pytest.mark.qemu
async def test_its_qemu_was_started(base: Path) -> None:
    vms, database = await vms_with(base)
    record = vms.records.get("web1")
    assert record.frozen is not None
    run_dir = vms.run_dir("web1")
    argv = command_line(record.frozen, Place(run_dir, "tcg", (), False), qemu=vms.facts.path, incoming=False)
    process = await launch("web1", argv, run_dir)
    try:
        await vms.find_again()
        running = vms.running("web1")
        assert (running.process.pid, running.status) == (process.pid, "running")
        known = vms.records.get("web1").process
        assert known is not None and (known.pid, known.start_ticks) == (process.pid, process.start_ticks)
        assert known.cgroup == process.cgroup
    finally:
        await vms.close()
        await kill(process, grace_s=0)
        await database.close()


@pytest.mark.qemu
async def test_there_is_no_qemu(base: Path) -> None:
    vms, database = await vms_with(base)
    try:
        await vms.find_again()
        record = vms.records.get("web1")
        assert (record.frozen, record.process) == (None, None) and vms.find_running("web1") is None
    finally:
        await vms.close()
        await database.close()
