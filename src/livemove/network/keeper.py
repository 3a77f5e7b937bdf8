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
import errno
import json
import os
import select
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace

from livemove.base.clock import Clock, SystemClock
from livemove.network.carrier import Carriers
from livemove.network.heartbeat import Exchange, PathSocket
from livemove.network.keeper_pipes import Inbox, Outbox
from livemove.network.keeper_words import (
    AllowanceHeard,
    Counters,
    KeeperConfig,
    KeeperTotals,
    KeeperTrouble,
    PathCounters,
    PathDied,
    PathHealed,
    PathRevived,
    PathStalled,
    Ready,
    Refused,
    UnplannedPair,
    config_of,
)
from livemove.network.ledger import PairTotals, counters_of, ledger_of
from livemove.network.mptcp import Mptcp
from livemove.network.mptcp_health import explained, read_counters
from livemove.network.progress import Progress, Verification
from livemove.network.sockets import ESTABLISHED, SYN_SENT, SocketFacts
from livemove.network.subflows import Connections
from livemove.policy import liveness
from livemove.policy.liveness import Change, LivenessLimits, PathFacts, Verdict
from livemove.wire.heartbeat import Role

_COUNTERS_EVERY_S = 1.0
_ALLOWANCE_EVERY_S = 0.5
# Reading the sockets means walking all of the host's: on one with very many, no more than this share of the time.
_SCAN_SHARE = 1 / 40
# A path is suspicious after a round and a half without news: its sockets are read at every round from then on.
_SUSPICIOUS_ROUNDS = 1.5
_SETTLE_S = 0.3
# A retransmission that is due within this time is waited for.
_STUCK_S = 0.3
_STDIN, _STDOUT = 0, 1


