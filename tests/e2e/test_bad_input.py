"""Bad input and hosts that are not as they must be: a sentence, a remedy, an exit code of its own, and nothing changed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from livemove.agent.join import issue_person
from livemove.api.client_identity import Role
from livemove.base.clock import SystemClock
from livemove.base.errors import by_code

from .world import HOSTS, SLOW, Ended, Guest, World, other

pytestmark = pytest.mark.qemu


@contextlib.contextmanager
def unchanged(world: World, guest: Guest) -> Iterator[None]:
    """VMs, their QEMUs, and what is on both hosts are the same afterwards as before."""

    def everything() -> dict[str, Any]:
        listed = {host: [view.model_dump() for view in world.ask(host, lambda agent: agent.vms())] for host in HOSTS}
        hosts = [world.ask(host, lambda agent: agent.host()) for host in HOSTS]
        return {
            "vms": listed,
            "traces": {host: world.traces(host) for host in HOSTS},
            "slots": [(view.incoming, view.incoming_waiting, view.outgoing) for view in hosts],
            "journeys": [world.journeys(host) for host in HOSTS],
        }

    before = everything()
    yield
    with contextlib.suppress(AssertionError):
        # what a journey had at the destination is taken away a moment after its end
        world.wait(lambda: everything() == before, "everything is as before", timeout_s=5)
    assert everything() == before
    assert guest.runs()


def refusal(ended: Ended, code: str) -> dict[str, Any]:
    """The error that a command with --json printed, checked for what every error has."""
    error = json.loads(ended.out.splitlines()[-1])
    kind = by_code()[code]
    assert (error["code"], error["exit_code"], ended.code) == (code, kind.exit_code, kind.exit_code), error
    assert error["message"].endswith((".", "!")) and len(error["message"]) > 15, error
    assert error["remedy"].endswith((".", ")")), error
    # people read the same on standard error
    assert error["message"] in ended.err and error["remedy"] in ended.err, ended.err
    return dict(error)


def refused(world: World, code: str, *words: str, **how: Any) -> dict[str, Any]:
    return refusal(world.livemove(*words, "--json", expect=None, **how), code)


# The command --------------------------------------------------------------------------------------------------------


def test_names_that_nobody_has_and_the_host_where_it_is(world: World, guest: Guest) -> None:
    source = guest.host
    with unchanged(world, guest):
        error = refused(world, "unknown-vm", "migrate", "nobody", "--to", other(source))
        assert "nobody" in error["message"] and "A" in error["message"] and "B" in error["message"]
        error = refused(world, "unknown-host", "migrate", guest.name, "--to", "C")
        assert "'C'" in error["message"] and "A, B" in error["message"]
        error = refused(world, "same-host", "migrate", guest.name, "--to", source)
        assert guest.name in error["message"] and source in error["message"]
        refused(world, "unknown-journey", "cancel", "nobody")
        assert "livemove vm list" in world.livemove("migrate", "nobody", "--to", "B", expect=10).err


def test_quantities(world: World, guest: Guest) -> None:
    with unchanged(world, guest):
        for option, text, named in (
            ("--downtime", "300", "300"), ("--deadline", "-4s", "-4s"), ("--max-bandwidth", "fast", "fast"),
            ("--downtime", "0ms", "downtime"),
        ):  # fmt: skip
            error = refused(world, "bad-quantity", "migrate", guest.name, "--to", other(guest.host), option, text)
            assert named in error["message"], error


def test_settings(world: World, guest: Guest) -> None:
    with unchanged(world, guest):
        texts = {host: _config(world, host) for host in HOSTS}
        for change, named in (
            ("simultaneous=0", "simultaneous"), ("simultaneous=many", "simultaneous"), ("speed=9", "speed"),
            ("port_range=5", "port_range"),
        ):  # fmt: skip
            error = refused(world, "bad-setting", "host", "set", change, "--host", "B")
            assert named in error["message"], error
        # all of those given, or none
        refused(world, "bad-setting", "host", "set", "simultaneous=7", "downtime=soon", "--host", "B")
        assert world.ask("B", lambda agent: agent.host()).settings["simultaneous"] == 2
        assert {host: _config(world, host) for host in HOSTS} == texts


def _config(world: World, host: str) -> str:
    return (world.lab.directory(host) / "etc" / "agent.toml").read_text()


def test_definitions(world: World, guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "vm.toml"
    with unchanged(world, guest):
        for text, named in (
            ('name = "x1"\nmemroy = "1GiB"\n', "memroy"),
            ('name = "x1"\n[memory]\nsize = "1GiB"\nspeed = 4\n', "memory.speed"),
            ('name = "x 1"\n', "name"),
            ("name = ", "TOML"),
        ):
            path.write_text(text)
            error = refused(world, "bad-definition", "vm", "define", str(path), "--host", "A")
            assert named in error["message"], error
        refused(world, "bad-definition", "vm", "define", str(tmp_path / "missing.toml"), "--host", "A")


def test_a_vm_that_does_not_run(world: World, guest: Guest, tmp_path: Path) -> None:
    name = guest.name.replace("db1", "off")
    path = tmp_path / "off.toml"
    path.write_text(f'name = "{name}"\n[memory]\nsize = "64MiB"\n')
    world.livemove("vm", "define", str(path), "--host", "A")
    try:
        with unchanged(world, guest):
            error = refused(world, "not-running", "migrate", name, "--to", "B")
            assert name in error["message"] and "stopped" in error["message"]
            refused(world, "not-running", "vm", "pause", name)
    finally:
        world.livemove("vm", "remove", name)


def test_a_device_that_cannot_be_migrated(world: World, guest: Guest, tmp_path: Path) -> None:
    """The dry run says the same as the journey."""
    name = guest.name.replace("db1", "shm")
    words = ["-object", "memory-backend-ram,id=shm,size=1M,share=on", "-device", "ivshmem-plain,memdev=shm"]
    path = tmp_path / "shm.toml"
    path.write_text(f'name = "{name}"\nextra_arguments = {json.dumps(words)}\n[memory]\nsize = "64MiB"\n')
    for host in HOSTS:
        world.settings(host, {"allow_extra_arguments": "true"})
    try:
        world.livemove("vm", "define", str(path), "--host", "A")
        world.livemove("vm", "start", name)
        with unchanged(world, guest):
            for more in (("--dry-run",), ()):
                error = refused(world, "migration-blocked", "migrate", name, "--to", "B", *more)
                assert name in error["message"] and "ivshmem" in error["message"], error
    finally:
        world.livemove("vm", "stop", "--force", name, expect=None)
        world.livemove("vm", "remove", name, expect=None)
        for host in HOSTS:
            world.settings(host, {"allow_extra_arguments": "false"})


# The caller ---------------------------------------------------------------------------------------------------------


def test_somebody_who_may_only_look_and_somebody_unknown(world: World, guest: Guest, tmp_path: Path) -> None:
    viewer = tmp_path / "viewer"
    issue_person(
        world.lab.directory("A") / "state", name="eve", role=Role.VIEWER, directory=viewer, clock=SystemClock()
    )
    destination = other(guest.host)
    with unchanged(world, guest):
        assert guest.name in world.livemove("vm", "list", identity=viewer).out
        plan = world.livemove("migrate", guest.name, "--to", destination, "--json", identity=viewer, expect=None)
        error = refusal(plan, "not-permitted")
        assert "eve" in error["message"] and "operator" in error["message"]
        refused(world, "not-permitted", "vm", "stop", "--force", guest.name, identity=viewer)
        refused(world, "not-permitted", "host", "set", "simultaneous=4", "--host", "B", identity=viewer)
        refused(world, "no-identity", "migrate", guest.name, "--to", destination, identity=tmp_path / "nobody")


# The destination ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "default", "code", "named"),
    [
        ("memory_reserve", "4096GiB", "256MiB", "not-enough-memory", "128.0 MiB"),
        ("allowed_disk_dirs", "/srv", "/", "policy-refused", "allowed_disk_dirs"),
        ("allowed_bridges", "vm*", "*", "policy-refused", "br0"),
        ("incoming", "10.99.0.1", None, "bad-setting", "10.99.0.1"),
    ],
)
def test_what_the_destination_s_settings_forbid(
    world: World, guest: Guest, setting: str, value: str, default: str | None, code: str, named: str
) -> None:
    destination = other(guest.host)
    if default is None:
        default = str(world.lab.spec.link_address(destination, 0))
    world.settings(destination, {setting: value})
    try:
        with unchanged(world, guest):
            error = refused(world, code, "migrate", guest.name, "--to", destination)
            assert named in error["message"] and destination in error["message"], error
            # a dry run finds the same, before anything is begun
            assert refused(world, code, "migrate", guest.name, "--to", destination, "--dry-run")["message"]
    finally:
        world.settings(destination, {setting: default})


def test_a_packet_filter_on_the_way(world: World, guest: Guest) -> None:
    destination = other(guest.host)
    rules = "add table inet e2e\nadd chain inet e2e input { type filter hook input priority 0; }\n"
    rules += "add rule inet e2e input tcp dport 49152-49215 drop\n"
    world.do(world.lab.tools.nft(world.lab.spec.namespace(destination), rules))
    try:
        with unchanged(world, guest):
            error = refused(world, "port-closed", "migrate", guest.name, "--to", destination)
            assert "packet filter" in error["message"] and "TCP port 49" in error["message"], error
            assert "port_range" in error["remedy"]
    finally:
        world.do(world.lab.tools.nft(world.lab.spec.namespace(destination), "delete table inet e2e\n"))


@pytest.mark.parametrize(
    ("fact", "code", "named"), [("cpu_models", "cpu-unsupported", "CPU"), ("machine_types", "qemu-too-old", "pc-q35-")]
)
def test_a_destination_whose_qemu_lacks_something(world: World, guest: Guest, fact: str, code: str, named: str) -> None:
    """Both hosts have one QEMU here, so what the destination's agent once asked its QEMU is changed where it is stored."""
    destination = other(guest.host)
    stored = next((world.lab.directory(destination) / "state" / "cache").glob("*.json"))
    text = stored.read_text()
    facts = json.loads(text)
    facts[fact] = [name for name in facts[fact] if "pc-i440fx" in name or name == "486"]
    stored.write_text(json.dumps(facts))
    try:
        world.restart_agent(destination)
        with unchanged(world, guest):
            error = refused(world, code, "migrate", guest.name, "--to", destination)
            assert named in error["message"] and destination in error["message"], error
    finally:
        stored.write_text(text)
        world.restart_agent(destination)


