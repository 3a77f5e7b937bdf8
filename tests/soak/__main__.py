"""``python -m tests.soak --minutes 60``, run by ``make soak``: faults at random moments, and every order of events.

Beside the journeys a second process plays the property tests of the journey's rules with many examples. The last line
counts; the exit code is 1 when there was a violation.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import subprocess
import sys
from collections import Counter
from random import Random

from tests.e2e.world import lab_world
from tests.soak.soak import Soak

from livemove.base.clock import SystemClock
from livemove.base.errors import LivemoveError

EXAMPLES = 10_000
PROPERTIES = ("tests/migration/test_both_sides.py", "tests/migration/test_machine.py")


class Run:
    """All labs of a run: one, and a new one after each violation."""

    def __init__(self, seed: int, minutes: float, guests: int) -> None:
        self.clock = SystemClock()
        self.random = Random(seed)
        self.began_s = self.clock.monotonic_s()
        self.until_s = self.began_s + minutes * 60
        self.guests = guests
        self.journeys = self.faults = self.labs = 0
        self.outcomes: Counter[str] = Counter()
        self.violations: list[str] = []
        self._said_s = self.began_s

    def go_on(self) -> None:
        """Until the time is over."""
        while self.clock.monotonic_s() < self.until_s and len(self.violations) < 20:
            self.labs += 1
            with lab_world(f"soak{self.labs}-{os.getpid()}", "1Gbit", {"allow_extra_arguments": True}) as world:
                soak = Soak(world, self.random, self.guests)
                try:
                    self._turns(soak)
                finally:
                    self.journeys += soak.journeys
                    self.faults += soak.faults
                    self.outcomes += soak.outcomes
                    soak.close()

    def _turns(self, soak: Soak) -> None:
        """Until the time is over or the lab is not as it should be."""
        while self.clock.monotonic_s() < self.until_s:
            try:
                soak.turn()
            except (AssertionError, LivemoveError, TimeoutError) as error:
                self.violations.append(f"{soak.fault}: {type(error).__name__}: {error}")
                print("\n".join([f"VIOLATION {self.violations[-1]}", *soak.story()]), flush=True)
                return
            self._say(soak)

    def _say(self, soak: Soak) -> None:
        now_s = self.clock.monotonic_s()
        if now_s - self._said_s >= 60:
            self._said_s = now_s
            outcomes = ", ".join(f"{count} {what}" for what, count in sorted((self.outcomes + soak.outcomes).items()))
            minute = (now_s - self.began_s) / 60
            print(
                f"minute {minute:.0f}: {self.journeys + soak.journeys} journeys ({outcomes}), "
                f"{self.faults + soak.faults} faults, {len(self.violations)} violations",
                flush=True,
            )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="of the faults and their moments")
    parser.add_argument("--guests", type=int, default=2)
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="of each property of the rules")
    arguments = parser.parse_args()
    seed = secrets.randbelow(1 << 31) if arguments.seed is None else arguments.seed
    print(f"seed {seed}; repeat it with SEED={seed}", flush=True)
    properties = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-o", "timeout=0", "-p", "no:cacheprovider", *PROPERTIES],
        env={**os.environ, "LIVEMOVE_MACHINE_EXAMPLES": str(arguments.examples)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=lambda: os.nice(15),
    )  # fmt: skip
    run = Run(seed, arguments.minutes, arguments.guests)
    ended = True
    try:
        run.go_on()
        print(f"rules, {arguments.examples} examples each: ", end="", flush=True)
        said = properties.communicate()[0]
        if properties.returncode:
            run.violations.append("a property of the rules does not hold")
            print(said)
        print(said.splitlines()[-1] if said else "nothing was said", flush=True)
    except KeyboardInterrupt:
        ended = False
        print("interrupted", flush=True)
    finally:
        if properties.poll() is None:
            properties.kill()
            properties.communicate()
    for violation in run.violations:
        print(f"VIOLATION {violation}")
    print(f"{run.journeys} journeys, {run.faults} faults, {len(run.violations)} violations", flush=True)
    return 1 if run.violations or not ended else 0


def _end(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
