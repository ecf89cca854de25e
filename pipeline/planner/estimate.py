"""What a stage takes on a kind of GPU: operations, memory by part, seconds, money; and what would make it fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.cost import flops, memory, speed
from pipeline.cost.hardware import Cluster
from pipeline.cost.shape import Shape
from pipeline.cost.speed import Passes, Sampling, Speed
from pipeline.planner.work import Engine, Training, Watching, Work

LEAST_TOKENS = 1024
"""A pass is made no smaller to save memory: it would only launch kernels."""
LEAST_SHARE, SHARE_STEP = 0.05, 0.05
ADAPTER, ADAPTER_RANK = "adapter.rank", 32
ADAPTED: Sequence[tuple[str, memory.Base]] = (("", "bfloat16"), (" {}.adapter.quantize=4bit", "nf4"))
"""What is said of an adapter's base, the stage's place in a recipe to be put in, and what it is held in."""
TRAINER, ENGINE, SAMPLING, WATCHING, SHARE = "trainer", "engine", "sampling", "watching", "engine's share"
"""Where memory may be too small: a GPU by what it does, and the part of it that vLLM is given."""


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
    begun = rates.start_s + rates.engine_s * work.engines_started
    look = _look(work, cluster, rates)
    looks = 0 if work.watching is None else work.watching.looks
    whole = begun + work.steps * parts["step"] + looks * look
    found = Estimate(work, operations_of(work), _tokens(work), held, parts, look, whole, over)
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
        cache = row * min(watching.batch, _share(watching, work))
        found[WATCHING] = {**memory.resident(found[TRAINER]), "watching cache": cache}
    return found


def _share(watching: Watching, work: Work) -> int:
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
    parallel = engine.engines, engine.tensor, engine.fast_path
    return speed.generation(shape, cluster.gpu, sampling, rates, *parallel)


def _look(work: Work, cluster: Cluster, rates: Speed) -> float:
    """Seconds of a look at held-out problems."""
    if (watching := work.watching) is None:
        return 0.0
    shape, sampling = work.models[0], watching.sampling
    if watching.batch is None and work.engine is not None:
        return rates.rest * _sampling_s(shape, work.engine, sampling, cluster, rates)
    own = replace(sampling, rollouts=_share(watching, work))
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
    return Passes(operations, passes, setup.checkpointing, not packed, gathered, training.fp8, frozen)


Change = tuple[str, Work]
"""A setting, as it is written in a recipe, and the work with it."""


def remedy(work: Work, cluster: Cluster) -> Iterator[str]:
    """The smallest change that makes a stage fit: a single setting if one does, else as many in turn as are needed."""
    if work.gpus > cluster.count:
        yield f"{work.gpus} GPUs: the stage names more than the {cluster.count} that are there"
        return
    for setting, changed in _changes(work, cluster):
        if _fits(changed, cluster):
            yield setting
            return
    alone: tuple[dict[str, str], Work] | None = None
    for adapted in (False, True):
        together, current = _together(work, cluster, adapted)
        if _fits(current, cluster):
            yield from together.values()
            return
        alone = alone or (together, current)
    assert alone is not None
    if (number := _fewest(alone[1], cluster)) is not None:
        yield from alone[0].values()
        yield f"{'and ' if alone[0] else ''}{number} GPUs of this kind, with launch.accelerate=fsdp2-1node"


def _together(work: Work, cluster: Cluster, adapted: bool) -> tuple[dict[str, str], Work]:
    """Changes one upon the other until the stage fits, less those that it fits without: setting -> change, the work."""
    keys: list[str] = []
    done, current = _applied(work, cluster, keys)
    while not _fits(current, cluster):
        changes = (_key(change) for change in _changes(current, cluster))
        key = next((key for key in changes if key not in keys and (adapted or not key.endswith(ADAPTER))), None)
        if key is None:
            return done, current
        keys.append(key)
        done, current = _applied(work, cluster, keys)
    for key in tuple(keys):
        rest = [other for other in keys if other != key]
        fewer, lighter = _applied(work, cluster, rest)
        if _fits(lighter, cluster):
            keys, done, current = rest, fewer, lighter
    return done, current


def _applied(work: Work, cluster: Cluster, keys: Sequence[str]) -> tuple[dict[str, str], Work]:
    """Of each of these settings the change that saves most, one upon the other."""
    done: dict[str, str] = {}
    for key in keys:
        for change in [change for change in _changes(work, cluster) if _key(change) == key][-1:]:
            done[key], work = change
    return done, work


def _key(change: Change) -> str:
    return change[0].split("=")[0]


def _fits(work: Work, cluster: Cluster) -> bool:
    needed = least_share(work, cluster)
    short = needed is not None and work.engine is not None and work.engine.share < needed
    return not short and all(memory.total(parts) <= cluster.gpu.bytes for parts in held_by(work, cluster).values())


def _changes(work: Work, cluster: Cluster) -> Iterator[Change]:
    """Changes of a stage that save memory, the smallest first: those that change no result before those that do."""
    training, engine = work.training, work.engine
    key = f"stages.{work.stage}"
    if engine is not None and engine.kind == "vllm":
        yield from _other_share(work, engine, cluster)
    if training is not None:
        yield from _smaller_passes(work, training)
        if not training.setup.checkpointing:
            setup = replace(training.setup, checkpointing=True)
            yield f"{key}.trainer.gradient_checkpointing=true", replace(work, training=replace(training, setup=setup))
        if (watching := work.watching) is not None and (batch := watching.batch) is not None:
            while (batch := batch // 2) > 0:
                fewer = replace(work, watching=replace(watching, batch=batch))
                yield f"{key}.watch.batch_size={batch}", fewer
        if training.setup.ranks == 1 and cluster.count > 1 and training.setup.base in ("float32", "bfloat16"):
            yield f"{key}.launch.accelerate=fsdp2-1node", _divided(work, training, cluster.count)
        if engine is not None and engine.beside and training.setup.ranks == 1 and cluster.count > 1:
            apart = replace(work, gpus=2, engine=replace(engine, beside=False, engines=1))
            yield f"{key}.rollout.process.devices=[1] {key}.launch.gpus=2", apart
        if training.setup.adapter_rank is None and work.adapts:
            for quantize, base in ADAPTED:
                setup = replace(training.setup, adapter_rank=ADAPTER_RANK, base=base)
                changed = replace(work, training=replace(training, setup=setup))
                yield f"{key}.{ADAPTER}={ADAPTER_RANK}{quantize.format(key)}", changed


def _other_share(work: Work, engine: Engine, cluster: Cluster) -> Iterator[Change]:
    """Another share of the GPU for vLLM: the nearest with which everything fits, or the least that it can do with."""
    least = least_share(work, cluster)
    if least is None or least > 1:
        return
    shares = [least] if engine.share < least else []
    share = engine.share
    while (share := round(share - SHARE_STEP, 2)) >= least:
        shares.append(share)
    changes = [
        (f"stages.{work.stage}.rollout.gpu_memory={each:g}", replace(work, engine=replace(engine, share=each)))
        for each in shares
    ]
    fitting = next((change for change in changes if _fits(change[1], cluster)), None)
    if fitting is not None:
        yield fitting
    elif changes:
        yield changes[-1]


def _smaller_passes(work: Work, training: Training) -> Iterator[Change]:
    """Fewer tokens a pass; a step keeps its rows, which come in more passes."""
    setup, key = training.setup, f"stages.{work.stage}"
    if work.kind == "grpo" and training.padded_to is None and work.sampling is not None:
        least = max(LEAST_TOKENS, round(work.sampling.prompt) + work.sampling.longest)
        tokens = setup.tokens
        while tokens // 2 >= least:
            tokens //= 2
            changed = replace(work, training=replace(training, setup=replace(setup, tokens=tokens)))
            yield f"{key}.efficiency.tokens_per_pass={tokens}", changed
        return
    rows = training.rows // work.trainers // training.micro_batches
    if rows > 1 and rows % 2 == 0:
        smaller = replace(setup, tokens=setup.tokens // rows, accumulates=True)
        changed = replace(work, training=replace(training, setup=smaller, micro_batches=training.micro_batches * rows))
        told = f"{key}.trainer.per_device_train_batch_size=1 {key}.trainer.gradient_accumulation_steps="
        yield f"{told}{training.micro_batches * rows}", changed


def _divided(work: Work, training: Training, ranks: int) -> Work:
    setup = replace(training.setup, ranks=ranks)
    return replace(work, trainers=ranks, gpus=ranks, training=replace(training, setup=setup))


def _fewest(work: Work, cluster: Cluster) -> int | None:
    """The least power of two of GPUs on which it would fit, divided among them."""
    if work.training is None:
        return None
    numbers = (2**power for power in range(1, 13))
    training = work.training
    return next((number for number in numbers if _fits(_divided(work, training, number), cluster)), None)
