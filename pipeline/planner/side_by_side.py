"""How long a recipe takes where several of its stages run at once."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from pipeline.checks.whole_recipe import references
from pipeline.planner.estimate import Estimate
from pipeline.recipe import Recipe


def seconds(found: Sequence[Estimate], recipe: Recipe, gpus: int) -> float:
    """Seconds from the first stage's start to the last one's end, with `jobs` stages at once on so many GPUs.

    As the scheduler does it: of the stages whose inputs are there, the first of the recipe whose GPUs are free starts.
    Stages that are not planned take no time here.
    """
    took = {each.work.stage: each.whole for each in found}
    wanted = {each.work.stage: min(each.work.gpus, gpus) for each in found if not each.work.unknown}
    waits = {
        name: {target for _, target, _ in references(config)} | set(config.after)
        for name, config in recipe.stages.items()
    }
    running: list[tuple[float, str]] = []
    done, waiting, free, now = set[str](), list(recipe.stages), gpus, 0.0
    while waiting or running:
        ready = [name for name in waiting if waits[name] <= done and wanted.get(name, 0) <= free]
        if ready and len(running) < recipe.jobs:
            name = ready[0]
            waiting.remove(name)
            free -= wanted.get(name, 0)
            heapq.heappush(running, (now + took.get(name, 0.0), name))
        else:
            now, name = heapq.heappop(running)
            done.add(name)
            free += wanted.get(name, 0)
    return now
