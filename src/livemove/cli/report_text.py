"""What a journey did, as text: the outcome in plain words first, then where time, bytes and CPU went. Pure."""

from __future__ import annotations

from livemove.api.models import NegotiatedRow, PlanView, ReportView, VerificationView
from livemove.base.units import format_duration, format_rate, format_size
from livemove.cli.output import columns
from livemove.cli.path_text import plan_path_lines, report_path_lines

_VERIFY = {
    "off": "off",
    "sample": "a random sample of the memory, within some 10 ms of downtime",
    "full": "all of the memory, which adds the time to read and hash it to the downtime",
}


def report_lines(report: ReportView) -> list[str]:
    """The report in full; every number has its unit."""
    lines = [outcome_line(report)]
    if report.outcome != "completed":
        lines += [f"  reason: {report.reason}"] if report.reason else []
        lines += [f"  remedy: {report.remedy}"] if report.remedy else []
    lines += ["", *_steps(report), "", *_numbers(report)]
    lines += report_path_lines(report.paths, report.paths_left_out)
    if report.verification is not None:
        lines += ["", *verification_lines(report.verification)]
    unused = [row for row in report.negotiated if not row.used]
    if unused:
        lines += ["", "negotiated away:", *(f"  {row.feature}: {row.reason}" for row in unused)]
    for title, texts in (("decisions", report.decisions), ("notes", report.notes)):
        if texts:
            lines += ["", f"{title}:", *(f"  {text}" for text in texts)]
    return lines


def outcome_line(report: ReportView) -> str:
    """One sentence on how it ended and where the VM is."""
    took = format_duration(report.total_ms / 1e3)
    way = f"from {report.source} to {report.destination}"
    if report.outcome == "completed":
        state = f", and is {report.arrived_as} as it was" if report.arrived_as not in ("", "running") else ""
        return f"{report.vm} moved {way} in {took}, {downtime_text(report)}{state}"
    if report.owner == "unknown":
        return f"{report.vm}: whether it moved {way} is not known; nobody may start it until both hosts answer"
    stays = f"it belongs to {report.destination if report.owner == 'destination' else report.source}"
    if report.outcome == "cancelled":
        return f"{report.vm} was not moved {way}: cancelled after {took}; {stays}"
    if report.outcome == "ended":
        return f"{report.vm} was not moved {way}: its guest ended after {took}; {stays}"
    return f"{report.vm} was not moved {way}: failed after {took}; {stays}"


def downtime_text(report: ReportView) -> str:
    """``downtime 131 ms (QEMU 98 ms, client 160 ms)``, with what was measured."""
    other = [
        f"{name} {_ms(value)}"
        for name, value in (("QEMU", report.downtime_qemu_ms), ("client", report.downtime_client_ms))
        if value is not None
    ]
    ours = _ms(report.downtime_ms) if report.downtime_ms is not None else "not measured"
    return f"downtime {ours} ({', '.join(other)})" if other else f"downtime {ours}"


def verification_lines(found: VerificationView) -> list[str]:
    """What was compared between pause and resume, what was not and why, what came of it, what it cost."""
    whole = sum(found.blocks.values())
    part = "" if found.mode == "full" else f" of {format_size(whole)}, drawn at random"
    cost = f", in {_ms(found.ms)} of downtime" if found.ms is not None else ""
    result = {
        "same": "the same on both hosts",
        "different": "NOT the same on both hosts",
        "not finished": "the comparison did not come to its end",
    }[found.result]
    lines = [
        f"verification ({found.mode}): {result}",
        f"  compared: {format_size(found.compared_bytes)}{part}{cost}",
        f"  blocks: {', '.join(f'{name} {format_size(size)}' for name, size in found.blocks.items())}",
    ]
    lines += [f"  left out: {left.name}, {format_size(left.size_bytes)}: {left.reason}" for left in found.left_out]
    lines += [f"  differs: {place}" for place in found.different_pages]
    return [*lines, *(f"  differs as it must: {text}" for text in found.explained)]


