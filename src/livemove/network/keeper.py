"""The path keeper: one small process a journey and side that sees to the journey's paths; ``python -m livemove.network.keeper``.

A process of its own, so that an agent that is busy, stopped or gone costs the copy nothing. Every 50 ms it

1. takes in what came: heartbeats, the kernel's events, commands (keeper_words.py) from its agent;
2. reads the journey's sockets, as long as that is cheap, and where a path is suspicious at any price;
3. judges which paths are dead or healed (policy/liveness.py);
4. ends the subflows of a path that died, on this host; the other host's keeper does the same there;
5. sends a heartbeat on every path;
6. at the source, makes the subflows that are lacking on living paths;
7. reports what changed, and counters once a second.

It imports little and blocks on nothing: its own pauses are known to the policy, and it neither trusts nor removes anything
on their account. When its stdin ends it ends too and leaves all connections as they are.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace

from livemove.base.clock import Clock, SystemClock
from livemove.network.carrier import Carriers
from livemove.network.heartbeat import Exchange, PathSocket
from livemove.network.journey_sockets import JourneySockets
from livemove.network.keeper_pipes import Inbox, Outbox
from livemove.network.keeper_words import (
    AllowanceHeard,
    Counters,
    KeeperConfig,
    KeeperTotals,
    PathCounters,
    PathDied,
    PathHealed,
    PathRevived,
    PathStalled,
    Ready,
    Refused,
    config_of,
)
from livemove.policy import liveness
from livemove.policy.liveness import Change, LivenessLimits, PathFacts, Verdict
from livemove.wire.heartbeat import Role

_COUNTERS_EVERY_S = 1.0
_ALLOWANCE_EVERY_S = 0.5
# A path is suspicious after a round and a half without news: its sockets are read at every round from then on.
_SUSPICIOUS_ROUNDS = 1.5
_STDIN, _STDOUT = 0, 1


class Keeper:
    """See the module. Raises OSError when a socket cannot be made or a right is missing."""

    def __init__(self, config: KeeperConfig, inbox: Inbox, outbox: Outbox, clock: Clock) -> None:
        self._config, self._inbox, self._outbox, self._clock = config, inbox, outbox, clock
        self._links = {path.path: path.link for path in config.paths}
        role = Role.SOURCE if config.role == "source" else Role.DESTINATION
        self._carriers = Carriers(self._links.values())
        self._journey = JourneySockets(config, self._carriers, outbox.say, clock)
        self._exchange = Exchange(role, list(self._links), int.from_bytes(os.urandom(4), "big") or 1)
        self._sockets = [PathSocket(path, role, config.port, bytes.fromhex(config.key)) for path in config.paths]
        now_s = clock.monotonic_s()
        self._limits = LivenessLimits.for_rounds(config.interval_s, config.dead_after_s, config.heal_after_s)
        dead = frozenset(path.path for path in config.paths if path.dead)
        self._liveness = liveness.begin(tuple(self._links), now_s, dead=dead)
        self._removed = dict.fromkeys(self._links, 0)
        self._silence_s = dict.fromkeys(self._links, 0.0)
        self._expected = config.connections
        self._allowed: dict[int, int] = {}
        self._said_allowance: tuple[float, dict[str, int]] | None = None
        self._counted_s = now_s
        self._finishing = False

    def run(self) -> None:
        """Until told to finish, or the agent is gone. Raises OSError only for what makes going on senseless."""
        readers: dict[int, Callable[[], None]] = {
            _STDIN: self._read_commands,
            self._carriers.fileno(): self._carriers.read,
            **self._journey.readers,
        }
        poll = self._polled(readers)
        self._outbox.say(Ready(os.getpid()))
        self._obey(self._inbox.lines(readable=False))
        next_s = self._clock.monotonic_s()
        while not self._inbox.ended and not self._finishing:
            wait_s = max(next_s - self._clock.monotonic_s(), 0.0)
            for descriptor, _ in poll.poll(wait_s * 1000):
                reader = readers.get(descriptor)
                if reader is not None:
                    reader()
            self._hear()
            now_s = self._clock.monotonic_s()
            if now_s >= next_s:
                # a late round is not made up for: a burst would look like news where there is none
                next_s = max(next_s + self._config.interval_s, now_s + self._config.interval_s / 2)
                self._round(now_s)
                if self._renew_sockets():
                    poll = self._polled(readers)
            else:
                self._journey.make(self._liveness.living, now_s)
        if self._finishing:
            self._journey.settle()
            self._outbox.say(KeeperTotals(*self._counted()))
            self._outbox.drain()

    def _polled(self, readers: Iterable[int]) -> select.poll:
        poll = select.poll()
        for descriptor in (*readers, *(path_socket.fileno() for path_socket in self._sockets)):
            poll.register(descriptor, select.POLLIN)
        return poll

    # Section: what comes in

    def _read_commands(self) -> None:
        self._obey(self._inbox.lines())

    def _obey(self, lines: list[bytes]) -> None:
        for line in lines:
            try:
                command = json.loads(line)
                match command["do"]:
                    case "allow":
                        allowed = {str(address): max(0, int(rate)) for address, rate in command["by_address"].items()}
                        self._allowed = {
                            path.path: allowed[path.local] for path in self._config.paths if path.local in allowed
                        }
                    case "expect":
                        self._expected = int(command["connections"])
                    case "finish":
                        self._finishing = True
                    case other:
                        self._journey.trouble(f"There is no command {other!r}.")
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
                self._journey.trouble(f"A command cannot be read: {error}.")

    def _hear(self) -> None:
        now_s = self._clock.monotonic_s()
        for path_socket in self._sockets:
            for beat in path_socket.receive():
                self._exchange.take(path_socket.path.path, beat, now_s)

    # Section: one round

    def _round(self, now_s: float) -> None:
        """Judge, act, send, tell."""
        self._outbox.flush()
        if self._config.multipath:
            self._judge(now_s)
        elif self._journey.is_due(now_s):
            self._journey.read(now_s)
        self._send()
        self._journey.make(self._liveness.living, now_s)
        self._tell_allowance(now_s)
        if now_s - self._counted_s >= _COUNTERS_EVERY_S:
            self._counted_s = now_s
            self._outbox.say(Counters(*self._counted()))

    def _judge(self, now_s: float) -> None:
        suspicious_s = _SUSPICIOUS_ROUNDS * self._config.interval_s
        suspicious = any(self._silent_s(path, now_s) > suspicious_s for path in self._liveness.living)
        if suspicious or self._journey.is_due(now_s):
            self._journey.read(now_s)
            self._journey.verify(self._expected, self._liveness.living, now_s)
        facts = [self._facts(path) for path in self._links]
        self._liveness, verdicts = liveness.judge(self._liveness, facts, now_s, self._limits)
        for path in self._liveness.living:
            if self._exchange.answered[path].round_number:
                self._silence_s[path] = max(self._silence_s[path], self._silent_s(path, now_s))
        for verdict in verdicts:
            self._act(verdict, now_s)
        if verdicts:
            # the other host shall know before its next round
            self._send()

    def _facts(self, path: int) -> PathFacts:
        return PathFacts(
            path,
            self._exchange.heard[path].round_number,
            self._exchange.heard[path].at_s,
            self._exchange.answered[path].round_number,
            self._exchange.answered[path].at_s,
            self._journey.unmoved_s(path),
            self._carriers.carries(self._links[path]),
            path in self._exchange.peer_dead,
        )

    def _silent_s(self, path: int, now_s: float) -> float:
        return now_s - max(self._exchange.answered[path].at_s, self._liveness.watching_since_s)

    def _act(self, verdict: Verdict, now_s: float) -> None:
        path, silence_ms = verdict.path, round(verdict.silence_s * 1000, 1)
        match verdict.change:
            case Change.HEALED:
                self._outbox.say(PathHealed(path, silence_ms))
            case Change.STALLED:
                self._outbox.say(PathStalled(path, silence_ms))
            case Change.REVIVED:
                self._outbox.say(PathRevived(path, silence_ms, self._journey.renew(path, now_s)))
            case Change.DIED:
                self._removed[path] += 1
                self._silence_s[path] = max(self._silence_s[path], verdict.silence_s)
                destroyed = self._journey.end_path(path, now_s)
                self._outbox.say(PathDied(path, silence_ms, verdict.reason.value, destroyed))

    def _send(self) -> None:
        self._exchange.next_round()
        dead = frozenset(self._liveness.called_dead)
        for path_socket in self._sockets:
            number = path_socket.path.path
            path_socket.send(self._exchange.beat(number, dead, self._allowed.get(number)))

    def _renew_sockets(self) -> bool:
        """Open those anew whose NIC was removed and made again; whether there were any."""
        stale = [each for each in self._sockets if self._carriers.index(each.path.link) != each.index]
        return any([path_socket.open_again() for path_socket in stale])

    # Section: what goes out

    def _tell_allowance(self, now_s: float) -> None:
        heard_s, by_path = self._exchange.heard_s, self._exchange.allowances
        allowed = {path.remote: by_path[path.path] for path in self._config.paths if path.path in by_path}
        if self._config.role != "source" or heard_s is None or now_s - heard_s > _ALLOWANCE_EVERY_S:
            return  # the agent sees by the silence that nobody speaks any more
        said = self._said_allowance
        if said is None or said[1] != allowed or now_s - said[0] >= _ALLOWANCE_EVERY_S:
            self._said_allowance = now_s, allowed
            self._outbox.say(AllowanceHeard(allowed))

    def _counted(self) -> tuple[tuple[PathCounters, ...], tuple[PathCounters, ...]]:
        """Of planned and unplanned pairs."""
        planned, unplanned = self._journey.counted()
        judged = tuple(
            replace(
                counters,
                living=counters.path in self._liveness.living,
                removed=self._removed[counters.path],
                longest_silence_ms=round(self._silence_s[counters.path] * 1000, 1),
            )
            for counters in planned
        )
        return judged, unplanned


def _ask_for_priority() -> None:
    """Before everything else that waits for a processor, as far as we may: a round takes about a millisecond."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -15)


def _refuse(outbox: Outbox, reason: str) -> int:
    outbox.say(Refused(reason))
    outbox.drain()
    return 1


def main() -> int:
    """The process. Returns its exit status: 0, or 1 when it cannot work and has said why."""
    inbox, outbox = Inbox(_STDIN), Outbox(_STDOUT)
    line = inbox.first()
    if not line:
        return 0
    try:
        config = config_of(line)
        keeper = Keeper(config, inbox, outbox, SystemClock())
    except PermissionError:
        return _refuse(outbox, "CAP_NET_ADMIN is missing in this network namespace")
    except (OSError, ValueError) as error:
        return _refuse(outbox, str(error))
    _ask_for_priority()
    keeper.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