class Keeper:
    """See the module. Raises OSError when a socket cannot be made or a right is missing."""

    def __init__(self, config: KeeperConfig, inbox: Inbox, outbox: Outbox, clock: Clock) -> None:
        self._config, self._inbox, self._outbox, self._clock = config, inbox, outbox, clock
        self._paths = {path.path: path for path in config.paths}
        self._pairs = {(path.local, path.remote): path.path for path in config.paths}
        self._is_source = config.role == "source"
        role = Role.SOURCE if self._is_source else Role.DESTINATION
        self._limits = LivenessLimits.for_rounds(config.interval_s, config.dead_after_s, config.heal_after_s)
        self._ledger = ledger_of(config)
        self._mptcp = Mptcp() if config.multipath else None
        self._carriers = Carriers(path.link for path in config.paths)
        self._exchange = Exchange(role, list(self._paths), int.from_bytes(os.urandom(4), "big") or 1)
        self._sockets = [PathSocket(path, role, config.port, bytes.fromhex(config.key)) for path in config.paths]
        self._connections = Connections(self._pairs, config.port, listening=not self._is_source)
        self._progress = Progress(self._pairs, 6 * config.interval_s)
        self._verification = Verification()
        # the first address of a connection is 0; the same one for the same local address as long as it lives
        locals_ = list(dict.fromkeys(path.local for path in config.paths))
        self._address_ids = {local: number + 1 for number, local in enumerate(locals_)}
        self._counters_before = read_counters()
        now_s = clock.monotonic_s()
        dead = frozenset(path.path for path in config.paths if path.dead)
        self._liveness = liveness.begin(tuple(self._paths), now_s, dead=dead)
        self._condemned: set[int] = set()
        self._found: list[SocketFacts] = []
        self._unplanned: set[tuple[str, str]] = set()
        self._removed = dict.fromkeys(self._paths, 0)
        self._silence_s = dict.fromkeys(self._paths, 0.0)
        self._expected = config.connections
        self._allowed: dict[int, int] = {}
        self._said_allowance: tuple[float, dict[str, int]] | None = None
        self._scan_due_s = self._counted_s = now_s
        self._troubles: set[str] = set()
        self._finishing = False

    def run(self) -> None:
        """Until told to finish, or the agent is gone. Raises OSError only for what makes going on senseless."""
        readers: dict[int, Callable[[], None]] = {
            _STDIN: self._read_commands,
            self._ledger.fileno(): self._ledger.read_notes,
            self._carriers.fileno(): self._carriers.read,
        }
        if self._mptcp is not None:
            readers[self._mptcp.fileno()] = self._read_events
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
            elif self._is_source:
                self._make_subflows(now_s)
        if self._finishing:
            self._ledger.settle(_SETTLE_S, self._clock)
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
                        self._trouble(f"There is no command {other!r}.")
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
                self._trouble(f"A command cannot be read: {error}.")

    def _read_events(self) -> None:
        assert self._mptcp is not None
        events, lost = self._mptcp.events()
        for event in events:
            self._connections.note(event)
        if lost:
            self._connections.clear()
            self._scan(self._clock.monotonic_s())

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
        elif now_s >= self._scan_due_s:
            self._scan(now_s)
        self._send()
        if self._is_source:
            self._make_subflows(now_s)
            self._tell_allowance(now_s)
        if now_s - self._counted_s >= _COUNTERS_EVERY_S:
            self._counted_s = now_s
            self._outbox.say(Counters(*self._counted()))

    def _judge(self, now_s: float) -> None:
        suspicious_s = _SUSPICIOUS_ROUNDS * self._config.interval_s
        suspicious = any(self._silent_s(path, now_s) > suspicious_s for path in self._liveness.living)
        if suspicious or now_s >= self._scan_due_s:
            self._scan(now_s)
            self._verify(now_s)
        facts = [self._facts(path) for path in self._paths]
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
            self._progress.unmoved_s(path),
            self._carriers.carries(self._paths[path].link),
            path in self._exchange.peer_dead,
        )

    def _path_of(self, facts: SocketFacts) -> int | None:
        return self._pairs.get((facts.local, facts.remote))

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
                self._scan(now_s)
                renewed = self._renew(path) if self._is_source else 0
                self._outbox.say(PathRevived(path, silence_ms, renewed))
            case Change.DIED:
                self._removed[path] += 1
                self._silence_s[path] = max(self._silence_s[path], verdict.silence_s)
                self._scan(now_s)  # a first subflow's counters are gone once it is ended
                destroyed = sum(self._end(facts) for facts in self._found if self._path_of(facts) == path)
                self._connections.path_died(path)
                self._outbox.say(PathDied(path, silence_ms, verdict.reason.value, destroyed))

    def _renew(self, path: int) -> int:
        """End the subflows that would wait, perhaps for seconds, before they try again; new ones are made at once."""
        stuck = self._progress.stuck(path, _STUCK_S)
        renewed = sum(self._end(facts) for facts in self._found if facts.cookie in stuck)
        if renewed:
            self._scan(self._clock.monotonic_s())
        return renewed

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

    # Section: sockets and subflows

    def _scan(self, now_s: float) -> None:
        self._found = self._ledger.scan()
        self._scan_due_s = now_s + (self._clock.monotonic_s() - now_s) / _SCAN_SHARE
        self._progress.note(self._found, now_s)
        self._connections.adopt(self._found)
        for facts in self._found:
            if facts.cookie in self._condemned:
                self._end(facts)
            elif self._path_of(facts) is None and facts.state == ESTABLISHED:
                self._unplanned_pair(facts)

    def _end(self, facts: SocketFacts) -> bool:
        """End a subflow so that its connection lives on; one for which that is not sure yet is ended later."""
        if not facts.mptcp:
            return False
        if not facts.joined and not facts.fully_established:
            self._condemned.add(facts.cookie)
            return False
        self._condemned.discard(facts.cookie)
        try:
            return self._ledger.destroy(facts)
        except OSError as error:
            self._trouble(f"A subflow of a dead path cannot be ended: {error.strerror}.")
            return False

    def _unplanned_pair(self, facts: SocketFacts) -> None:
        ended = self._is_source and facts.joined and self._end(facts)
        if (facts.local, facts.remote) not in self._unplanned:
            self._unplanned.add((facts.local, facts.remote))
            self._outbox.say(UnplannedPair(facts.local, facts.remote, ended))

    def _make_subflows(self, now_s: float) -> None:
        if self._mptcp is None or not len(self._connections):
            return
        lacking = self._connections.lacking(self._liveness.living, now_s)
        if any(self._connections.tried(*each) for each in lacking):
            self._scan(now_s)
        for token, number in lacking:
            path = self._paths[number]
            if not self._is_to_be_made(token, number):
                continue
            try:
                self._mptcp.create_subflow(
                    token,
                    path.local,
                    path.remote,
                    self._config.port,
                    address_id=self._address_ids[path.local],
                    interface=self._carriers.index(path.link) or path.index,
                )
            except OSError as error:
                # it is closing; or it is not ours to extend, which the verification tells
                if error.errno not in (errno.ESRCH, errno.ENOENT, errno.ENOTCONN, errno.EINVAL):
                    self._trouble(f"A subflow from {path.local} to {path.remote} cannot be made: {error.strerror}.")

    def _is_to_be_made(self, token: int, number: int) -> bool:
        """Not if the last try came through after all; one that was not answered is ended, which TCP would repeat."""
        if self._connections.tried(token, number):
            for facts in self._found:
                if facts.token == token and self._path_of(facts) == number:
                    if facts.state != SYN_SENT:
                        return False
                    self._end(facts)
        return True

    def _verify(self, now_s: float) -> None:
        plain = sum(facts.mptcp is False and facts.state == ESTABLISHED for facts in self._found)
        for report in self._verification.check(self._connections, plain, self._expected, self._liveness.living, now_s):
            self._outbox.say(explained(report, self._counters_before, source=self._is_source))

    # Section: what goes out

    def _tell_allowance(self, now_s: float) -> None:
        heard_s, by_path = self._exchange.heard_s, self._exchange.allowances
        allowed = {path.remote: by_path[path.path] for path in self._config.paths if path.path in by_path}
        if heard_s is None or now_s - heard_s > _ALLOWANCE_EVERY_S:
            return  # the agent sees by the silence that nobody speaks any more
        said = self._said_allowance
        if said is None or said[1] != allowed or now_s - said[0] >= _ALLOWANCE_EVERY_S:
            self._said_allowance = now_s, allowed
            self._outbox.say(AllowanceHeard(allowed))

    def _counted(self) -> tuple[tuple[PathCounters, ...], tuple[PathCounters, ...]]:
        """Of planned and unplanned pairs."""
        totals = self._ledger.totals()
        planned = tuple(
            replace(
                counters_of(path.path, (path.local, path.remote), totals.pop((path.local, path.remote), PairTotals())),
                living=path.path in self._liveness.living,
                removed=self._removed[path.path],
                longest_silence_ms=round(self._silence_s[path.path] * 1000, 1),
            )
            for path in self._paths.values()
        )
        return planned, tuple(counters_of(-1, pair, total) for pair, total in totals.items())

    def _trouble(self, text: str) -> None:
        if text not in self._troubles and len(self._troubles) < 64:
            self._troubles.add(text)
            self._outbox.say(KeeperTrouble(text))


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
