"""Leftovers: real QEMUs, taps, packet filters, cgroups and files, in a network namespace of the test's own.

Beside each there is something that looks like it and is not ours; that must still be there afterwards.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from livemove.agent.orphans import qemus_under
from livemove.migration.packet_filter import read_filters

#: Runs in a network namespace that ends with it; prints what was found, removed and left as JSON.
PROGRAM = """
import asyncio, json, socket, subprocess, sys
from pathlib import Path
from livemove.agent.leftovers import Leftovers
from livemove.agent.vm_records import VmRecord, VmRecords
from livemove.agent.vms import Vms
from livemove.base.clock import SystemClock
from livemove.base.database import Database
from livemove.base.settings import HostSettings
from livemove.hypervisor.launch import cgroup_of
from livemove.hypervisor.probe_guest import DIES_WITH_US
from livemove.hypervisor.process import QemuProcess, start_ticks
from livemove.migration.journal import DESTINATION, SOURCE, Journal, Record
from livemove.migration.model import Incoming, IncomingPhase
from livemove.migration.packet_filter import admit_only, filter_name, list_filters
from livemove.network.host_changes import HostChanges
from livemove.policy.host_setup import Sysctl
from livemove.network.taps import make_tap, tap_name

base = Path(sys.argv[1])
UUID, OLD = "11111111-2222-4333-8444-555555555555", "99999999-2222-4333-8444-555555555555"
def links(): return sorted(name for _, name in socket.if_nameindex() if name.startswith("lm"))
def sockets(path):
    path.mkdir(parents=True, exist_ok=True)
    for name in ("qmp.sock", "console.sock"):
        server = socket.socket(socket.AF_UNIX); server.bind(str(path / name)); server.close()
    (path / "qemu.log").write_text("words")
