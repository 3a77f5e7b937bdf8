"""When to switch over, when to wait, when to throttle, when to give up (N10, G9).

QEMU switches over by itself as soon as what remains could be sent within ``downtime-limit``. That parameter is our latch:
it stays low until the decision below raises it. The latch is never 0, because QEMU then switches over at the end of a
round without a last look at the dirty pages (facts.md).

The rules, in order:

1. After the deadline: give up; the VM runs on at the source.
2. During the first round nothing is known about the guest's writing: wait.
3. What remained at the start of this round fits into the allowed downtime: if rounds still shrink a lot and one more
   costs little, take one more (a shorter downtime for next to nothing); else switch over.
4. It does not fit, but rounds shrink: go on.
5. Rounds have stopped shrinking: open the latch stepwise up to the user's maximum, so that a local minimum of the
   guest's writing is enough; then throttle, if allowed.
6. Nothing helped for long and there is no deadline: give up rather than copy for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

#: QEMU completes by itself below this; 1 ms gave 34 ms of downtime on an idle guest (facts.md).
LOW_LATCH_S = 0.001
#: Part of the allowed downtime kept for stopping, device state and the hand-over. Measured here: 10 to 40 ms.
OVERHEAD_S = 0.04
#: What a round must shrink by to count as progress, and to make one more round worthwhile.
SHRINKS, SHRINKS_A_LOT = 0.9, 0.7
#: One more round for a shorter downtime may cost this part of the time spent so far, or this long, whichever is more.
PATIENCE_FRACTION, PATIENCE_S = 0.02, 0.1
#: What a further round can win at the most must be worth its synchronisation of the dirty bitmap.
LEAST_GAIN_S = 0.005
#: The latch opens to these parts of the allowed downtime, one a stalled round.
STEPS = (0.4, 0.7, 1.0)
#: The measured rate is discounted by this, since it varies and the last pages are sent in one burst.
RATE_DISCOUNT = 0.85
#: An open latch is set anew when the rate has risen by this since, because what fits has grown with it.
RATE_ROSE = 1.05
#: Without a deadline: rounds in a row without a new minimum, and the least time, after which it is hopeless.
HOPELESS_ROUNDS, HOPELESS_S = 40, 120.0


class Action(Enum):
    """What to do next."""

    WAIT = "wait"
    OPEN_LATCH = "open-latch"
    THROTTLE = "throttle"
    GIVE_UP = "give-up"


@dataclass(frozen=True, slots=True)
class Contract:
    """What the user accepts.

    :param max_downtime_s: longest blackout, by our own measure (source stopped to destination running).
    :param deadline_s: longest time from the start of the copy; None: as long as there is progress.
    :param max_throttle: percent of its CPU time that the guest may lose; 0: not to be throttled.
    """

    max_downtime_s: float
    deadline_s: float | None = None
    max_throttle: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of QEMU's counters.

    :param elapsed_s: since the start of the copy.
    :param round: 1 for the first pass over memory.
    :param remaining_bytes: dirty memory still to be sent, logical bytes.
    :param rate_bytes_per_s: logical bytes of memory that leave per second, as lately measured.
    """

    elapsed_s: float
    round: int
    remaining_bytes: int
    rate_bytes_per_s: float
    throttle_percent: int = 0


@dataclass(frozen=True, slots=True)
class Memory:
    """What the policy remembers between samples."""

    round: int = 0
    round_start_bytes: tuple[int, ...] = ()
    stalled_rounds: int = 0
    rounds_without_minimum: int = 0
    latch_s: float = LOW_LATCH_S
    latch_rate_bytes_per_s: float = 0.0
    throttling: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do and why; ``latch_s`` and ``rate_bytes_per_s`` belong to OPEN_LATCH, ``throttle_percent`` to THROTTLE."""

    action: Action
    reason: str
    latch_s: float = LOW_LATCH_S
    rate_bytes_per_s: float = 0.0
    throttle_percent: int = 0


def predicted_downtime_s(remaining_bytes: int, rate_bytes_per_s: float) -> float:
    """Time to send what remains, and the fixed part of the blackout."""
    if rate_bytes_per_s <= 0:
        return float("inf")
    return remaining_bytes / (rate_bytes_per_s * RATE_DISCOUNT) + OVERHEAD_S


def allowed_latch_s(contract: Contract) -> float:
    """What of the user's maximum is left for sending pages; at least the low latch."""
    return max(LOW_LATCH_S, contract.max_downtime_s - min(OVERHEAD_S, contract.max_downtime_s / 2))


