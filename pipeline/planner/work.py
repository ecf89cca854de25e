"""A stage of a recipe as numbers: which model, how many tokens, in how many steps and passes, sampled by what.

What a recipe leaves open (how long answers get, how many rows a data set on the hub has) is assumed, and every
assumption is kept with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from pipeline.cost.bill import Assumption
from pipeline.cost.memory import Base, Setup
from pipeline.cost.shape import Shape
from pipeline.cost.speed import Sampling
from pipeline.planner.earlier import Earlier


@dataclass(frozen=True, slots=True)
class Given:
    """What the command line says of a recipe's work.

    Attributes:
        gpus: GPUs that are there.
        device_bytes: memory of one.
        prompt: tokens of a prompt, on average.
        completion: tokens of a completion, on average; half of the limit if not given.
        told: whether `prompt` was given, and not assumed.
        published: finished stages -> the folder of their artifact, whose model's config says its sizes.
        processor: whether there is no GPU, so that `engine: auto` is transformers.
        pass_rate: share of samples that rejection sampling keeps; all of them if not given.
        earlier: stages that have run, which say more than all of these.
    """

    gpus: int = 1
    device_bytes: int = 80 * 10**9
    prompt: float = 128.0
    completion: float | None = None
    told: bool = False
    published: Mapping[str, Path] = field(default_factory=dict)
    processor: bool = False
    pass_rate: float | None = None
    earlier: Mapping[str, Earlier] = field(default_factory=dict)

    def sampling(self, stage: str, rollouts: int, group: int, most: int) -> Sampling:
        """Completions of a stage, of at most so many tokens, a group of them for each prompt."""
        mean, _ = self.length(stage, most)
        return Sampling(rollouts, group, self.prompt, min(mean, most), most)

    def length(self, stage: str, most: int) -> tuple[float, str]:
        """Tokens of a stage's completions on average, and how that is known."""
        before = self.earlier.get(stage)
        if before is not None and before.completion is not None:
            return before.completion, before.source
        if self.completion is not None:
            return self.completion, "--completion-tokens"
        return most / 2, "assumed: half of the limit"


@dataclass(frozen=True, slots=True)
class Training:
    """The forward and backward passes of one optimizer step.

    Attributes:
        setup: how the model is held on a GPU.
        rows: rows a step, on all GPUs.
        length: tokens of a row, on average.
        padded_to: tokens that every row is padded to; `None` where rows are packed.
        micro_batches: passes a GPU and step at least, however few tokens they have.
        together: rows that no pass takes apart: the two of a pair.
        fp8: whether the layers are multiplied in FP8.
        mtp: whether blocks of multi-token prediction are trained.
    """

    setup: Setup
    rows: int
    length: float
    padded_to: int | None = None
    micro_batches: int = 1
    together: int = 1
    fp8: bool = False
    mtp: bool = False


@dataclass(frozen=True, slots=True)
class Engine:
    """What samples.

    Attributes:
        kind: `vllm`, `transformers`, or `vllm_server` for a server that is there already, with GPUs of its own.
        share: `rollout.gpu_memory`.
        beside: whether it shares the trainer's GPU.
        engines: among which completions are divided.
        tensor: GPUs of each.
        overlap: whether it samples while the trainer trains.
        fast_path: `rollout.scheduler_fast_path`.
        batch: sequences at a time (transformers).
        base: what its weights are held in.
        cache_bits: bits of a number in its cache.
        sleeps: whether it gives its memory back while the trainer trains.
        reloads: whether it takes the weights of the next model, where that has the same shape.
        eager: whether it starts without compiling and capturing (`enforce_eager`).
        cache: bytes of its cache where the recipe says so (`kv_cache_memory_bytes`); else all that its share leaves.
    """

    kind: str
    share: float
    beside: bool
    engines: int
    tensor: int = 1
    overlap: bool = False
    fast_path: bool = True
    batch: int = 64
    base: Base = "bfloat16"
    cache_bits: int = 16
    sleeps: bool = False
    reloads: bool = True
    eager: bool = False
    cache: float | None = None


@dataclass(frozen=True, slots=True)
class Watching:
    """Held-out problems that the model answers while it trains.

    Attributes:
        looks: how often: before the first step, every so many, and after the last.
        sampling: what is sampled at each.
        batch: sequences at a time of each GPU where the trainer's own model answers; `None` where the stage's engine
            does.
    """

    looks: int
    sampling: Sampling
    batch: int | None


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage does.

    Attributes:
        stage, kind: its name and kind.
        models: what it works on: the trained model alone, or those that are sampled from one after the other.
        steps: optimizer steps; 1 for a stage that only samples.
        trainers: GPUs that train.
        gpus: GPUs in use, those of engines included.
        training, engine, sampling: what it does in a step; `None` for what it does not do.
        scored: forward passes without gradient a step (a reference; a teacher, which is `teacher`).
        unknown: why there are no numbers, if there are none.
        warm: whether its libraries load while the stage before it works.
        judges: reward models that share its GPU.
        watching: held-out problems while it trains, if there are any.
        saves: checkpoints that it writes.
        adapts: whether it could train an adapter in place of the weights, with its other settings as they are.
        sharded: whether its trainers divide the model, however many they are.
    """

    stage: str
    kind: str
    models: tuple[Shape, ...] = ()
    steps: int = 1
    trainers: int = 1
    gpus: int = 1
    training: Training | None = None
    engine: Engine | None = None
    sampling: Sampling | None = None
    scored: int = 0
    teacher: Shape | None = None
    assumptions: tuple[Assumption, ...] = ()
    unknown: str = ""
    warm: bool = False
    adapts: bool = False
    sharded: bool = False
    judges: tuple[Shape, ...] = ()
    watching: Watching | None = None
    saves: int = 0

    @property
    def engines_started(self) -> int:
        """How many vLLM engines start, one after another: models of one shape that follow each other share one."""
        if self.engine is None or self.engine.kind != "vllm":
            return 0
        return len(list(groupby(self.models))) if self.engine.reloads else len(self.models)
