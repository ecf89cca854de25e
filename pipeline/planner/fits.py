"""Whether the stages of a recipe fit a GPU: what `plan` and `doctor` say of the one that they find."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pipeline.cost import memory
from pipeline.cost.hardware import GPUS, Cluster, Gpu, HardwareError
from pipeline.planner import found, stages, tables
from pipeline.planner.estimate import Estimate, estimate
from pipeline.planner.found import Found
from pipeline.planner.work import Given
from pipeline.recipe import Recipe


def on_this_machine(recipe: Recipe, waiting: Collection[str] | None = None) -> Iterator[tuple[Estimate, str]]:
    """The stages that use a GPU, and what is said of each; nothing where there is no GPU.

    Args:
        recipe: the recipe.
        waiting: stages that are still to run; all if not given.
    """
    if (here := found.gpus()) is None:
        return
    cluster = _cluster(here)
    for work in stages.works(recipe, Given(here.count, here.bytes)):
        if not work.unknown and (waiting is None or work.stage in waiting):
            each = estimate(work, cluster)
            yield each, sentence(each, here)


def step_seconds(recipe: Recipe) -> dict[str, float]:
    """What a step of each stage should take on the GPUs here; empty where there are none whose speed is known."""
    if (here := found.gpus()) is None:
        return {}
    try:
        cluster = here.cluster()
    except HardwareError:
        return {}
    works = stages.works(recipe, Given(here.count, here.bytes))
    return {work.stage: estimate(work, cluster).seconds.get("step", 0.0) for work in works if not work.unknown}


def sentence(each: Estimate, here: Found) -> str:
    """What is said of a stage: how much of the GPU it takes, or that it does not fit, and what would."""
    if (lacking := each.over.get("GPUs")) is not None:
        return f"needs {each.work.gpus} GPUs, and {each.work.gpus - lacking:.0f} are here ({here.name})"
    worst = max(each.memory.values(), key=memory.total)
    told = f"about {tables.gigabytes(memory.total(worst))} of {tables.gigabytes(here.bytes)} GB of {here.name}"
    return f"takes {told}" if each.fits else f"does not fit: {told}. {tables.fitting(each)}"


def _cluster(here: Found) -> Cluster:
    """Memory is all that counts here, so that a GPU of unknown speed will do."""
    try:
        return here.cluster()
    except HardwareError:
        like = GPUS["A100"]
        gpu = Gpu(here.name, like.bf16, 0.0, here.bytes, like.bandwidth, like.link, (0.0, 0.0), "not known")
        return Cluster(here.count, gpu)
