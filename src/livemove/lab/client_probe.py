"""A client of a VM: sends small numbered messages over one TCP connection and notes when the echoes come back.

    python -m livemove.lab.client_probe --address 10.77.0.10 --port 7 --interval-ms 5 --out FILE

Messages go out every interval without waiting for answers. A connection that breaks, or that answers wrongly, is counted
and made anew. FILE is a JSON object, replaced as a whole twice a second and at the end (SIGTERM); FILE.gaps has a line for
each gap of 20 ms or more as soon as it ended. Times named ``_s`` are CLOCK_MONOTONIC, which all processes of a machine share.

The gaps are the client's: a guest that was away for 300 ms may answer later than that, because TCP waits between its
repetitions. A probe that the machine did not let run sees gaps that are its own; ``longest_stall_ms`` tells how long it
was late at most.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import select
import signal
import socket
import struct
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from livemove.base.clock import Clock, SystemClock, wall_text
from livemove.base.errors import LinkLost
from livemove.lab.gaps import NOTED_GAP_S, Gap, GapLedger, OutOfOrder, longest_between

if TYPE_CHECKING:
    from livemove.lab.lab import Lab

ECHO_PORT = 7
MESSAGE = struct.Struct(">8sQ")
MAGIC = b"livemove"
# A guest that is away longer than this many intervals gets no more until it answers.
MAX_UNANSWERED = 100_000
WRITE_PERIOD_S = 0.5
# The kernel repeats a SYN after 1 s, then 2, 4...; asking anew instead keeps the end of an outage sharp.
CONNECT_TIMEOUT_S = 0.25
RECONNECT_PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What the client saw up to `now_s`. `gaps` are the longest, longest first."""

    sent: int
    answered: int
    lost_connections: int
    longest_gap_ms: float
    gaps_ms: list[dict[str, Any]]
    median_rtt_ms: float | None
    p99_rtt_ms: float | None
    longest_stall_ms: float
    started_s: float
    now_s: float
    open_gap_start_s: float | None
    ended: bool


class Probe:
    """The sending and receiving; one thread, nothing that blocks except waiting for the socket."""

    def __init__(self, address: str, port: int, interval_s: float, out: Path, clock: Clock) -> None:
        self._peer = (address, port)
        self._interval_s = interval_s
        self._out = out
        self._clock = clock
        self._ledger = GapLedger()
        self._socket: socket.socket | None = None
        self._connected = False
        self._try_again_s = self._connect_until_s = 0.0
        self._number = 0
        self._outgoing = b""
        self._incoming = b""
        self._longest_stall_s = 0.0
        self._started_s = clock.monotonic_s()
        self.stopped = False

    def run(self) -> None:
        """Until :attr:`stopped` is set."""
        gaps_path(self._out).write_text("")
        next_send_s = next_write_s = self._started_s
        try:
            while not self.stopped:
                now_s = self._clock.monotonic_s()
                if now_s >= next_send_s:
                    self._longest_stall_s = max(self._longest_stall_s, now_s - next_send_s)
                    self._send(now_s)
                    # messages that this process was too late for are left out, not sent in a burst
                    next_send_s = max(next_send_s + self._interval_s, now_s)
                if now_s >= next_write_s:
                    self._write(ended=False)
                    next_write_s = now_s + WRITE_PERIOD_S
                self._wait(max(0.0, next_send_s - now_s))
        finally:
            self._close()
            self._write(ended=True)

    def _wait(self, wait_s: float) -> None:
        poll = select.poll()
        if self._socket is not None:
            poll.register(self._socket, select.POLLIN if self._connected else select.POLLOUT)
        ready = poll.poll(wait_s * 1000)
        now_s = self._clock.monotonic_s()
        if self._socket is None:
            if now_s >= self._try_again_s:
                self._connect(now_s)
        elif ready and not self._connected:
            self._finish_connect(now_s)
        elif ready:
            self._receive(self._socket)
        elif not self._connected and now_s >= self._connect_until_s:
            self._close()

    def _connect(self, now_s: float) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connect_until_s = now_s + CONNECT_TIMEOUT_S
        if self._socket.connect_ex(self._peer) not in (0, errno.EINPROGRESS):
            self._fail_connect(now_s)

    def _finish_connect(self, now_s: float) -> None:
        assert self._socket is not None
        if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._fail_connect(now_s)
        else:
            self._connected = True

    def _fail_connect(self, now_s: float) -> None:
        self._close()
        self._try_again_s = now_s + RECONNECT_PAUSE_S

    def _send(self, now_s: float) -> None:
        if not self._connected or self._ledger.unanswered >= MAX_UNANSWERED:
            return
        if not self._outgoing:
            self._number += 1
            self._outgoing = MESSAGE.pack(MAGIC, self._number)
            self._ledger.message_sent(self._number, now_s)
        assert self._socket is not None
        try:
            self._outgoing = self._outgoing[self._socket.send(self._outgoing) :]
        except BlockingIOError:
            return
        except OSError:
            self._lose()

    def _receive(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        # read after the data are here, so that a gap is never told too short
        now_s = self._clock.monotonic_s()
        self._incoming += data
        whole = len(self._incoming) // MESSAGE.size * MESSAGE.size
        answers, self._incoming = self._incoming[:whole], self._incoming[whole:]
        try:
            for magic, number in MESSAGE.iter_unpack(answers):
                if magic != MAGIC:
                    raise OutOfOrder("an answer of other bytes than were sent")
                gap = self._ledger.answer_arrived(number, now_s)
                if self._ledger.answered == 1:
                    self._write(ended=False)
                if gap is not None:
                    self._note(gap)
        except OutOfOrder:
            data = b""
        if not data:
            self._lose()

    def _lose(self) -> None:
        self._ledger.connection_lost(self._clock.monotonic_s())
        self._close()

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._connected, self._outgoing, self._incoming = None, False, b"", b""

    def _note(self, gap: Gap) -> None:
        line = {"start_s": gap.start_s, "end_s": gap.end_s, "ms": round(gap.length_s * 1e3, 3)}
        with gaps_path(self._out).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _write(self, *, ended: bool) -> None:
        now_s, wall_s = self._clock.monotonic_s(), self._clock.wall_s()
        longest = self._ledger.longest(now_s)
        lasting = self._ledger.open_gap(now_s)
        result = ProbeResult(
            sent=self._ledger.sent,
            answered=self._ledger.answered,
            lost_connections=self._ledger.lost_connections,
            longest_gap_ms=round(longest[0].length_s * 1e3, 3) if longest else 0.0,
            gaps_ms=[
                {
                    "ms": round(gap.length_s * 1e3, 3),
                    "offset_s": round(gap.start_s - self._started_s, 6),
                    "start_s": gap.start_s,
                    "start": wall_text(wall_s - now_s + gap.start_s),
                    "end": wall_text(wall_s - now_s + gap.end_s),
                    "ended": gap.ended,
                }
                for gap in longest
            ],
            median_rtt_ms=_ms(self._ledger.round_trips.quantile_s(0.5)),
            p99_rtt_ms=_ms(self._ledger.round_trips.quantile_s(0.99)),
            longest_stall_ms=round(self._longest_stall_s * 1e3, 3),
            started_s=self._started_s,
            now_s=now_s,
            open_gap_start_s=lasting.start_s if lasting else None,
            ended=ended,
        )
        temporary = self._out.with_name(self._out.name + ".new")
        temporary.write_text(json.dumps(asdict(result), indent=1) + "\n")
        temporary.replace(self._out)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 4)


