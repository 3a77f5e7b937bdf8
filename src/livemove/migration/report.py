"""The report of a journey: everything in it was measured or decided on the way, nothing is estimated afterwards."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Literal

from livemove.api.models import NegotiatedRow, ProgressView, ReportView
from livemove.base.clock import Clock, wall_text
from livemove.base.errors import by_code
from livemove.migration.departure import DirectDeparture
from livemove.migration.direct import PAGE_BYTES
from livemove.migration.journal import Record
from livemove.migration.ledger import Ledger
from livemove.migration.model import Phase, State
from livemove.policy.convergence import predicted_downtime_s

_OUTCOMES: dict[Phase, Literal["completed", "failed", "cancelled", "ended"]] = {
    Phase.COMPLETED: "completed",
    Phase.CANCELLED: "cancelled",
    Phase.ENDED: "ended",
}


def make_report(
    record: Record, state: State, departure: DirectDeparture, ledger: Ledger, decisions: list[str], *,
    asked_monotonic_s: float | None, now_monotonic_s: float, now_wall_s: float, memory_bytes: int,
) -> ReportView:  # fmt: skip
    """The report of a journey that has just ended.

    :param asked_monotonic_s: when the command was typed, by the client's monotonic clock, if the client is on this host.
    """
    findings, counters = departure.findings, departure.engine.counters
    agreement, abort, destination = findings.agreement, state.abort, findings.destination
    copy_ms = _ms(ledger.first_byte_s, ledger.completed_s)
    arrived = state.phase is Phase.COMPLETED
    logical_bytes = counters.normal_pages * PAGE_BYTES
    return ReportView(
        id=record.id, vm=record.vm, vm_uuid=record.vm_uuid, source=record.source, destination=record.destination,
        person=record.person, outcome=_OUTCOMES.get(state.phase, "failed"), owner=state.owner.value,
        code=abort.code if abort else "", reason=abort.reason if abort else "", remedy=abort.remedy if abort else "",
        started=wall_text(record.started_wall_s), ended=wall_text(now_wall_s),
        option=agreement.option if agreement else "", option_reason=agreement.option_reason if agreement else "",
        engine="direct", channels=agreement.channels if agreement else 0,
        compression=agreement.compression if agreement else "", tls=agreement.tls if agreement else False,
        memory_bytes=memory_bytes, total_ms=round((now_monotonic_s - ledger.started_s) * 1e3, 2), copy_ms=copy_ms,
        command_to_first_byte_ms=_ms(asked_monotonic_s, ledger.first_byte_s),
        downtime_qemu_ms=counters.downtime_ms if arrived else None,
        downtime_ms=round(ledger.downtime_ms, 3) if ledger.downtime_ms is not None and arrived else None,
        blackout_parts_ms=_blackout_parts(ledger, findings.hand_over) if arrived else {},
        steps=ledger.steps(now_monotonic_s), rounds=counters.rounds, wire_bytes=counters.wire_bytes, ram_bytes=logical_bytes,
        normal_pages=counters.normal_pages, zero_pages=counters.zero_pages,
        mean_rate_bytes_per_s=logical_bytes / (copy_ms / 1e3) if copy_ms else 0.0,
        source_cpu_seconds=round(departure.cpu.seconds + time.process_time() - departure.agent_cpu_start_s, 3),
        destination_cpu_seconds=round(destination.cpu_seconds + destination.agent_cpu_seconds, 3) if destination else None,
        throttled_percent=counters.throttle_peak_percent, arrived_as=state.guest.value if arrived else "",
        paths=departure.paths.reports, paths_left_out=departure.paths.left_out(), verification=departure.verification,
        negotiated=[NegotiatedRow(**asdict(row)) for row in agreement.rows] if agreement else [],
        decisions=decisions, notes=findings.notes,
    )  # fmt: skip


def bare_report(record: Record, state: State, code: str, reason: str, clock: Clock) -> ReportView:
    """The report of a journey whose agent and QEMU at the source are gone, and with them everything that was measured."""
    now_s = clock.wall_s()
    kind = by_code().get(code)
    return ReportView(
        id=record.id, vm=record.vm, vm_uuid=record.vm_uuid, source=record.source, destination=record.destination,
        person=record.person, outcome=_OUTCOMES.get(state.phase, "failed"), owner=state.owner.value, code=code, reason=reason,
        remedy=kind.remedy_text if kind else "", started=wall_text(record.started_wall_s), ended=wall_text(now_s), option="",
        option_reason="", engine="direct", channels=0, compression="", tls=False, memory_bytes=0,
        total_ms=max(0.0, round((now_s - record.started_wall_s) * 1e3, 2)),
    )  # fmt: skip


def _blackout_parts(ledger: Ledger, hand_over: object) -> dict[str, float]:
    parts = ledger.blackout_parts_ms()
    for name in ("journal_ms", "resume_ms"):
        value = getattr(hand_over, name, 0.0)
        if value:
            parts[f"destination_{name.removesuffix('_ms')}"] = round(value, 3)
    return parts


def _ms(start_s: float | None, end_s: float | None) -> float | None:
    return None if start_s is None or end_s is None else round((end_s - start_s) * 1e3, 2)


def progress_view(departure: DirectDeparture, state: State) -> ProgressView | None:
    """The copy as it stands; None before it began."""
    counters, rate = departure.engine.counters, departure.engine.rate_bytes_per_s
    if not counters.rounds:
        return None
    forecast = predicted_downtime_s(counters.remaining_bytes, rate) if rate > 0 and counters.rounds > 1 else None
    return ProgressView(
        elapsed_s=counters.elapsed_s, round=counters.rounds, total_bytes=counters.total_bytes,
        remaining_bytes=counters.remaining_bytes, transferred_bytes=counters.wire_bytes, rate_bytes_per_s=rate,
        wire_rate_bytes_per_s=departure.engine.wire_rate_bytes_per_s, dirty_bytes_per_s=counters.dirty_bytes_per_s,
        eta_s=counters.remaining_bytes / rate if rate > 0 else None, downtime_forecast_s=forecast,
        latch_s=state.convergence.latch_s, throttle_percent=counters.throttle_percent,
    )  # fmt: skip
