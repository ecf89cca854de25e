"""Training curves: which of a stage's metrics are drawn, and the stages of reinforcement learning on one axis.

Metric names are TRL's own (`completions/mean_length`, …), and `rewards/<part>/score` for the parts of a reward. A stage
of a kind that nobody knows gets its first few series drawn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.records.dead_groups import EQUAL, FAILED
from pipeline.report.figures import Line, Panel, line_panel
from pipeline.report.run_data import Run, Stage, events
from pipeline.report.text import clean, finite, number, percent

ACCURACY = ("rewards/accuracy/score", "rewards/accuracy/mean", "accuracy", "rewards/math/score", "rewards/math/mean")
LENGTH = "completions/mean_length"
FEWEST_POINTS = 2
UNKNOWN_SHOWN = 4  # series of a stage that has none of the known metrics
BESIDES = ("step", "total", "time", "epoch", "learning_rate")


ROUNDING = 1e-5
"""What sums of 32-bit numbers lose: curves that move less, beside 1 or their own size, are constant."""
REWARDS_SHOWN = 6  # lines in one panel: the size of the palette

TROUBLE = {
    FAILED: "all failed",
    EQUAL: "all alike",
    "completions/clipped_ratio": "cut off",
}
TROUBLE_NOTE = (
    "Groups that teach nothing: all rollouts failed, or all scored alike above zero. Completions cut off at the limit."
)
HELD_OUT = "watch/"
HELD_OUT_NOTE = "Problems that are not trained on, before the first step and as training goes on; with 95 % intervals."
TROUBLE_ALONE = {
    FAILED: "Groups in which all failed",
    EQUAL: "Groups that scored alike",
    "completions/clipped_ratio": "Completions cut off",
}
"""The same, as titles of panels of their own."""
PANELS = (
    ("Completion length, tokens", {LENGTH: "length"}, False),
    ("Loss", {"loss": "training", "eval_loss": "held out"}, False),
    ("Token accuracy", {"mean_token_accuracy": "accuracy"}, True),
    ("KL to the reference", {"kl": "KL"}, False),
    ("Entropy, nats a token", {"entropy": "entropy"}, False),
    ("Age of tokens, optimizer steps", {"rollout/staleness": "mean", "rollout/staleness_max": "oldest"}, False),
    ("Effective sample size, share", {"sampling/effective_sample_size": "of importance weights"}, True),
    ("Signs of trouble", TROUBLE, True),
)
"""Title, metric -> label, and whether the values are shares."""


@dataclass(frozen=True)
class StageCurves:
    """The panels of one stage."""

    stage: str
    kind: str
    panels: list[Panel]


Series = dict[str, tuple[list[float], list[float]]]
"""Metric -> (steps, values)."""


def series(stage: Stage) -> Series:
    """Every finite number in the stage's events, by metric."""
    found: Series = {}
    for event in events(stage):
        step = finite(event["step"])
        for name, value in event.items():
            if name not in BESIDES and step is not None and (y := finite(value)) is not None:
                steps, values = found.setdefault(name, ([], []))
                steps.append(step)
                values.append(y)
    return {name: points for name, points in found.items() if len(points[0]) >= FEWEST_POINTS}


def stage_curves(run: Run) -> list[StageCurves]:
    """The curves of every stage that logged any."""
    drawn = []
    for place, stage in enumerate(run.stages.values()):
        panels = list(_panels(series(stage), f"c{place}"))
        if panels:
            drawn.append(StageCurves(stage.name, stage.kind, panels))
    return drawn


def _panels(found: Series, identity: str) -> Iterator[Panel]:
    accuracy = next(({name: "accuracy"} for name in ACCURACY if name in found), {})
    wanted = [("Reward", _rewards(found), False), ("Accuracy while training", accuracy, True), *PANELS]
    if not any(name in found for _, metrics, _ in wanted for name in metrics):
        unknown = [name for name in found if not name.startswith(HELD_OUT)]
        wanted = [(name, {name: name}, False) for name in unknown[:UNKNOWN_SHOWN]]
    if held_out := _held_out(found):
        panel = line_panel("Held-out scores (pass@1)", held_out, f"{identity}-h", share=True)
        yield replace(panel, note=HELD_OUT_NOTE)
    for index, (title, metrics, share) in enumerate(wanted):
        labels = {name: label for name, label in metrics.items() if name in found}
        if labels:
            lines = [Line(clean(label), *found[name], colour) for colour, (name, label) in enumerate(labels.items())]
            panel = _drawn(clean(title), lines, f"{identity}-{index}", share)
            yield replace(panel, note=TROUBLE_NOTE) if metrics is TROUBLE and panel.svg else panel


