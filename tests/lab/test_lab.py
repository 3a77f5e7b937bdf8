"""A lab is made whole or not at all, and goes without a trace, whenever whoever made it was killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from livemove.base.errors import BadDefinition, Conflict, MissingPrerequisite
from livemove.lab import namespaces, processes
from livemove.lab.lab import Lab, down, leftovers, status
from livemove.lab.registry import RUN_ROOT, Phase, Process, Record, Registry, labs
from livemove.lab.topology import LabSpec, parse_lab

pytestmark = pytest.mark.qemu

SLEEP = ["sleep", "600"]


def traces(name: str) -> dict[str, list[str]]:
    """What the machine has that a lab could have left; things of other tests' labs are not looked at."""
    namespaces_now = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    links_now = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, text=True, check=True).stdout)
    return {
        "namespaces": sorted(line for line in namespaces_now.splitlines() if f"lm-{name}-" in line),
        "links": sorted(link["ifname"] for link in links_now),
        "mounts": [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line],
        "files": sorted(str(path) for path in RUN_ROOT.rglob("*") if name in str(path)),
        "processes": [processes.command_of(pid) for pid in processes.find(name, set())],
    }


async def test_up_and_down_leave_nothing(lab_name: str) -> None:
    before = traces(lab_name)
    lab = await Lab.up(parse_lab(lab_name, "A,B,C", ["1Gbit", "1Gbit"]))
    log = lab.directory("A") / "log" / "sleep.log"
    pid = lab.start_process("A", SLEEP, log=log, label="sleeper")
    # one that ignores SIGTERM, one that is stopped, and one whose parent is gone
    stubborn = lab.start_process("B", ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"], log=log)
    stopped = lab.start_process("client", SLEEP, log=log)
    os.kill(stopped, signal.SIGSTOP)
    await lab.run_in("C", ["sh", "-c", "setsid sleep 600 >/dev/null 2>&1 &"])
    # and one that forgot where it came from, so that only its namespace tells
    await lab.run_in("C", ["env", "-i", "/bin/sh", "-c", "sleep 601 >/dev/null 2>&1 &"])
    (forgetful,) = (pid for pid in processes.find(lab_name, lab.namespace_ids) if "601" in processes.command_of(pid))
    assert forgetful not in processes.find(lab_name, set())
    now = traces(lab_name)
    assert len(now["namespaces"]) == 5
    assert now["links"] == before["links"]  # nothing in the machine's own network
    assert len(now["processes"]) >= 4
    assert leftovers(lab_name)
    await lab.down()
    assert traces(lab_name) == before
    assert leftovers(lab_name) == []
    assert [processes.start_ticks(each) for each in (pid, stubborn, stopped, forgetful)] == [None] * 4
    assert lab_name not in labs()
    await lab.down()
    assert traces(lab_name) == before


async def test_status_tells_hosts_links_and_processes(lab_name: str) -> None:
    assert (await status(lab_name)).phase is None
    async with Lab(parse_lab(lab_name, links=["1Gbit"])) as lab:
        pid = lab.start_process("A", SLEEP, log=lab.directory("A") / "log" / "sleep.log", label="sleeper")
        found = await lab.status()
        assert found.phase is Phase.UP
        assert [(host.name, host.exists, host.link_addresses) for host in found.hosts] == [
            ("A", True, ("10.80.0.1",)),
            ("B", True, ("10.80.0.2",)),
        ]
        assert [(process.pid, process.label) for process in found.hosts[0].processes] == [(pid, "sleeper")]
        assert found.links[0].carrier == {"A": True, "B": True}
        assert Lab.open(lab_name).spec == lab.spec
        assert lab_name in labs()
        await lab.end_process(pid)
        assert lab.processes() == []
        # the same name again is refused and changes nothing
        with pytest.raises(Conflict, match="up already"):
            await Lab.up(LabSpec(lab_name))
        assert (await lab.status()).phase is Phase.UP
    assert (await status(lab_name)).remains == ()
    with pytest.raises(Conflict, match="not up"):
        Lab.open(lab_name)


async def test_labs_of_two_names_do_not_touch_each_other(lab_name: str) -> None:
    other = f"{lab_name}-b"  # a prefix of the other's namespaces
    async with Lab(LabSpec(lab_name)) as lab:
        pid = lab.start_process("A", SLEEP, log=lab.directory("A") / "log" / "sleep.log")
        async with Lab(LabSpec(other)) as second:
            assert second.registry.directory != lab.registry.directory
        assert leftovers(other) == []
        assert (await lab.status()).phase is Phase.UP
        assert processes.start_ticks(pid) is not None
        assert len(namespaces.existing(lab_name)) == 4


async def test_commands_run_in_the_hosts_network(lab_name: str) -> None:
    async with Lab(LabSpec(lab_name)) as lab:
        done = await lab.run_in(
            "A", ["sh", "-c", "cat; ip -br addr; echo $LIVEMOVE_LAB_HOST; exit 3"], input_bytes=b"in\n"
        )
        assert done.returncode == 3
        assert done.stdout.startswith(b"in\n") and b"10.80.0.1/24" in done.stdout and b"10.80.0.2" not in done.stdout
        assert done.stdout.endswith(b"A\n")
        with pytest.raises(TimeoutError):
            await lab.run_in("A", SLEEP, timeout_s=0.2)
        assert processes.find(lab_name, lab.namespace_ids) == []
        assert (await lab.run_in("A", ["/no/such/program"])).returncode == 127
        with pytest.raises(BadDefinition, match="'Z'"):
            await lab.run_in("Z", ["true"])
        with pytest.raises(BadDefinition, match="'Z'"):
            lab.start_process("Z", ["true"], log=Path("/dev/null"))


async def test_a_process_keeps_its_id_outlives_its_starter_and_writes_its_log(lab_name: str) -> None:
    async with Lab(LabSpec(lab_name)) as lab:
        log = lab.directory("A") / "log" / "out.log"
        script = (
            "import asyncio,sys;from pathlib import Path;from livemove.lab.lab import Lab\n"
            f"async def main():\n lab=Lab.open({lab_name!r})\n"
            f" print(lab.start_process('A',['sh','-c','echo pid $$; pwd; exec sleep 600'],log=Path({str(log)!r})))\n"
            "asyncio.run(main())"
        )
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        pid = int(done.stdout)
        async with asyncio.timeout(5):
            while log.read_text().count("\n") < 2:  # noqa: ASYNC110  (another process writes it)
                await asyncio.sleep(0.02)
        assert log.read_text() == f"pid {pid}\n{lab.directory('A')}\n"
        (process,) = lab.processes("A")
        assert process.pid == pid and process.alive
        assert os.getsid(pid) == pid
        assert namespaces.namespace_id(Path(f"/proc/{pid}/ns/net")) in lab.namespace_ids


async def test_down_does_not_end_what_is_not_the_labs(lab_name: str) -> None:
    bystander = await asyncio.create_subprocess_exec(*SLEEP)
    try:
        async with Lab(LabSpec(lab_name)) as lab:
            # a record of a pid that belongs to another process now
            entry = Process(bystander.pid, 1, "A", "", ("sleep",), "/dev/null")
            lab.registry.add_process(entry)
            assert not entry.alive
            assert lab.processes() == []
            await lab.end_process(bystander.pid)
        assert bystander.returncode is None and processes.start_ticks(bystander.pid) is not None
    finally:
        bystander.kill()
        await bystander.wait()


async def test_down_without_its_record_goes_by_the_names(lab_name: str) -> None:
    lab = await Lab.up(LabSpec(lab_name))
    (lab.registry.directory / "lab.json").write_text('{"name": ')
    with pytest.raises(Conflict, match="another version"):
        await status(lab_name)
    await down(lab_name)
    assert leftovers(lab_name) == []


async def test_mounts_below_the_labs_directory_go_with_it(lab_name: str) -> None:
    lab = await Lab.up(LabSpec(lab_name))
    point = lab.directory("A") / "run"
    await lab.tools.run(["mount", "-t", "tmpfs", "none", str(point)])
    assert f"mount {point}" in leftovers(lab_name)
    await lab.down()
    assert leftovers(lab_name) == []


async def test_a_failure_half_way_leaves_nothing(lab_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = namespaces.Tools.tc

    async def refuse(self: namespaces.Tools, namespace: str, lines: list[str]) -> None:
        await real(self, namespace, ["qdisc add dev lo root no_such_discipline"] if lines else [])

    monkeypatch.setattr(namespaces.Tools, "tc", refuse)
    with pytest.raises(MissingPrerequisite, match="no_such_discipline"):
        await Lab.up(parse_lab(lab_name, links=["1Gbit"]))
    assert leftovers(lab_name) == []


@pytest.mark.parametrize("after_ms", [0, 10, 30, 60, 90, 120])
async def test_ctrl_c_half_way_leaves_nothing(lab_name: str, after_ms: int) -> None:
    task = asyncio.ensure_future(Lab.up(parse_lab(lab_name, "A,B,C", ["1Gbit"])))
    await asyncio.sleep(after_ms / 1000)
    task.cancel()
    await asyncio.sleep(0.005)
    task.cancel()  # somebody in a hurry
    try:
        await task
    except asyncio.CancelledError:
        assert leftovers(lab_name) == []


MAKER = """
import asyncio, os, signal, sys
from livemove.lab import namespaces
from livemove.lab.lab import Lab
from livemove.lab.topology import parse_lab
name, moment, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
calls = 0
real_run, real_spawn = namespaces.Tools.run, asyncio.create_subprocess_exec
def die():
    os.kill(os.getpid(), signal.SIGKILL)
async def run(self, argv, **options):
    global calls
    calls += 1
    mine = calls
    if mine == number and moment == "before":
        die()
    result = await real_run(self, argv, **options)
    if mine == number and moment == "after":
        die()
    return result
started = 0
async def spawn(*argv, **options):
    global started
    process = await real_spawn(*argv, **options)
    started += 1
    if moment == "during" and started == number:
        process.stdin.write(b"netns add lm-" + name.encode() + b"-A\\n" if number == 1 else b"")
        die()
    return process
namespaces.Tools.run = run
asyncio.create_subprocess_exec = spawn
async def main():
    lab = await Lab.up(parse_lab(name, "A,B", ["1Gbit"]))
    lab.start_process("A", ["sleep", "600"], log=lab.directory("A") / "log" / "sleep.log")
    if moment == "up":
        die()
asyncio.run(main())
print("not killed")
"""


@pytest.mark.parametrize(
    ("moment", "number"),
    [("before", 1), ("during", 1), ("after", 1), ("before", 2), ("during", 2), ("during", 5), ("after", 4),
     ("before", 10), ("during", 11), ("during", 14), ("after", 13), ("during", 16), ("up", 0)],
)  # fmt: skip
async def test_after_a_kill_anywhere_down_leaves_nothing(lab_name: str, moment: str, number: int) -> None:
    before = traces(lab_name)
    maker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", MAKER, lab_name, moment, str(number), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await maker.communicate()
    assert maker.returncode == -signal.SIGKILL, output
    assert leftovers(lab_name), "killed, so at least the record is there"
    assert Registry(lab_name).read() is not None
    if moment != "up":
        with pytest.raises(Conflict, match="partly up"):
            await Lab.up(LabSpec(lab_name))
    await down(lab_name)
    assert traces(lab_name) == before
    # and nothing of it comes later from a program that the dead one had started
    await asyncio.sleep(0.1)
    assert traces(lab_name) == before
    async with Lab(LabSpec(lab_name)):
        pass


@pytest.mark.parametrize("after_ms", [5, 20])
async def test_down_that_was_killed_can_be_repeated(lab_name: str, after_ms: int) -> None:
    lab = await Lab.up(LabSpec(lab_name))
    lab.start_process("A", ["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"], log=Path("/dev/null"))
    script = f"import asyncio;from livemove.lab.lab import down;print(flush=True);asyncio.run(down({lab_name!r}))"
    remover = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert remover.stdout is not None
    await remover.stdout.readline()
    await asyncio.sleep(after_ms / 1000)
    remover.kill()
    await remover.communicate()
    await down(lab_name)
    assert leftovers(lab_name) == []


async def test_down_waits_for_a_maker_that_is_at_work_and_two_makers_do_not_mix(lab_name: str) -> None:
    first, second = (asyncio.ensure_future(Lab.up(LabSpec(lab_name))) for _ in range(2))
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["Conflict", "Lab"]
    await asyncio.gather(down(lab_name), down(lab_name))
    assert leftovers(lab_name) == []


async def test_a_lock_that_is_held_is_told(lab_name: str) -> None:
    registry = Registry(lab_name)
    async with registry.locked(wait_s=1):
        with pytest.raises(Conflict, match="another command"):
            async with registry.locked(wait_s=0.1):
                pass
    registry.remove()
    assert not registry.directory.exists()


async def test_down_from_inside_the_lab_is_refused(lab_name: str) -> None:
    async with Lab(LabSpec(lab_name)) as lab:
        script = f"import asyncio;from livemove.lab.lab import down;asyncio.run(down({lab_name!r}))"
        done = await lab.run_in("A", [sys.executable, "-c", script])
        assert b"runs inside lab" in done.stderr
        assert (await lab.status()).phase is Phase.UP


def test_the_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    registry = Registry("x", tmp_path)
    assert registry.read() is None
    assert registry.processes() == []
    registry.directory.mkdir()
    spec = parse_lab(
        "x",
        "A,B,C",
        ["1Gbit,queue=5ms", "unshaped,offloads=off", "1Gbit,mtu=1500/9000/1500,subnet=0"],
        "192.168.7.0/24",
    )
    for phase in Phase:
        registry.write(Record(spec, phase))
        assert registry.read() == Record(spec, phase)
    with pytest.raises(BadDefinition):
        Registry("../x", tmp_path)


ORPHAN_MAKER = """
import asyncio, sys
from livemove.lab.lab import LabSpec
from livemove.lab.namespaces import Tools
from livemove.lab.registry import Phase, Record, Registry
name = sys.argv[1]
async def main():
    registry = Registry(name)
    async with registry.locked(wait_s=1) as lock_fd:
        registry.write(Record(LabSpec(name), Phase.MAKING))
        await Tools(name, lock_fd).run(["sh", "-c", "sleep 1; ip netns add lm-%s-A" % name])
asyncio.run(main())
"""


async def test_down_waits_for_the_programs_of_a_maker_that_was_killed(lab_name: str) -> None:
    maker = await asyncio.create_subprocess_exec(sys.executable, "-c", ORPHAN_MAKER, lab_name)
    async with asyncio.timeout(5):
        while not any("ip netns add" in processes.command_of(pid) for pid in processes.find(lab_name, set())):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    maker.kill()
    await maker.wait()
    # the dead one's program still holds the lock, so nobody takes the lab for finished while it works
    with pytest.raises(Conflict, match="another command"):
        async with Registry(lab_name).locked(wait_s=0.1):
            pass
    await down(lab_name)
    await asyncio.sleep(1.2)
    assert namespaces.existing(lab_name) == []
    assert leftovers(lab_name) == []
