"""A running guest moves there and back; what its user, its client and the two hosts' records see of it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from livemove.lab.client_probe import ClientProbe
from livemove.lab.reference import Workload

from .world import HOSTS, SLOW, Guest, World, other

pytestmark = pytest.mark.qemu


async def test_there_and_back_under_load_with_a_client_that_never_loses_it(world: World, guest: Guest) -> None:
    start = guest.host
    async with ClientProbe(world.lab, guest.address) as probe:
        await probe.answered()
        for source in (start, other(start)):
            destination = other(source)
            qemu = world.qemu(source, guest.name)
            assert qemu is not None
            began_s = world.clock.monotonic_s()
            report = world.livemove("migrate", guest.name, "--to", destination, "--json").json
            await probe.answered(at_least=1)
            assert (report["outcome"], report["owner"], report["arrived_as"]) == ("completed", "destination", "running")
            assert [step["step"] for step in report["steps"]] == list(range(1, 11))
            assert all(step["state"] == "done" and step["ms"] >= 0 for step in report["steps"]), report["steps"]
            assert 0 < report["downtime_ms"] < 5000
            assert report["downtime_ms"] >= report["downtime_qemu_ms"] - 50
            content_bytes = guest.workload.content_mib << 20
            assert report["ram_bytes"] == report["normal_pages"] * 4096 > content_bytes
            assert report["wire_bytes"] > content_bytes / 4
            assert report["tls"] is True
            rows = {row["feature"]: row["used"] for row in report["negotiated"]}
            assert rows["multifd"] and rows["return-path"] and rows["late-block-activate"] and rows["tls-psk"]
            assert not rows["auto-converge"]
            guest.exactly_one(destination)
            guest.check()
            gap = probe.longest_gap(began_s, world.clock.monotonic_s())
            assert gap is None or gap.length_s < 5
            _records_agree(world, guest, report)
    assert probe.result().lost_connections == 0


def _records_agree(world: World, guest: Guest, report: dict[str, object]) -> None:
    """Both hosts tell of the journey under one correlation id, and know where the VM is."""
    source, destination, journey = str(report["source"]), str(report["destination"]), str(report["id"])
    events = world.livemove("events", journey, "--json").json["events"]
    assert {event["correlation"] for event in events} == {journey}
    assert {event["vm_uuid"] for event in events} == {report["vm_uuid"]}
    assert {event["host"] for event in events} == set(HOSTS)
    assert any(event["event_id"] == 20413 and event["host"] == source for event in events), events
    texts = [f"{event['host']}: {event['text']}" for event in events]
    assert f"{source}: VM {guest.name} moved to {destination}." in texts
    assert f"{destination}: VM {guest.name} arrived from {source} and is running." in texts

    listed = world.livemove("vm", "list", "--all", "--json").json["vms"]
    states = {view["host"]: view["state"] for view in listed if view["name"] == guest.name}
    assert states == {destination: "running", source: "moved"}
    shown = world.livemove("vm", "show", guest.name, "--json").json
    assert (shown["host"], shown["definition"], shown["uuid"]) == (destination, guest.definition, report["vm_uuid"])
    gone = world.livemove("vm", "show", guest.name, "--host", source, "--json").json
    assert (gone["state"], gone["moved_to"], gone["pid"]) == ("moved", destination, None)


def test_the_mac_address_and_the_machine_are_the_same_afterwards(world: World, guest: Guest) -> None:
    source = guest.host
    before = guest.view().frozen
    neighbour = _neighbour(world, guest)
    world.livemove("migrate", guest.name, "--to", other(source))
    assert before is not None
    assert guest.view().frozen == before
    guest.check()
    assert _neighbour(world, guest) == neighbour == before["nics"][0]["mac"]


def _neighbour(world: World, guest: Guest) -> str:
    """The guest's MAC address by the client's ARP, asked anew."""
    world.run("client", "ip", "neigh", "flush", "dev", "gst-client")
    world.guest(guest.address, "stat")
    entries = json.loads(world.run("client", "ip", "-j", "neigh", "show", guest.address))
    return str(entries[0]["lladdr"])


def test_status_shows_a_journey_while_it_runs_and_a_second_one_is_refused(world: World, guest: Guest) -> None:
    source, destination = guest.host, other(guest.host)
    words = ("migrate", guest.name, "--to", destination, "--max-bandwidth", SLOW, "--detach", "--json")
    journey = world.livemove(*words).json["id"]
    world.wait_copying(source, journey)
    views = world.livemove("status", "--json").json["journeys"]
    assert [(view["id"], view["vm"], view["phase"], view["owner"]) for view in views] == [
        (journey, guest.name, "copying", "source")
    ]
    assert views[0]["progress"]["rate_bytes_per_s"] > 0
    shown = world.livemove("vm", "show", guest.name, "--json").json
    assert (shown["state"], shown["journey"], shown["host"]) == ("leaving", journey, source)
    again = world.livemove("migrate", guest.name, "--to", destination, "--json", expect=13).json
    assert again["code"] == "already-moving" and journey in again["message"]
    stop = world.livemove("vm", "stop", guest.name, "--force", "--json", expect=13).json
    assert stop["code"] == "already-moving"
    assert world.phase(source, journey) == "copying"
    world.livemove("cancel", guest.name)
    assert world.report(source, journey).outcome == "cancelled"
    guest.exactly_one(source)


@pytest.fixture
def second(world: World, guest: Guest) -> Iterator[Guest]:
    """Another small guest, at the same host."""
    workload = Workload(
        random_mib=4, text_mib=4, working_set_mib=0, check_pages_per_s=500, address="10.77.0.11/24", seed=2
    )
    made = Guest(world, guest.name.replace("db1", "db2"), "10.77.0.11", workload, memory="96MiB")
    host = guest.host
    world.ask(host, lambda agent: agent.define_vm(made.definition))
    made.ensure_running()
    yield made
    for host in HOSTS:
        if world.vm(host, made.name) is not None:
            world.ask(host, lambda agent: agent.stop_vm(made.name, force=True))
            world.ask(host, lambda agent: agent.remove_vm(made.name))


def test_with_one_slot_the_second_journey_waits_and_both_arrive(world: World, guest: Guest, second: Guest) -> None:
    source, destination = guest.host, other(guest.host)
    world.livemove("host", "set", "simultaneous=1", "--host", source)
    try:
        first_journey = world.start_journey(guest.name, source, "100Mbit")
        world.wait_copying(source, first_journey)
        second_journey = world.start_journey(second.name, source)
        status = world.livemove("status", "--json").json
        views = {view["id"]: view for view in status["journeys"]}
        assert views[first_journey]["queue_place"] == 0
        assert (views[second_journey]["phase"], views[second_journey]["queue_place"]) == ("queued", 1)
        assert f"waiting in this order: {second_journey}" in world.livemove("status").out
        assert world.report(source, first_journey).outcome == "completed"
        assert world.report(source, second_journey).outcome == "completed"
    finally:
        world.livemove("host", "set", "simultaneous=2", "--host", source)
    for moved in (guest, second):
        assert moved.host == destination
        moved.check()


def test_the_second_of_two_waits_for_the_destination_s_slot_too(world: World, guest: Guest, second: Guest) -> None:
    source, destination = guest.host, other(guest.host)
    world.settings(destination, {"simultaneous": "1"})
    try:
        first_journey = world.start_journey(guest.name, source, SLOW)
        world.wait_copying(source, first_journey)
        second_journey = world.start_journey(second.name, source)
        waiting = world.wait(
            lambda: [view for view in world.journeys(source) if view.id == second_journey and view.queue_place == 1],
            "the second journey waits at the destination",
        )
        assert waiting[0].phase == "permitting"
        assert world.ask(destination, lambda agent: agent.host()).incoming_waiting == [second_journey]
        # a journey that waits can be cancelled, and the others go on
        world.livemove("cancel", second_journey)
        assert world.report(source, second_journey).outcome == "cancelled"
        assert world.phase(source, first_journey) == "copying"
        world.livemove("cancel", first_journey)
        assert world.report(source, first_journey).outcome == "cancelled"
        world.wait(
            lambda: not world.ask(destination, lambda agent: agent.host()).incoming_waiting, "the place is given back",
            timeout_s=5,
        )  # fmt: skip
    finally:
        world.settings(destination, {"simultaneous": "2"})
    assert (guest.host, second.host) == (source, source)
    second.check()
