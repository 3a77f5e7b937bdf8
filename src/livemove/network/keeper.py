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
from collections.abc import Callable
from dataclasses import replace

from livemove.base.clock import Clock, SystemClock
from livemove.network import mptcp_health
from livemove.network.carrier import Carriers
from livemove.network.heartbeat import Exchange, PathSocket
from livemove.network.keeper_words import (
    AllowanceHeard,
    Counters,
    FellBack,
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
    Report,
    SubflowsMissing,
    UnplannedPair,
    config_of,
    line_of,
)
from livemove.network.ledger import PairTotals, SocketLedger
from livemove.network.mptcp import Mptcp
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
# What waits for an agent that does not read; past this, counters and allowances are dropped, which say themselves again.
_OUTBOX_BYTES = 1 << 18
_STDIN, _STDOUT = 0, 1


class Outbox:
    """Reports on their way to the agent, which may be stopped for a while."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting = b""
        os.set_blocking(descriptor, False)

    def say(self, report: Report) -> None:
        if len(self._waiting) > _OUTBOX_BYTES and isinstance(report, Counters | AllowanceHeard):
            return
        self._waiting += line_of(report)
        self.flush()

    def flush(self) -> None:
        """Write what can be written; an agent that is gone is noticed at stdin."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._waiting:
                self._waiting = self._waiting[os.write(self._descriptor, self._waiting) :]

    def drain(self) -> None:
        """Write all, waiting for the reader."""
        os.set_blocking(self._descriptor, True)
        self.flush()


