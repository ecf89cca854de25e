"""What `watch` takes: the model answers held-out problems before, while and after it trains."""

from __future__ import annotations

from math import inf
from typing import Any

from pipeline.cost.bill import Assumption
from pipeline.planner import counts
from pipeline.planner.work import Given, Watching, Work
from pipeline.recipe import Recipe
from pipeline.training.held_out.fields import MAX_TOKENS, WatchSpec


def watching_of(
    config: Any, work: Work, recipe: Recipe, given: Given
) -> tuple[Watching | None, tuple[Assumption, ...]]:
    """The looks of a stage at held-out problems, and what was assumed of them.

    Args:
        config: the stage's.
        work: the stage without them.
        recipe: whose stage it is.
        given: what the command line says.
    """
    spec: WatchSpec | None = getattr(config, "watch", None)
    if spec is None:
        return None, ()
    rollout = getattr(config, "rollout", None)
    longest = spec.max_tokens or (MAX_TOKENS if rollout is None else rollout.max_tokens)
    found = [counts.problems(task, recipe) for task in spec.tasks]
    problems = [round(min(each.number, spec.problems or inf)) for each in found]
    engine = work.kind == "grpo" and work.engine is not None and work.engine.kind != "transformers"
    looks = 1 + work.steps // spec.every + (work.steps % spec.every > 0)
    sampling = given.sampling(work.stage, sum(problems) * spec.samples, spec.samples, longest)
    sources = "; ".join(each.source for each in found)
    told = Assumption("held-out problems", f"{sum(problems):,}, {looks:,} times", sources)
    return Watching(looks, sampling, None if engine else spec.batch_size), (told,)
