"""Stages that have run: how long their answers were, and how many were kept. A plan takes that where it would assume.

The stages of another run count for those of the same name and kind: `plan --cost --like runs/smaller`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.artifacts import Artifact
from pipeline.files.rows import whole_row
from pipeline.recipe import Recipe

EVENTS = "events.jsonl"
LENGTH = "completions/mean_length"
"""What trainers that sample log of each step."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a stage that has run says.

    Attributes:
        source: which it is, such as `runs/x@zero`.
        completion: tokens of a completion, on average; `None` where it sampled none.
        kept: rows that it published of a problem, on average (rejection sampling).
        kept_tokens: tokens of a completion among those.
    """

    source: str
    completion: float | None = None
    kept: float | None = None
    kept_tokens: float | None = None


def of(recipe: Recipe, finished: Mapping[str, Artifact | None], run: Path) -> dict[str, Earlier]:
    """The finished stages of a run that say something of stages of a recipe.

    Args:
        recipe: what is planned.
        finished: stages of the run -> their artifacts; `None` where there is none.
        run: its folder.
    """
    found = {}
    for name, artifact in finished.items():
        config = recipe.stages.get(name)
        if artifact is None or config is None or artifact.manifest.get("kind") != config.kind:
            continue
        told = _told(artifact, f"{run}@{name}")
        if told.completion is not None or told.kept is not None:
            found[name] = told
    return found


def _told(artifact: Artifact, source: str) -> Earlier:
    metrics = artifact.manifest.get("metrics")
    told: Mapping[str, Any] = metrics if isinstance(metrics, Mapping) else {}
    match artifact.manifest.get("kind"):
        case "grpo" | "distill":
            lengths = list(_lengths(artifact.path / EVENTS))
            return Earlier(source, fmean(lengths) if lengths else None)
        case "evaluate":
            scores = told.get("scores", {}).values()
            lengths = [each["tokens"] for tasks in scores for each in tasks.values() if _positive(each.get("tokens"))]
            return Earlier(source, fmean(lengths) if lengths else None)
        case "rejection_sample":
            problems, kept = told.get("problems"), told.get("kept")
            of_kept = told.get("tokens") if _positive(told.get("tokens")) else None
            length = told.get("sampled_tokens", of_kept)
            return Earlier(source, length, kept / problems if problems and kept else None, of_kept)
        case "pass_rate":
            return Earlier(source, told.get("tokens") if _positive(told.get("tokens")) else None)
    return Earlier(source)


def _lengths(events: Path) -> Iterator[float]:
    """The mean lengths of the steps; none where the file is missing."""
    if events.is_file():
        with events.open("rb") as lines:
            for line in lines:
                length = (whole_row(line) or {}).get(LENGTH)
                if isinstance(length, int | float) and length > 0:
                    yield length


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and value > 0
