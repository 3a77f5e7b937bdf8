"""Something is taken away in the middle of everything, and comes back: agents, QEMUs, whole hosts, networks."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Sequence

from livemove.api.models import AskJourney, JourneyOptions
from livemove.base.errors import LivemoveError
from livemove.hypervisor.process import start_ticks
from livemove.lab import faults

from .world import World, other

NETWORKS: tuple[int | str, ...] = ("control", 0)


class Strike:
    """A victim of journeys from `source`, to be killed, stopped or cut off; nothing happens before :meth:`begin`.

    :param victim: "source agent", "both agents", "destination QEMU", "source host" and so on, or "network".
    :param how: kill, stop, drop (packets vanish) or unplug (carriers go).
    :param vms: whose QEMUs are struck.
    """

    def __init__(
        self, world: World, victim: str, how: str, source: str, vms: Sequence[str],
        networks: Sequence[int | str] = NETWORKS,
    ) -> None:  # fmt: skip
        self._world = world
        self._how = how
        self._networks = networks if victim == "network" else ()
        sides = {"source": [source], "destination": [other(source)], "both": [source, other(source)]}
        hosts = sides.get(victim.split()[0], [])
        self.agents = hosts if victim.endswith(("agent", "agents", "host")) else []
        found = [world.qemu(host, vm) for host in hosts for vm in vms] if victim.endswith(("QEMU", "host")) else []
        self.qemus = [process.pid for process in found if process is not None]

    def begin(self) -> None:
        """Killed processes have ended when this returns."""
        world = self._world
        number = signal.SIGKILL if self._how == "kill" else signal.SIGSTOP
        for host in self.agents:
            world.signal_agent(host, number)
        for pid in self.qemus:
            self._signal(pid, number)
            if self._how == "kill":
                world.wait_ended(pid)
        for network in self._networks:
            world.do((faults.cut if self._how == "unplug" else faults.black_hole)(world.lab, network))

    def end(self) -> None:
        """Killed agents are started anew, stopped processes go on, networks are whole; a killed QEMU stays dead."""
        world = self._world
        for network in self._networks:
            world.do(faults.heal(world.lab, network))
        if self._how == "kill":
            world.start_agents(self.agents)
            return
        for pid in self.qemus:
            self._signal(pid, signal.SIGCONT)
        for host in self.agents:
            world.signal_agent(host, signal.SIGCONT)

    def _signal(self, pid: int, number: signal.Signals) -> None:
        # it may have been ended by its agent meanwhile
        if start_ticks(pid) is not None:
            faults.kill(self._world.lab, pid, number)


def begin_unheard(world: World, vm: str, source: str, options: JourneyOptions) -> threading.Thread:
    """Ask for a journey without waiting for the answer, which may never come; once, so that it begins once."""
    view = world.vm(source, vm)
    assert view is not None
    uuid = view.uuid
    grant = world.ask(other(source), lambda agent: agent.ask_grant(vm, uuid, source))
    body = AskJourney(vm=vm, destination=other(source), grant=grant, options=options)

    def ask() -> None:
        with contextlib.suppress(LivemoveError, TimeoutError):
            world.ask_once(source, lambda agent: agent.start_journey(body))

    thread = threading.Thread(target=ask, name=f"begin to move {vm}")
    thread.start()
    return thread
