"""The part of a page that shows the published runs of a chain: `benchmarks.chain` writes it between its markers.

In this order: scores by protocol, what is missing, the shape of answers, curves, the health of training, time, one
problem of each task as all models answered it, and what has to be known to repeat it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

NOTHING = "No run of this recipe has been published yet."
LONGEST = 600
"""Characters that are shown of an answer; a longer one is shortened in the middle."""
POINTS = 5
"""Parts of a stage's steps whose means stand for a curve."""
PACKAGES = ("python", "torch", "transformers", "trl", "vllm", "zero2r1")

Run = Mapping[str, Any]
Entries = Mapping[str, Mapping[str, Any]]
"""Model -> task -> its scores."""


def page(runs: Sequence[Run]) -> str:
    """The tables of all runs of a recipe: scores by protocol, and where the time went."""
    if not runs:
        return NOTHING
    parts = list(_protocols(runs))
    parts += [*_missing(runs), *_shapes(runs), *curves(runs), *_health(runs), _times(runs)]
    return "\n\n".join([*parts, *_samples(runs), _repeat(runs)])


def _protocols(runs: Sequence[Run]) -> Iterator[str]:
    """A table of scores for each way of sampling that any run has; runs that are not finished may lack some."""
    found: dict[str, dict[int, Entries]] = {}
    names: dict[str, str] = {}
    for at, run in enumerate(runs):
        first = {"": {"sampling": run["sampling"], "table": run["table"]}}
        for name, one in (first | run["protocols"]).items():
            if one["table"]:
                key = json.dumps(one["sampling"], sort_keys=True)
                found.setdefault(key, {})[at] = one["table"]
                names.setdefault(key, f" (`{name}`)" if name else "")
    for key, tables in found.items():
        yield _scores(runs, f"{_told(json.loads(key))}{names[key]}", [tables.get(at, {}) for at in range(len(runs))])