def test_a_bridge_and_a_disk_that_only_the_source_has(world: World, guest: Guest, tmp_path: Path) -> None:
    name, disk = guest.name.replace("db1", "odd"), tmp_path / "disk.raw"
    disk.write_bytes(b"\0" * (1 << 20))
    path = tmp_path / "odd.toml"
    path.write_text(
        f'name = "{name}"\n[memory]\nsize = "64MiB"\n[[nic]]\nbridge = "br1"\n[[disk]]\npath = "{disk}"\ncache = "none"\n'
    )
    world.run("A", "ip", "link", "add", "br1", "type", "bridge")
    try:
        world.livemove("vm", "define", str(path), "--host", "A")
        world.livemove("vm", "start", name)
        with unchanged(world, guest):
            error = refused(world, "network-missing", "migrate", name, "--to", "B")
            assert "br1" in error["message"] and "B" in error["message"], error
        disk.unlink()
        with unchanged(world, guest):
            error = refused(world, "disk-unreachable", "migrate", name, "--to", "B")
            assert str(disk) in error["message"] and "B" in error["message"], error
        _storage_that_hangs(world, name, disk)
    finally:
        world.livemove("vm", "stop", "--force", name, expect=None)
        world.livemove("vm", "remove", name, expect=None)
        world.run("A", "ip", "link", "del", "br1")


