"""A journey as a person watches it on a terminal: the ten steps, the copy's progress, the last note.

Imports Rich, so only what draws on a terminal imports this module.
"""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from livemove.api.models import JourneyView, ProgressView, StepView
from livemove.base.units import format_duration, format_rate, format_size
from livemove.cli.output import printable
from livemove.cli.plain_view import copying, queue_line

_REFRESH_PER_S = 10
_BAR_WIDTH = 40
_NOTES_SHOWN = 3

_MARKS = {"waiting": "·", "running": "▶", "done": "✓", "skipped": "-", "failed": "✗"}
_ASCII_MARKS = {"waiting": ".", "running": ">", "done": "+", "skipped": "-", "failed": "!"}
_STYLES = {"waiting": "dim", "running": "bold cyan", "done": "green", "skipped": "dim", "failed": "bold red"}


class LiveShow:
    """Draws :func:`render` in place until it is closed; the last picture stays."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._ascii = not self._console.encoding.lower().startswith("utf")
        self._notes: list[str] = []
        self._view: JourneyView | None = None
        self._live = Live(
            console=self._console, refresh_per_second=_REFRESH_PER_S, get_renderable=self._picture, transient=False
        )
        self._live.start()

    def update(self, view: JourneyView) -> None:
        self._view = view

    def note(self, text: str) -> None:
        self._notes = [*self._notes, text][-_NOTES_SHOWN:]

    def close(self) -> None:
        self._live.stop()

    def _picture(self) -> RenderableType:
        parts = [render(self._view, ascii_only=self._ascii)] if self._view is not None else []
        return Group(*parts, *(Text(printable(note), style="yellow") for note in self._notes))


def render(view: JourneyView, *, ascii_only: bool = False) -> RenderableType:
    """The journey's picture. Pure: the same view gives the same picture."""
    parts: list[RenderableType] = [_title(view)]
    if view.queue_place:
        parts.append(Text(queue_line(view), style="yellow"))
    parts.append(_steps(view.steps, _ASCII_MARKS if ascii_only else _MARKS))
    if view.progress is not None and view.progress.total_bytes:
        parts.append(_copy(view.progress, moving=copying(view)))
    if view.last_note:
        parts.append(Text(printable(view.last_note), style="dim"))
    return Group(*parts)


def _title(view: JourneyView) -> Text:
    title = Text()
    title.append(view.vm, style="bold")
    title.append(f"  {view.source} to {view.destination}  ")
    title.append(view.phase, style="bold red" if view.error is not None else "bold cyan")
    if view.option:
        title.append(f"  {view.option}", style="dim")
    return title


def _steps(steps: list[StepView], marks: dict[str, str]) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=1)
    grid.add_column(justify="right", width=2)
    grid.add_column(min_width=27)
    grid.add_column(justify="right", min_width=9)
    for step in steps:
        took = format_duration(step.ms / 1e3) if step.ms is not None else ""
        style = _STYLES[step.state]
        grid.add_row(marks[step.state], str(step.step), Text(printable(step.name)), took, style=style)
    return grid


def _copy(progress: ProgressView, *, moving: bool) -> Table:
    # of the round under way: later rounds begin with what was dirtied meanwhile
    done_bytes = max(0, progress.total_bytes - progress.remaining_bytes)
    grid = Table.grid(padding=(0, 2))
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        f"round {progress.round}",
        ProgressBar(total=progress.total_bytes, completed=done_bytes, width=_BAR_WIDTH),
        f"{100 * done_bytes / progress.total_bytes:.0f} %",
        f"{format_size(progress.remaining_bytes)} of {format_size(progress.total_bytes)} remain",
    )
    facts = [
        (
            "rate",
            f"{format_rate(progress.rate_bytes_per_s)}, {format_rate(progress.wire_rate_bytes_per_s)} on the wire",
        ),
        ("dirty rate", format_rate(progress.dirty_bytes_per_s)),
        ("ETA", format_duration(progress.eta_s) if progress.eta_s is not None else "not known"),
        ("downtime forecast", _forecast(progress)),
        ("elapsed", format_duration(progress.elapsed_s)),
    ]
    if progress.throttle_percent:
        facts.append(("guest slowed by", f"{progress.throttle_percent} %"))
    for name, value in facts:
        grid.add_row(Text(name, style="dim"), value)
    whole = Table.grid()
    whole.add_row(bar)
    whole.add_row(grid if moving else Text(f"elapsed {format_duration(progress.elapsed_s)}", style="dim"))
    return whole


def _forecast(progress: ProgressView) -> str:
    if progress.downtime_forecast_s is None:
        return "not known yet"
    allowed = f" (switches over at {format_duration(progress.latch_s)})" if progress.latch_s else ""
    return f"{format_duration(progress.downtime_forecast_s)}{allowed}"
