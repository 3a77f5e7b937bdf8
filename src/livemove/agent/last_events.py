"""How a journey's end is told in the events of its source."""

from __future__ import annotations

import contextlib

from livemove.api.models import ReportView
from livemove.base.database import until_written
from livemove.base.errors import StateUnwritable
from livemove.migration.journal import Journal, Record

#: Steps that make the VM's twin, and steps that send to it; their failures have event ids of their own.
PLANNED_STEPS, SENDING_STEPS = (3, 4), (5, 6, 7, 8)


async def tell_end(journal: Journal, record: Record, report: ReportView) -> None:
    """The last events, with Hyper-V's ids for those who know them: what failed, where, and in which step."""
    tell = journal.add_event
    if report.outcome == "completed":
        await tell(record, f"VM {record.vm} moved to {record.destination}.")
    elif report.outcome != "failed":
        await tell(record, report.reason)
    else:
        step = next((step.step for step in report.steps if step.state == "failed"), 0)
        if step in PLANNED_STEPS:
            await tell(
                record,
                f"Planned virtual machine creation failed at {record.destination}.",
                level="error",
                event_id=21018,
            )
        elif step in SENDING_STEPS:
            await tell(
                record, f"Failed to send data for the migration of VM {record.vm}.", level="error", event_id=22038
            )
        text = f"VM migration operation for {record.vm} failed at migration source {record.source}."
        await tell(record, text, level="error", event_id=21024)
        await tell(record, f"Live migration of {record.vm} failed: {report.reason}", level="error", event_id=21502)


async def keep_end(journal: Journal, record: Record, report: ReportView) -> None:
    """The last events and the report; returns when the report is on record, however long the disk is full."""
    with contextlib.suppress(StateUnwritable):
        await tell_end(journal, record, report)
    await until_written(lambda: journal.save_report(record, report), f"The report of journey {record.id}")