def _drawn(title: str, lines: Sequence[Line], identity: str, share: bool) -> Panel:
    """The curves; their value in words where none of them is more than rounding away from a constant."""
    if any(max(line.y) - min(line.y) > ROUNDING * max(1.0, *map(abs, line.y)) for line in lines):
        return line_panel(title, lines, identity, share)
    words = [(line.label, _constant(line.y, share)) for line in lines]
    told = words[0][1] if len(words) == 1 else "; ".join(f"{label} {value}" for label, value in words)
    return Panel(title, "", f"{told} in all logged steps")


def _constant(values: Sequence[float], share: bool) -> str:
    middle = (max(values) + min(values)) / 2
    rounded = 0.0 if abs(middle) <= ROUNDING else middle
    return f"{percent(rounded)} %" if share else number(rounded)


def _held_out(found: Series) -> list[Line]:
    """The score of each task that a stage's `watch` names, with its interval."""
    ending, lines = "/pass@1", list[Line]()
    for name in [name for name in found if name.startswith(HELD_OUT) and name.endswith(ending)][:REWARDS_SHOWN]:
        (steps, values), task = found[name], name.removesuffix(ending)
        low, high = (found.get(f"{task}/{bound}", ((), ()))[1] for bound in ("low", "high"))
        whole = len(low) == len(high) == len(values)
        bounds = (low, high) if whole else ((), ())
        lines.append(Line(clean(task.removeprefix(HELD_OUT)), steps, values, len(lines), *bounds))
    return lines


def _rewards(found: Series) -> dict[str, str]:
    """The whole reward, and its parts if there are several."""
    parts: dict[str, str] = {}
    for ending in ("score", "mean"):
        matches = [match for name in found if (match := re.fullmatch(rf"rewards/(.+)/{ending}", name))]
        parts = parts or {match[0]: match[1] for match in matches}
    whole = {"reward": "reward"} if "reward" in found else {}
    return dict(list({**whole, **(parts if len(parts) > 1 or not whole else {})}.items())[:REWARDS_SHOWN])


def overlay(run: Run) -> list[Panel]:
    """Accuracy and length of all stages of reinforcement learning on one axis, as in the paper's figure of R1-Zero."""
    found = {stage.name: series(stage) for stage in run.stages.values() if stage.kind == "grpo"}
    panels: list[Panel] = []
    for title, names, share in (
        ("Accuracy while training", ACCURACY, True),
        ("Mean length of a completion, tokens", (LENGTH,), False),
    ):
        lines = _across(found, names)
        if lines:
            panels.append(line_panel(title, lines, f"o{len(panels)}", share, size=(440, 270)))
    return panels


def compared(runs: Sequence[tuple[str, Run]]) -> list[StageCurves]:
    """The curves of several runs over each other: a panel for every metric that at least two runs have of a stage."""
    drawn: list[StageCurves] = []
    for name in dict.fromkeys(stage for _, run in runs for stage in run.stages):
        found = {label: series(run.stages[name]) for label, run in runs if name in run.stages}
        kind = next(run.stages[name].kind for _, run in runs if name in run.stages)
        panels = list(_compared(found, f"x{len(drawn)}"))
        if panels:
            drawn.append(StageCurves(name, kind, panels))
    return drawn


def _compared(found: Mapping[str, Series], identity: str) -> Iterator[Panel]:
    wanted = [
        ("Reward", ("reward",), False),
        ("Accuracy while training", ACCURACY, True),
        *((title, tuple(metrics)[:1], share) for title, metrics, share in PANELS if metrics is not TROUBLE),
        *((title, (name,), True) for name, title in TROUBLE_ALONE.items()),
    ]
    for index, (title, names, share) in enumerate(wanted):
        lines = []
        for colour, (label, metrics) in enumerate(found.items()):
            metric = next((name for name in names if name in metrics), None)
            if metric is not None:
                lines.append(Line(clean(label), *metrics[metric], colour))
        if len(lines) > 1:
            yield _drawn(title, lines, f"{identity}-{index}", share)


def _across(found: dict[str, Series], names: Sequence[str]) -> list[Line]:
    lines: list[Line] = []
    for colour, (stage, metrics) in enumerate(found.items()):
        metric: Any = next((name for name in names if name in metrics), None)
        if metric is not None:
            lines.append(Line(clean(stage), *metrics[metric], colour))
    return lines
