"""Puts the page of a run together: one HTML file, and the samples beside it; neither needs a network or a server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from pipeline.files import durable
from pipeline.report import curves, figures, frame, store, text
from pipeline.report.diagnosis import diagnose
from pipeline.report.differences import outcomes
from pipeline.report.lineage import lineage
from pipeline.report.prose import paragraph
from pipeline.report.resources import gpu_hours, uses
from pipeline.report.run_data import Run, Stage, log_tail, mapping, notes, parameters, read_run
from pipeline.report.samples import Problem, problems_through_models, samples_by_reason, samples_while_training
from pipeline.report.scores import Group, Metric, Score, Table, build_table
from pipeline.report.timeline import busy_seconds, timeline


@dataclass(frozen=True)
class Yield:
    """What became of the samples of one rejection-sampling stage."""

    stage: str
    problems: int | None
    sampled: int
    kept: int
    correct: int | None
    dropped: Mapping[str, int]
    examples: Problem | None


def write_report(run: Path, out: Path | None = None, live: bool = False) -> Path:
    """Write `report.html` and the samples beside it, replacing an older page at once, never half; returns its path.

    Args:
        run: folder of the run.
        out: folder to write to; the run's own if not given.
        live: see `frame.render`.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    found, folder = read_run(run), out or run
    durable.make_folder(folder)
    samples, files = store.write([("", found)], folder)
    found = replace(found, samples=samples)
    page = build_page(found, live=True) if live else build_page(found)
    return publish(page, folder, files)


def publish(page: str, folder: Path, files: set[str]) -> Path:
    """Write a page, and then remove the samples of the one before."""
    target = folder / "report.html"
    with durable.writing(target) as sink:
        sink.write(page)
    store.tidy(folder, files)
    return target


def build_page(run: Run, live: bool = False) -> str:
    """The whole page as HTML."""
    table, found = build_table(run), outcomes(run)
    trained = [(stage.name, samples_while_training(stage)) for stage in run.stages.values() if stage.kind == "grpo"]
    took = uses(run)
    return frame.render(
        "page.html",
        live,
        run=run,
        store=run.samples,
        stages=list(run.stages.values()),
        diagnosis=diagnose(run, table, found),
        summary=paragraph(run, table),
        wall=busy_seconds(run),
        gpu_hours=gpu_hours(took),
        facts=_facts(run),
        table=table,
        cell=_cell,
        overview=_overview(table),
        overlay=curves.overlay(run),
        curves=curves.stage_curves(run),
        notes=notes,
        took=took,
        problems=problems_through_models(run, table.models),
        while_training=[(name, problem) for name, problem in trained if problem],
        lineage=Markup(lineage(run, table)),
        timeline=timeline(run),
        yields=[account for stage in run.stages.values() if (account := _yield(stage))],
        difficulties=[hard for stage in run.stages.values() if (hard := _difficulty(stage))],
        parameters=parameters,
        log_tail=log_tail,
        metrics=_flat,
        as_yaml=_as_yaml,
    )


def _facts(run: Run) -> list[tuple[str, str]]:
    """Header: where and with what it ran, from the manifests of all stages."""
    manifests = [stage.manifest for stage in run.stages.values() if stage.manifest]
    devices = list(dict.fromkeys(str(m["device"]) for m in manifests if m.get("device")))
    packages = {name: version for m in manifests for name, version in mapping(m.get("packages")).items()}
    starts = [stage.started for stage in run.stages.values() if stage.started is not None]
    seeds = list(dict.fromkeys(str(m["seed"]) for m in manifests if m.get("seed") is not None))
    revisions = list(dict.fromkeys(str(m["git"])[:12] for m in manifests if m.get("git")))
    first = ("zero2r1", "python", "torch", "transformers", "trl", "vllm")
    facts = [
        ("Machine", "; ".join(devices)),
        ("Started", text.moment(min(starts)) if starts else ""),
        ("Versions", ", ".join(f"{name} {packages[name]}" for name in first if name in packages)),
        ("Seed", ", ".join(seeds)),
        ("Revision", ", ".join(revisions)),
    ]
    return [(name, text.clean(value)) for name, value in facts if value]