def qemu(run_dir):
    run_dir.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen([*DIES_WITH_US, "qemu-system-x86_64", "-machine", "none", "-display", "none", "-S", "-chardev",
        f"socket,id=qmp,path={run_dir}/qmp.sock,server=on,wait=off", "-mon", "chardev=qmp,mode=control"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

async def main():
    settings = HostSettings.model_validate({"name": "B", "state_dir": base / "state", "run_dir": base / "run"})
    database, clock = Database(base / "state" / "livemove.db"), SystemClock()
    await database.open()
    journal, records = Journal(database, clock, "B"), VmRecords(database)
    vms = Vms(lambda: settings, None, records)
    busy = {"open-0001"}
    changes = HostChanges(base / "run" / "host-changes.json")
    leftovers = Leftovers(lambda: settings, vms, journal, lambda: busy, changes)
    def journey(name, role, vm, uuid):
        return Record(name, role, vm, uuid, "A", "B", "ann", 0.0, {})
    for name, role, vm in (("gone-0001", DESTINATION, "lost"), ("open-0001", DESTINATION, "coming"), ("sent-0001", SOURCE, "home")):
        await journal.create(journey(name, role, vm, UUID), Incoming(IncomingPhase.RESERVED))
    vms.arriving.add("coming")
    vms_dir = base / "run" / "vms"
    running = [qemu(vms_dir / name) for name in ("lost", "coming", "home")]
    foreign = qemu(base / "other" / str(vms_dir).lstrip("/") / "lost")
    processes = {name: process.pid for name, process in zip(("lost", "coming", "home", "foreign"), [*running, foreign])}
    await asyncio.sleep(1.5)
    at_home = QemuProcess("home", running[2].pid, start_ticks(running[2].pid))
    await records.put(VmRecord("home", UUID, 'name = "home"', process=at_home))
    await records.put(VmRecord("still", UUID, 'name = "still"'))
    for name in ("still", "stranger"):
        sockets(vms_dir / name)
    sockets(base / "other" / "vms" / "still")
    (vms_dir / "keeps").mkdir()
    (vms_dir / "keeps" / "somebody's.txt").write_text("mine")
    for name in ("gone-0001", "open-0001"):
        (base / "run" / "keys" / name).mkdir(parents=True)
        (base / "run" / "keys" / name / "keys.psk").write_text("secret")
    for name in ("gone-0001", "open-0001"):
        await admit_only(name, [("192.0.2.1", "192.0.2.2")], 49152)
    # the ids of others: one that this host never heard of, and one of a journey that left here
    for name in ("theirs-0001", "sent-0001"):
        await admit_only(name, [("192.0.2.1", "192.0.2.2")], 49153)
    subprocess.run(["nft", "add", "table", "inet", "mine"], check=True)
    subprocess.run(["ip", "link", "add", "br0", "type", "bridge"], check=True)
    theirs = tap_name("lost", OLD, 0)
    taps = {"lost": tap_name("lost", UUID, 0), "still": tap_name("still", UUID, 1), "coming": tap_name("coming", UUID, 0),
            "home": tap_name("home", UUID, 0), "theirs": theirs, "odd": "lmzz"}
    for name in taps.values():
        make_tap(name, "br0")
    groups = {}
    for name, path in (("lost", cgroup_of("lost", vms_dir / "lost")), ("theirs", cgroup_of("lost", base / "else" / "lost"))):
        if path is not None:
            path.mkdir(parents=True, exist_ok=True)
            groups[name] = str(path)
    for name, sysctl in (("gone-0001", "pm_type"), ("open-0001", "stale_loss_cnt")):
        await changes.apply(name, [Sysctl(f"net.mptcp.{sysctl}", "1")])
    vms.reserved_bytes.update({"gone-0001": 1 << 20, "open-0001": 1 << 20})
    async def state():
        return {"links": links(), "filters": sorted(await list_filters()), "changes": sorted(await changes.held()),
                "pm_type": Path("/proc/sys/net/mptcp/pm_type").read_text().strip(), "reserved": sorted(vms.reserved_bytes),
                "groups": sorted(name for name, path in groups.items() if Path(path).exists()),
                "qemus": sorted(name for name, pid in processes.items() if start_ticks(pid) is not None),
                "files": sorted(str(path.relative_to(base)) for path in (*base.glob("run/**/*"), *base.glob("other/**/*")))}
    try:
        before = await state()
        found = await leftovers.find()
        untouched = before == await state()
        gone, left = await leftovers.remove(found)
        after = await state()
        again = await leftovers.find()
        told = lambda items: sorted((item.kind, item.name, item.owner) for item in items)
        print(json.dumps({"base": str(base), "taps": taps, "groups": groups, "pids": processes, "before": before,
            "untouched": untouched, "after": after, "gone": told(gone), "found": told(found),
            "left": told(item for item, why in left), "again": told(again),
            "reasons": [item.reason for item in found], "since": [item.since_wall_s for item in found]}))
    finally:
        for process in (*running, foreign):
            process.kill(); process.wait()
        for path in groups.values():
            if Path(path).exists(): Path(path).rmdir()
        await database.close()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="lm-gc-") as directory:
        done = subprocess.run(
            ["unshare", "--net", sys.executable, "-c", PROGRAM, directory],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout.splitlines()[-1])


@pytest.mark.qemu
def test_what_belongs_to_nobody_is_found_with_a_reason_and_looking_touches_nothing(seen: dict[str, Any]) -> None:
    run = f"{seen['base']}/run"
    wanted = [
        ["directory", f"{run}/vms/stranger", "stranger"], ["directory", f"{run}/vms/keeps", "keeps"],
        ["filter", "livemove_gone_0001", "gone-0001"], ["keys", f"{run}/keys/gone-0001", "gone-0001"],
        ["qemu", str(seen["pids"]["lost"]), "lost"], ["reservation", "memory of gone-0001", "gone-0001"],
        ["network", "changes of gone-0001", "gone-0001"],
        ["tap", seen["taps"]["lost"], "lost"], ["tap", seen["taps"]["still"], "still"],
        *(["socket", f"{run}/vms/{vm}/{name}", vm] for vm, name in (
            ("lost", "qmp.sock"), ("still", "qmp.sock"), ("still", "console.sock"),
            ("stranger", "qmp.sock"), ("stranger", "console.sock"),
        )),
    ]  # fmt: skip
    if "lost" in seen["groups"]:
        wanted.append(["cgroup", seen["groups"]["lost"], "lost"])
    assert seen["found"] == sorted(wanted)
    assert seen["untouched"]
    assert all(reason.endswith(".") and len(reason) > 20 for reason in seen["reasons"])
    assert all(since is None or since > 1.7e9 for since in seen["since"])


@pytest.mark.qemu
def test_it_goes_and_nothing_else_does(seen: dict[str, Any]) -> None:
    after, taps = seen["after"], seen["taps"]
    assert after["qemus"] == ["coming", "foreign", "home"]
    assert after["links"] == sorted(taps[name] for name in ("coming", "home", "theirs", "odd"))
    assert after["filters"] == ["livemove_open_0001", "livemove_sent_0001", "livemove_theirs_0001", "mine"]
    assert after["groups"] == [name for name in ("theirs",) if name in seen["groups"]]
    assert after["reserved"] == after["changes"] == ["open-0001"]
    assert (seen["before"]["pm_type"], after["pm_type"]) == ("1", "0")
    lost = [path for path in seen["before"]["files"] if path not in after["files"]]
    assert lost == sorted([
        "run/keys/gone-0001", "run/keys/gone-0001/keys.psk", "run/vms/lost/qmp.sock", "run/vms/still/console.sock",
        "run/vms/still/qmp.sock", "run/vms/stranger", "run/vms/stranger/console.sock", "run/vms/stranger/qemu.log",
        "run/vms/stranger/qmp.sock",
    ])  # fmt: skip


@pytest.mark.qemu
def test_a_second_time_there_is_nothing_but_what_somebody_put_there(seen: dict[str, Any]) -> None:
    keeps = [["directory", f"{seen['base']}/run/vms/keeps", "keeps"]]
    assert (seen["left"], seen["again"]) == (keeps, keeps)


@pytest.mark.qemu
def test_a_qemu_in_a_container_that_means_another_directory_by_the_same_path(tmp_path: Path) -> None:
    vms_dir = Path(tempfile.mkdtemp(prefix="lm-gc-")) / "vms"
    (vms_dir / "web1").mkdir(parents=True)
    chardev = f"socket,id=qmp,path={vms_dir}/web1/qmp.sock,server=on,wait=off"
    command = ["qemu-system-x86_64", "-machine", "none", "-display", "none", "-S", "-chardev", chardev]
    script = f"mount -t tmpfs none {vms_dir} && mkdir {vms_dir}/web1 && exec {' '.join(command)} -mon qmp,mode=control"
    inside = subprocess.Popen(["unshare", "--mount", "sh", "-c", script])
    outside = subprocess.Popen([*command, "-mon", "qmp,mode=control"])
    reader = subprocess.Popen(["tail", "-f", chardev, "/dev/null"], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            if (
                b"qemu" in Path(f"/proc/{inside.pid}/cmdline").read_bytes()[:20]
                and (vms_dir / "web1/qmp.sock").exists()
            ):
                break
            subprocess.run(["sleep", "0.05"], check=True)
        assert Path(f"/proc/{inside.pid}/exe").readlink().name.startswith("qemu")
        assert [found.pid for found in qemus_under(vms_dir)] == [outside.pid]
    finally:
        for process in (inside, outside, reader):
            process.kill()
            process.wait()
        subprocess.run(["rm", "-r", str(vms_dir.parent)], check=True)


def test_what_nft_prints() -> None:
    table = '{"nftables": [{"metainfo": {}}, {"table": {"family": "inet", "name": "a"}}, {"table": {"family": "ip", "name": "b"}}]}'
    assert read_filters(table.encode()) == ["a"]
    for text in ("", "{", "[]", '{"nftables": 4}', '{"nftables": [4]}', '{"nftables": [{"table": {}}]}', "[" * 100_000):
        assert read_filters(text.encode()) == []
