"""A flow between two hosts of a lab that competes with what else runs there, and its rate on record.

    async with Flow(lab, sender="A", receiver="C") as flow:
        ...
    assert flow.worst(1.0, start_s, end_s).rate_bytes_per_s > 0.95 * minimum

Times are CLOCK_MONOTONIC, which all processes of a machine share. Rates are those of the payload, which on a link with an
MTU of 1500 and TCP is 95.6 % of the bytes that the link counts.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from livemove.base.errors import BadDefinition, Conflict, LinkLost
from livemove.lab import rates
from livemove.lab.lab import Lab
from livemove.lab.rates import Sample, Window

PORT = 5201
_POLL_S = 0.02
# IPv4 and UDP, without options.
_UDP_HEADER_BYTES = 28
# The newest sample is that old at most while the receiving end runs, on a busy machine.
_LATEST_S = 0.5


class Flow:
    """A flow for the length of ``async with``; it runs when that is entered.

    :param link: number of the link whose addresses it has.
    :param connections: of TCP, side by side.
    :param port: the receiver's, by which filters may know the flow; no other flow to that host may have it.
    :param rate_bytes_per_s: of the payload; None: all that TCP gets. Datagrams need one.

    Raises BadDefinition for unknown hosts and links, and for datagrams without a rate.
    """

    def __init__(
        self,
        lab: Lab,
        *,
        sender: str,
        receiver: str,
        link: int = 0,
        connections: int = 1,
        protocol: Literal["tcp", "udp"] = "tcp",
        port: int = PORT,
        rate_bytes_per_s: int | None = None,
    ) -> None:
        if protocol == "udp" and rate_bytes_per_s is None:
            raise BadDefinition("A flow of datagrams has no rate.", remedy="Give one; only TCP finds its own.")
        self._lab = lab
        self.sender, self.receiver, self.link, self.port = sender, receiver, link, port
        address, source = str(lab.spec.link_address(receiver, link)), str(lab.spec.link_address(sender, link))
        nic = lab.spec.network(link).end_of(sender)
        self.out = lab.directory(receiver) / "log" / f"flow-{port}.samples"
        common = ["--address", address, "--port", str(port), "--protocol", protocol]
        program = [sys.executable, "-m", "livemove.lab.flow_ends"]
        self._receive = [*program, "receive", *common, "--out", str(self.out)]
        self._send = [*program, "send", *common, "--source", source, "--device", nic.interface]
        self._send += ["--connections", str(connections), "--packet-bytes", str(nic.mtu - _UDP_HEADER_BYTES)]
        if rate_bytes_per_s is not None:
            self._send += ["--rate-bytes-per-s", str(rate_bytes_per_s)]
        #: The receiving end's, then the sending end's, while it runs.
        self.pids: list[int] = []

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self, *, timeout_s: float = 15.0) -> None:
        """Return when the first bytes have arrived.

        Raises LinkLost when none do in time, with the end of the logs, Conflict when another flow has the port.
        """
        if self._lab.processes(self.receiver, f"flow-{self.port}-receive"):
            raise Conflict(f"A flow to {self.receiver} has port {self.port} already.", remedy="Give another port.")
        self.out.unlink(missing_ok=True)
        try:
            async with asyncio.timeout(timeout_s):
                self.pids.append(self._run(self.receiver, self._receive, "receive"))
                await self._recorded(0)
                self.pids.append(self._run(self.sender, self._send, "send"))
                await self._recorded(1)
        except TimeoutError as error:
            await self.stop()
            raise LinkLost(
                f"Nothing of the flow from {self.sender} to {self.receiver} arrived within {timeout_s:g} s: {self._said()}.",
                remedy="Check the link between them, and that nothing else has that port.",
            ) from error
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the flow; what it recorded stays until the lab is taken down, or another flow has its port. May be repeated."""
        # the sender first: it would try again and again to reach a receiver that has gone
        while self.pids:
            await self._lab.end_process(self.pids[-1])
            self.pids.pop()

    def samples(self) -> list[Sample]:
        """What was recorded so far, oldest first."""
        try:
            lines = self.out.read_text().split("\n")[:-1]
        except FileNotFoundError:
            return []
        return [Sample(float(at_s), int(total)) for at_s, total in (line.split() for line in lines)]

    def rates(self, window_s: float, start_s: float | None = None, end_s: float | None = None) -> list[Window]:
        """The rates in all windows of that length between two moments; without them from the first bytes to the newest sample.

        Raises LinkLost when one of the ends had ended before `end_s`, BadQuantity when the flow did not run all that time
        or no window fits.
        """
        samples, start_s, end_s = self._between(start_s, end_s)
        return rates.windows(samples, window_s, start_s, end_s)

    def worst(self, window_s: float, start_s: float | None = None, end_s: float | None = None) -> Window:
        """The window with the lowest rate; see :meth:`rates`."""
        samples, start_s, end_s = self._between(start_s, end_s)
        return rates.worst(samples, window_s, start_s, end_s)

    def mean(self, start_s: float | None = None, end_s: float | None = None) -> Window:
        """The rate between two moments; see :meth:`rates`."""
        samples, start_s, end_s = self._between(start_s, end_s)
        return rates.mean(samples, start_s, end_s)

    def _between(self, start_s: float | None, end_s: float | None) -> tuple[list[Sample], float, float]:
        samples = self.samples()
        if not samples:
            raise LinkLost(f"The flow from {self.sender} to {self.receiver} has recorded nothing: {self._said()}.")
        newest_s = samples[-1].at_s
        if end_s is not None and newest_s < end_s - _LATEST_S:
            raise LinkLost(
                f"The flow from {self.sender} to {self.receiver} recorded nothing after {newest_s:.3f} s: {self._said()}."
            )
        if start_s is None:
            start_s = next((sample.at_s for sample in samples if sample.total_bytes), samples[0].at_s)
        return samples, start_s, newest_s if end_s is None else min(end_s, newest_s)

    def _run(self, member: str, argv: list[str], name: str) -> int:
        return self._lab.start_process(member, argv, log=self._log(member, name), label=f"flow-{self.port}-{name}")

    def _log(self, member: str, name: str) -> Path:
        return self._lab.directory(member) / "log" / f"flow-{self.port}-{name}.log"

    def _said(self) -> str:
        logs = (self._log(self.receiver, "receive"), self._log(self.sender, "send"))
        text = " ".join(log.read_text(errors="replace")[-300:] for log in logs if log.exists())
        return " ".join(text.split()) or "its logs are empty"

    async def _recorded(self, at_least_bytes: int) -> None:
        while not any(sample.total_bytes >= at_least_bytes for sample in self.samples()[-1:]):  # noqa: ASYNC110  (a file)
            await asyncio.sleep(_POLL_S)