def _storage_that_hangs(world: World, name: str, disk: Path) -> None:
    """Opening the disk at B does not return: that journey is refused, or cancelled at once, and B serves the others."""
    os.mkfifo(disk)
    try:
        command = world.typed("migrate", name, "--to", "B", "--json")
        while command.poll() is None:
            before_s = world.clock.monotonic_s()
            assert world.ask("B", lambda agent: agent.host()).name == "B"
            assert world.clock.monotonic_s() - before_s < 3
            world.do(asyncio.sleep(0.2))
        out, err = command.communicate()
        error = refusal(Ended(command.returncode, out, err), "disk-unreachable")
        assert f"{disk} does not answer on B" in error["message"]
        journey = world.start_journey(name, "A")
        world.wait(lambda: world.journeys("B"), "B looks at the disk")
        world.do(asyncio.sleep(0.5))
        before_s = world.clock.monotonic_s()
        world.ask("A", lambda agent: agent.cancel_journey(journey))
        assert world.report("A", journey).outcome == "cancelled"
        assert world.clock.monotonic_s() - before_s < 4
    finally:
        # those that hang go on
        os.close(os.open(disk, os.O_WRONLY | os.O_NONBLOCK))
        disk.unlink()


def test_a_name_that_another_vm_of_the_destination_has_and_that_vm_runs_on(
    world: World, guest: Guest, tmp_path: Path
) -> None:
    name = guest.name.replace("db1", "twin")
    path = tmp_path / "twin.toml"
    path.write_text(f'name = "{name}"\n[memory]\nsize = "64MiB"\n')
    for host in HOSTS:
        world.livemove("vm", "define", str(path), "--host", host)
        world.livemove("vm", "start", name, "--host", host)
    try:
        with unchanged(world, guest):
            error = refused(world, "conflict", "migrate", name, "--to", "B")
            assert "--host" in error["remedy"]
            error = refused(world, "conflict", "migrate", name, "--host", "A", "--to", "B")
            assert f"a VM '{name}' of its own" in error["message"]
    finally:
        for host in HOSTS:
            world.livemove("vm", "stop", "--force", name, "--host", host, expect=None)
            world.livemove("vm", "remove", name, "--host", host, expect=None)


