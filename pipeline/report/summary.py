"""The numbers of a run without the page: for machines, and for the terminal. Light to import: nothing is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.report.diagnosis import MOST_SENTENCES, diagnose
from pipeline.report.differences import outcomes
from pipeline.report.prose import paragraph
from pipeline.report.run_data import Run, State, read_run
from pipeline.report.scores import Table, build_table
from pipeline.report.text import clean, duration, finite, interval, number, sampling
from pipeline.report.timeline import work_share

if TYPE_CHECKING:
    from rich.console import RenderableType

METRICS_IN_TERMINAL = 4  # a stage


def summarise(run: Path) -> dict[str, Any]:
    """The numbers of a run: `{"stages": {name: {"kind", "metrics", "seconds"}}, "table": {model: {task: scores}}}`.

    `diagnosis` is what went right or wrong, in up to three sentences with names between backticks.
    Only finished stages are in it. `work_share` is the share of their time that went into training steps and sampling.
    Scores without n or without sampling settings are left out of the table. Where a model was measured on a task in
    several ways, the later ones carry the stage's name: `chain/test (greedy)`.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    found = read_run(run)
    stages = {
        name: {"kind": stage.kind, "metrics": _json(stage.metrics), "seconds": stage.seconds}
        for name, stage in found.stages.items()
        if stage.state is State.FINISHED
    }
    share, table = work_share(stage.manifest for stage in found.stages.values()), build_table(found)
    return {
        "diagnosis": [finding.text for finding in diagnose(found, table, outcomes(found))[:MOST_SENTENCES]],
        "stages": stages,
        "table": _scores(table),
        **({} if share is None else {"work_share": share}),
    }


def terminal_table(run: Path) -> RenderableType:
    """The summary in words, the stages and the scores of a run, to be printed by rich.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    found = read_run(run)
    table = build_table(found)
    from rich.console import Group

    said = [finding.text for finding in diagnose(found, table, outcomes(found))[:MOST_SENTENCES]]
    words = _plain("\n".join([*said, paragraph(found, table)]).replace("`", ""))
    return Group(words, "", _stage_table(found), *(part for rows in _score_tables(table) for part in ("", rows)))


def _scores(table: Table) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {model: {} for model in table.models}
    for group in table.groups:
        for model, score in group.scores.items():
            if not score.withheld:
                task = group.task if group.task not in found[model] else f"{group.task} ({group.stage})"
                found[model][task] = _json({**score.entry, "samples": score.samples, "sampling": group.sampling})
    return {model: tasks for model, tasks in found.items() if tasks}


def _json(value: Any) -> Any:
    """The value as JSON: NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(key): _json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json(part) for part in value]
    if isinstance(value, float) and finite(value) is None:
        return None
    return value


def _stage_table(run: Run) -> RenderableType:
    from rich.table import Table as Rows

    rows = Rows(box=None, pad_edge=False, header_style="bold")
    for heading in ("stage", "kind", "state"):
        rows.add_column(heading, no_wrap=True)
    rows.add_column("time", justify="right", no_wrap=True)
    rows.add_column("metrics")
    for stage in run.stages.values():
        numbers = [(name, value) for name, v in stage.metrics.items() if (value := finite(v)) is not None]
        shown = ", ".join(f"{name} {number(value)}" for name, value in numbers[:METRICS_IN_TERMINAL])
        took = duration(stage.seconds) if stage.seconds is not None else ""
        rows.add_row(*(_plain(t) for t in (stage.name, stage.kind, stage.state.value, took, shown)))
    return rows


def _score_tables(table: Table) -> list[RenderableType]:
    """One table a task and way of sampling; models are rows, which fits a terminal."""
    from rich.table import Table as Rows

    tables: list[RenderableType] = []
    for group in table.groups:
        metrics = group.metrics()
        rows = Rows(
            title=_plain(f"{group.task} ({sampling(group.sampling)})"), title_justify="left", box=None, pad_edge=False
        )
        rows.add_column("model", no_wrap=True)
        for heading in ("n", "samples", *(group.label(metric) for metric in metrics)):
            rows.add_column(heading, justify="right")
        for model in (model for model in table.models if model in group.scores):
            score = group.scores[model]
            cells = [f"{score.n:,}", f"{score.samples}"] if not score.withheld else ["–", "–"]
            for metric in metrics:
                value = score.values.get(metric.key)
                text = "" if value is None else metric.text(value)
                if metric.key == "pass@1" and score.low is not None and score.high is not None:
                    text += f" [{interval(score.low, score.high)}]"
                cells.append(text)
            rows.add_row(*(_plain(cell) for cell in (model, *cells)))
        tables.append(rows)
    return tables


def _plain(text: str) -> Any:
    """Text that rich must not read as markup."""
    from rich.text import Text

    return Text(clean(text))
