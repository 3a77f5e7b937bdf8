"""``livemove resolve``: the evidence, the operator's word, and what the host that was declared dead finds when it comes back."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from livemove.agent.identity import host_identity_dir
from livemove.api.client import AgentClient
from livemove.api.client_identity import load_identity
from livemove.api.cluster_map import load_map
from livemove.base.errors import Conflict
from livemove.lab import faults

from .world import STEADY, Guest, World, other

pytestmark = pytest.mark.qemu

KILL, STOP, CONTINUE = signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT


@contextmanager
def _mended(world: World) -> Iterator[None]:
    """Whatever fails inside, no agent stays stopped."""
    try:
        yield
    finally:
        world.ensure_agents()


def _armed(world: World, guest: Guest) -> str:
    source, destination = guest.host, other(guest.host)
    guest.load(0, 0)
    journey = world.start_journey(guest.name, source, STEADY)
    world.wait_copying(source, journey)
    world.wait(lambda: [v for v in world.journeys(destination) if v.phase == "armed"], "both journals are armed")
    return journey


def _wait_loaded(world: World, guest: Guest, destination: str) -> None:
    world.wait(
        lambda: world.ask(destination, lambda agent: agent.resolution(guest.name)).has_all, "everything is loaded"
    )


def _kill_host(world: World, guest: Guest, host: str) -> None:
    qemu = world.qemu(host, guest.name)
    assert qemu is not None
    world.signal_agent(host, KILL)
    faults.kill(world.lab, qemu.pid)
    world.wait_ended(qemu.pid)


def _asked(world: World, guest: Guest, *words: str, expect: int = 0) -> dict[str, object]:
    found = world.livemove("resolve", guest.name, *words, "--json", expect=expect).json
    assert isinstance(found, dict)
    return found


def test_a_destination_that_is_dead_gives_the_vm_back_on_the_operator_s_word(world: World, guest: Guest) -> None:
    source, destination = guest.host, other(guest.host)
    journey = _armed(world, guest)
    world.signal_agent(destination, STOP)
    with _mended(world):
        world.wait(lambda: world.phase(source, journey) == "handing-over", "the GO is sent", timeout_s=20)
        # the GO is in its agent's hands, and dies there
        _kill_host(world, guest, destination)
        world.wait(lambda: world.phase(source, journey) == "unresolved", "the source does not know")
        evidence = _asked(world, guest)["evidence"]
        assert isinstance(evidence, list) and len(evidence) == 1
        assert (evidence[0]["host"], evidence[0]["role"], evidence[0]["other_answers"]) == (source, "source", False)
        assert evidence[0]["has_all"] and "take the VM back" in evidence[0]["if_other_is_dead"]
        # its own host is not the dead one, nobody is asked through a pipe, a dry run does nothing
        assert _asked(world, guest, "--host-is-dead", source, "--yes", expect=18)["code"] == "conflict"
        assert world.livemove("resolve", guest.name, "--host-is-dead", destination, expect=2).err
        assert not _asked(world, guest, "--host-is-dead", destination, "--dry-run")["done"]
        assert world.vm(source, guest.name).state == "unknown"
        done = _asked(world, guest, "--host-is-dead", destination, "--yes")
        assert f"{source}'s again" in str(done["done"])
        assert world.vm(source, guest.name).state == "running"
        report = world.report(source, journey)
        assert (report.outcome, report.owner) == ("failed", "source")
        assert "declared the destination dead" in report.reason
        world.start_agent(destination)
    guest.exactly_one(source)
    guest.check()
    guest.move()


def test_a_source_that_is_dead_leaves_the_vm_to_the_destination_that_has_it(world: World, guest: Guest) -> None:
    source, destination = guest.host, other(guest.host)
    journey = _armed(world, guest)
    # QEMU completes by itself while the agent that would send the GO is stopped
    world.signal_agent(source, STOP)
    with _mended(world):
        _wait_loaded(world, guest, destination)
        _kill_host(world, guest, source)
        evidence = _asked(world, guest)["evidence"]
        assert isinstance(evidence, list) and evidence[0]["role"] == "destination" and evidence[0]["has_all"]
        done = _asked(world, guest, "--host-is-dead", source, "--yes")
        assert "runs" in str(done["done"])
        assert guest.runs()
        world.start_agent(source)
        report = world.report(source, journey)
        assert (report.outcome, report.owner) == ("completed", "destination")
    guest.exactly_one(destination)
    guest.check()
    guest.move()


def test_a_host_that_answers_is_not_dead(world: World, guest: Guest) -> None:
    source, destination = guest.host, other(guest.host)
    journey = _armed(world, guest)
    world.signal_agent(source, STOP)
    with _mended(world):
        _wait_loaded(world, guest, destination)
        world.signal_agent(source, CONTINUE)
        world.livemove("resolve", guest.name, "--host-is-dead", source, "--yes", "--json", expect=None)
        report = world.report(source, journey)
        assert (report.outcome, report.owner) == ("completed", "destination")
    guest.exactly_one(destination)
    guest.check()


def test_a_host_s_word_alone_takes_no_vm_from_another(world: World, guest: Guest) -> None:
    """A former source that says an operator gave the VM back is believed only while nobody has used it since."""
    former = guest.host
    journey = guest.move().id
    here = guest.host
    identity = load_identity(host_identity_dir(world.lab.directory(former) / "state"))
    address = load_map(identity.map_path).address_of(here)

    async def overrule(_: AgentClient) -> None:
        async with AgentClient(identity, here, address) as client:
            await client.overrule(journey)

    with pytest.raises(Conflict, match="runs on"):
        world.ask_once(former, overrule)
    world.livemove("vm", "stop", "--force", guest.name)
    with pytest.raises(Conflict, match="started or stopped"):
        world.ask_once(former, overrule)
    view = world.vm(here, guest.name)
    assert view is not None and view.state == "stopped"
    guest.ensure_running()
    guest.exactly_one(here)


def test_nothing_to_resolve_is_said(world: World, guest: Guest) -> None:
    assert _asked(world, guest, expect=14)["code"] == "not-running"
    assert guest.runs()


def test_a_vm_that_runs_elsewhere_is_not_started(world: World, guest: Guest) -> None:
    former = guest.host
    guest.move()
    refused = world.livemove("vm", "start", guest.name, "--host", former, "--json", expect=18).json
    assert "would run twice" in refused["message"]
    guest.exactly_one(other(former))
