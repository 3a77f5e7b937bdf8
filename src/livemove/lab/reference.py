"""The reference guest as seen from outside: its kernel arguments, its console, its control port.

The guest (``guest/``) holds pages of known content, rewrites some of them, checks them all the time, and prints what it
found. A line of its console is one of::

    LM ready pages=16384 seed=1 mib=64
    LM tick t_ms=2473 rewritten=0 checked=503 bad=0 gap_ms=5
    LM bad page=7 kind=random expected_generation=3 first_difference=2048 holds=older
    LM answer checked=16384 bad=0 generation_sum=0

``gap_ms`` is what programs inside the guest felt. A guest's clock stands still while QEMU has it paused, so the blackout
of a migration is *not* in it: that is measured from outside, by the echo port or the source's and destination's events.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from livemove.base.errors import BadSetting, LinkError

ECHO_PORT = 7
CONTROL_PORT = 8
AS_FAST_AS_POSSIBLE = -1
# a serial console, no output of the kernel's own, a reboot one second after a panic; the rest spares boot time (2.3 s
# instead of 2.6 s to `ready` under TCG) and protections that mean nothing in a guest that runs our program only
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet panic=1 no_timer_check nokaslr mitigations=off nopti init_on_alloc=0 cryptomgr.notests"
)
LONGEST_ANSWER_BYTES = 1024
# 64 MiB of content started with 80 MiB besides, and not with 64; the kernel's and our own tables take a fortieth more
MEMORY_BESIDES_CONTENT_MIB = 112


@dataclass(frozen=True, slots=True)
class Workload:
    """What the guest holds and does; sizes in MiB.

    :param zero_mib: pages that are written but hold zeros only.
    :param random_mib: pages that no compression makes smaller.
    :param text_mib: pages that zstd makes three to four times smaller (3.1 at level 1, 3.6 at level 3).
    :param equal_mib: pages that are all the same, and not zero.
    :param working_set_mib: how much of the random and text pages is rewritten, page after page, round and round.
    :param rate_pages_per_s: how fast; 0 not at all, -1 as fast as possible.
    :param check_pages_per_s: how fast the guest compares its pages in the background.
    :param seed: guests of different seeds have different random and text pages.
    :param address: ``ADDRESS/PREFIX`` of the first network card, empty for none; `second_address` of the second one.
    :param gateway: address of the default route, empty for none.

    Raises BadSetting when a value cannot be right.
    """

    zero_mib: int = 0
    random_mib: int = 32
    text_mib: int = 32
    equal_mib: int = 0
    working_set_mib: int = 16
    rate_pages_per_s: int = 0
    seed: int = 1
    address: str = ""
    second_address: str = ""
    gateway: str = ""
    check_pages_per_s: int = 2000

    def __post_init__(self) -> None:
        sizes = (self.zero_mib, self.random_mib, self.text_mib, self.equal_mib, self.working_set_mib)
        if min(*sizes, self.seed, self.check_pages_per_s) < 0 or self.rate_pages_per_s < AS_FAST_AS_POSSIBLE:
            raise BadSetting(f"A size, rate or seed of the guest's workload is negative: {self}.")
        if self.content_mib == 0:
            raise BadSetting("The guest's workload has no pages: zero, random, text and equal are all 0 MiB.")
        if self.working_set_mib > self.random_mib + self.text_mib:
            raise BadSetting(
                f"The working set of {self.working_set_mib} MiB is larger than the"
                f" {self.random_mib + self.text_mib} MiB of random and text pages."
            )
        try:
            for address in filter(None, (self.address, self.second_address)):
                ipaddress.IPv4Interface(address)
            if self.gateway:
                ipaddress.IPv4Address(self.gateway)
        except ValueError as error:
            raise BadSetting(
                f"The guest's network cannot be set: {error}.", remedy="Write an address such as 10.9.0.2/24."
            ) from error

    @property
    def content_mib(self) -> int:
        """All pages that the workload holds."""
        return self.zero_mib + self.random_mib + self.text_mib + self.equal_mib

    @property
    def memory_mib(self) -> int:
        """The smallest memory that a VM with this workload should have."""
        return self.content_mib + self.content_mib // 32 + MEMORY_BESIDES_CONTENT_MIB

    def kernel_arguments(self) -> str:
        """The whole kernel command line."""
        words = {
            "zero": self.zero_mib,
            "random": self.random_mib,
            "text": self.text_mib,
            "equal": self.equal_mib,
            "ws": self.working_set_mib,
            "rate": self.rate_pages_per_s,
            "seed": self.seed,
            "check": self.check_pages_per_s,
            "ip": self.address,
            "ip1": self.second_address,
            "gw": self.gateway,
        }
        return " ".join([KERNEL_ARGUMENTS, *(f"lm.{name}={value}" for name, value in words.items() if value != "")])


# Console --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """All pages are written."""

    pages: int
    seed: int
    mib: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Four a second of the guest's own clock; everything but `gap_ms` counts from its start.

    :param bad: different pages found bad so far.
    :param gap_ms: the longest time between two wakings of a thread that sleeps 5 ms, since the tick before.
    """

    t_ms: int
    rewritten: int
    checked: int
    bad: int
    gap_ms: int