def plan_lines(plan: PlanView) -> list[str]:
    """What a journey would do, with the whole table of what was negotiated."""
    deadline = format_duration(plan.deadline_s) if plan.deadline_s is not None else "none, while it makes progress"
    rows = {
        "option": f"{plan.option} ({plan.option_reason})",
        "engine": f"{plan.engine}, {plan.channels} channels, compression {plan.compression or 'off'}",
        "TLS": f"{'on' if plan.tls else 'off'} ({plan.tls_reason})",
        "address": plan.migration_address,
        "memory": format_size(plan.memory_bytes),
        "downtime": f"{format_duration(plan.downtime_s)} at most",
        "deadline": deadline,
        "verify": _VERIFY[plan.verify],
        "bandwidth": f"{format_rate(plan.max_bandwidth_bytes_per_s)} at most"
        if plan.max_bandwidth_bytes_per_s
        else "what the link carries",
    }
    lines = [f"{plan.vm} would move from {plan.source} to {plan.destination}; nothing was changed."]
    lines += [f"  {line}" for line in columns([[f"{name}:", value] for name, value in rows.items()])]
    lines += plan_path_lines(plan.paths, plan.paths_left_out)
    if plan.negotiated:
        lines += ["", *negotiated_lines(plan.negotiated)]
    if plan.notes:
        lines += ["", "notes:", *(f"  {note}" for note in plan.notes)]
    return lines


def negotiated_lines(rows: list[NegotiatedRow]) -> list[str]:
    """The table of features: which host has them, whether they are used, why."""
    cells = [["feature", "source", "destination", "used", "reason"]]
    cells += [[row.feature, _yes(row.source), _yes(row.destination), _yes(row.used), row.reason] for row in rows]
    return columns(cells)


def _steps(report: ReportView) -> list[str]:
    if not report.steps:
        return ["no step was begun"]
    rows = [
        [str(step.step), step.name, step.state, _ms(step.ms) if step.ms is not None else "-"] for step in report.steps
    ]
    lines = columns([["step", "", "", "time"], *rows])
    parts = [f"{name.replace('_', ' ')} {_ms(value)}" for name, value in report.blackout_parts_ms.items()]
    return [*lines, f"blackout: {', '.join(parts)}"] if parts else lines


def _numbers(report: ReportView) -> list[str]:
    page_kinds = f"{report.normal_pages} copied, {report.zero_pages} zero"
    ratio = f" ({report.wire_bytes / report.ram_bytes:.2f} bytes on the wire a byte of RAM)" if report.ram_bytes else ""
    rows = {
        "journey": report.id,
        "started": f"{report.started} by {report.person}",
        "ended": report.ended,
        "option": f"{report.option} ({report.option_reason})" if report.option_reason else report.option,
        "engine": f"{report.engine}, {report.channels} channels, compression {report.compression or 'off'}, "
        f"TLS {'on' if report.tls else 'off'}",
        "memory of the VM": format_size(report.memory_bytes),
        "RAM sent": format_size(report.ram_bytes),
        "on the wire": f"{format_size(report.wire_bytes)}{ratio}",
        "pages": f"{page_kinds}, of {format_size(report.page_bytes)} each",
        "rounds": f"{report.rounds} {'round' if report.rounds == 1 else 'rounds'}",
        "copy": f"{_ms(report.copy_ms)} at {report.mean_rate_bytes_per_s * 8 / 1e9:.2f} Gbit/s"
        if report.copy_ms is not None
        else "",
        "to the first byte": f"{_ms(report.command_to_first_byte_ms)} after the command"
        if report.command_to_first_byte_ms is not None
        else "",
        "CPU at the source": _cpu(report.source_cpu_seconds, report.ram_bytes),
        "CPU at the destination": _cpu(report.destination_cpu_seconds, report.ram_bytes),
        "guest slowed by": f"up to {report.throttled_percent} %" if report.throttled_percent else "",
    }
    return columns([[f"{name}:", value] for name, value in rows.items() if value])


def _cpu(seconds: float | None, ram_bytes: int) -> str:
    if seconds is None:
        return "not known"
    per_gb = f", {seconds / (ram_bytes / 1e9):.2f} s per GB of RAM" if ram_bytes else ""
    return f"{seconds:.2f} s{per_gb}"


def _ms(ms: float | None) -> str:
    return format_duration((ms or 0.0) / 1e3)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
