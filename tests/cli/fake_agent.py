"""Agents that answer from a script: real HTTP over mutual TLS on loopback, no QEMU. What is asked of them is recorded.

python -m tests.cli.fake_agent DIRECTORY      a cluster whose journeys take some seconds, to look at
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from livemove.agent.join import LabHost, make_lab_cluster
from livemove.api.client_identity import Role
from livemove.api.models import (
    ConsoleChunk,
    EventView,
    HostView,
    JourneyView,
    LeftoverView,
    NegotiatedRow,
    PlanView,
    ProgressView,
    ReportView,
    StepView,
    VmView,
)
from livemove.api.trust import server_context
from livemove.base.clock import SystemClock
from livemove.base.errors import (
    BadDefinition,
    BadSetting,
    Conflict,
    LivemoveError,
    UnknownJourney,
    UnknownVm,
)
from livemove.base.settings import HostSettings
from livemove.base.units import GIB, MIB
from livemove.migration.model import STEP_NAMES
from livemove.policy.paths import HostNetworks, LinkFacts

UUID = "6f1c2b1e-0000-4000-8000-000000000001"
JOURNEY = "j-0001"


def vm_view(name: str, host: str, **changes: Any) -> VmView:
    fields: dict[str, Any] = {
        "name": name,
        "host": host,
        "uuid": UUID,
        "state": "running",
        "accelerator": "tcg",
        "cpus": 2,
        "memory_bytes": GIB,
        "memory_backing": "memfd",
        "pid": 4242,
        "definition": f'name = "{name}"\n',
    }
    return VmView(**(fields | changes))


def steps_at(step: int, *, failed: bool = False) -> list[StepView]:
    """The ten steps while `step` runs (11: all done)."""
    states = {True: "done", False: "waiting"}
    return [
        StepView(
            step=number,
            name=name,
            state=("failed" if failed else "running") if number == step else states[number < step],
            ms=number * 10.5 if number < step else None,
        )
        for number, name in STEP_NAMES.items()
    ]


def journey_view(phase: str, step: int, **changes: Any) -> JourneyView:
    fields: dict[str, Any] = {
        "id": JOURNEY,
        "vm": "db1",
        "vm_uuid": UUID,
        "role": "source",
        "source": "A",
        "destination": "B",
        "phase": phase,
        "owner": "source",
        "terminal": False,
        "person": "ann",
        "option": "tcp",
        "steps": steps_at(step),
        "started": "2026-01-31T12:00:00.000Z",
    }
    return JourneyView(**(fields | changes))


def copying(fraction: float, round_number: int = 1, **changes: Any) -> JourneyView:
    """A view in the middle of the copy."""
    progress = ProgressView(
        elapsed_s=9.0 * fraction,
        round=round_number,
        total_bytes=GIB,
        remaining_bytes=int(GIB * (1 - fraction)),
        transferred_bytes=int(GIB * fraction),
        rate_bytes_per_s=117.5e6,
        wire_rate_bytes_per_s=118e6,
        dirty_bytes_per_s=12 * MIB,
        eta_s=9.0 * (1 - fraction),
        downtime_forecast_s=0.12,
        latch_s=0.3,
    )
    step = 6 if round_number == 1 else 7
    return journey_view(
        "copying" if step == 6 else "converging",
        step,
        progress=progress,
        last_note="waiting: the forecast is above the allowed downtime",
        **changes,
    )


def completed_journey() -> list[JourneyView]:
    done = journey_view("completed", 11, terminal=True, owner="destination")
    return [journey_view("checking", 3), copying(0.4), copying(0.9, 2), done]


def cancelled_view() -> JourneyView:
    return journey_view("cancelled", 6, terminal=True)


def report_view(**changes: Any) -> ReportView:
    fields: dict[str, Any] = {
        "id": JOURNEY,
        "vm": "db1",
        "vm_uuid": UUID,
        "source": "A",
        "destination": "B",
        "person": "ann",
        "outcome": "completed",
        "owner": "destination",
        "code": "",
        "reason": "",
        "remedy": "",
        "started": "2026-01-31T12:00:00.000Z",
        "ended": "2026-01-31T12:00:09.410Z",
        "option": "tcp",
        "option_reason": "asked for",
        "engine": "direct",
        "channels": 2,
        "compression": "",
        "tls": True,
        "memory_bytes": GIB,
        "total_ms": 9410.0,
        "copy_ms": 9270.0,
        "command_to_first_byte_ms": 640.0,
        "downtime_qemu_ms": 98.0,
        "downtime_ms": 131.0,
        "blackout_parts_ms": {"last pages": 90.0, "journal": 3.0},
        "steps": steps_at(11),
        "rounds": 3,
        "wire_bytes": 450 * MIB,
        "ram_bytes": 900 * MIB,
        "normal_pages": 115_000,
        "zero_pages": 150_000,
        "mean_rate_bytes_per_s": 117.5e6,
        "source_cpu_seconds": 0.72,
        "destination_cpu_seconds": 0.41,
        "arrived_as": "running",
        "negotiated": [
            NegotiatedRow(feature="multifd", source=True, destination=True, used=True, reason="both have it"),
            NegotiatedRow(feature="zstd", source=True, destination=False, used=False, reason="B's QEMU lacks it"),
        ],
        "decisions": ["switched over: 98 ms forecast, 300 ms allowed"],
        "notes": [],
    }
    return ReportView(**(fields | changes))


def cancelled_report() -> ReportView:
    return report_view(
        outcome="cancelled",
        owner="source",
        code="journey-cancelled",
        reason="ann cancelled the journey.",
        remedy="Repeat the command when you want to move the VM.",
        downtime_ms=None,
        downtime_qemu_ms=None,
    )


class FakeHost:
    """What one agent knows and does. Tests change its fields; `calls` is what it was asked, with bodies."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        # named, because asyncio switches Nagle's algorithm off only for sockets that name it: 40 ms a request otherwise
        self.listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self.listener.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.cluster: dict[str, str] = {}
        self.links: tuple[LinkFacts, ...] = ()
        self.rules: list[dict[str, Any]] = []
        self.serial = 2
        self.vms: dict[str, VmView] = {}
        self.script: list[JourneyView] = []
        self.after_cancel: list[JourneyView] = [cancelled_view()]
        self.reports: list[ReportView] = []
        self.events: list[EventView] = []
        self.settings: dict[str, Any] = HostSettings(name=name).model_dump(mode="json")
        self.leftovers: list[LeftoverView] = []
        self.console = ""
        self.refusals: dict[str, LivemoveError] = {}
        """Method and path to what is answered instead."""
        self.answers: dict[str, Any] = {}
        """Method and path to a body, for what :meth:`answer` has no script for."""
        self.queries: dict[str, dict[str, str]] = {}
        self.on_poll: Callable[[int], None] = lambda _: None
        self.calls: list[tuple[str, Any]] = []
        self._played: list[JourneyView] = []
        self._cursor = 0
        self._polls = 0

    def asked(self, call: str) -> list[Any]:
        """The bodies of the requests with that method and path."""
        return [body for made, body in self.calls if made == call]

    def play(self, views: list[JourneyView]) -> JourneyView:
        self._played, self._cursor = views, 0
        return views[0]

    def next_view(self) -> JourneyView:
        if not self._played:
            if not self.script:
                raise UnknownJourney(f"{self.name} knows no such journey.")
            self.play(self.script)
        self._polls += 1
        self.on_poll(self._polls)
        view = self._played[self._cursor]
        self._cursor = min(self._cursor + 1, len(self._played) - 1)
        return view

    def vm(self, name: str) -> VmView:
        if name not in self.vms:
            raise UnknownVm(f"{self.name} has no VM '{name}'.")
        return self.vms[name]

    def view(self) -> HostView:
        return HostView(
            name=self.name,
            livemove_version="0.1.0",
            settings=self.settings,
            qemu={"version": [10, 0, 2], "accelerator": "tcg"},
            memory_total_bytes=8 * GIB,
            memory_available_bytes=5 * GIB,
            memory_promised_bytes=GIB,
            cores=2,
            idle_cores=1.5,
            outgoing=[self._played[0].vm] if self._played else [],
        )

    def networks(self) -> dict[str, Any]:
        incoming = self.settings["incoming"]
        addresses = incoming.split(",") if isinstance(incoming, str) and incoming not in ("", "any") else []
        addresses = incoming if isinstance(incoming, list) else addresses
        own = HostNetworks(self.name, self.links, tuple(addresses))
        return {"own": asdict(own), "authority": "A", "serial": self.serial, "rules": self.rules}

    async def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        """What the agent answers: a model, text, None (no content) or a LivemoveError raised."""
        match method, path.strip("/").split("/"):
            case "GET", ["host"]:
                return self.view()
            case "PATCH", ["host"]:
                for name, value in body["changes"].items():
                    if name not in self.settings:
                        raise BadSetting(f"There is no setting '{name}'.")
                    self.settings[name] = value
                return self.view()
            case "GET", ["leftovers"]:
                return {"leftovers": self.leftovers}
            case "DELETE", ["leftovers"]:
                removed, self.leftovers = self.leftovers, [item for item in self.leftovers if item.kept]
                return {"leftovers": removed}
            case "GET", ["cluster"]:
                return {"authority": "A", "serial": 2, "hosts": self.cluster}
            case "GET", ["networks"]:
                return self.networks()
            case "PUT", ["cluster", "networks"]:
                if body["serial"] != self.serial:
                    raise Conflict("The cluster's map was changed meanwhile.")
                self.rules, self.serial = body["rules"], self.serial + 1
                return self.networks()
            case "GET", ["vms"]:
                return {"vms": list(self.vms.values())}
            case "POST", ["vms"]:
                if "nonsense" in body["text"]:
                    raise BadDefinition("the definition has the unknown key 'nonsense'.")
                self.vms["new"] = vm_view("new", self.name, state="stopped")
                return self.vms["new"]
            case _, ["vms", name, *rest]:
                return self._vm_request(method, name, rest, query, body)
            case "POST", ["grants"]:
                return {"token": "granted"}
            case "POST", ["plans"]:
                return plan_view()
            case "POST", ["journeys"]:
                return self.play(self.script)
            case "GET", ["journeys"]:
                return {"journeys": [view for view in self.script[:1] if not view.terminal or query["all"] == "true"]}
            case "GET", ["journeys", _]:
                return self.next_view()
            case "POST", ["journeys", _, "cancel"]:
                return self.play(self.after_cancel)
            case ("GET", ["journeys", _, "events"]) | ("GET", ["events"]):
                return {"events": [event for event in self.events if event.number > int(query["after"])]}
            case "GET", ["journeys", name, "report"]:
                return self._report(name)
            case "POST", ["journeys", name, "client-blackout"]:
                return self._report(name).model_copy(update={"downtime_client_ms": body["longest_gap_ms"]})
            case "GET", ["reports"]:
                return {"reports": self.reports[: int(query["limit"])]}
            case "GET", ["metrics"]:
                return "livemove_up 1\n"
        return JSONResponse({"detail": "Not Found"}, status_code=404)

    def _report(self, name: str) -> ReportView:
        for report in self.reports:
            if name in (report.id, report.vm):
                return report
        raise UnknownJourney(f"{self.name} has no report of '{name}'.")

    def _vm_request(self, method: str, name: str, rest: list[str], query: dict[str, str], body: Any) -> Any:
        view = self.vm(name)
        if method == "DELETE":
            if view.state != "stopped":
                raise Conflict(f"VM '{name}' is {view.state}.")
            del self.vms[name]
            return None
        if rest == ["console"]:
            if method == "GET":
                text = self.console[int(query["offset"]) :][:64]
                start = len(self.console) - len(self.console[int(query["offset"]) :])
                return ConsoleChunk(text=text, next_offset=start + len(text))
            self.console += f"<{body['text']}>"
            return None
        states = {"start": "running", "stop": "stopped", "pause": "paused", "resume": "running", "reset": "running"}
        if rest:
            self.vms[name] = view.model_copy(update={"state": states[rest[0]]})
        return self.vms[name]

    def application(self) -> FastAPI:
        app = FastAPI()

        @app.api_route("/{path:path}", methods=["GET", "POST", "PATCH", "PUT", "DELETE"])
        async def any_route(path: str, request: Request) -> Response:
            raw = await request.body()
            body = await request.json() if raw else None
            call = f"{request.method} /{path}"
            self.calls.append((call, body))
            try:
                if call in self.refusals:
                    raise self.refusals[call]
                self.queries[call] = dict(request.query_params)
                if call in self.answers:
                    return JSONResponse(_json(self.answers[call]))
                found = await self.answer(request.method, path, dict(request.query_params), body)
            except LivemoveError as error:
                return JSONResponse(error.to_json(), status_code=409)
            if isinstance(found, Response):
                return found
            if found is None:
                return Response(status_code=204)
            return PlainTextResponse(found) if isinstance(found, str) else JSONResponse(_json(found))

        return app


