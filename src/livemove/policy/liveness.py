"""When a path is dead, and when it has healed.

Both hosts send a heartbeat on every path at each *round*, every 50 ms; a round has one number for all paths, and each
heartbeat says the last round that was heard from the other host on that path. So a host knows of each path in both
directions up to which round it carried, and, from the paths that do carry, which rounds there have been. The rules:

1. A path is *silent* when for `dead_after_s` nothing new came in one direction, although meanwhile the other living paths
   carried at least `missed_rounds` newer rounds in that direction. So a host that was stopped or starved, which sends
   nothing on any path, makes none silent, and the time in which we ourselves did not watch does not count.
2. A silent path is *dead* when besides its subflows have made no progress for `unmoved_s`: a full queue may drop
   heartbeats while data arrives. A NIC of ours that lost its carrier needs no further proof.
3. What one host calls dead, by its own evidence, the other takes for dead too: it may be deaf in one direction only.
4. A path goes only if another living one works in both directions at that moment. So the last one never goes, and none
   goes while all are silent.
5. A dead path has *healed* when it carried heartbeats in both directions, without a gap, for `heal_after_s`, twice as long
   with each death within `flap_window_s`; for `heal_urgently_s` only while no living path works. Both hosts must say so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class Reason(Enum):
    """Why a path was taken for dead, or alive again."""

    NOT_HEARD = "its heartbeats do not arrive here"
    NOT_ANSWERED = "our heartbeats do not arrive there"
    NO_CARRIER = "this host's NIC has no carrier"
    PEER = "the other host says so"
    HEALED = "it carries heartbeats again"


@dataclass(frozen=True, slots=True)
class LivenessLimits:
    """Tunables; the defaults are for rounds of 50 ms.

    :param dead_after_s: three rounds: one heartbeat may be late and one lost without consequence.
    :param missed_rounds: what the other host provably sent on other paths meanwhile.
    :param unmoved_s: one round: a busy subflow's acknowledgements come much more often.
    :param fresh_s: a direction heard within this time works: two rounds and a half.
    :param late_s: between two judgements; after a longer pause of our own all evidence is gathered anew.
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


@dataclass(frozen=True, slots=True)
class Direction:
    """What is known of one direction of a path.

    :param round_number: the last round that came through; 0: none yet.
    :param at_s: when we learned of it.
    """

    round_number: int = 0
    at_s: float = float("-inf")


@dataclass(frozen=True, slots=True)
class PathFacts:
    """What a host knows of one path now.

    :param heard: of the other host's rounds, by its heartbeats on this path.
    :param answered: of our own rounds, by what its heartbeats on this path say.
    :param unmoved_s: for how long the path's subflows are known to have sent and received nothing new that was
        acknowledged; None: it has no subflows.
    :param carrier: of our NIC.
    :param peer_says_dead: the other host's own verdict, from its newest heartbeat on any path.
    """

    path: int
    heard: Direction = Direction()
    answered: Direction = Direction()
    unmoved_s: float | None = None
    carrier: bool = True
    peer_says_dead: bool = False


@dataclass(frozen=True, slots=True)
class _Track:
    """A direction, and the newest round of the other living paths when this one last carried something."""

    round_number: int = 0
    at_s: float = float("-inf")
    others_then: int = 0


@dataclass(frozen=True, slots=True)
class PathLife:
    """What was decided about one path.

    :param dead: not to be used.
    :param own_dead: by this host's own evidence: what it tells the other host.
    :param fine_since_s: since when a dead path carries heartbeats without a gap; None: it does not.
    :param deaths_s: when it died, as far back as `flap_window_s`.
    """

    path: int
    dead: bool = False
    own_dead: bool = False
    fine_since_s: float | None = None
    deaths_s: tuple[float, ...] = ()
    heard: _Track = _Track()
    answered: _Track = _Track()


