"""Starting QEMU: real ones under TCG without an operating system; systemd's part as a table."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import struct
import sys
from pathlib import Path

import pytest

import livemove.agent
from livemove.base.errors import Conflict, CpuUnsupported, MissingPrerequisite, QemuFailed
from livemove.base.tasks import cancel_and_wait, spawn
from livemove.hypervisor.command_line import Place, command_line
from livemove.hypervisor.frozen import FrozenVm
from livemove.hypervisor.launch import (
    CAPABILITIES,
    QemuProcess,
    cgroup2_mount,
    find,
    kill,
    launch,
    log_tail,
    systemd_run_arguments,
    wait_gone,
)
from livemove.hypervisor.process import start_ticks
from livemove.hypervisor.qmp import MONITOR_CLOSED, Monitor

from .conftest import FACTS, Start, frozen_from

SMALL = '[memory]\nsize = "64MiB"'


def test_the_cgroup2_mount_is_found() -> None:
    mountinfo = (
        "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    )
    assert cgroup2_mount(mountinfo) is None
    line = r"41 31 0:38 / /sys/fs/my\040cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw"
    assert cgroup2_mount(mountinfo + line) == Path("/sys/fs/my cgroup")


def test_the_systemd_unit() -> None:
    argv = systemd_run_arguments("web1", ["/usr/bin/qemu", "-S"], Path("/run/livemove/web1"), user="qemu")
    assert argv[:3] == ["systemd-run", "--unit=livemove-vm-web1.service", "--slice=livemove.slice"]
    assert argv[-3:] == ["--", "/usr/bin/qemu", "-S"]
    assert "--collect" in argv and "--property=User=qemu" in argv
    assert "--property=StandardError=append:/run/livemove/web1/qemu.log" in argv
    assert {"--property=NoNewPrivileges=yes", "--property=CapabilityBoundingSet="} <= {*argv}
    as_the_agent = systemd_run_arguments("web1", ["q"], Path("/r"))
    assert not any("User" in word for word in as_the_agent)
    unit = (Path(livemove.agent.__file__).parent / "livemove-agent.service").read_text()
    bounds = [line.partition("=")[2] for line in unit.splitlines() if line.startswith("CapabilityBoundingSet=")]
    assert " ".join(bounds) == CAPABILITIES, "of systemd's child QEMU no more is asked than of the agent's"
    assert {"--property=NoNewPrivileges=yes", f"--property=CapabilityBoundingSet={CAPABILITIES}"} <= {*as_the_agent}


def test_the_end_of_the_log(tmp_path: Path) -> None:
    assert log_tail(tmp_path) == ""
    (tmp_path / "qemu.log").write_text("x" * 20000 + "\n\n" + "\n".join(f"line {number}" for number in range(20)))
    assert log_tail(tmp_path, lines=2) == "line 18\nline 19"


async def test_prerequisites(run_dir: Path) -> None:
    with pytest.raises(MissingPrerequisite, match="no-such-qemu"):
        await launch("web1", ["no-such-qemu"], run_dir)
    with pytest.raises(MissingPrerequisite, match="bytes too long"):
        await launch("web1", ["sh"], run_dir / ("x" * 100))
    with pytest.raises(MissingPrerequisite, match="no user 'nobody-such'"):
        await launch("web1", ["sh"], run_dir, user="nobody-such")
    assert not run_dir.exists()


@pytest.mark.qemu
async def test_a_vm_runs_says_so_and_ends(start: Start, run_dir: Path) -> None:
    process = await start(frozen_from(SMALL))
    assert find(process) and run_dir.stat().st_mode & 0o777 == 0o700
    monitor = await Monitor.connect(run_dir / "qmp.sock", name="web1")
    events = monitor.events()
    assert (await monitor.execute("query-status"))["status"] == "running"
    await monitor.execute("stop")
    await monitor.execute("cont")
    assert [(await events.get()).name for _ in range(2)] == ["STOP", "RESUME"]  # type: ignore[union-attr]
    with pytest.raises(QemuFailed) as caught:
        await monitor.execute("no-such-command")
    assert caught.value.details["class"] == "CommandNotFound"

    if process.cgroup is not None:
        pids = (Path(process.cgroup) / "cgroup.procs").read_text().split()
        assert pids == [str(process.pid)]
    assert os.getsid(process.pid) == process.pid != os.getsid(0)
    assert Path(f"/proc/{process.pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink()

    with pytest.raises(Conflict):
        await launch("web1", ["sh"], run_dir)
    assert find(process)

    gone = spawn(wait_gone(process), name="test")
    await asyncio.sleep(0.05)
    assert not gone.done()
    await kill(process)
    await asyncio.wait_for(gone, 5)
    assert not find(process)
    assert process.cgroup is None or not Path(process.cgroup).exists()
    names = [event.name async for event in events]
    # SIGTERM ends a QEMU that keeps running when its guest powers off
    assert names[-1] == MONITOR_CLOSED and "SHUTDOWN" in names
    await kill(process)
    await wait_gone(process)
    await monitor.close()


@pytest.mark.qemu
async def test_an_incoming_vm_waits(start: Start, run_dir: Path) -> None:
    await start(frozen_from(SMALL), incoming=True)
    monitor = await Monitor.connect(run_dir / "qmp.sock", name="web1")
    assert (await monitor.execute("query-status"))["status"] == "inmigrate"
    await monitor.close()


def empty_qcow2() -> bytes:
    """A disk of 1 MiB in qcow2, version 2: header, refcount table, refcount block and L1 table, 64 KiB each."""
    cluster = 1 << 16
    header = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 16, 1 << 20, 0, 1, 3 * cluster, cluster, 1, 0, 0)
    parts = (header, struct.pack(">Q", 2 * cluster), struct.pack(">4H", 1, 1, 1, 1), b"")
    return b"".join(part.ljust(cluster, b"\0") for part in parts)


@pytest.mark.qemu
@pytest.mark.parametrize("machine", ["q35", "pc"])
async def test_the_whole_machine_is_as_frozen(start: Start, run_dir: Path, tmp_path: Path, machine: str) -> None:
    """Disks of each kind, UEFI files, extra arguments; every device where the frozen VM says, the baseline CPU silent."""
    for name, size in (("raw", 1 << 20), ("code", 256 << 10), ("vars", 128 << 10)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / "q,cow2").write_bytes(empty_qcow2())
    frozen = frozen_from(
        f"""
        [memory]
        size = "64MiB"
        backing = "private"
        populate = true
        [uefi]
        code = "{tmp_path}/code"
        vars = "{tmp_path}/vars"
        shared = true
        [[disk]]
        path = "{tmp_path}/raw"
        serial = "S1"
        cache = "directsync"
        [[disk]]
        path = "{tmp_path}/q,cow2"
        format = "qcow2"
        cache = "writeback"
        """,
        top=f'machine = "{machine}"\nfirmware = "uefi"\nextra_arguments = ["-device", "virtio-rng-pci"]',
    )
    process = await start(frozen, incoming=True)
    monitor = await Monitor.connect(run_dir / "qmp.sock", name="web1")
    slots = {device["slot"]: device["qdev_id"] for device in (await monitor.execute("query-pci"))[0]["devices"]}
    await monitor.close()
    for disk in frozen.disks:
        assert slots[int(disk.pci_address, 16)] == f"{disk.id}-device"
    assert log_tail(run_dir) == ""
    await kill(process)


# Boot sectors that do one thing: power off by ACPI, tell pvpanic of a panic, reset by the keyboard controller.
POWER_OFF = bytes.fromhex("ba0406b80020eff4")
PANIC = bytes.fromhex("ba0505b001eef4")
RESET = bytes.fromhex("b0fee664f4")


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("code", "event", "status"),
    [
        (POWER_OFF, "SHUTDOWN", "shutdown"),
        (PANIC, "GUEST_PANICKED", "guest-panicked"),
        (RESET, "RESET", "running"),
    ],
    ids=["power-off", "panic", "reset"],
)
async def test_what_the_guest_does_is_an_event_and_qemu_stays(
    start: Start, run_dir: Path, tmp_path: Path, code: bytes, event: str, status: str
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes((code.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
    # -S, so that nothing happens before we listen
    process = await start(frozen_from(f'{SMALL}\n[[disk]]\npath = "{disk}"', top='extra_arguments = ["-S"]'))
    monitor = await Monitor.connect(run_dir / "qmp.sock", name="web1")
    with monitor.events(event) as events:
        await monitor.execute("cont")
        heard = await asyncio.wait_for(events.get(), 20)
    assert heard is not None and heard.name == event
    assert (await monitor.execute("query-status"))["status"] == status
    assert find(process)
    await monitor.close()


@pytest.mark.qemu
async def test_qemus_own_words_when_it_does_not_start(run_dir: Path) -> None:
    async def start(frozen: FrozenVm) -> QemuProcess:
        place = Place(run_dir, "tcg", (), False)
        return await launch("web1", command_line(frozen, place, qemu=FACTS.path, incoming=False), run_dir)

    with pytest.raises(QemuFailed, match="no-such-disk"):
        await start(frozen_from(f'{SMALL}\n[[disk]]\npath = "/no-such-disk"'))
    # refused only while the machine is built, after a thread of QEMU may have greeted on QMP already: so not once
    for _ in range(5):
        with pytest.raises(CpuUnsupported, match="requested feature"):
            await start(frozen_from(SMALL).model_copy(update={"cpu_model": "EPYC-Genoa"}))
    mount = cgroup2_mount(Path("/proc/self/mountinfo").read_text())
    digest = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:8]
    assert mount is None or not (mount / "livemove" / f"vm-web1-{digest}").exists()


@pytest.mark.qemu
async def test_a_program_that_never_answers_is_ended(run_dir: Path) -> None:
    with pytest.raises(QemuFailed, match=r"did not answer within 0\.2 s.*hello"):
        script = f"echo hello; echo $$ >{run_dir}/pid; exec sleep 1000"
        await launch("web1", ["sh", "-c", script], run_dir, start_timeout_s=0.2)
    assert start_ticks(int((run_dir / "pid").read_text())) is None


@pytest.mark.qemu
async def test_a_cancelled_start_leaves_nothing(run_dir: Path) -> None:
    script = f"echo $$ >{run_dir}/pid; exec sleep 1001"
    starting = spawn(launch("web1", ["sh", "-c", script], run_dir), name="test")
    while not (run_dir / "pid").exists() or not (run_dir / "pid").read_text().strip():  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    pid = int((run_dir / "pid").read_text())
    await cancel_and_wait(starting)
    assert starting.cancelled()
    assert start_ticks(pid) is None


LAUNCHER = """
import asyncio, json, sys
from pathlib import Path
from livemove.hypervisor.launch import launch
name, run_dir, argv = json.loads(sys.argv[1])
process = asyncio.run(launch(name, argv, Path(run_dir)))
print(json.dumps(process.to_json()), flush=True)
"""


@pytest.mark.qemu
async def test_it_survives_its_launcher_and_is_found_again(run_dir: Path) -> None:
    argv = command_line(frozen_from(SMALL), Place(run_dir, "tcg", (), False), qemu=FACTS.path, incoming=False)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LAUNCHER, json.dumps(["web1", str(run_dir), argv]), stdout=asyncio.subprocess.PIPE
    )
    # the pipe ends with the launcher, so QEMU holds none of its descriptors
    output, _ = await asyncio.wait_for(child.communicate(), 30)
    assert child.returncode == 0
    process = QemuProcess.from_json(json.loads(output))
    try:
        assert find(process)
        monitor = await Monitor.connect(run_dir / "qmp.sock", name="web1")
        assert (await monitor.execute("query-status"))["running"] is True
        await monitor.close()
        fds = [str(fd.readlink()) for fd in Path(f"/proc/{process.pid}/fd").iterdir()]
        assert fds and not any(target.startswith("pipe:") for target in fds)
    finally:
        await kill(process)
    assert not find(process)
    assert process.cgroup is None or not Path(process.cgroup).exists()


@pytest.mark.qemu
async def test_an_unprivileged_qemu(start: Start, run_dir: Path) -> None:
    run_dir.parent.chmod(0o755)
    process = await start(frozen_from(SMALL), user="nobody")
    assert Path(f"/proc/{process.pid}").stat().st_uid == run_dir.stat().st_uid != 0
