"""A journey's key, grants, join tokens and private keys: in their own files and nowhere else."""

from __future__ import annotations

import contextlib
import stat
import threading
from pathlib import Path

import pytest

from livemove.agent.join import invite
from livemove.api.models import AskJourney, JourneyOptions
from livemove.base.clock import SystemClock
from livemove.base.units import parse_rate
from livemove.lab import agents

from .world import HOSTS, Guest, World, other

pytestmark = pytest.mark.qemu


class KeyWatch:
    """Reads the keys of journeys out of their files, which are there only until QEMU has read them."""

    def __init__(self, directories: list[Path]) -> None:
        self._directories = directories
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch keys")
        self.keys: set[str] = set()
        self.modes: set[int] = set()

    def __enter__(self) -> KeyWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.is_set():
            for path in (path for directory in self._directories for path in directory.glob("*/keys.psk")):
                with contextlib.suppress(OSError):
                    self.modes |= {stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)}
                    key = path.read_text().strip().partition(":")[2]
                    self.keys |= {key} if key else set()


def test_no_secret_is_in_arguments_logs_reports_or_journals(world: World, guest: Guest) -> None:
    source = guest.host
    destination = other(source)
    token = invite(world.lab.directory("A") / "state", "delta", clock=SystemClock())
    view = world.vm(source, guest.name)
    assert view is not None
    grant = world.ask(destination, lambda agent: agent.ask_grant(guest.name, view.uuid, source))
    options = JourneyOptions(max_bandwidth_bytes_per_s=parse_rate("100Mbit"))
    body = AskJourney(vm=guest.name, destination=destination, grant=grant, options=options)
    with KeyWatch([world.run_dir(host) / "keys" for host in HOSTS]) as watch:
        journey = world.ask(source, lambda agent: agent.start_journey(body)).id
        world.wait_copying(source, journey)
    assert len(watch.keys) == 1 and len(next(iter(watch.keys))) == 64, "both hosts' files held one key"
    assert watch.modes and watch.modes <= {0o600, 0o700}, watch.modes
    arguments = _arguments()
    assert any(guest.name.encode() in line for line in arguments), "QEMU's own are among them"
    report = world.report(source, journey)
    assert report.outcome == "completed" and report.tls
    guest.exactly_one(destination)
    events = world.livemove("events", journey, "--json").out

    secrets = {
        "the journey's key": next(iter(watch.keys)),
        "the grant": grant.split(".")[2],
        "the token": token.split(".")[1],
    }
    for directory in (
        *(world.lab.directory(host) / "state" / "identity" for host in HOSTS),
        agents.admin_dir(world.lab),
    ):
        secrets[f"the key in {directory}"] = (directory / "key.pem").read_text().splitlines()[1]
    places = {
        "arguments": b"\0".join([*arguments, *_arguments()]),
        "report": report.model_dump_json().encode(),
        "events": events.encode(),
    }
    for host in HOSTS:
        places[f"log of {host}"] = agents.log_path(world.lab, host).read_bytes()
        for path in (world.lab.directory(host) / "state").glob("livemove.db*"):
            places[f"{path.name} of {host}"] = path.read_bytes()
        for path in (world.run_dir(host) / "vms" / guest.name).glob("*.log*"):
            places[f"{path.name} of {host}"] = path.read_bytes()
    assert len(places) >= 8, sorted(places)
    found = [
        (what, where) for what, value in secrets.items() for where, text in places.items() if value.encode() in text
    ]
    assert not found, found
    for host in HOSTS:
        assert not list((world.run_dir(host) / "keys").rglob("*")), "gone with the journey"


def _arguments() -> list[bytes]:
    """The command line of every process of this machine."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                found.append((entry / "cmdline").read_bytes())
            except OSError:
                continue
    return found