def decide(memory: Memory, sample: Sample, contract: Contract) -> tuple[Memory, Decision]:
    """The next action after `sample`; called for every sample, acts mostly at the start of a round."""
    if contract.deadline_s is not None and sample.elapsed_s >= contract.deadline_s:
        return memory, Decision(
            Action.GIVE_UP,
            f"the deadline of {contract.deadline_s:.1f} s has passed with {sample.remaining_bytes >> 20} MiB remaining",
        )
    if sample.round <= memory.round:
        return memory, Decision(Action.WAIT, "within a round")
    starts = (*memory.round_start_bytes, sample.remaining_bytes)[-64:]
    memory = replace(memory, round=sample.round, round_start_bytes=starts)
    if sample.round <= 1:
        return memory, Decision(Action.WAIT, "first round: nothing is known yet")
    return _at_round_start(memory, sample, contract)


def _at_round_start(memory: Memory, sample: Sample, contract: Contract) -> tuple[Memory, Decision]:
    now = sample.remaining_bytes
    earlier = [size for size in memory.round_start_bytes[:-1][1:]]  # the first is all of memory, not a dirty set
    previous = earlier[-1] if earlier else None
    stalled = previous is not None and now > previous * SHRINKS
    memory = replace(
        memory,
        stalled_rounds=memory.stalled_rounds + 1 if stalled else 0,
        rounds_without_minimum=memory.rounds_without_minimum + 1 if earlier and now >= min(earlier) else 0,
    )
    rate = sample.rate_bytes_per_s
    predicted = predicted_downtime_s(now, rate)
    limit = contract.max_downtime_s
    latch = allowed_latch_s(contract)
    said = f"round {sample.round}: {now / (1 << 20):.1f} MiB remain, downtime would be {predicted * 1e3:.0f} ms of {limit * 1e3:.0f} ms"

    if predicted <= limit:
        cost_s = now / rate
        shrinking = previous is None or now < previous * SHRINKS_A_LOT
        cheap = LEAST_GAIN_S < cost_s <= max(PATIENCE_S, sample.elapsed_s * PATIENCE_FRACTION)
        if shrinking and cheap and memory.latch_s <= LOW_LATCH_S:
            return memory, Decision(Action.WAIT, f"{said}; one more round costs only {cost_s * 1e3:.0f} ms")
        if memory.latch_s >= latch and rate <= memory.latch_rate_bytes_per_s * RATE_ROSE:
            # QEMU reads the new limit only ten times a second and may begin further rounds meanwhile
            return memory, Decision(Action.WAIT, f"{said}: switching over")
        return _open(memory, latch, rate, f"{said}: switch over")

    near_deadline = contract.deadline_s is not None and sample.elapsed_s >= 0.85 * contract.deadline_s
    if not stalled and not near_deadline:
        return memory, Decision(Action.WAIT, f"{said}; rounds are shrinking")
    if near_deadline and memory.latch_s < latch:
        return _open(memory, latch, rate, f"{said}; the deadline is near: any moment that fits will do")
    step = STEPS[min(memory.stalled_rounds, len(STEPS)) - 1] if memory.stalled_rounds else STEPS[-1]
    if memory.latch_s < latch * step:
        return _open(memory, latch * step, rate, f"{said}; rounds no longer shrink: waiting for a local minimum")
    if contract.max_throttle and not memory.throttling and memory.stalled_rounds >= len(STEPS):
        memory = replace(memory, throttling=True)
        return memory, Decision(
            Action.THROTTLE,
            f"{said}; no minimum came: the guest is slowed down by up to {contract.max_throttle} %",
            throttle_percent=contract.max_throttle,
        )
    hopeless = memory.rounds_without_minimum >= HOPELESS_ROUNDS and sample.elapsed_s >= HOPELESS_S
    if hopeless and contract.deadline_s is None:
        return memory, Decision(
            Action.GIVE_UP,
            f"{said}; no progress in {memory.rounds_without_minimum} rounds: the guest writes faster than the link carries",
        )
    return memory, Decision(Action.WAIT, f"{said}; waiting for a local minimum")


def _open(memory: Memory, latch_s: float, rate: float, reason: str) -> tuple[Memory, Decision]:
    memory = replace(memory, latch_s=latch_s, latch_rate_bytes_per_s=rate)
    return memory, Decision(Action.OPEN_LATCH, reason, latch_s=latch_s, rate_bytes_per_s=rate * RATE_DISCOUNT)