@pytest.mark.parametrize("side", ["source", "destination"])
def test_an_agent_that_is_down(world: World, guest: Guest, side: str) -> None:
    source, destination = guest.host, other(guest.host)
    host = {"source": source, "destination": destination}[side]
    before = {place: world.traces(place) for place in HOSTS}
    world.signal_agent(host, signal.SIGTERM)
    try:
        error = refused(world, "agent-unreachable", "migrate", guest.name, "--to", destination, host=other(host))
        assert host in error["message"], error
        listed = world.livemove("vm", "list", "--json", host=other(host))
        assert list(listed.json["silent"]) == [host] and f"{host} is left out" in listed.err
        assert guest.runs()
    finally:
        world.start_agent(host)
    assert {place: world.traces(place) for place in HOSTS} == before
    guest.exactly_one(source)


# What is said, and what is used -------------------------------------------------------------------------------------


def test_a_definition_edited_since_the_start_is_kept_and_the_frozen_one_moves(
    world: World, guest: Guest, tmp_path: Path
) -> None:
    source, destination = guest.host, other(guest.host)
    frozen, pid = guest.view().frozen, guest.view().pid
    path = tmp_path / "edited.toml"
    path.write_text(guest.definition.replace("128MiB", "160MiB"))
    said = world.livemove("vm", "define", str(path), "--host", source).out
    assert "changed from its next start on" in said
    try:
        with unchanged(world, guest):
            plan = world.livemove("migrate", guest.name, "--to", destination, "--dry-run", "--json").json
            assert any("edited since" in note and "frozen at the start is used" in note for note in plan["notes"]), plan
            assert plan["memory_bytes"] == 128 << 20
            assert guest.view().pid == pid
        world.livemove("migrate", guest.name, "--to", destination)
        view = guest.view()
        assert (view.host, view.edited, view.memory_bytes, view.frozen) == (destination, True, 128 << 20, frozen)
        assert "160MiB" in view.definition
        assert "edited since the start" in world.livemove("vm", "show", guest.name).out
    finally:
        world.ask(guest.host, lambda agent: agent.define_vm(guest.definition))
    assert not guest.view().edited


def test_a_dry_run_shows_the_plan_and_changes_nothing(world: World, guest: Guest) -> None:
    destination = other(guest.host)
    with unchanged(world, guest):
        plan = world.livemove(
            "migrate", guest.name, "--to", destination, "--dry-run", "--json", "--max-bandwidth", SLOW
        ).json
    assert (plan["vm"], plan["source"], plan["destination"]) == (guest.name, guest.host, destination)
    assert plan["migration_address"] == str(world.lab.spec.link_address(destination, 0))
    assert plan["max_bandwidth_bytes_per_s"] == 2_500_000
    assert {row["feature"] for row in plan["negotiated"]} >= {"multifd", "tls-psk", "return-path"}