@dataclass(frozen=True, slots=True)
class Liveness:
    """All paths of a journey, as one host sees them.

    :param watching_since_s: since when judgements came in time; silence before that proves nothing.
    """

    paths: tuple[PathLife, ...]
    watching_since_s: float
    judged_s: float

    @property
    def living(self) -> tuple[int, ...]:
        return tuple(path.path for path in self.paths if not path.dead)

    @property
    def own_dead(self) -> tuple[int, ...]:
        return tuple(path.path for path in self.paths if path.own_dead)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A path changed sides.

    :param silence_s: how long nothing had come through, in the worse direction; for a healed path how long it was dead.
    """

    path: int
    dead: bool
    reason: Reason
    silence_s: float


def begin(paths: tuple[int, ...], now_s: float, *, dead: frozenset[int] = frozenset()) -> Liveness:
    """The state before the first judgement; `dead` ones must heal first. At least one is taken for living."""
    living = [path for path in paths if path not in dead] or list(paths[:1])
    lives = tuple(
        PathLife(path) if path in living else PathLife(path, dead=True, own_dead=True, deaths_s=(now_s,))
        for path in paths
    )
    return Liveness(lives, now_s, now_s)


def judge(
    before: Liveness, facts: tuple[PathFacts, ...], now_s: float, limits: LivenessLimits
) -> tuple[Liveness, tuple[Verdict, ...]]:
    """The state after a round's judgement, and what changed.

    :param facts: one for each path of `before`, in the same order.
    """
    late = now_s - before.judged_s > limits.late_s
    since_s = now_s if late else before.watching_since_s
    bench = _Bench(before, facts, now_s, since_s, limits)
    lives = [bench.track(life, anew=late) for life in before.paths]
    verdicts: list[Verdict] = []
    # the surest first: with two candidates of two, the better one stays
    for index in sorted(range(len(lives)), key=bench.badness, reverse=True):
        life, verdict = bench.decide(lives, index, late=late)
        lives[index] = life
        if verdict is not None:
            verdicts.append(verdict)
    return Liveness(tuple(lives), since_s, now_s), tuple(verdicts)


class _Bench:
    """One judgement: the facts and what follows from them for single paths."""

    def __init__(
        self,
        before: Liveness,
        facts: tuple[PathFacts, ...],
        now_s: float,
        since_s: float,
        limits: LivenessLimits,
    ) -> None:
        self._facts = {fact.path: fact for fact in facts}
        self._order = [life.path for life in before.paths]
        self._living = before.living
        self._now_s, self._since_s, self._limits = now_s, since_s, limits

    def track(self, life: PathLife, *, anew: bool) -> PathLife:
        """Note where the others stood when something new came through."""
        fact = self._facts[life.path]
        heard = _tracked(life.heard, fact.heard, self._others(life.path, "heard"), anew=anew)
        answered = _tracked(life.answered, fact.answered, self._others(life.path, "answered"), anew=anew)
        return replace(life, heard=heard, answered=answered)

    def badness(self, index: int) -> tuple[bool, float]:
        path = self._order[index]
        return not self._facts[path].carrier, self._silence_s(path)

    def decide(self, lives: list[PathLife], index: int, *, late: bool) -> tuple[PathLife, Verdict | None]:
        life = lives[index]
        others = [other.path for place, other in enumerate(lives) if place != index and not other.dead]
        return self._of_dead(life, others, late=late) if life.dead else self._of_living(life, others)

    def _of_living(self, life: PathLife, others: list[int]) -> tuple[PathLife, Verdict | None]:
        fact = self._facts[life.path]
        if not any(self._works(other) for other in others):
            return replace(life, own_dead=False), None
        reason = self._fault(life, fact)
        own_dead = reason is not None
        if reason is None and fact.peer_says_dead:
            reason = Reason.PEER
        if reason is None:
            return replace(life, own_dead=False), None
        died = replace(
            life,
            dead=True,
            own_dead=own_dead,
            fine_since_s=None,
            deaths_s=(*self._recent(life), self._now_s),
        )
        return died, Verdict(life.path, True, reason, self._silence_s(life.path))

    def _fault(self, life: PathLife, fact: PathFacts) -> Reason | None:
        """What is wrong with a living path by our own evidence."""
        if not fact.carrier:
            return Reason.NO_CARRIER
        if fact.unmoved_s is not None and fact.unmoved_s < self._limits.unmoved_s:
            return None
        if self._silent(life.heard, self._others(life.path, "heard")):
            return Reason.NOT_HEARD
        if self._silent(life.answered, self._others(life.path, "answered")):
            return Reason.NOT_ANSWERED
        return None

    def _of_dead(self, life: PathLife, others: list[int], *, late: bool) -> tuple[PathLife, Verdict | None]:
        fine_since_s = life.fine_since_s
        if late or not self._fresh(life.path):
            fine_since_s = None
        elif fine_since_s is None:
            fine_since_s = self._now_s
        life = replace(life, fine_since_s=fine_since_s)
        if fine_since_s is None:
            return replace(life, own_dead=True), None
        deaths_s = self._recent(life)
        needed_s = min(self._limits.heal_after_s * 2 ** max(len(deaths_s) - 1, 0), self._limits.heal_at_most_s)
        if not any(self._works(other) for other in others):
            needed_s = min(needed_s, self._limits.heal_urgently_s)
        if self._now_s - fine_since_s < needed_s:
            return life, None
        life = replace(life, own_dead=False)
        if self._facts[life.path].peer_says_dead:
            return life, None
        healed = replace(life, dead=False, fine_since_s=None, deaths_s=deaths_s)
        down_s = self._now_s - (life.deaths_s[-1] if life.deaths_s else self._now_s)
        return healed, Verdict(life.path, False, Reason.HEALED, down_s)

    def _recent(self, life: PathLife) -> tuple[float, ...]:
        return tuple(at_s for at_s in life.deaths_s if self._now_s - at_s < self._limits.flap_window_s)

    def _others(self, path: int, direction: str) -> int:
        """The newest round that any other living path carried in that direction."""
        rounds = [getattr(self._facts[other], direction).round_number for other in self._living if other != path]
        return max(rounds, default=0)

    def _silent(self, track: _Track, others_now: int) -> bool:
        return (
            self._for_s(track.at_s) >= self._limits.dead_after_s
            and others_now - track.others_then >= self._limits.missed_rounds
        )

    def _silence_s(self, path: int) -> float:
        fact = self._facts[path]
        return max(self._for_s(fact.heard.at_s), self._for_s(fact.answered.at_s))

    def _for_s(self, at_s: float) -> float:
        """Silence since `at_s` that we watched."""
        return self._now_s - max(at_s, self._since_s)

    def _works(self, path: int) -> bool:
        """It carried something in both directions lately, seen by us or not: enough to rely on it."""
        fact = self._facts[path]
        return fact.carrier and self._within(fact, self._limits.dead_after_s) and not fact.peer_says_dead

    def _fresh(self, path: int) -> bool:
        fact = self._facts[path]
        return fact.carrier and self._within(fact, self._limits.fresh_s)

    def _within(self, fact: PathFacts, limit_s: float) -> bool:
        return self._now_s - min(fact.heard.at_s, fact.answered.at_s) < limit_s


def _tracked(track: _Track, now: Direction, others: int, *, anew: bool) -> _Track:
    # a path that never carried anything is compared from the first round on that the others did
    first = not now.round_number and not track.others_then
    if anew or first or now != Direction(track.round_number, track.at_s):
        return _Track(now.round_number, now.at_s, others)
    # rounds start again with the other host's keeper
    return replace(track, others_then=min(track.others_then, others))
