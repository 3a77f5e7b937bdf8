"""How the QEMUs of a host end, also when they do not want to or nobody should end them: real QEMUs."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from livemove.agent.fitness import _check_name
from livemove.agent.vm_processes import Running, own_leases
from livemove.agent.vm_records import VmRecord, VmRecords
from livemove.agent.vm_view import view_vm
from livemove.agent.vms import Vms
from livemove.base.database import Database
from livemove.base.errors import AlreadyMoving, Conflict, OutcomeUnknown, QemuFailed
from livemove.base.settings import HostSettings
from livemove.base.tasks import spawn
from livemove.hypervisor import process as processes
from livemove.hypervisor.frozen import FrozenVm
from livemove.hypervisor.lease import lease_path
from livemove.hypervisor.probe import probe_qemu
from livemove.hypervisor.process import QemuProcess

pytestmark = pytest.mark.qemu

UUID = "11111111-2222-4333-8444-555555555555"
TEXT = 'name = "web1"\n[memory]\nsize = "64MiB"\n'


class Agent:
    """The VMs of a host, and again after a restart of its agent."""

    vms: Vms

    def __init__(self, base: Path) -> None:
        self.settings = HostSettings(name="A", state_dir=base / "state", run_dir=base / "run")
        self._base = base
        self._database: Database | None = None

    async def start(self) -> Vms:
        await self.stop()
        self._database = Database(self._base / "state" / "livemove.db")
        await self._database.open()
        records = VmRecords(self._database)
        await records.load()
        facts = await probe_qemu("qemu-system-x86_64", "tcg", cache_dir=self._base / "cache")
        self.vms = Vms(lambda: self.settings, facts, records)
        return self.vms

    async def stop(self) -> None:
        if self._database is not None:
            await self.vms.close()
            await self._database.close()
            self._database = None

    @property
    def record(self) -> VmRecord:
        return self.vms.records.get("web1")

    async def run(self) -> QemuProcess:
        await self.vms.records.put(VmRecord("web1", UUID, TEXT))
        process = (await self.vms.start("web1")).process
        assert process is not None
        return process

    def lease(self) -> Path:
        return own_leases(self.settings) / f"{UUID}.lease"


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    # a short path, because that of a UNIX socket is
    base = Path(tempfile.mkdtemp(prefix="lm-test-"))
    made = Agent(base)
    await made.start()
    yield made
    process = made.record.process if made.vms.records.find("web1") is not None else None
    await made.stop()
    if process is not None:
        await processes.kill(process, grace_s=0)
    shutil.rmtree(base)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while True:
            if true():
                return
            await asyncio.sleep(0.02)


def refuse_arrival(agent: Agent, frozen: FrozenVm) -> None:
    with pytest.raises(Conflict, match="has not ended there yet"):
        _check_name(frozen, agent.vms, "A")


# It moved -------------------------------------------------------------------------------------------------------------


async def test_that_a_vm_moved_is_on_record_though_its_qemu_does_not_end(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await agent.run()
    frozen = agent.record.frozen
    assert frozen is not None
    kill, noted = processes.kill, []

    async def hang(process: QemuProcess, *, grace_s: float = 5.0) -> None:
        noted.append(agent.record.moved_to)
        await asyncio.sleep(0.05)
        raise QemuFailed("it did not end")

    monkeypatch.setattr(processes, "kill", hang)
    async with agent.vms.lock("web1"):
        with pytest.raises(QemuFailed):
            await agent.vms.stopped_in_order("web1", moved_to="B")
    assert noted[0] == "B"
    assert (agent.record.moved_to, agent.record.process) == ("B", process)
    assert view_vm(agent.vms, agent.record, "A").state == "moved"
    with pytest.raises(Conflict):
        await agent.vms.start("web1")
    with pytest.raises(Conflict):
        await agent.vms.remove("web1")
    refuse_arrival(agent, frozen)
    # at last
    monkeypatch.setattr(processes, "kill", kill)
    await until(lambda: agent.record.process is None)
    assert not processes.find(process) and not agent.lease().exists()
    assert (agent.record.moved_to, agent.vms.mute) == ("B", {})
    _check_name(frozen, agent.vms, "A")
    with pytest.raises(Conflict, match="moved to B"):
        await agent.vms.start("web1")


async def test_the_next_agent_ends_the_qemu_of_a_vm_that_moved(agent: Agent) -> None:
    process = await agent.run()
    frozen = agent.record.frozen
    assert frozen is not None
    # as an agent leaves it that is killed when the first half is on record
    await agent.vms.records.put(replace(agent.record, moved_to="B"))
    await agent.start()
    await agent.vms.find_again()
    assert agent.vms.find_running("web1") is None
    refuse_arrival(agent, frozen)
    await until(lambda: agent.record.process is None)
    assert not processes.find(process)
    assert (agent.record.moved_to, agent.record.frozen) == ("B", None)
    await until(lambda: not agent.vms.mute)


async def test_a_qemu_that_ends_by_itself_while_it_is_noted_that_it_moved(agent: Agent) -> None:
    process = await agent.run()
    os.kill(process.pid, signal.SIGKILL)
    async with agent.vms.lock("web1"):
        await agent.vms.stopped_in_order("web1", moved_to="B")
    await asyncio.sleep(0.1)
    assert (agent.record.moved_to, agent.record.process) == ("B", None)


# It does not answer ---------------------------------------------------------------------------------------------------


async def deaf(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> QemuProcess:
    """A VM whose QEMU runs and says nothing to the agent, which was restarted."""
    process = await agent.run()
    await agent.start()

    async def nothing(record: VmRecord) -> bool:
        return False

    monkeypatch.setattr(agent.vms, "_find", nothing)
    await agent.vms.find_again()
    assert "web1" in agent.vms.mute
    return process


async def test_a_mute_vm_is_not_forgotten_and_is_stopped_by_force_only(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await deaf(agent, monkeypatch)
    for refused in (agent.vms.remove("web1"), agent.vms.stop("web1", force=False), agent.vms.start("web1")):
        with pytest.raises(Conflict, match="does not answer") as caught:
            await refused
        assert "vm stop --force web1" in (caught.value.remedy or "")
    assert processes.find(process)
    record = await agent.vms.stop("web1", force=True)
    assert (record.process, record.frozen) == (None, None) and not processes.find(process)
    assert agent.vms.mute == {} and not agent.lease().exists()
    await agent.vms.remove("web1")


async def test_a_mute_vm_in_a_journey_is_not_stopped(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    process = await deaf(agent, monkeypatch)
    agent.vms.journeys["web1"] = "j1"
    with pytest.raises(AlreadyMoving):
        await agent.vms.stop("web1", force=True)
    del agent.vms.journeys["web1"]
    agent.vms.unresolved.add("web1")
    with pytest.raises(OutcomeUnknown):
        await agent.vms.stop("web1", force=True)
    assert processes.find(process) and agent.record.process == process


async def test_a_vm_that_arrives_or_is_unresolved_is_not_forgotten(agent: Agent) -> None:
    await agent.vms.records.put(VmRecord("web1", UUID, TEXT))
    agent.vms.arriving.add("web1")
    with pytest.raises(Conflict, match="arriving"):
        await agent.vms.remove("web1")
    agent.vms.arriving.clear()
    agent.vms.unresolved.add("web1")
    with pytest.raises(Conflict, match="not resolved") as caught:
        await agent.vms.remove("web1")
    assert "livemove resolve web1" in (caught.value.remedy or "")
    agent.vms.unresolved.clear()
    await agent.vms.remove("web1")


# It is not what it was taken for --------------------------------------------------------------------------------------


async def test_a_vm_that_is_starting_is_no_orphan_of_a_journey(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    launch, is_there, go_on = agent.vms.launch, asyncio.Event(), asyncio.Event()

    async def slowly(frozen: FrozenVm, *, incoming: bool) -> Running:
        running = await launch(frozen, incoming=incoming)
        is_there.set()
        await go_on.wait()
        return running

    monkeypatch.setattr(agent.vms, "launch", slowly)
    starting = spawn(agent.run(), name="start")
    await is_there.wait()
    async with asyncio.timeout(5):
        await agent.vms.discard_orphan("web1", "99999999-2222-4333-8444-555555555555")
    go_on.set()
    process = await starting
    assert processes.find(process) and agent.vms.running("web1").process == process


async def test_whether_it_is_an_orphan_is_judged_when_nobody_changes_the_vm(agent: Agent) -> None:
    process = await agent.run()
    record = agent.record
    # so far it is known by nothing but its command line
    await agent.vms.close()
    await agent.vms.records.put(VmRecord("web1", UUID, TEXT))
    async with agent.vms.lock("web1"):
        discarding = spawn(agent.vms.discard_orphan("web1", UUID), name="discard")
        await asyncio.sleep(0.3)
        assert not discarding.done() and processes.find(process)
        await agent.vms.records.put(record)
    await discarding
    assert processes.find(process)


# It never ran ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("incoming", [False, True])
async def test_a_start_that_fails_leaves_no_lease(agent: Agent, incoming: bool) -> None:
    await agent.run()
    frozen = agent.record.frozen
    assert frozen is not None
    await agent.vms.stop("web1", force=True)
    with pytest.raises(QemuFailed):
        await agent.vms.launch(frozen.model_copy(update={"extra_arguments": ("-no-such",)}), incoming=incoming)
    assert not agent.lease().exists()


async def test_a_start_that_fails_leaves_the_lease_to_who_holds_it(agent: Agent) -> None:
    await agent.run()
    frozen = agent.record.frozen
    assert frozen is not None
    before = lease_path(own_leases(agent.settings), UUID).stat().st_ino
    with pytest.raises(Conflict):
        await agent.vms.launch(frozen.model_copy(update={"name": "web2"}), incoming=False)
    assert agent.lease().stat().st_ino == before
