"""What would make a stage fit: the smallest change of its settings, or several of them together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipeline.cost import memory
from pipeline.cost.hardware import Cluster
from pipeline.cost.shape import Latent
from pipeline.planner.held import SHARE_STEP, held_by, least_share
from pipeline.planner.work import Engine, Training, Work

LEAST_TOKENS = 1024
"""A pass is made no smaller to save memory: it would only launch kernels."""
LENGTHS = {"pretrain": "length", "sft": "max_length", "distill": "max_length", "reward_model": "max_length"}
"""Stage kind -> its field that says how long rows may be, where it trains on rows alone."""
ADAPTER, ADAPTER_RANK = "adapter.rank", 32
ADAPTED: Sequence[tuple[str, memory.Base]] = (("", "bfloat16"), (" {}.adapter.quantize=4bit", "nf4"))
"""What is said of an adapter's base, the stage's place in a recipe to be put in, and what it is held in."""

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
    tried: list[tuple[dict[str, str], Work]] = []
    for adapted, lighter in ((False, False), (True, False), (False, True), (True, True)):
        together, current = _together(work, cluster, adapted, lighter)
        if _fits(current, cluster):
            yield from together.values()
            return
        tried.append((together, current))
    done, current = tried[0]
    if (number := _fewest(current, cluster)) is not None:
        yield from _with_gpus([*done.values()], number)
        return
    for keys, _ in tried:
        if shorter := _cut_short(work, cluster, list(keys)):
            yield from shorter
            return
    for length in _lengths(current):
        if (number := _fewest(_cut(current, length), cluster)) is not None:
            yield from _with_gpus([*done.values(), _at_most(work, length)], number)
            return


def _with_gpus(changes: Sequence[str], number: int) -> Iterator[str]:
    yield from changes
    yield f"{'and ' if changes else ''}{number} GPUs of this kind, with launch.accelerate=fsdp2-1node"


def _together(work: Work, cluster: Cluster, adapted: bool, lighter: bool) -> tuple[dict[str, str], Work]:
    """Changes one upon the other until the stage fits, less those that it fits without: setting -> change, the work.

    Args:
        work: the stage.
        cluster: its GPUs.
        adapted: whether it may train an adapter.
        lighter: whether its engine may sleep while the trainer works, and hold its weights in FP8.
    """
    keys: list[str] = []
    done, current = _applied(work, cluster, keys)
    while not _fits(current, cluster):
        every = [*_changes(current, cluster), *(_lighter_engine(current) if lighter else ())]
        changes = (_key(change) for change in every)
        key = next((key for key in changes if key not in keys and (adapted or not key.endswith(ADAPTER))), None)
        if key is None:
            return done, current
        keys.append(key)
        done, current = _applied(work, cluster, keys)
    for key in tuple(keys):
        rest = [other for other in keys if other != key]
        fewer, smaller = _applied(work, cluster, rest)
        if _fits(smaller, cluster):
            keys, done, current = rest, fewer, smaller
    return done, current


def _applied(work: Work, cluster: Cluster, keys: Sequence[str]) -> tuple[dict[str, str], Work]:
    """Of each of these settings the change that saves most, one upon the other."""
    done: dict[str, str] = {}
    for key in keys:
        every = [*_changes(work, cluster), *_lighter_engine(work)]
        for change in [change for change in every if _key(change) == key][-1:]:
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
            yield from _adapted(work, training)


def _adapted(work: Work, training: Training) -> Iterator[Change]:
    """An adapter, on a base as it is or in four bits, which is not sharded, and never one of a DeepSeek-V3."""
    key = f"stages.{work.stage}"
    for quantize, base in ADAPTED:
        setup = replace(training.setup, adapter_rank=ADAPTER_RANK, base=base)
        told, sharded = f"{key}.{ADAPTER}={ADAPTER_RANK}{quantize.format(key)}", work.sharded
        if quantize and isinstance(work.models[0].attention, Latent):
            return
        if quantize and sharded:
            told, sharded, setup = f"{told} {key}.launch.accelerate=ddp", False, replace(setup, ranks=1)
        yield told, replace(work, sharded=sharded, training=replace(training, setup=setup))


def _lighter_engine(work: Work) -> Iterator[Change]:
    """Less of an engine that shares the trainer's GPU: one after the other, and weights of one byte."""
    engine = work.engine
    if engine is None or engine.kind != "vllm" or not engine.beside or work.training is None:
        return
    if not engine.sleeps and work.kind == "grpo":
        key = f"stages.{work.stage}.trainer.vllm_enable_sleep_mode=true"
        yield key, replace(work, engine=replace(engine, sleeps=True))
    if engine.base == "bfloat16":
        key = f"stages.{work.stage}.rollout.engine_options.quantization=fp8"
        yield key, replace(work, engine=replace(engine, base="fp8"))


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
    rows = _rows(work, training)
    if rows > 1 and rows % 2 == 0:
        smaller = replace(setup, tokens=setup.tokens // rows, accumulates=True)
        changed = replace(work, training=replace(training, setup=smaller, micro_batches=training.micro_batches * rows))
        told = f"{key}.trainer.per_device_train_batch_size=1 {key}.trainer.gradient_accumulation_steps="
        yield f"{told}{training.micro_batches * rows}", changed


def _cut_short(work: Work, cluster: Cluster, keys: list[str]) -> list[str]:
    """Changes with these settings and the longest rows, by half each time, that then fit; none if none do.

    The last resort, where a single row is too long for a GPU. Of the settings those are left out that it does without.
    """
    for length in _lengths(work):
        if not _fits(_cut(_applied(work, cluster, keys)[1], length), cluster):
            continue
        for key in tuple(keys):
            rest = [other for other in keys if other != key]
            if _fits(_cut(_applied(work, cluster, rest)[1], length), cluster):
                keys = rest
        return [*_applied(work, cluster, keys)[0].values(), _at_most(work, length)]
    return []


def _at_most(work: Work, length: int) -> str:
    return f"stages.{work.stage}.{LENGTHS[work.kind]}={length}"


def _lengths(work: Work) -> Iterator[int]:
    """Shorter rows for a stage that trains on rows alone, in powers of two, the longest first; none for any other."""
    if work.training is None or work.sampling is not None or work.kind not in LENGTHS:
        return
    longest = work.training.setup.tokens // _rows(work, work.training) // work.training.together
    length = 1 << (max(1, longest) - 1).bit_length()
    while (length := length // 2) >= LEAST_TOKENS:
        yield length


def _cut(work: Work, length: int) -> Work:
    training = work.training
    assert training is not None
    setup = replace(training.setup, tokens=_rows(work, training) * training.together * length)
    return replace(work, training=replace(training, setup=setup))


def _rows(work: Work, training: Training) -> int:
    """Rows of a pass, or pairs."""
    return max(1, training.rows // training.together // work.trainers // training.micro_batches)


def _divided(work: Work, training: Training, ranks: int) -> Work:
    setup = replace(training.setup, ranks=ranks)
    return replace(work, trainers=ranks, gpus=ranks, sharded=True, training=replace(training, setup=setup))


def _fewest(work: Work, cluster: Cluster) -> int | None:
    """The least power of two of GPUs on which it would fit, divided among them."""
    if work.training is None:
        return None
    numbers = (2**power for power in range(1, 13))
    training = work.training
    return next((number for number in numbers if _fits(_divided(work, training, number), cluster)), None)