def _missing(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        if run["missing"]:
            yield f"Seed {run['seed']} is not finished. Missing: {', '.join(f'`{name}`' for name in run['missing'])}."


def _told(sampling: Mapping[str, Any]) -> str:
    samples = sampling.get("samples", 1)
    many = f"{samples} samples a problem" if samples > 1 else "one sample a problem"
    greedy = not sampling.get("temperature")
    how = "greedy" if greedy else f"temperature {sampling['temperature']}, top-p {sampling['top_p']}"
    return f"{how}, {many}, at most {sampling['max_tokens']:,} tokens"


def _scores(runs: Sequence[Run], told: str, tables: Sequence[Entries]) -> str:
    models = list(dict.fromkeys(model for table in tables for model in table))
    tasks = list(dict.fromkeys(task for table in tables for scores in table.values() for task in scores))
    heads, rows = ["model"], [[model] for model in models]
    for task in tasks:
        sizes = {entry["n"] for table in tables for scores in table.values() if (entry := scores.get(task))}
        for at, (run, table) in enumerate(zip(runs, tables, strict=True)):
            seed = f"seed {run['seed']}"
            n = ", ".join(f"{size:,}" for size in sorted(sizes))
            heads.append(f"{task} (n = {n}), {seed}" if at == 0 else seed)
            for row in rows:
                row.append(_score(table.get(row[0], {}).get(task)))
    return f"pass@1 in percent with its 95 % interval; {told}:\n\n{_markdown(heads, rows)}"


def _score(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    return f"{100 * entry['pass@1']:.1f} [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"


SHAPES = {"format": "a thought, then an answer", "language": "language", "truncated": "cut off", "tokens": "tokens"}
"""What is shown of answers beside their scores, and how it is called."""


def _shapes(runs: Sequence[Run]) -> Iterator[str]:
    """Format, language and length of the answers, a table for each task: means over seeds."""
    tables = [run["table"] for run in runs]
    for task in dict.fromkeys(task for table in tables for scores in table.values() for task in scores):
        rows = []
        for model in dict.fromkeys(model for table in tables for model in table):
            entries = [entry for table in tables if (entry := table.get(model, {}).get(task))]
            values = {key: [entry[key] for entry in entries if entry.get(key) is not None] for key in SHAPES}
            shares = [f"{100 * fmean(values[key]):.1f} %" if values[key] else "" for key in SHAPES if key != "tokens"]
            rows.append([model, *shares, f"{fmean(values['tokens']):.0f}" if values["tokens"] else ""])
        yield f"The same answers to {task}, as means over seeds:\n\n{_markdown(['model', *SHAPES.values()], rows)}"


CURVES = {"reward": "reward", "rewards/accuracy/score": "accuracy", "completions/mean_length": "tokens of a completion"}
"""Metrics of reinforcement learning whose curves are shown, and what they are called."""


def curves(runs: Sequence[Run]) -> Iterator[str]:
    """The course of each stage of reinforcement learning."""
    rows = []
    for stage in dict.fromkeys(stage for run in runs for stage in run["curves"]):
        for run in runs:
            logged = run["curves"].get(stage, {})
            if logged.keys() & CURVES:
                rows.append([f"`{stage}`", str(run["seed"]), *(_points(logged.get(metric)) for metric in CURVES)])
    if rows:
        heads = ["stage", "seed", *CURVES.values()]
        yield f"Curves, as means over each fifth of a stage's steps:\n\n{_markdown(heads, rows)}"


def _points(values: Sequence[float] | None) -> str:
    if not values:
        return ""
    bounds = [round(part * len(values) / POINTS) for part in range(POINTS + 1)]
    parts = [values[start:end] for start, end in pairwise(bounds) if end > start]
    return " → ".join(f"{fmean(part):.3g}" for part in parts)


HEALTH = {
    "sampling/sampling_logp_difference/mean": "log-probabilities, engine against trainer",
    "routing/max_violation": "load of the busiest expert above the mean",
}
"""Curves whose course is shown for each stage, and what they are called."""


def _health(runs: Sequence[Run]) -> Iterator[str]:
    """How engine and trainer agreed and how even the experts' load was: the ends of each curve, and its worst value."""
    known = [stage for run in runs for stage, curves in run["curves"].items() if HEALTH.keys() & curves]
    stages = list(dict.fromkeys(known))
    if not stages:
        return
    heads, rows = ["stage"], [[f"`{stage}`"] for stage in stages]
    for metric, told in HEALTH.items():
        for at, run in enumerate(runs):
            heads.append(f"{told}, seed {run['seed']}" if at == 0 else f"seed {run['seed']}")
            for stage, row in zip(stages, rows, strict=True):
                row.append(_course(run["curves"].get(stage, {}).get(metric)))
    yield f"Over the steps of each training stage, first → last (worst):\n\n{_markdown(heads, rows)}"


def _course(values: Sequence[float] | None) -> str:
    return f"{values[0]:.3g} → {values[-1]:.3g} ({max(values):.3g})" if values else ""


def _times(runs: Sequence[Run]) -> str:
    heads = ["stage", "kind", *(f"minutes, seed {run['seed']}" for run in runs), "GPU-minutes"]
    stages = list(dict.fromkeys(stage for run in runs for stage in run["minutes"]))
    rows = []
    for stage in stages:
        kind = next(run["kinds"][stage] for run in runs if stage in run["kinds"])
        gpu = [f"{run['gpu_minutes'][stage]:.1f}" for run in runs if stage in run["gpu_minutes"]]
        took = [f"{run['minutes'][stage]:.1f}" if stage in run["minutes"] else "" for run in runs]
        rows.append([f"`{stage}`", kind, *took, ", ".join(gpu)])
    walls = [f"{run['wall_minutes']:.1f}" for run in runs]
    totals = [f"{sum(run['gpu_minutes'].values()):.1f}" for run in runs if run["gpu_minutes"]]
    rows.append(["first start to last end", "", *walls, ", ".join(totals)])
    devices = " and ".join(dict.fromkeys(run["device"] for run in runs))
    return f"Time, on {devices}:\n\n{_markdown(heads, rows)}"


def _samples(runs: Sequence[Run]) -> Iterator[str]:
    """A problem of each task as all models answered it, from the first run that shows any."""
    shown = next((run["samples"] for run in runs if run["samples"]), [])
    first = {sample["task"]: sample for sample in reversed(shown)}
    for task in dict.fromkeys(sample["task"] for sample in shown):
        sample = first[task]
        said = [
            f"{model}: {answer['status']}\n" + "".join(f"    {line}\n" for line in _brief(answer["completion"]))
            for model, answer in sample["answers"].items()
        ]
        gold = f", whose answer is {sample['answer']}" if isinstance(sample["answer"], str | int | float) else ""
        question = "".join(f"{line}\n" for line in sample["question"].strip().splitlines())
        yield f"One problem of {task}{gold}, through all models:\n\n```text\n{question}\n{''.join(said)}```"


def _brief(text: str) -> list[str]:
    half = LONGEST // 2
    return (text if len(text) <= LONGEST else f"{text[:half]} […] {text[-half:]}").strip().splitlines() or ["(nothing)"]


def _repeat(runs: Sequence[Run]) -> str:
    """The commands, and the versions of what they ran on."""
    commands = "\n".join(run["command"] for run in runs)
    versions = {
        ", ".join(f"{name} {run['packages'][name]}" for name in PACKAGES if name in run["packages"]): None
        for run in runs
    }
    return f"```sh\n{commands}\n```\n\nVersions: {'; '.join(versions)}."


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows))
