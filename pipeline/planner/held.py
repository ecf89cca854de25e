"""What the GPUs of a stage hold, by what they do and by part."""

from __future__ import annotations

import math

from pipeline.cost import memory
from pipeline.cost.hardware import Cluster
from pipeline.cost.shape import Shape
from pipeline.planner.work import Engine, Watching, Work

TRAINER, ENGINE, SAMPLING, WATCHING, SHARE = "trainer", "engine", "sampling", "watching", "engine's share"
"""Where memory may be too small: a GPU by what it does, and the part of it that vLLM is given."""
LEAST_SHARE, SHARE_STEP = 0.05, 0.05


def held_by(work: Work, cluster: Cluster) -> dict[str, dict[str, float]]:
    """A GPU's role -> bytes by part."""
    found: dict[str, dict[str, float]] = {}
    largest = max(work.models, key=lambda shape: shape.parameters.total)
    if work.training is not None:
        found[TRAINER] = memory.training(work.models[0], work.training.setup)
        if work.teacher is not None:
            found[TRAINER]["teacher"] = memory.stored(work.teacher, "bfloat16") / work.training.setup.ranks
    if work.judges:
        judging = sum(memory.stored(shape, "bfloat16") for shape in work.judges)
        found.setdefault(TRAINER if work.training is not None else ENGINE, {})["reward models"] = judging
    if (engine := work.engine) is not None and engine.kind != "vllm_server":
        role = TRAINER if engine.beside else ENGINE
        if engine.beside and engine.sleeps and work.training is not None:  # one after the other, not both at once
            role, found[SAMPLING] = SAMPLING, memory.resident(found[TRAINER])
        found.setdefault(role, {}).update(_engine_bytes(work, engine, largest, cluster))
        if not engine.beside:
            found[role]["context"] = memory.CONTEXT_BYTES
    if (watching := work.watching) is not None and watching.batch is not None:  # between two steps
        row = memory.kv_cache_bytes(work.models[0]) * (watching.sampling.prompt + watching.sampling.longest)
        cache = row * min(watching.batch, share(watching, work))
        found[WATCHING] = {**memory.resident(found[TRAINER]), "watching cache": cache}
    return found


def share(watching: Watching, work: Work) -> int:
    """Completions of a look that each of the trainer's GPUs samples."""
    return math.ceil(watching.sampling.rollouts / work.trainers)


def _engine_bytes(work: Work, engine: Engine, shape: Shape, cluster: Cluster) -> dict[str, float]:
    sampling = work.sampling
    assert sampling is not None
    row = _longest_row(work, engine, shape)
    if engine.kind == "transformers":
        own = {} if engine.beside else {"engine weights": memory.stored(shape, "bfloat16")}
        return {**own, "engine cache": row * min(engine.batch, sampling.rollouts)}
    parts = memory.engine(shape, engine.share, cluster.gpu.bytes, engine.base, engine.tensor)
    if engine.cache is not None:
        parts["engine cache"] = engine.cache
    parts["engine cache"] = max(parts["engine cache"], row / engine.tensor)  # vLLM wants room for the longest row
    return parts


def _longest_row(work: Work, engine: Engine, shape: Shape) -> float:
    """Bytes of the cache of the longest prompt and completion."""
    assert work.sampling is not None
    longest = work.sampling.longest
    if work.watching is not None and work.watching.batch is None:
        longest = max(longest, work.watching.sampling.longest)
    return memory.kv_cache_bytes(shape, engine.cache_bits) * (work.sampling.prompt + longest)


def least_share(work: Work, cluster: Cluster) -> float | None:
    """The least `rollout.gpu_memory` that holds the weights and the longest row, in steps; `None` without vLLM."""
    if work.engine is None or work.engine.kind != "vllm":
        return None
    engine = work.engine
    held = [memory.stored(shape, engine.base) + _longest_row(work, engine, shape) for shape in work.models]
    needed = max(held) / engine.tensor
    return round(max(LEAST_SHARE, math.ceil(needed / cluster.gpu.bytes / SHARE_STEP) * SHARE_STEP), 2)
