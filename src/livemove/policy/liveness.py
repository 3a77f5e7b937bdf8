"""When a path is dead, and when it has healed.

Both hosts send a heartbeat on every path at each *round*, every 50 ms. A round has one number for all paths, and each
heartbeat *answers*: it says which of the other host's rounds it last heard on that very path. So a path that answers works in
both directions, and new rounds, on whatever path they come, prove that the other host is there to answer. The rules:

1. A path is *silent* when for `dead_after_s` it answered nothing new, although meanwhile, at `missed_rounds` of our own
   rounds, we had heard something new on some path, and at as many more as this one's answers lately lagged behind. So a
   host that was stopped or starved makes no path silent, and neither do we when we were.
2. A silent path is *dead* when besides its subflows have made no progress for `unmoved_s`: a full queue may drop
   heartbeats while data arrives. A NIC of ours that lost its carrier needs no further proof.
3. What one host calls dead the other takes for dead too: it may be the first to know.
4. A path goes only if another living one answers at that moment. So the last one never goes, and none goes while all are
   silent.
5. A dead path has *healed* when it answered without a gap for `heal_after_s`, twice as long with each death within
   `flap_window_s`, but for `heal_urgently_s` only while no living path answers. Both hosts must say so.
6. A living path that is silent for `stalled_after_s`, moves nothing and cannot be replaced has *stalled*; when it answers
   again it is *revived*: TCP on it may still wait for a retransmission, the longer the longer the silence was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

_NEVER_S = float("-inf")


class Change(Enum):
    """What became of a path."""

    DIED = "died"
    HEALED = "healed"
    STALLED = "stalled"
    REVIVED = "revived"


class Reason(Enum):
    """Why."""

    NOT_HEARD = "its heartbeats do not arrive here"
    NOT_ANSWERED = "our heartbeats do not arrive there"
    NO_CARRIER = "this host's NIC has no carrier"
    PEER = "the other host says so"
    ALL_SILENT = "nothing comes through, and no other path works"
    CARRIES = "it carries heartbeats again"


@dataclass(frozen=True, slots=True)
class LivenessLimits:
    """Tunables; the defaults are for rounds of 50 ms.

    :param dead_after_s: three rounds: one heartbeat may be late and one lost without consequence.
    :param missed_rounds: how often the other host was heard meanwhile.
    :param unmoved_s: about one round: a busy subflow's acknowledgements come much more often.
    :param fresh_s: a path that answered within this time works: two rounds and a half.
    :param late_s: between two judgements; a longer pause is one of our own.
    """

    dead_after_s: float = 0.150
    missed_rounds: int = 3
    unmoved_s: float = 0.045
    fresh_s: float = 0.125
    late_s: float = 0.120
    heal_after_s: float = 0.400
    heal_urgently_s: float = 0.100
    heal_at_most_s: float = 10.0
    flap_window_s: float = 30.0
    stalled_after_s: float = 0.500

    @classmethod
    def for_rounds(cls, interval_s: float, dead_after_s: float, heal_after_s: float) -> LivenessLimits:
        """For rounds of another length."""
        return cls(
            dead_after_s=dead_after_s,
            unmoved_s=0.9 * interval_s,
            fresh_s=2.5 * interval_s,
            late_s=2.4 * interval_s,
            heal_after_s=heal_after_s,
            heal_urgently_s=2 * interval_s,
        )


@dataclass(frozen=True, slots=True)
class PathFacts:
    """What a host knows of one path now.

    :param heard_round: the last of the other host's rounds that was heard on it, at `heard_s`; 0: none yet.
    :param answered_round: the last of our own rounds that the other host heard on it; 0: none yet. We learned of it at
        `answered_s`.
    :param unmoved_s: for how long the path's subflows are known to have moved nothing, sent or received; None: it has
        none.
    :param carrier: of our NIC.
    :param peer_says_dead: from the other host's newest heartbeat on any path.
    """

    path: int
    heard_round: int = 0
    heard_s: float = _NEVER_S
    answered_round: int = 0
    answered_s: float = _NEVER_S
    unmoved_s: float | None = None
    carrier: bool = True
    peer_says_dead: bool = False


@dataclass(frozen=True, slots=True)
class PathLife:
    """What was decided about one path.

    :param dead: not to be used.
    :param called_dead: what the other host is told: dead, and not fine for long enough.
    :param stalled: living, but nothing comes through, since `silent_since_s`.
    :param fine_since_s: since when a dead or stalled path answers without a gap; None: it does not.
    :param deaths_s: when it died, as far back as `flap_window_s` before its last death.
    :param heard_then: `Liveness.heard_count` when this path answered `answered_round`.
    :param lag_rounds: by how many its answers are older than other paths', as the worst of late; a guess before the first.
    """

    path: int
    dead: bool = False
    called_dead: bool = False
    stalled: bool = False
    silent_since_s: float = 0.0
    fine_since_s: float | None = None
    deaths_s: tuple[float, ...] = ()
    answered_round: int = 0
    heard_then: int = 0
    lag_rounds: int = 3


@dataclass(frozen=True, slots=True)
class Liveness:
    """All paths of a journey, as one host sees them.

    :param watching_since_s: since when judgements came in time.
    :param newest_round: of the other host, on whatever path.
    :param heard_count: at how many judgements that was a new one.
    """

    paths: tuple[PathLife, ...]
    watching_since_s: float
    judged_s: float
    newest_round: int = 0
    heard_count: int = 0

    @property
    def living(self) -> tuple[int, ...]:
        return tuple(life.path for life in self.paths if not life.dead)

    @property
    def called_dead(self) -> tuple[int, ...]:
        """What this host's heartbeats say."""
        return tuple(life.path for life in self.paths if life.called_dead)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A path changed.

    :param silence_s: how long it had answered nothing; for HEALED how long it was dead.
    """

    path: int
    change: Change
    reason: Reason
    silence_s: float


def begin(paths: tuple[int, ...], now_s: float, *, dead: frozenset[int] = frozenset()) -> Liveness:
    """The state before the first judgement; `dead` ones must heal first. At least one is taken for living."""
    living = [path for path in paths if path not in dead] or list(paths[:1])
    lives = tuple(
        PathLife(path) if path in living else PathLife(path, dead=True, called_dead=True, deaths_s=(now_s,))
        for path in paths
    )
    return Liveness(lives, now_s, now_s)


def judge(
    before: Liveness, facts: Iterable[PathFacts], now_s: float, limits: LivenessLimits
) -> tuple[Liveness, tuple[Verdict, ...]]:
    """The state after a round, and what changed.

    :param facts: one for each path of `before`.
    """
    late = now_s - before.judged_s > limits.late_s
    since_s = now_s if late else before.watching_since_s
    of_path = {fact.path: fact for fact in facts}
    newest_round = max(fact.heard_round for fact in of_path.values())
    heard_count = before.heard_count + (newest_round != before.newest_round)
    bench = _Bench(of_path, now_s, since_s, heard_count, limits)
    lives = list(before.paths)
    verdicts: list[Verdict] = []
    for index, life in enumerate(lives):
        others = [other.path for other in lives if other is not life and not other.dead]
        lives[index], verdict = bench.decide(bench.tracked(life, others), others)
        if verdict is not None:
            verdicts.append(verdict)
    return Liveness(tuple(lives), since_s, now_s, newest_round, heard_count), tuple(verdicts)


class _Bench:
    """One judgement: the facts, and what follows from them for single paths."""

    def __init__(
        self, facts: Mapping[int, PathFacts], now_s: float, since_s: float, heard_count: int, limits: LivenessLimits
    ) -> None:
        self._facts = facts
        self._now_s, self._since_s, self._heard_count, self._limits = now_s, since_s, heard_count, limits

    def tracked(self, life: PathLife, others: list[int]) -> PathLife:
        """Note where we stand when something new was answered."""
        answered = self._facts[life.path].answered_round
        if answered == life.answered_round:
            return life
        others_answered = max((self._facts[other].answered_round for other in others), default=0)
        lag = max(others_answered - answered, life.lag_rounds - 1, 0)
        return replace(life, answered_round=answered, heard_then=self._heard_count, lag_rounds=lag)

    def decide(self, life: PathLife, others: list[int]) -> tuple[PathLife, Verdict | None]:
        replaceable = any(self._works(other) for other in others)
        if life.dead:
            return self._of_dead(life, urgent=not replaceable)
        reason = self._fault(life) if replaceable else None
        if reason is None:
            return self._of_living(life)
        deaths_s = (*self._recent(life), self._now_s)
        died = replace(life, dead=True, called_dead=True, stalled=False, fine_since_s=None, deaths_s=deaths_s)
        return died, Verdict(life.path, Change.DIED, reason, self._silence_s(life.path))

    def _fault(self, life: PathLife) -> Reason | None:
        """What is wrong with a living path."""
        fact = self._facts[life.path]
        if not fact.carrier:
            return Reason.NO_CARRIER
        missed = self._heard_count - life.heard_then - life.lag_rounds
        if (
            self._still(fact)
            and missed >= self._limits.missed_rounds
            and self._silence_s(life.path) >= self._limits.dead_after_s
        ):
            deaf = self._now_s - fact.heard_s >= self._limits.fresh_s
            return Reason.NOT_HEARD if deaf else Reason.NOT_ANSWERED
        return Reason.PEER if fact.peer_says_dead else None

    def _of_living(self, life: PathLife) -> tuple[PathLife, Verdict | None]:
        if life.stalled:
            life = replace(life, fine_since_s=self._fine_since_s(life))
            if life.fine_since_s is None or self._now_s - life.fine_since_s < self._limits.heal_urgently_s:
                return life, None
            silence_s = life.fine_since_s - life.silent_since_s
            revived = replace(life, stalled=False, fine_since_s=None)
            return revived, Verdict(life.path, Change.REVIVED, Reason.CARRIES, silence_s)
        silence_s = self._silence_s(life.path)
        # one that never worked waits for the other host to begin
        if (
            silence_s < self._limits.stalled_after_s
            or not life.answered_round
            or not self._still(self._facts[life.path])
        ):
            return life, None
        stalled = replace(life, stalled=True, silent_since_s=self._now_s - silence_s, fine_since_s=None)
        return stalled, Verdict(life.path, Change.STALLED, Reason.ALL_SILENT, silence_s)

    def _of_dead(self, life: PathLife, *, urgent: bool) -> tuple[PathLife, Verdict | None]:
        life = replace(life, fine_since_s=self._fine_since_s(life))
        if life.fine_since_s is None:
            return replace(life, called_dead=True), None
        deaths_s = self._recent(life)
        needed_s = min(self._limits.heal_after_s * 2 ** max(len(deaths_s) - 1, 0), self._limits.heal_at_most_s)
        if urgent:
            needed_s = min(needed_s, self._limits.heal_urgently_s)
        if self._now_s - life.fine_since_s < needed_s:
            return life, None
        life = replace(life, called_dead=False)
        if self._facts[life.path].peer_says_dead:
            return life, None
        healed = replace(life, dead=False, fine_since_s=None, deaths_s=deaths_s)
        return healed, Verdict(life.path, Change.HEALED, Reason.CARRIES, self._now_s - life.deaths_s[-1])

    def _fine_since_s(self, life: PathLife) -> float | None:
        if not self._answers(life.path):
            return None
        return self._now_s if life.fine_since_s is None else life.fine_since_s

    def _still(self, fact: PathFacts) -> bool:
        return fact.unmoved_s is None or fact.unmoved_s >= self._limits.unmoved_s

    def _recent(self, life: PathLife) -> tuple[float, ...]:
        return tuple(at_s for at_s in life.deaths_s if self._now_s - at_s < self._limits.flap_window_s)

    def _silence_s(self, path: int) -> float:
        """As far as we watched."""
        return self._now_s - max(self._facts[path].answered_s, self._since_s)

    def _works(self, path: int) -> bool:
        """Enough to go on with it alone."""
        return self._answers(path) and not self._facts[path].peer_says_dead

    def _answers(self, path: int) -> bool:
        fact = self._facts[path]
        return fact.carrier and self._now_s - fact.answered_s < self._limits.fresh_s
