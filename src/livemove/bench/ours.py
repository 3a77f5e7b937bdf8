"""A guest that livemove moves: everything by its commands, as an administrator would type them."""

from __future__ import annotations

import resource
from pathlib import Path

from livemove.base.errors import JourneyFailed
from livemove.bench.report import Sample
from livemove.bench.scenario import Scenario
from livemove.bench.testbed import HOSTS, IDENTITIES, Testbed
from livemove.lab import agents
from livemove.migration.threads import process_cpu_seconds

# Steps of the ledger that come before the first byte.
STEPS_BEFORE_COPY = range(1, 6)


class OurGuest:
    """See testbed.MeasuredGuest."""

    identity = IDENTITIES["ours"]

    def __init__(self, bed: Testbed) -> None:
        self._bed = bed
        self.host = HOSTS[0]

    async def start(self) -> None:
        path = self._bed.lab.directory(self.host) / "etc" / f"{self.identity.name}.toml"
        path.write_text(self._bed.definition(self.identity))
        await self._bed.livemove(self.host, "vm", "define", str(path), "--host", self.host)
        await self._bed.livemove(self.host, "vm", "start", self.identity.name)
        await self._bed.until_ready(self)

    async def pause(self) -> None:
        await self._bed.livemove(self.host, "vm", "pause", self.identity.name)

    async def resume(self) -> None:
        await self._bed.livemove(self.host, "vm", "resume", self.identity.name)

    async def pid(self) -> int:
        return int((await self._bed.livemove(self.host, "vm", "show", self.identity.name))["pid"])

    async def move(self, destination: str, scenario: Scenario) -> Sample:
        networks = [str(self._bed.lab.spec.link_subnet(link)) for link in self._bed.comparison.links_of(scenario)]
        words = ["migrate", self.identity.name, "--to", destination, "--option", option_of(scenario)]
        if len(self._bed.lab.spec.links) > 1:
            words += ["--paths", ",".join(networks)]
        started_s, cpu_s = self._bed.clock.monotonic_s(), self._control_cpu_s()
        report = await self._bed.livemove(self.host, *words, "--channels", str(scenario.channels))
        command_ms, cpu_s = (self._bed.clock.monotonic_s() - started_s) * 1e3, self._control_cpu_s() - cpu_s
        if report["outcome"] != "completed" or report["arrived_as"] != "running":
            raise JourneyFailed(f"The journey of '{self.identity.name}' did not bring it to {destination} running.")
        if (report["tls"], report["channels"]) != (scenario.tls, scenario.channels):
            raise JourneyFailed(
                f"livemove used {report['channels']} channels and TLS {'on' if report['tls'] else 'off'},"
                f" not what scenario {scenario.name} says."
            )
        self.host = destination
        steps_ms = {f"{step['step']} {step['name']}": step["ms"] or 0.0 for step in report["steps"]}
        in_steps_ms = sum(step["ms"] or 0.0 for step in report["steps"] if step["step"] in STEPS_BEFORE_COPY)
        first_byte_ms = report["command_to_first_byte_ms"]
        return {
            "copy_ms": report["copy_ms"],
            "first_round_ms": next(step["ms"] for step in report["steps"] if step["step"] == 6),
            "downtime_ms": report["downtime_ms"],
            "downtime_qemu_ms": report["downtime_qemu_ms"],
            "rounds": report["rounds"],
            "wire_bytes": report["wire_bytes"],
            "normal_pages": report["normal_pages"],
            "zero_pages": report["zero_pages"],
            "paths": report["paths"],
            "command_to_first_byte_ms": first_byte_ms,
            "before_steps_ms": round(first_byte_ms - in_steps_ms, 2),
            "command_ms": round(command_ms, 2),
            "control_cpu_s": round(cpu_s, 2),
            "steps_ms": steps_ms,
            "blackout_ms": report["blackout_parts_ms"],
            "decisions": report["decisions"],
            "notes": report["notes"],
        }

    def _control_cpu_s(self) -> float:
        """CPU seconds so far of both agents and of the commands that have ended: what stock QEMU does without."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        agents_s = sum(process_cpu_seconds(process.pid) for process in self._bed.lab.processes(label=agents.LABEL))
        return agents_s + ended.ru_utime + ended.ru_stime

    def consoles(self) -> list[Path]:
        name = self.identity.name
        return [self._bed.lab.directory(host) / "run" / "vms" / name / "console.log" for host in HOSTS]

    async def close(self) -> None:
        """Nothing: the lab's removal ends agents and QEMUs alike."""


def option_of(scenario: Scenario) -> str:
    """The performance option that asks for the scenario. Compression goes over as many paths as ``--paths`` lists."""
    if scenario.compression == "zstd":
        return "compression"
    return "multichannel" if scenario.multichannel else "tcp"