def gaps_path(out: Path) -> Path:
    """The file of gaps beside a result file."""
    return out.with_name(out.name + ".gaps")


def read_gaps(out: Path) -> list[Gap]:
    """The gaps of 20 ms or more that have ended, oldest first; a line that is being written is left out."""
    try:
        lines = gaps_path(out).read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    found = (json.loads(line) for line in lines)
    return [Gap(line["end_s"] - line["start_s"], line["start_s"]) for line in found]


class ClientProbe:
    """The probe as a process in a lab's client (or in a host), for the length of ``async with``.

    The result files stay after the end, until the lab is taken down, unless `out` lies elsewhere.
    """

    def __init__(
        self,
        lab: Lab,
        address: str,
        *,
        port: int = ECHO_PORT,
        interval_ms: float = 5.0,
        member: str = "client",
        out: Path | None = None,
    ) -> None:
        self._lab = lab
        self._member = member
        self._peer = f"{address} port {port}"
        self.out = out or lab.directory(member) / "run" / f"probe-{address}-{port}.json"
        self._argv = [sys.executable, "-m", "livemove.lab.client_probe", "--address", address, "--port", str(port)]
        self._argv += ["--interval-ms", str(interval_ms), "--out", str(self.out)]
        self.pid: int | None = None

    async def __aenter__(self) -> Self:
        self.out.unlink(missing_ok=True)
        gaps_path(self.out).unlink(missing_ok=True)
        log = self._lab.directory(self._member) / "log" / "probe.log"
        self.pid = self._lab.start_process(self._member, self._argv, log=log, label="probe")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End the probe; its results are complete afterwards. May be repeated."""
        if self.pid is not None:
            await self._lab.end_process(self.pid)

    async def answered(self, timeout_s: float = 30.0, *, at_least: int = 1) -> None:
        """Return when the VM has answered that often. Raises LinkLost when it has not within `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    result = self.result_so_far()
                    if result is not None and result.answered >= at_least:
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            raise LinkLost(
                f"The VM at {self._peer} did not answer the client {at_least} times within {timeout_s:g} s.",
                remedy="Check that the guest runs, has that address and is on the lab's bridge br0.",
            ) from error

    def result_so_far(self) -> ProbeResult | None:
        """The newest result, up to half a second old; None before the first."""
        try:
            return ProbeResult(**json.loads(self.out.read_text()))
        except FileNotFoundError:
            return None

    def result(self) -> ProbeResult:
        """The result after the end. Raises LinkLost when the probe wrote none or was killed."""
        found = self.result_so_far()
        if found is None or not found.ended:
            raise LinkLost(f"The client probe of {self._peer} ended without a result.", remedy="See log/probe.log.")
        return found

    def longest_gap(self, start_s: float, end_s: float) -> Gap | None:
        """The longest gap of 20 ms or more that touches the time between two monotonic readings, in full length.

        A gap that lasts still counts up to the newest result, half a second ago at most. None when there was none.
        """
        # in this order: a gap that ends between the two is then told as ended, not left out
        found, gaps = self.result_so_far(), read_gaps(self.out)
        if found is not None and found.open_gap_start_s is not None:
            lasting = Gap(found.now_s - found.open_gap_start_s, found.open_gap_start_s, ended=False)
            if lasting.length_s >= NOTED_GAP_S and all(gap.start_s != lasting.start_s for gap in gaps):
                gaps.append(lasting)
        return longest_between(gaps, start_s, end_s)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="livemove.lab.client_probe", description="Watch a VM as its client sees it.")
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, default=ECHO_PORT)
    parser.add_argument("--interval-ms", type=float, default=5.0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    if not 0.1 <= given.interval_ms <= 60_000:
        parser.error("--interval-ms is 0.1 to 60000")
    probe = Probe(given.address, given.port, given.interval_ms / 1e3, given.out, SystemClock())

    def stop(*_: object) -> None:
        probe.stopped = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    probe.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