def plan_view() -> PlanView:
    return PlanView(
        vm="db1",
        source="A",
        destination="B",
        option="tcp",
        option_reason="the link carries 10 Gbit/s",
        engine="direct",
        channels=2,
        compression="",
        tls=True,
        tls_reason="the network is not marked trusted",
        migration_address="10.80.0.2",
        memory_bytes=GIB,
        downtime_s=0.3,
        deadline_s=None,
        max_bandwidth_bytes_per_s=1_250_000_000,
        negotiated=report_view().negotiated,
        notes=["B has no huge pages"],
    )


class _Server(uvicorn.Server):
    """Ends within milliseconds; uvicorn's own looks ten times a second whether it should."""

    async def main_loop(self) -> None:
        await self.on_tick(0)
        while True:
            if self.should_exit:
                return
            await asyncio.sleep(0.005)


class FakeCluster:
    """Hosts with certificates of one authority, their agents in a thread, and a person's identity in `identity_dir`."""

    def __init__(self, directory: Path, hosts: tuple[str, ...] = ("A", "B")) -> None:
        self.hosts = {name: FakeHost(name, directory / name) for name in hosts}
        self.identity_dir = directory / "ann"
        members = [LabHost(name, host.directory, host.address) for name, host in self.hosts.items()]
        people = {"ann": (Role.OPERATOR, self.identity_dir)}
        identities = make_lab_cluster(members, people=people, clock=SystemClock())
        self.identities = identities
        self._servers: dict[str, uvicorn.Server] = {}
        for name, host in self.hosts.items():
            host.cluster = {each: other.address for each, other in self.hosts.items()}
            config = uvicorn.Config(host.application(), log_config=None, lifespan="off", access_log=False)
            config.load()
            config.ssl = server_context(identities[name])
            self._servers[name] = _Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="fake agents")

    def __getitem__(self, name: str) -> FakeHost:
        return self.hosts[name]

    def silence(self, name: str) -> None:
        """Let the agent of a host go away; its port refuses connections then."""
        self._servers[name].should_exit = True
        while self._servers[name].started:
            threading.Event().wait(0.01)

    async def _serve(self) -> None:
        async def serve(name: str) -> None:
            with self.hosts[name].listener as listener:
                # serve() would take over the signals of a process whose main thread it ran in
                await self._servers[name].serve(sockets=[listener])
            self._servers[name].started = False

        await asyncio.gather(*(serve(name) for name in self._servers))

    def __enter__(self) -> Self:
        self._thread.start()
        while not all(server.started for server in self._servers.values()):
            threading.Event().wait(0.005)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers.values():
            server.should_exit = True
        self._thread.join()


def _json(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: _json(value) for key, value in found.items()}
    if isinstance(found, list):
        return [_json(value) for value in found]
    return found.model_dump(mode="json") if hasattr(found, "model_dump") else found


def main(directory: Path) -> None:
    """A cluster to look at: VM db1 on A, whose journey takes about ten seconds."""
    with FakeCluster(directory) as cluster:
        host = cluster["A"]
        host.vms["db1"] = vm_view("db1", "A")
        early = [journey_view("checking", step) for step in (1, 2, 3, 4, 4, 5, 5)]
        copies = [copying(number / 40) for number in range(40)]
        rounds = [copying(0.9 + number / 100, 2 + number // 4) for number in range(10)]
        end = [journey_view("blackout", 8), journey_view("handing-over", 9), completed_journey()[-1]]
        host.script = [*early, *copies, *rounds, *end]
        host.reports = [report_view()]
        sys.stdout.write(f"export LIVEMOVE_IDENTITY={cluster.identity_dir}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
