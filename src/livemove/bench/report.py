"""The report of a benchmark: the machine, every sample, and the ratios that were asked for; kept as JSON.

The file is written anew after every sample, as a whole or not at all, so what was measured before an interruption stays.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from livemove.base.errors import BadSetting, StateUnwritable
from livemove.base.settings import describe_validation
from livemove.bench.scenario import Scenario
from livemove.bench.statistics import median_interval

#: A measured fact of a sample: a number, a text, or numbers by name (steps of a ledger).
Sample = dict[str, Any]


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The machine and the programs that were measured."""

    cpu_model: str
    cores: int
    memory_bytes: int
    kernel: str
    qemu: str
    accelerator: str
    python: str
    livemove: str
    load_1min: float


@dataclass(slots=True)
class ScenarioResult:
    """A scenario with all its samples, in the order in which they were taken.

    :param key: what the comparison calls it; reports of the first version have none, and called it by its engine.
    """

    name: str
    fields: dict[str, Any]
    samples: list[Sample] = field(default_factory=list)
    key: str = ""

    def __post_init__(self) -> None:
        self.key = self.key or str(self.fields.get("engine", ""))

    @classmethod
    def of(cls, key: str, scenario: Scenario) -> ScenarioResult:
        return cls(scenario.name, {**asdict(scenario), "links": list(scenario.links)}, key=key)


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure is to keep."""

    value: float
    at: Literal["most", "least"] = "most"


@dataclass(frozen=True, slots=True)
class Ratio:
    """One figure that the benchmark was run for.

    :param value: the median of `samples`; `low` to `high` holds the true median with probability `confidence`.
    :param bar: what `value` should not exceed, or reach if `bar_at` is ``least``; None when nothing was promised.
    :param p: how likely such a difference between the sides is by chance alone; None for a figure of one side.
    """

    value: float
    low: float
    high: float
    samples: list[float]
    confidence: float
    unit: str = ""
    bar: float | None = None
    p: float | None = None
    bar_at: Literal["most", "least"] = "most"

    @property
    def met(self) -> bool | None:
        """Whether the bar is kept; None when there is none."""
        if self.bar is None:
            return None
        return self.value <= self.bar if self.bar_at == "most" else self.value >= self.bar


def make_ratio(samples: list[float], *, unit: str = "", bar: Bar | None = None, p: float | None = None) -> Ratio:
    """The figure that the samples make. Raises ValueError when there is none."""
    found = median_interval(samples)
    rounded = [round(sample, 4) for sample in samples]
    return Ratio(
        round(found.value, 4), round(found.low, 4), round(found.high, 4), rounded, round(found.confidence, 4),
        unit, None if bar is None else bar.value, None if p is None else round(p, 4),
        "most" if bar is None else bar.at,
    )  # fmt: skip


@dataclass(slots=True)
class Report:
    """Everything that one run of a benchmark found.

    :param complete: false while it runs, and for good when it was interrupted or failed.
    :param pairs: how many were asked for.
    :param ledger: medians by name, such as ``steps_ms``: where the time of the scenario `ledger_of` goes.
    :param guest_checks: what each engine's guest found when it compared all its pages at the end.
    """

    name: str
    question: str
    date: str
    host: HostFacts
    pairs: int
    scenarios: list[ScenarioResult]
    ratios: dict[str, Ratio] = field(default_factory=dict)
    ledger: dict[str, dict[str, float]] = field(default_factory=dict)
    guest_checks: dict[str, dict[str, int]] = field(default_factory=dict)
    complete: bool = False
    ledger_of: str = "ours"

    def of(self, key: str) -> ScenarioResult:
        """The result of the scenario that the comparison calls so. Raises KeyError when there is none."""
        return {result.key: result for result in self.scenarios}[key]

    def whole_pairs(self, *keys: str) -> list[tuple[Sample, ...]]:
        """The samples of these scenarios that were taken in the same round, round by round; none of half a round."""
        by_pair = [{sample["pair"]: sample for sample in self.of(key).samples} for key in keys]
        whole = sorted(set.intersection(*(set(samples) for samples in by_pair)))
        return [tuple(samples[pair] for samples in by_pair) for pair in whole]

    def to_json(self) -> dict[str, Any]:
        """Plain values; a ratio says also whether its bar is met."""
        data = asdict(self)
        for name, ratio in self.ratios.items():
            data["ratios"][name]["met"] = ratio.met
        return data


def check_writable(path: Path) -> None:
    """Return when a report can be put at `path`, which is left as it is. Raises StateUnwritable."""
    temporary = _beside(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def write_report(report: Report, path: Path) -> None:
    """Put the report in place of what was at `path`. Raises StateUnwritable; the old file is then still there."""
    temporary = _beside(path)
    try:
        with temporary.open("w") as file:
            file.write(json.dumps(report.to_json(), indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _unwritable(path: Path, error: OSError) -> StateUnwritable:
    remedy = "Name a file in a directory that can be written."
    return StateUnwritable(f"{path} cannot be written: {error.strerror}.", remedy=remedy)


def read_report(path: Path) -> Report:
    """The report that :func:`write_report` wrote. Raises BadSetting naming the file when it is none, or damaged."""
    remedy = "Name a file that 'livemove bench run --json' wrote, or measure again."
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise BadSetting(f"{path} cannot be read: {error.strerror}.", remedy=remedy) from error
    except ValueError as error:
        raise BadSetting(f"{path} is damaged, or no report of a benchmark: {error}.", remedy=remedy) from error
    try:
        return TypeAdapter(Report).validate_python(data)
    except ValidationError as error:
        raise BadSetting(
            f"{path} is damaged, or no report of a benchmark: {describe_validation(error)}", remedy=remedy
        ) from error
