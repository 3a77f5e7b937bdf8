"""The demonstration: a loaded VM there and back again, once with the destination's QEMU killed half-way.

Everything is real and small: two hosts as network namespaces with an agent each, one shaped link, a 1 GiB guest that checks
its own memory, a client that talks to it all the while.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from livemove.agent.orphans import qemu_in
from livemove.base.clock import SystemClock
from livemove.base.errors import JourneyFailed, LinkError
from livemove.lab import agents, faults
from livemove.lab.client_probe import ClientProbe
from livemove.lab.image import ensure_image
from livemove.lab.lab import Lab, down
from livemove.lab.reference import Workload, parse_fields, read_console
from livemove.lab.topology import parse_lab

LAB, VM, ADDRESS = "demo", "demo", "10.77.0.10"
LINK = "1Gbit"
READY_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 90.0
#: 400 MiB that have to travel in a guest of 1 GiB, 16 MiB of which are rewritten at 4 MB/s.
WORKLOAD = Workload(
    random_mib=200,
    text_mib=200,
    working_set_mib=16,
    rate_pages_per_s=1000,
    address=f"{ADDRESS}/24",
    check_pages_per_s=2000,
)

Say = Callable[[str], None]


def definition(
    kernel: Path, initrd: Path, workload: Workload = WORKLOAD, *, name: str = VM, memory: str = "1GiB"
) -> str:
    """The reference guest as a definition in TOML."""
    return (
        f'name = "{name}"\n\n[memory]\nsize = "{memory}"\n\n[boot]\nkernel = "{kernel}"\ninitrd = "{initrd}"\n'
        f'arguments = "{workload.kernel_arguments()}"\n\n[[nic]]\nbridge = "br0"\n'
    )


@dataclass(slots=True)
class Demo:
    """One run."""

    lab: Lab
    say: Say
    journeys: list[dict[str, Any]] = field(default_factory=list)
    blackouts_ms: list[float] = field(default_factory=list)

    async def livemove(
        self, *words: str, host: str = "A", expect: int = 0, on_line: Callable[[str], None] | None = None
    ) -> str:
        """Run a command of livemove in a host as its administrator would, its output told line by line.

        Raises JourneyFailed when its exit code is another than `expect`.
        """
        self.say(f"\n{host}$ livemove {shlex.join(words)}")
        process = await asyncio.create_subprocess_exec(
            "nsenter", f"--net=/run/netns/{self.lab.spec.namespace(host)}", sys.executable, "-m", "livemove", *words,
            env=self._environment(), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT, limit=1 << 22,
        )  # fmt: skip
        lines = []
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                assert process.stdout is not None
                async for raw in process.stdout:
                    line = raw.decode(errors="replace").rstrip()
                    lines.append(line)
                    if "--json" not in words:
                        self.say(f"  {line}")
                    if on_line is not None:
                        on_line(line)
                code = await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
        if code != expect:
            raise JourneyFailed(
                f"'livemove {shlex.join(words)}' ended with {code} instead of {expect}: {' '.join(lines)[-400:]}"
            )
        return "\n".join(lines)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "LIVEMOVE_IDENTITY": str(agents.admin_dir(self.lab)), "LIVEMOVE_LAB": self.lab.spec.name}

    async def start_guest(self) -> None:
        image = await asyncio.to_thread(ensure_image)
        path = self.lab.directory("A") / "etc" / f"{VM}.toml"
        path.write_text(definition(image.kernel, image.initrd))
        await self.livemove("vm", "define", str(path), "--host", "A")
        await self.livemove("vm", "start", VM)
        console = self.console("A")
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not console.exists() or read_console(console).ready is None:  # noqa: ASYNC110  (a file has no event)
                    await asyncio.sleep(0.1)
        except TimeoutError as error:
            raise JourneyFailed(
                f"The guest was not ready after {READY_TIMEOUT_S:.0f} s; its console is {console}."
            ) from error
        self.say("  the guest has filled its memory and checks it from now on")

    def console(self, host: str) -> Path:
        return self.lab.directory(host) / "run" / "vms" / VM / "console.log"

    async def move(
        self, source: str, destination: str, probe: ClientProbe, *, kill_half_way: bool = False
    ) -> dict[str, Any]:
        """One journey with the client's view of it; its report."""
        clock = SystemClock()
        began_s = clock.monotonic_s()
        killed = False

        def kill_once_copying(line: str) -> None:
            nonlocal killed
            found = qemu_in(self.lab.directory(destination) / "run" / "vms" / VM, VM)
            if "round 1" in line and not killed and found is not None:
                killed = True
                asyncio.get_running_loop().call_later(1.5, faults.kill, self.lab, found.pid)
                self.say(f"  # in 1.5 s the QEMU at {destination} is killed (SIGKILL)")

        await self.livemove(
            "migrate", VM, "--to", destination, expect=51 if kill_half_way else 0,
            on_line=kill_once_copying if kill_half_way else None,
        )  # fmt: skip
        await asyncio.sleep(0.7)  # the probe writes twice a second
        gap = probe.longest_gap(began_s, clock.monotonic_s())
        report: dict[str, Any] = json.loads((await self.livemove("report", VM, "--json", host=source)).splitlines()[-1])
        report["downtime_client_ms"] = round(gap.length_s * 1e3, 1) if gap else 0.0
        if report["outcome"] == "completed":
            self.blackouts_ms.append(report["downtime_client_ms"])
        self.journeys.append(report)
        self.say(f"  as the client saw it: longest gap {report['downtime_client_ms']:.0f} ms")
        return report

    async def check_guest(self) -> dict[str, int]:
        """Every page of the guest compared with what it must hold; the guest's own answer."""
        code = (
            "import asyncio,sys; from livemove.lab.reference import ask_guest; "
            f"print(asyncio.run(ask_guest('{ADDRESS}', 'check', timeout_s=40)))"
        )
        done = await self.lab.run_in("client", [sys.executable, "-c", code], timeout_s=60)
        if done.returncode:
            raise LinkError(f"The guest did not answer 'check': {done.stderr.decode(errors='replace')[-200:]}")
        fields = parse_fields(done.stdout.decode())
        checks = {"checked": int(fields["checked"]), "bad": int(fields["bad"])}
        self.say(f"  the guest checked {checks['checked']} pages of its memory: {checks['bad']} bad")
        return checks


