"""Seconds of what a stage does, from operations, bytes and a few efficiencies that were measured here.

A forward or backward pass waits for the GPU or for the processor that launches its kernels, whichever is slower, and
a little for the other. A decoding step reads all weights once; each sampled token costs the engine's scheduler, and
reads its cache. The constants of `MEASURED` come from the runs that its comments name, on one H200; all other results
under benchmarks/results/ are compared with what follows from them (`python -m benchmarks.planner`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.cost import flops, launches, memory
from pipeline.cost.hardware import Gpu
from pipeline.cost.shape import Shape


@dataclass(frozen=True, slots=True)
class Speed:
    """Efficiencies of one machine.

    Attributes:
        products: share of the GPU's BF16 peak that packed passes of a dense model reach.
        padded: the same where rows are padded, and attention has a mask.
        experts: the same for a mixture of experts in our own trainer.
        fp8_slower: how many times longer our FP8 training takes than BF16.
        layer_s: seconds in which the processor launches the forward pass of a layer of `launches.GROUPED` kernels.
        hidden: share of the faster of processor and GPU that a pass waits for on top of the slower.
        bandwidth: share of the GPU's memory bandwidth that decoding reaches.
        prefill: share of the peak that reading prompts reaches.
        iteration_s: seconds of a decoding step beyond reading the weights.
        token_s: seconds of the scheduler, a sampled token, with `rollout.scheduler_fast_path`.
        plain_token_s: the same without.
        push: bytes a second of weights that are handed to an engine.
        push_s: seconds of that beyond the bytes.
        disk: bytes a second of a checkpoint, its hashes included.
        rest: all of a step, against its parts: rewards, data, logging.
        start_s: seconds until a stage's process works: imports, model, data.
        warm_s: the same of a stage whose libraries load while the stage before it works.
        engine_s: seconds until its engine works on top: loading, compiling, capturing graphs.
        eager_engine_s: the same with `enforce_eager`, which neither compiles nor captures.
    """

    products: float
    padded: float
    experts: float
    fp8_slower: float
    layer_s: float
    hidden: float
    bandwidth: float
    prefill: float
    iteration_s: float
    token_s: float
    plain_token_s: float
    push: float
    push_s: float
    disk: float
    rest: float
    start_s: float
    warm_s: float
    engine_s: float
    eager_engine_s: float


MEASURED = Speed(
    products=0.45,  # grpo-h200-step.json, long-h200.json (ours)
    padded=0.33,  # the same (stock): 0.26 with 0.5B, 0.40 with 1.5B
    experts=0.134,  # model-h200.json
    fp8_slower=4.8,  # fp8-h200.json
    layer_s=1.7e-3,  # grpo-h200-step.json (ours)
    hidden=0.15,  # assumed
    bandwidth=0.75,  # assumed
    prefill=0.4,  # assumed
    iteration_s=0.25e-3,  # long-h200.json (ours)
    token_s=13.5e-6,  # grpo-h200-step.json (ours); hosts differ by a fifth
    plain_token_s=60e-6,  # grpo-h200.json, grpo-h200-step.json (stock): 45e-6 and 85e-6
    push=38e9,  # overlap-h200-x2.json, push_gb_per_s: 46 at best
    push_s=0.06,  # grpo-h200.json
    disk=0.9e9,  # a checkpoint of r1/qwen-1.5b: 18 GB in 20 s
    rest=1.05,  # grpo-h200-step.json
    start_s=25.0,  # v3-small.json, gsm8k-r1-zero.json: stages without an engine
    warm_s=10.0,  # v3-small-r1-seed-0.json: dev1, dense, student; 4 to 5 to the first step, and the model is written
    engine_s=40.0,  # r1-cut-h200-x2.json, overlap-h200-x2.json: a minute before the first step
    eager_engine_s=8.0,  # v3-small-r1-seed-0.json: cold_start, general
)
CALIBRATED_ON: Mapping[str, str] = {
    "grpo-h200-step.json": "ours, stock",
    "long-h200.json": "ours, stock",
    "grpo-h200.json": "stock",
    "model-h200.json": "ours",
    "fp8-h200.json": "fp8",
    "v3-small-r1-seed-0.json": "starts of stages and engines",
}
"""Results that constants were set by, and which of their runs; all others are unseen."""
SOURCE = "benchmarks/results/: " + ", ".join(sorted(CALIBRATED_ON))


@dataclass(frozen=True, slots=True)
class Sampling:
    """Completions to sample.

    Attributes:
        rollouts: how many.
        group: how many share a prompt, which is read once.
        prompt: tokens of a prompt, on average.
        completion: tokens of a completion, on average.
        longest: tokens of the longest.
    """

    rollouts: int
    group: int
    prompt: float
    completion: float
    longest: int

    @property
    def tokens(self) -> float:
        """Sampled tokens."""
        return self.rollouts * self.completion

    @property
    def all_tokens(self) -> float:
        """Tokens of all rows: prompts and completions."""
        return self.rollouts * (self.prompt + self.completion)

    @property
    def spread(self) -> float:
        """Mean square of a length over the square of the mean.

        2 for lengths that are spread exponentially far below the limit, 1 where all reach it; between them a line.
        """
        return 2.0 - min(1.0, self.completion / self.longest)

    @property
    def context(self) -> float:
        """Tokens before a sampled token, on average over all sampled tokens."""
        return self.prompt + self.spread * self.completion / 2


def generation(
    shape: Shape,
    gpu: Gpu,
    work: Sampling,
    speed: Speed,
    engines: int = 1,
    tensor: int = 1,
    fast_path: bool = True,
    eager: bool = False,
) -> float:
    """Seconds of sampling.

    Args:
        shape: the model.
        gpu: of the engine.
        work: what is sampled in all.
        speed: of the machine.
        engines: among which the completions are divided.
        tensor: GPUs that each engine is divided among.
        fast_path: `rollout.scheduler_fast_path`.
        eager: whether every step launches the kernels of every layer (`enforce_eager`), which graphs spare it.
    """
    read = speed.bandwidth * gpu.bandwidth * tensor
    share = work.tokens / engines
    launching = launches.layers(shape) * speed.layer_s if eager else 0.0
    steps = work.longest * (speed.iteration_s + launching + memory.stored(shape, "bfloat16") / read)
    token = (speed.token_s if fast_path else speed.plain_token_s) + memory.kv_cache_bytes(shape) * work.context / read
    prompt = flops.forward(shape, max(1, round(work.prompt)), scored=1).total
    prompts = work.rollouts / work.group / engines * prompt / (speed.prefill * gpu.bf16 * tensor)
    return steps + share * token + prompts


def by_transformers(shape: Shape, gpu: Gpu, work: Sampling, speed: Speed, batch: int) -> float:
    """Seconds of sampling with transformers: a forward pass for each token of the longest, so many rows at a time."""
    batches = math.ceil(work.rollouts / batch)
    step = launches.layers(shape) * speed.layer_s + memory.stored(shape, "bfloat16") / (speed.bandwidth * gpu.bandwidth)
    one = flops.forward(shape, max(1, round(work.completion)), before=round(work.prompt)).total
    one += flops.forward(shape, max(1, round(work.prompt)), scored=1).total
    return batches * work.longest * step + work.rollouts * one / (speed.products * gpu.bf16)


def rows(shape: Shape, work: Sampling, padded_to: float | None = None) -> float:
    """Operations of a forward pass over all rows of a step; `padded_to` tokens each where they are padded."""
    length = work.prompt + work.completion
    if padded_to is not None:
        whole, scored = round(padded_to), work.longest
        return work.rollouts * flops.forward(shape, whole, scored).total
    one = flops.forward(shape, max(1, round(length)), max(1, round(work.completion)))
    # Scores grow with the square of a length, and a few long rows have most of them.
    return work.rollouts * (one.total + one.scores * (work.spread - 1))


@dataclass(frozen=True, slots=True)
class Passes:
    """Forward and backward passes over the rows of a step, on one GPU.

    Attributes:
        operations: of the forward passes.
        passes: how many there are.
        checkpointing: whether layers are computed again for the backward pass.
        padded: whether rows are padded.
        gathered: bytes that each pass gathers from other GPUs (FSDP).
        fp8: whether the layers are multiplied in FP8.
        frozen: whether the weights are frozen beneath an adapter, and have no gradients.
        mtp: whether blocks of multi-token prediction are trained along.
    """

    operations: float
    passes: float
    checkpointing: bool = False
    padded: bool = False
    gathered: float = 0.0
    fp8: bool = False
    frozen: bool = False
    mtp: bool = False

    def seconds(self, shape: Shape, gpu: Gpu, speed: Speed) -> tuple[float, float]:
        """Seconds of the forward and of the backward passes."""
        share = speed.experts if shape.experts is not None else speed.padded if self.padded else speed.products
        computing = self.operations / (share * gpu.bf16) * (speed.fp8_slower if self.fp8 else 1.0)
        launching = self.passes * launches.layers(shape, self.mtp, adapted=self.frozen) * speed.layer_s
        again = 1 if self.checkpointing else 0
        moving = self.passes * self.gathered / gpu.link
        forward = _both(computing, launching, speed) + moving
        back = flops.passes(self.frozen) - 1
        backward = _both((back + again) * computing, (1 + again) * launching, speed) + 3 * moving
        return forward, backward


def _both(computing: float, launching: float, speed: Speed) -> float:
    return max(computing, launching) + speed.hidden * min(computing, launching)


def pushing(shape: Shape, speed: Speed) -> float:
    """Seconds in which the weights reach the engine."""
    return speed.push_s + memory.stored(shape, "bfloat16") / speed.push


def passes_of(tokens: float, a_pass: int, longest: int = 0) -> int:
    """Packed passes that so many tokens fill, at best."""
    return max(1, math.ceil(tokens / max(a_pass, longest)))


def writing(shape: Shape, adapter_rank: int | None, speed: Speed) -> float:
    """Seconds in which a checkpoint is written."""
    return memory.state(shape, adapter_rank) / speed.disk