class Commands:
    """Lines from the agent."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = b""
        self.ended = False

    def first(self) -> bytes:
        """The first line, waited for; empty when there is none."""
        while b"\n" not in self._buffer and not self.ended:
            self._read()
        return next(iter(self._lines()), b"")

    def read(self) -> list[bytes]:
        self._read()
        return self._lines()

    def _read(self) -> None:
        data = os.read(self._descriptor, 1 << 16)
        self.ended = not data
        self._buffer += data

    def _lines(self) -> list[bytes]:
        *lines, self._buffer = self._buffer.split(b"\n")
        return lines


class Keeper:
    """See the module. Raises OSError when a socket cannot be made or a right is missing."""

    def __init__(self, config: KeeperConfig, commands: Commands, outbox: Outbox, clock: Clock) -> None:
        self._config, self._commands, self._outbox, self._clock = config, commands, outbox, clock
        self._paths = {path.path: path for path in config.paths}
        self._pairs = {(path.local, path.remote): path.path for path in config.paths}
        self._is_source = config.role == "source"
        role = Role.SOURCE if self._is_source else Role.DESTINATION
        key = bytes.fromhex(config.key)
        self._limits = _limits(config)
        self._ledger = SocketLedger(config.port, listening=not self._is_source)
        self._mptcp = Mptcp() if config.multipath else None
        self._carriers = Carriers(path.link for path in config.paths)
        self._exchange = Exchange(role, list(self._paths), int.from_bytes(os.urandom(4), "big") or 1)
        self._sockets = [PathSocket(path, role, config.port, key) for path in config.paths]
        self._connections = Connections(self._pairs, config.port, listening=not self._is_source)
        self._progress = Progress(self._pairs, 6 * config.interval_s)
        self._verification = Verification()
        # the first address of a connection is 0; the same one for the same local address as long as it lives
        locals_ = list(dict.fromkeys(path.local for path in config.paths))
        self._address_ids = {local: number + 1 for number, local in enumerate(locals_)}
        self._counters_before = mptcp_health.read_counters()
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
        poll = select.poll()
        readers: dict[int, Callable[[], None]] = {
            _STDIN: self._read_commands,
            self._ledger.fileno(): self._ledger.read_notes,
            self._carriers.fileno(): self._carriers.read,
        }
        if self._mptcp is not None:
            readers[self._mptcp.fileno()] = self._read_events
        for descriptor in readers:
            poll.register(descriptor, select.POLLIN)
        for path_socket in self._sockets:
            poll.register(path_socket.fileno(), select.POLLIN)
        self._outbox.say(Ready(os.getpid()))
        next_s = self._clock.monotonic_s()
        while not self._commands.ended and not self._finishing:
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
                for path_socket in self._round(now_s):
                    poll.register(path_socket.fileno(), select.POLLIN)
            elif self._is_source:
                self._make_subflows(now_s)
        if self._finishing:
            self._ledger.settle(_SETTLE_S, self._clock)
            paths, unplanned = self._counted()
            self._outbox.say(KeeperTotals(paths, unplanned))
            self._outbox.drain()

    # Section: what comes in

    def _read_commands(self) -> None:
        for line in self._commands.read():
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
            except (ValueError, KeyError, TypeError) as error:
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

    def _round(self, now_s: float) -> list[PathSocket]:
        """Judge, act, send; returns the path sockets that had to be made again."""
        self._outbox.flush()
        if self._config.multipath:
            self._judge(now_s)
        elif now_s >= self._scan_due_s:
            self._scan(now_s)
        renewed = self._send()
        if self._is_source:
            self._make_subflows(now_s)
            self._tell_allowance(now_s)
        if now_s - self._counted_s >= _COUNTERS_EVERY_S:
            self._counted_s = now_s
            self._outbox.say(Counters(*self._counted()))
        return renewed

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

    def _send(self) -> list[PathSocket]:
        self._exchange.next_round()
        dead = frozenset(self._liveness.called_dead)
        renewed = []
        for path_socket in self._sockets:
            number = path_socket.path.path
            if self._carriers.index(path_socket.path.link) != path_socket.index and path_socket.open_again():
                renewed.append(path_socket)
            path_socket.send(self._exchange.beat(number, dead, self._allowed.get(number)))
        return renewed

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
            self._outbox.say(self._explained(report))

    def _explained(self, report: Report) -> Report:
        before, after = self._counters_before, mptcp_health.read_counters()
        if isinstance(report, FellBack):
            enabled, timeout = (mptcp_health.read_setting(name) for name in ("enabled", "blackhole_timeout"))
            return replace(report, reason=mptcp_health.why_plain(before, after, enabled, timeout))
        if isinstance(report, SubflowsMissing) and not report.reason:
            manager = mptcp_health.read_setting("pm_type")
            return replace(report, reason=mptcp_health.why_missing(before, after, manager, source=self._is_source))
        return report

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
        living = self._liveness.living
        planned = tuple(
            replace(
                _counters(path.path, (path.local, path.remote), totals.pop((path.local, path.remote), PairTotals())),
                living=path.path in living,
                removed=self._removed[path.path],
                longest_silence_ms=round(self._silence_s[path.path] * 1000, 1),
            )
            for path in self._paths.values()
        )
        return planned, tuple(_counters(-1, pair, total) for pair, total in totals.items())

    def _trouble(self, text: str) -> None:
        if text not in self._troubles and len(self._troubles) < 64:
            self._troubles.add(text)
            self._outbox.say(KeeperTrouble(text))


def _counters(path: int, pair: tuple[str, str], total: PairTotals) -> PathCounters:
    return PathCounters(
        path,
        *pair,
        bytes_acked=total.bytes_acked,
        bytes_received=total.bytes_received,
        bytes_sent=total.bytes_sent,
        retransmitted_segments=total.retransmitted_segments,
        subflows=total.subflows,
        open_subflows=total.open_subflows,
        plain=total.plain,
    )


def _limits(config: KeeperConfig) -> LivenessLimits:
    interval_s = config.interval_s
    return LivenessLimits(
        dead_after_s=config.dead_after_s,
        unmoved_s=0.9 * interval_s,
        fresh_s=2.5 * interval_s,
        late_s=2.4 * interval_s,
        heal_after_s=config.heal_after_s,
        heal_urgently_s=2 * interval_s,
    )


def _ask_for_priority() -> None:
    """Before everything else that waits for a processor, as far as we may: a round takes a fraction of a millisecond."""
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
    commands, outbox = Commands(_STDIN), Outbox(_STDOUT)
    line = commands.first()
    if not line:
        return 0
    try:
        config = config_of(line)
        keeper = Keeper(config, commands, outbox, SystemClock())
    except PermissionError:
        return _refuse(outbox, "CAP_NET_ADMIN is missing in this network namespace")
    except (OSError, ValueError) as error:
        return _refuse(outbox, str(error))
    _ask_for_priority()
    keeper.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
