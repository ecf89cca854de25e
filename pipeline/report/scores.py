"""The table that a finished run prints about itself, in the shape of the paper's Table 2 (arXiv 2501.12948).

Rows are a task and a metric, columns the evaluated models in the order of the chain. Two numbers stand in one row only
if they were sampled in the same way. A number without n or without its sampling settings is not shown at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pipeline.report.run_data import Run, State, mapping
from pipeline.report.text import finite, percent


class Unit(StrEnum):
    """How a metric is written."""

    SHARE = "share"
    """0 to 1, shown in percent."""
    NUMBER = "number"


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table: the key in an evaluation's scores, its unit, and whether the highest is the best."""

    key: str
    label: str
    unit: Unit = Unit.SHARE
    ranked: bool = False

    def text(self, value: float) -> str:
        """A value as it stands in the table: shares in percent, numbers below 100 with one decimal."""
        if self.unit is Unit.SHARE:
            return percent(value)
        return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


METRICS = (
    Metric("pass@1", "pass@1", ranked=True),
    Metric("pass@k", "pass@k", ranked=True),
    Metric("cons@k", "cons@k", ranked=True),
    Metric("tokens", "mean tokens", Unit.NUMBER),
    Metric("thinking", "with a thought"),
    Metric("truncated", "cut off at the limit"),
    Metric("language", "language consistency"),
    Metric("unjudged", "samples without a verdict", Unit.NUMBER),
)


NARROW, MOST_NARROW = ("pass@1", "pass@k", "cons@k", "tokens", "truncated"), 3
"""What a phone shows of scores: the first of these."""
_BETWEEN = re.compile(r"pass@(?!1$)[1-9]\d{0,5}")


@dataclass(frozen=True, slots=True)
class Score:
    """How one model did on one task.

    Attributes:
        n: problems; 0 where the numbers are withheld.
        samples: completions a problem.
        values: metric -> number; empty where the numbers are withheld.
        low, high: 95 % interval of pass@1.
        withheld: why the numbers are not shown, if they are not.
        entry: the evaluation's own record.
        stage: the evaluating stage.
    """

    n: int
    samples: int
    values: Mapping[str, float]
    low: float | None
    high: float | None
    withheld: str
    entry: Mapping[str, Any]
    stage: str = ""


@dataclass(frozen=True)
class Group:
    """Scores of one task that were sampled in one way.

    Attributes:
        task: label such as `chain/test`.
        sampling: the settings.
        stage: the evaluating stage(s).
        scores: model -> score.
    """

    task: str
    sampling: Mapping[str, Any]
    stage: str
    scores: dict[str, Score] = field(default_factory=dict)

    @property
    def problems(self) -> tuple[int, int] | None:
        """(n, samples), if it is the same for all models whose numbers are shown."""
        found = {(score.n, score.samples) for score in self.scores.values() if not score.withheld}
        return found.pop() if len(found) == 1 else None

    def metrics(self) -> list[Metric]:
        """The metrics that at least one model has here, pass@2, pass@4 and so on in their place behind pass@1."""
        keys = {key for score in self.scores.values() for key in score.values}
        between = sorted(int(key.removeprefix("pass@")) for key in keys if _BETWEEN.fullmatch(key))
        rows = [METRICS[0], *(Metric(f"pass@{k}", f"pass@{k}", ranked=True) for k in between), *METRICS[1:]]
        return [metric for metric in rows if metric.key in keys]

    def narrow(self) -> list[Metric]:
        """The metrics that a phone has room for."""
        return [metric for metric in self.metrics() if metric.key in NARROW][:MOST_NARROW]

    def label(self, metric: Metric) -> str:
        """The metric's name, with the number of samples in place of k where that is one number."""
        return metric.label.replace("@k", f"@{self.problems[1]}") if self.problems else metric.label

    def best(self, metric: Metric) -> set[str]:
        """The models with the highest value, where that means something and more than one model has a value."""
        values = {model: s.values[metric.key] for model, s in self.scores.items() if metric.key in s.values}
        if not metric.ranked or len(values) < 2:
            return set()
        return {model for model, value in values.items() if value == max(values.values())}


@dataclass(frozen=True)
class Table:
    """All scores of a run: the columns (models in chain order), and the rows in groups."""

    models: tuple[str, ...]
    groups: tuple[Group, ...]

    def main(self) -> Group | None:
        """The group that says most about the run: the first of those that compare the most models."""
        shown = [group for group in self.groups if any("pass@1" in s.values for s in group.scores.values())]
        return max(shown, key=lambda g: sum("pass@1" in s.values for s in g.scores.values()), default=None)


def build_table(run: Run) -> Table:
    """Collect the scores of every finished evaluation of a run."""
    groups: dict[str, Group] = {}
    for stage, task, model, entry, sampling in _entries(run):
        key = json.dumps([task, sampling], sort_keys=True, default=str)
        if model in groups.get(key, Group(task, sampling, stage)).scores:
            key += stage  # measured twice in the same way: both are shown
        groups.setdefault(key, Group(task, sampling, stage)).scores[model] = _score(entry, sampling, stage)
    scored = dict.fromkeys(model for group in groups.values() for model in group.scores)
    strangers = [model for model in scored if model not in run.stages]
    return Table((*strangers, *(name for name in run.stages if name in scored)), tuple(groups.values()))


def _entries(run: Run) -> Iterator[tuple[str, str, str, Mapping[str, Any], Mapping[str, Any]]]:
    for stage in run.stages.values():
        if stage.state is not State.FINISHED:
            continue
        for model, tasks in mapping(stage.metrics.get("scores")).items():
            for task, entry in mapping(tasks).items():
                own = mapping(mapping(entry).get("sampling"))
                yield stage.name, str(task), str(model), mapping(entry), own or mapping(stage.metrics.get("sampling"))


def _score(entry: Mapping[str, Any], sampling: Mapping[str, Any], stage: str) -> Score:
    n, samples = _count(entry.get("n")), _count(entry.get("samples", sampling.get("samples")))
    reasons = {"n": not n, "the number of samples": not samples, "sampling settings": not sampling}
    if any(reasons.values()):
        missing = " and ".join(what for what, absent in reasons.items() if absent)
        return Score(0, 0, {}, None, None, f"withheld: measured without {missing}", entry, stage)
    known = [*(metric.key for metric in METRICS), *(key for key in entry if _BETWEEN.fullmatch(str(key)))]
    values = {key: value for key in known if (value := finite(entry.get(key))) is not None}
    return Score(n, samples, values, finite(entry.get("low")), finite(entry.get("high")), "", entry, stage)


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
