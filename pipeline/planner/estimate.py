"""What a stage takes on a kind of GPU: operations, memory by part, seconds, money; and what would make it fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pipeline.cost import flops, memory, speed
from pipeline.cost.hardware import Cluster
from pipeline.cost.shape import Shape
from pipeline.cost.speed import Passes, Sampling, Speed
from pipeline.planner.held import SHARE, held_by, least_share, share
from pipeline.planner.remedy import remedy
from pipeline.planner.work import Engine, Training, Work


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a stage takes.

    Attributes:
        work: the stage.
        operations: model FLOPs by phase, of the whole stage.
        tokens: tokens trained on, or sampled where nothing is trained, of the whole stage.
        memory: a GPU's role -> bytes by part.
        seconds: by part of a step, or of the stage where it only samples; `step` is what a step takes.
        watching: seconds of a look at held-out problems.
        writing: seconds of a checkpoint.
        whole: seconds of the whole stage, its start included.
        over: a GPU's role -> bytes beyond what it has.
        remedy: settings that make it fit, the smallest change first; empty where it fits, or nothing does.
    """

    work: Work
    operations: Mapping[str, float] = field(default_factory=dict)
    tokens: float = 0.0
    memory: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    watching: float = 0.0
    writing: float = 0.0
    whole: float = 0.0
    over: Mapping[str, float] = field(default_factory=dict)
    remedy: tuple[str, ...] = ()

    @property
    def gpu_hours(self) -> float:
        """Hours of all GPUs that it uses."""
        return self.whole * self.work.gpus / 3600

    @property
    def fits(self) -> bool:
        """Whether every GPU has the memory for it."""
        return not self.over

    @property
    def peak(self) -> float:
        """Bytes of the GPU that has most to hold."""
        return max((memory.total(parts) for parts in self.memory.values()), default=0.0)


def estimate(work: Work, cluster: Cluster, rates: Speed = speed.MEASURED) -> Estimate:
    """What a stage takes on these GPUs."""
    if work.unknown:
        return Estimate(work)
    held = held_by(work, cluster)
    over = {role: memory.total(parts) - cluster.gpu.bytes for role, parts in held.items()}
    over = {role: bytes_over for role, bytes_over in over.items() if bytes_over > 0}
    if (needed := least_share(work, cluster)) is not None and work.engine is not None and work.engine.share < needed:
        over[SHARE] = (needed - work.engine.share) * cluster.gpu.bytes
    if work.gpus > cluster.count:
        over["GPUs"] = float(work.gpus - cluster.count)
    parts = seconds_of(work, cluster, rates)
    eager = work.engine is not None and work.engine.eager
    begun = rates.warm_s if work.warm else rates.start_s
    begun += work.engines_started * (rates.eager_engine_s if eager else rates.engine_s)
    look = _look(work, cluster, rates)
    looks = 0 if work.watching is None else work.watching.looks
    write = 0.0
    if work.training is not None:
        write = speed.writing(work.models[0], work.training.setup.adapter_rank, rates)
    whole = begun + work.steps * parts["step"] + looks * look + work.saves * write
    found = Estimate(work, operations_of(work), _tokens(work), held, parts, look, write, whole, over)
    return found if found.fits else replace(found, remedy=tuple(remedy(work, cluster)))


def _tokens(work: Work) -> float:
    if work.training is not None:
        return work.steps * work.training.rows * work.training.length
    return len(work.models) * work.sampling.tokens if work.sampling is not None else 0.0


def operations_of(work: Work) -> dict[str, float]:
    """Model FLOPs of a whole stage by phase; recomputation and padding are not counted."""
    found: dict[str, float] = {}
    if work.sampling is not None:
        found["sampling"] = work.steps * sum(_sampled(shape, work.sampling) for shape in work.models)
    if (training := work.training) is not None:
        shape = work.models[0]
        length = max(1, round(training.length))
        rows = work.steps * training.rows
        one = flops.forward(shape, length, mtp=training.mtp)
        if work.scored:
            found["scoring"] = work.scored * rows * flops.forward(work.teacher or shape, length).total
        found["training"] = flops.passes(training.setup.adapter_rank is not None) * rows * one.total
    if work.watching is not None:
        found["watching"] = work.watching.looks * _sampled(work.models[0], work.watching.sampling)
    return found