def run_demo(*, as_json: bool, keep: bool, say: Say) -> dict[str, Any]:
    """Run the demonstration; the result that ``--json`` prints. `as_json` leaves the telling to `say`.

    Raises JourneyFailed when a part of it did not end as it must, MissingPrerequisite, Conflict. Nothing is left unless
    `keep`.
    """
    return asyncio.run(_run(keep, say))


async def _run(keep: bool, say: Say) -> dict[str, Any]:
    await down(LAB)
    say(f"A lab: hosts A and B, one link of {LINK}/s, a bridge for guests, a client.")
    lab = await Lab.up(parse_lab(LAB, "A,B", [LINK]))
    demo = Demo(lab, say)
    try:
        await agents.start_agents(lab)
        await demo.start_guest()
        async with ClientProbe(lab, ADDRESS) as probe:
            await probe.answered()
            there = await demo.move("A", "B", probe)
            killed = await demo.move("B", "A", probe, kill_half_way=True)
            back = await demo.move("B", "A", probe)
            checks = await demo.check_guest()
        lost = probe.result().lost_connections
        summary = read_console(demo.console("A"), demo.console("B"))
    finally:
        if not keep:
            await down(LAB)
    bad = checks["bad"] + summary.bad
    good = (
        bad == 0 and lost == 0 and killed["outcome"] == "failed" and there["outcome"] == back["outcome"] == "completed"
    )
    _close(say, demo, checks, lost, good)
    return {
        "outcome": "passed" if good else "failed",
        "journeys": demo.journeys,
        "guest_checks": {**checks, "bad": bad, "ticks": summary.ticks},
        "client_blackout_ms": max(demo.blackouts_ms),
        "client_lost_connections": lost,
        "workload": asdict(WORKLOAD),
    }


def _close(say: Say, demo: Demo, checks: dict[str, int], lost: int, good: bool) -> None:
    there, killed, back = demo.journeys
    say("")
    for report in (there, back):
        say(
            f"{report['source']} to {report['destination']}: {report['total_ms'] / 1e3:.2f} s, downtime {report['downtime_ms']:.0f} ms "
            f"(by QEMU {report['downtime_qemu_ms']:.0f} ms, by the client {report['downtime_client_ms']:.0f} ms)"
        )
    say(f"B to A with the destination killed half-way: {killed['outcome']}, the VM ran on at B")
    verdict = "Proved" if good else "NOT proved"
    say(
        f"{verdict}: a VM under load moved there and back; a destination that died half-way cost nothing but time; "
        f"{checks['checked']} pages checked, {checks['bad']} bad; {lost} connections lost."
    )
