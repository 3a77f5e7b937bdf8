"""A client of the VM for the length of one journey: what users of the VM feel of it.

The probe is ``livemove.lab.client_probe`` in a process of its own, because drawing the live view would delay it and it
would count the delays as the VM's. It ends with this process, whatever ends that.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from livemove.base.clock import Clock
from livemove.base.errors import BadSetting, LinkLost
from livemove.lab.client_probe import ProbeResult, read_gaps
from livemove.lab.gaps import NOTED_GAP_S, Gap, longest_between

# A guest that is up answers within milliseconds; a VM that does not within this time has no echo there.
FIRST_ANSWER_S = 5.0
# After the journey, a gap that lasts still is given this long to end before it is told as it stands.
LAST_ANSWER_S = 3.0
_INTERVAL_MS = 5
_POLL_S = 0.05
_END_S = 5.0


def parse_peer(text: str) -> tuple[str, int]:
    """Host and port of ``10.77.0.10:7``. Raises BadSetting."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or not 0 < int(port[:9]) < 65536:
        raise BadSetting(
            f"'{text[:80]}' is not an echo service of the VM.", remedy="Write ADDRESS:PORT, such as 10.77.0.10:7."
        )
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host.strip("[]")).version == 6:
            raise BadSetting(f"The probe cannot use {host}: it speaks IPv4 only.", remedy="Give an IPv4 address.")
    return host, int(port)


class EchoProbe:
    """Echoes to the VM for the length of ``async with``.

    Entering raises BadSetting when the name is unknown, LinkLost when the VM does not answer at first.
    """

    def __init__(self, peer: str, clock: Clock) -> None:
        self._peer = peer
        self._host, self._port = parse_peer(peer)
        self._clock = clock
        self._files = contextlib.ExitStack()
        self._process: asyncio.subprocess.Process | None = None
        self._out = Path()

    async def __aenter__(self) -> Self:
        address = await self._address()
        directory = self._files.enter_context(tempfile.TemporaryDirectory(prefix="livemove-probe-"))
        self._out = Path(directory) / "probe.json"
        argv = [sys.executable, "-m", "livemove.lab.client_probe", "--address", address, "--port", str(self._port)]
        argv += ["--interval-ms", str(_INTERVAL_MS), "--out", str(self._out)]
        if shutil.which("setpriv"):
            argv = ["setpriv", "--pdeathsig", "TERM", *argv]
        try:
            # a session of its own: Ctrl-C cancels the journey, and the probe is to see that out
            self._process = await asyncio.create_subprocess_exec(
                *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, start_new_session=True
            )
            await self._first_answer()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """End the probe. May be called twice."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _END_S)
            except TimeoutError:
                process.kill()
                await process.wait()
        self._files.close()

    async def longest_gap_ms(self, start_s: float, end_s: float) -> float:
        """The longest time without an answer that touches the time between two readings of the clock, in full length.

        Waits up to 3 s for a gap that lasts still. Gaps below 20 ms are not told apart: they count as 0.
        """
        until_s = self._clock.monotonic_s() + LAST_ANSWER_S
        while True:
            # in this order: a gap that ends between the two is then told as ended, not left out
            result, gaps = self._result(), read_gaps(self._out)
            lasting = _lasting_gap(result, gaps, end_s)
            settled = result is not None and result.now_s > end_s and lasting is None
            if settled or self._clock.monotonic_s() >= until_s:
                break
            await asyncio.sleep(_POLL_S)
        longest = longest_between([*gaps, *([lasting] if lasting is not None else [])], start_s, end_s)
        return longest.length_s * 1e3 if longest is not None else 0.0

    async def _first_answer(self) -> None:
        try:
            async with asyncio.timeout(FIRST_ANSWER_S):
                while True:
                    result = self._result()
                    if result is not None and result.answered:
                        return
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise LinkLost(
                f"The VM does not answer the probe at {self._peer}.",
                remedy="Check address and port of an echo service in the guest, or leave out --probe.",
            ) from error

    def _result(self) -> ProbeResult | None:
        """The newest result, up to half a second old; None before the first."""
        try:
            return ProbeResult(**json.loads(self._out.read_text()))
        except FileNotFoundError:
            return None

    async def _address(self) -> str:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                self._host, self._port, family=socket.AF_INET, type=socket.SOCK_STREAM
            )
        except OSError as error:
            raise BadSetting(
                f"The probe's peer '{self._host}' is not known: {error}.", remedy="Give an IPv4 address."
            ) from error
        return str(found[0][4][0])


def _lasting_gap(result: ProbeResult | None, gaps: list[Gap], end_s: float) -> Gap | None:
    """The gap that began before `end_s` and had not ended at the newest result."""
    if result is None or result.open_gap_start_s is None or result.open_gap_start_s > end_s:
        return None
    lasting = Gap(result.now_s - result.open_gap_start_s, result.open_gap_start_s, ended=False)
    if lasting.length_s < NOTED_GAP_S or any(gap.start_s == lasting.start_s for gap in gaps):
        return None
    return lasting