def _sampled(shape: Shape, sampling: Sampling) -> float:
    """Operations of completions, whose prompts are read once a group."""
    prompt, completion = round(sampling.prompt), max(1, round(sampling.completion))
    one = flops.forward(shape, completion, before=prompt)
    one += flops.forward(shape, max(1, prompt), scored=1) * (1 / sampling.group)
    return sampling.rollouts * one.total


def seconds_of(work: Work, cluster: Cluster, rates: Speed) -> dict[str, float]:
    """Seconds by part of a step, or of all sampling of a stage that trains nothing."""
    gpu, parts = cluster.gpu, dict[str, float]()
    if work.sampling is not None and work.engine is not None:
        each = work.engine
        parts["sampling"] = sum(_sampling_s(shape, each, work.sampling, cluster, rates) for shape in work.models)
    if work.training is None:
        return {**parts, "step": rates.rest * sum(parts.values())}
    shape = work.models[0]
    forward, backward = _passes(work, work.training, shape).seconds(shape, gpu, rates)
    if work.scored:
        ratio = 1.0
        if work.teacher is not None:
            ratio = flops.a_token(work.teacher, 1024).total / flops.a_token(shape, 1024).total
        parts["scoring"] = work.scored * ratio * forward
    parts |= {"forward": forward, "backward": backward}
    if work.engine is not None and work.engine.kind != "transformers":
        parts["push"] = speed.pushing(shape, rates)
    training = sum(parts[name] for name in parts if name != "sampling")
    sampling = parts.get("sampling", 0.0)
    overlapped = work.engine is not None and work.engine.overlap
    return {**parts, "step": rates.rest * (max(sampling, training) if overlapped else sampling + training)}


def _sampling_s(shape: Shape, engine: Engine, sampling: Sampling, cluster: Cluster, rates: Speed) -> float:
    if engine.kind == "transformers":
        return speed.by_transformers(shape, cluster.gpu, sampling, rates, engine.batch)
    parallel = engine.engines, engine.tensor, engine.fast_path, engine.eager
    return speed.generation(shape, cluster.gpu, sampling, rates, *parallel)


def _look(work: Work, cluster: Cluster, rates: Speed) -> float:
    """Seconds of a look at held-out problems."""
    if (watching := work.watching) is None:
        return 0.0
    shape, sampling = work.models[0], watching.sampling
    if watching.batch is None and work.engine is not None:
        return rates.rest * _sampling_s(shape, work.engine, sampling, cluster, rates)
    own = replace(sampling, rollouts=share(watching, work))
    return rates.rest * speed.by_transformers(shape, cluster.gpu, own, rates, watching.batch or own.rollouts)


def _passes(work: Work, training: Training, shape: Shape) -> Passes:
    """The passes of one of the trainer's GPUs."""
    setup, rows = training.setup, training.rows / work.trainers
    if work.sampling is not None:
        share = replace(work.sampling, rollouts=max(1, round(rows)))
        operations = speed.rows(shape, share, training.padded_to)
        tokens = share.all_tokens
    else:
        length = max(1, round(training.padded_to or training.length))
        operations = rows * flops.forward(shape, length, mtp=training.mtp).total
        tokens = rows * length
    packed = training.padded_to is None
    passes = max(training.micro_batches, speed.passes_of(tokens, setup.tokens) if packed else 1)
    whole = memory.stored(shape, setup.base if setup.adapter_rank is not None else "bfloat16")
    gathered = whole if setup.ranks > 1 else 0.0
    frozen = setup.adapter_rank is not None
    return Passes(operations, passes, setup.checkpointing, not packed, gathered, training.fp8, frozen, training.mtp)