def _cell(group: Group, model: str, metric: Metric) -> dict[str, Any] | None:
    """What stands in one cell of the score table; None where the model was not evaluated."""
    score = group.scores.get(model)
    if score is None:
        return None
    if score.withheld:
        return {"text": "withheld", "why": score.withheld, "best": False, "interval": "", "n": ""}
    value = score.values.get(metric.key)
    if value is None:
        return None
    return {
        "text": metric.text(value),
        "why": f"n = {score.n} problems, {score.samples} samples each",
        "best": model in group.best(metric),
        "interval": _interval(score) if metric.key == "pass@1" else "",
        "n": "" if group.problems else f"n {score.n:,} × {score.samples}",
    }


def _interval(score: Score) -> str:
    return text.interval(score.low, score.high) if score.low is not None and score.high is not None else ""


def _overview(table: Table) -> list[figures.Panel]:
    """The main task's scores and lengths as dots, models in chain order."""
    group = table.main()
    if group is None:
        return []
    shown = [(m, group.scores[m]) for m in table.models if m in group.scores and "pass@1" in group.scores[m].values]
    scores = [(text.clean(m), s.values["pass@1"], s.low, s.high) for m, s in shown]
    lengths = [(text.clean(m), s.values["tokens"], None, None) for m, s in shown if "tokens" in s.values]
    task = text.clean(group.task)
    panels = [figures.interval_panel(f"{task}: pass@1 with 95 % interval", scores, "s0", share=True)]
    if lengths:
        panels.append(figures.interval_panel(f"{task}: mean tokens of an answer", lengths, "s1", share=False))
    return panels


def _yield(stage: Stage) -> Yield | None:
    counts = {key: text.finite(stage.metrics.get(key)) for key in ("problems", "sampled", "correct", "kept")}
    sampled, kept, problems, correct = (counts[key] for key in ("sampled", "kept", "problems", "correct"))
    if not sampled or kept is None:
        return None
    dropped = {str(why): int(n) for why, n in mapping(stage.metrics.get("dropped")).items() if text.finite(n)}
    return Yield(
        stage.name,
        None if problems is None else int(problems),
        int(sampled),
        int(kept),
        None if correct is None else int(correct),
        dropped,
        samples_by_reason(stage),
    )


@dataclass(frozen=True)
class Difficulty:
    """How hard the problems of one `pass_rate` stage are."""

    stage: str
    problems: int
    bars: Mapping[str, int]


def _difficulty(stage: Stage) -> Difficulty | None:
    bars = {
        str(name): int(n) for name, n in mapping(stage.metrics.get("histogram")).items() if text.finite(n) is not None
    }
    problems = sum(bars.values())
    return Difficulty(stage.name, problems, bars) if problems else None


def _flat(stage: Stage) -> list[tuple[str, str]]:
    """A stage's plain metrics for people; the scores and accounts have sections of their own."""
    found = []
    for name, value in stage.metrics.items():
        if text.finite(value) is not None:
            found.append((text.clean(name), text.number(float(value))))
        elif isinstance(value, str):
            found.append((text.clean(name), text.clean(text.shorten(value, 200))))
    for task, entry in mapping(stage.metrics.get("held_out")).items():
        score, low, high = (text.finite(mapping(entry).get(name)) for name in ("pass@1", "low", "high"))
        if score is not None and low is not None and high is not None:
            told = f"{score:.1%} [{low:.1%}, {high:.1%}] (n={mapping(entry).get('n')})"
            found.append((text.clean(f"held out: {task}"), text.clean(told)))
    return found


def _as_yaml(value: object) -> str:
    """A config as YAML, in its own order."""
    plain = json.loads(json.dumps(value, default=str))
    return text.clean(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100))