@dataclass(frozen=True, slots=True)
class Bad:
    """A page that does not hold what it must.

    :param kind: random, text, equal or zero; ``generations`` when the table of generations itself is wrong.
    :param holds: zero, older (an earlier generation: a lost rewriting) or damaged.
    """

    page: int
    kind: str
    expected_generation: int
    first_difference: int
    holds: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a command given on the serial console."""

    text: str


ConsoleLine = Ready | Tick | Bad | Answer

_LINE = re.compile(r"LM (ready|tick|bad|answer) ([ -~]+)")
_FIELD = re.compile(r"([a-z_]+)=([^ ]+)")


def parse_fields(text: str) -> dict[str, str]:
    """``checked=5 bad=0`` as a mapping; what has no equals sign is left out."""
    return dict(_FIELD.findall(text))


def parse_line(line: str) -> ConsoleLine | None:
    """What a line of the console says; None for anything that is not a whole line of the workload's.

    Kernel messages may stand before it on the same line, as the two share the console.
    """
    match = _LINE.search(line)
    if match is None:
        return None
    kind, text = match[1], match[2].rstrip()
    if kind == "answer":
        return Answer(text)
    fields = parse_fields(text)
    try:
        if kind == "ready":
            return Ready(int(fields["pages"]), int(fields["seed"]), int(fields["mib"]))
        if kind == "tick":
            return Tick(*(int(fields[name]) for name in ("t_ms", "rewritten", "checked", "bad", "gap_ms")))
        generation, difference = int(fields["expected_generation"]), int(fields["first_difference"])
        return Bad(int(fields["page"]), fields["kind"], generation, difference, fields["holds"])
    except (KeyError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class ConsoleSummary:
    """What a console said from its beginning to its last whole line.

    :param bad: bad pages, by the tick that names most or by the lines about single pages, whichever is more.
    :param longest_gap_ms: see Tick.
    :param rewriting: whether more pages were rewritten at the last tick than at the one before.
    """

    ready: Ready | None = None
    ticks: int = 0
    last_tick: Tick | None = None
    bad: int = 0
    bad_pages: tuple[Bad, ...] = ()
    longest_gap_ms: int = 0
    rewriting: bool = False
    answers: tuple[str, ...] = ()


def summarize(lines: Iterable[str]) -> ConsoleSummary:
    """The sum of whole lines; a guest that rebooted is told from its last `ready` on."""
    ready: Ready | None = None
    ticks: list[Tick] = []
    bad: list[Bad] = []
    answers: list[str] = []
    for line in lines:
        match parse_line(line):
            case Ready() as ready:
                ticks, bad, answers = [], [], []
            case Tick() as tick:
                ticks.append(tick)
            case Bad() as page:
                bad.append(page)
            case Answer(text):
                answers.append(text)
    return ConsoleSummary(
        ready=ready,
        ticks=len(ticks),
        last_tick=ticks[-1] if ticks else None,
        bad=max([len(bad), *(tick.bad for tick in ticks)]),
        bad_pages=tuple(bad),
        longest_gap_ms=max((tick.gap_ms for tick in ticks), default=0),
        rewriting=len(ticks) > 1 and ticks[-1].rewritten > ticks[-2].rewritten,
        answers=tuple(answers),
    )


def read_console(*paths: Path) -> ConsoleSummary:
    """The sum of a guest's console, kept in one file, or in one file for each host it lived on, in that order.

    A file that is not there is an empty one. A line without its end is left out, except that a line begun on one host
    and ended on the next is one line.
    """
    text = b"".join(path.read_bytes() for path in paths if path.exists()).decode("ascii", errors="replace")
    return summarize(text.split("\n")[:-1])


# Control port ---------------------------------------------------------------------------------------------------------


async def ask_guest(address: str, line: str, port: int = CONTROL_PORT, timeout_s: float = 30.0) -> str:
    """The guest's one-line answer to a command, such as ``checked=16384 bad=0 generation_sum=0`` to ``check``.

    Raises LinkError when the guest does not answer within the time, or closes the connection first.
    """
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(address, port, limit=LONGEST_ANSWER_BYTES)
            try:
                writer.write(line.encode() + b"\n")
                await writer.drain()
                answer = await reader.readline()
            finally:
                writer.close()
    except (OSError, ValueError) as error:
        reason = f"no answer in {timeout_s:g} s" if isinstance(error, TimeoutError) else str(error)
        raise _silent(address, port, line, reason) from error
    if not answer.endswith(b"\n"):
        raise _silent(address, port, line, "the connection was closed")
    return answer.decode("ascii", errors="replace").strip()


def _silent(address: str, port: int, line: str, reason: str) -> LinkError:
    return LinkError(
        f"The guest at {address} port {port} did not answer '{line}': {reason}.",
        remedy="See the guest's console, and whether its address is reached from here.",
    )
