"""From the stages of a recipe to `Work`. A stage kind that is not known here is reported, never guessed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import placement
from pipeline.artifacts import Artifact
from pipeline.checks.launch import accelerate_config, settings
from pipeline.cost import memory
from pipeline.cost.bill import Assumption
from pipeline.cost.memory import Setup
from pipeline.cost.shape import Shape
from pipeline.cost.speed import Sampling
from pipeline.gpus import Gpu
from pipeline.planner import counts, learnt, left_out, sizes
from pipeline.planner.learnt import LONGEST_PROMPT
from pipeline.planner.saving import saves
from pipeline.planner.watching import watching_of
from pipeline.planner.work import Engine, Given, Training, Work
from pipeline.recipe import Recipe
from pipeline.sampling.engines import reloads
from pipeline.schema.adapter import AdaptedConfig, AdapterSpec
from pipeline.schema.efficiency import Efficiency
from pipeline.schema.pieces import RewardSpec, RolloutSpec, StageConfig
from pipeline.schema.walk import walk
from pipeline.training.grpo.activation_memory import KEPT_SHARE

TRL_BATCH, TRL_ACCUMULATION, TRL_EPOCHS = 8, 1, 3.0
"""Defaults of transformers' TrainingArguments."""
VLLM_SERVER = "vllm_server"
WORDS = 1000
"""Entries of a vocabulary of words, which a corpus decides."""
BASES: Mapping[str, memory.Base] = {"none": "bfloat16", "4bit": "nf4", "8bit": "fp8"}
"""`adapter.quantize` -> what the base is held in; eight bits take as much as FP8."""
ENGINE_BASES: Mapping[str, memory.Base] = {"fp8": "fp8", "bitsandbytes": "nf4"}
"""`rollout.engine_options.quantization` -> what vLLM holds weights in."""


@dataclass(frozen=True, slots=True)
class _Gpus:
    """The GPUs of a stage: in all, ranks that train, whether these divide the model, engines of their own."""

    count: int
    ranks: int
    sharded: bool
    engines: int
    tensor: int
    apart: bool


class Reader:
    """Reads the stages of one recipe.

    Args:
        recipe: the recipe.
        given: what the command line says.
    """

    def __init__(self, recipe: Recipe, given: Given) -> None:
        self.recipe, self.given = recipe, given

    def work(self, stage: str) -> Work:
        """A stage as numbers, or the reason why there are none."""
        config: Any = self.recipe.stages[stage]
        try:
            found = self._work(stage, config)
            lines = tuple(left_out.lines(config))
            if found.unknown:
                return replace(found, unknown="; ".join([found.unknown, *(line.source for line in lines)]))
            watching, told = watching_of(config, found, self.recipe, self.given)
            return replace(
                found,
                warm=self.recipe.warm is not False
                and not self.given.processor
                and stage != next(iter(self.recipe.stages)),
                adapts=_adapts(config),
                sharded=found.training is not None and self._placed(config).sharded,
                judges=tuple(self._judges(config)),
                watching=watching,
                saves=saves(config, found),
                assumptions=(*found.assumptions, *told, *lines),
            )
        except sizes.UnknownModelError as error:
            return Work(stage, config.kind, unknown=str(error))

    def _work(self, stage: str, config: Any) -> Work:
        match config.kind:
            case "import_model" | "export":
                return Work(stage, config.kind, gpus=0, unknown="copies files")
            case "pretrain" | "extend_context" | "sft" | "reward_model":
                return self._rows(stage, config)
            case "distill":
                return self._rows(stage, config) if config.teacher is None else self._on_policy(stage, config)
            case "grpo":
                return self._grpo(stage, config)
            case "evaluate" | "rejection_sample" | "pass_rate":
                return self._sampled(stage, config)
            case kind:
                return Work(stage, kind, unknown=f"nothing is known here of stages of kind {kind}")

    # ------------------------------------------------------------------------------------------------------ models

    def shape(self, name: str, seen: tuple[str, ...] = ()) -> Shape:
        """The shape of what a stage names: `@stage`, a folder, a model on the hub."""
        if not name.startswith("@"):
            if name.endswith(".gguf"):
                raise sizes.UnknownModelError(f"{name}: sizes in GGUF files are not read; they are once it is imported")
            return sizes.named(name, self.recipe.base)
        stage = name[1:]
        if (folder := self.given.published.get(stage)) is not None and (folder / "model" / "config.json").is_file():
            return sizes.named(str(folder / "model"))
        config: Any = self.recipe.stages.get(stage)
        if config is None or stage in seen:
            raise sizes.UnknownModelError(f"{name} is not a stage of this recipe")
        if config.kind == "pretrain":
            return self._new(config)
        if not isinstance(model := getattr(config, "model", None), str):
            raise sizes.UnknownModelError(f"{name} ({config.kind}) has no model of a known shape")
        found = self.shape(model, (*seen, stage))
        return replace(found, context=config.context) if config.kind == "extend_context" else found

    def _new(self, config: Any) -> Shape:
        """The shape of a model that a `pretrain` stage makes."""
        if config.tokenizer is not None:
            vocabulary = self.shape(config.tokenizer).vocabulary
        else:
            vocabulary = config.vocabulary.size or WORDS
        return sizes.of_preset(config.model, vocabulary)

    def _judges(self, config: StageConfig) -> Iterator[Shape]:
        """The reward models that share the stage's GPU."""
        for leaf in walk(config):
            if isinstance(leaf.value, RewardSpec) and leaf.value.use in placement.REWARD_MODELS:
                options = leaf.value.options
                if options.get("device") in (None, "cuda", "cuda:0") and isinstance(options.get("model"), str):
                    yield self.shape(options["model"])

    # ---------------------------------------------------------------------------------------------------- training

    def _placed(self, config: StageConfig) -> _Gpus:
        """The GPUs of a stage, by what they are for, on a machine with as many as are planned for."""
        there = [Gpu(str(place), str(place)) for place in range(self.given.gpus)]
        want = placement.wanted(config, self.recipe.base)
        given = [*want.candidates(there), *there][: want.number(there)]
        placed = placement.placed(config, self.recipe.base, given)
        engines = [device.split(",") for device in placed.engines]
        file = accelerate_config(config.launch.accelerate or "", self.recipe.base)
        said: Any = {} if file is None else settings(file)
        ranks = 1
        if config.launch.accelerate is not None:
            told = said.get("num_processes")
            ranks = placed.ranks or (told if isinstance(told, int) else max(1, len(placed.own)))
        return _Gpus(
            count=want.number(there),
            ranks=ranks,
            sharded=said.get("distributed_type") in ("FSDP", "DEEPSPEED"),
            engines=len(engines),
            tensor=max(map(len, engines), default=1),
            apart=bool(engines) and not {name for one in engines for name in one} & set(placed.own),
        )

    def _setup(self, config: Any, values: Mapping[str, Any], tokens: int, ranks: int, sharded: bool) -> Setup:
        adapter = getattr(config, "adapter", None)
        rank = None
        if adapter is not None:
            rank = adapter.rank or type(config).adapter_rank
        micro = values.get("gradient_accumulation_steps", TRL_ACCUMULATION)
        return Setup(
            tokens=tokens,
            ranks=ranks if sharded else 1,
            checkpointing=bool(values.get("gradient_checkpointing", True)),
            base=BASES[adapter.quantize] if adapter is not None else "float32",
            adapter_rank=rank,
            optimizer=str(values.get("optim", "adamw_torch_fused")),
            accumulates=micro > 1,
            fp8=getattr(config, "precision", "trainer") == "fp8",
        )

    def _rows(self, stage: str, config: Any) -> Work:
        """A stage that trains on rows: pre-training, context extension, fine-tuning, a reward model."""
        shape = self._new(config) if config.kind == "pretrain" else self.shape(config.model)
        values = {**config.trainer_defaults, **config.trainer}
        gpus = self._placed(config)
        ranks, sharded = gpus.ranks, gpus.sharded
        batch = int(values.get("per_device_train_batch_size", TRL_BATCH))
        accumulation = int(values.get("gradient_accumulation_steps", TRL_ACCUMULATION))
        rows, length, longest, whole, told = learnt.of_data(config, shape, self.recipe, self.given)
        steps, more = self._steps(values, rows, batch * accumulation * ranks)
        pairs = 2 if config.kind == "reward_model" and config.learns == "pairs" else 1
        setup = self._setup(config, values, pairs * batch * longest, ranks, sharded)
        training = Training(
            setup,
            rows=pairs * batch * accumulation * ranks,
            length=length,
            padded_to=None if whole else round((length + longest) / 2),
            micro_batches=accumulation,
            together=pairs,
            fp8=setup.fp8,
            mtp=getattr(config, "mtp", None) is not None or (config.kind == "pretrain" and shape.mtp > 0),
        )
        return Work(stage, config.kind, (shape,), steps, ranks, gpus.count, training, assumptions=(*told, *more))

    @staticmethod
    def _steps(values: Mapping[str, Any], rows: float, a_step: float) -> tuple[int, list[Assumption]]:
        if (steps := int(values.get("max_steps", -1))) > 0:
            return steps, []
        epochs = float(values.get("num_train_epochs", TRL_EPOCHS))
        steps = max(1, math.ceil(epochs * math.ceil(rows / a_step)))
        return steps, [
            Assumption("number of steps", f"{steps:,}", f"{rows:,.0f} rows {epochs:g} times, {a_step:g} a step")
        ]

    # ---------------------------------------------------------------------------------------------------- sampling

    def _lengths(self, stage: str, sampling: Sampling) -> list[Assumption]:
        """How long prompts and completions are taken to be."""
        _, told = self.given.length(stage, sampling.longest)
        return [
            Assumption("completion", f"{sampling.completion:,.0f} of {sampling.longest:,} tokens", told),
            Assumption("prompt", f"{sampling.prompt:,.0f} tokens", "--prompt-tokens" if self.given.told else "assumed"),
        ]

    def _engine(self, rollout: RolloutSpec, gpus: _Gpus, trains: bool, sleeps: bool = False) -> Engine:
        """What samples."""
        usual = "transformers" if self.given.processor else "vllm"
        asked = usual if rollout.engine == "auto" else rollout.engine
        serves = asked == VLLM_SERVER or rollout.server is not None
        kind = VLLM_SERVER if rollout.server is not None else "vllm" if serves else asked
        beside = trains and not gpus.apart and kind != VLLM_SERVER
        tensor = max(gpus.tensor, int(rollout.engine_options.get("tensor_parallel_size", 1)))
        alone = gpus.ranks if trains and not rollout.separate_process else 1
        return Engine(
            kind,
            rollout.gpu_memory,
            beside,
            gpus.engines or alone,
            tensor,
            getattr(rollout, "max_staleness", 0) > 0,
            rollout.scheduler_fast_path and not serves,
            rollout.batch_size,
            ENGINE_BASES.get(str(rollout.engine_options.get("quantization")), "bfloat16"),
            8 if str(rollout.engine_options.get("kv_cache_dtype", "")).startswith("fp8") else 16,
            sleeps and beside,
            reloads(rollout),
            bool(rollout.engine_options.get("enforce_eager", False)),
            float(told) if isinstance(told := rollout.engine_options.get("kv_cache_memory_bytes"), int) else None,
        )

    def _grpo(self, stage: str, config: Any) -> Work:
        values = {**config.trainer_defaults, **config.trainer}
        shape, efficiency = self.shape(config.model), config.efficiency
        gpus = self._placed(config)
        ranks, sharded = gpus.ranks, gpus.sharded
        engine = self._engine(config.rollout, gpus, True, bool(values.get("vllm_enable_sleep_mode")))
        micro, accumulation = int(values["per_device_train_batch_size"]), int(values["gradient_accumulation_steps"])
        rollouts, group = micro * accumulation * ranks, int(values["num_generations"])
        longest = max([config.rollout.max_tokens, *(change.max_tokens for change in config.length_schedule)])
        reused = int(values.get("num_iterations", 1))
        sampled = math.ceil(max(group, rollouts // reused) * (1 + config.rollout.spare))
        sampling = self.given.sampling(stage, sampled, group, config.rollout.max_tokens)
        row = round(LONGEST_PROMPT * self.given.prompt) + longest
        tokens = max(efficiency.tokens_per_pass, row) if efficiency.packing else micro * row
        if "gradient_checkpointing" not in values:
            values["gradient_checkpointing"] = not self._keeps(shape, efficiency, tokens)
        setup = replace(
            self._setup(config, values, tokens, ranks, sharded),
            fused_kernels=efficiency.fused_kernels,
            reference=bool(values.get("beta")),
            accumulates=True,
        )
        merged = efficiency.packing and efficiency.merge_micro_batches
        training = Training(
            setup,
            rollouts,
            sampling.prompt + sampling.completion,
            padded_to=None if efficiency.packing else row,
            micro_batches=1 if merged else accumulation,
            mtp=config.mtp is not None,
        )
        problems = [counts.drawn(task, self.recipe) for task in config.tasks]
        steps, more = self._steps(values, sum(each.number for each in problems), rollouts / group / reused)
        if int(values.get("max_steps", -1)) <= 0:
            more += [Assumption("problems", f"{each.number:,}", each.source) for each in problems]
        scored = int(bool(values.get("beta"))) + int(not efficiency.reuse_logprobs or reused > 1)
        told = (*self._lengths(stage, sampling), *more)
        return Work(
            stage, "grpo", (shape,), steps, ranks, gpus.count, training, engine, sampling, scored, assumptions=told
        )

    def _keeps(self, shape: Shape, efficiency: Efficiency, tokens: int) -> bool:
        kept = memory.activations(shape, Setup(tokens))
        return efficiency.packing and kept <= KEPT_SHARE * self.given.device_bytes

    def _on_policy(self, stage: str, config: Any) -> Work:
        values = {**config.trainer_defaults, **config.trainer}
        shape, teacher = self.shape(config.model), self.shape(config.teacher)
        gpus = self._placed(config)
        ranks, sharded = gpus.ranks, gpus.sharded
        engine = self._engine(config.rollout, gpus, trains=True)
        micro = int(values.get("per_device_train_batch_size", TRL_BATCH))
        accumulation = int(values.get("gradient_accumulation_steps", TRL_ACCUMULATION))
        rows = micro * accumulation * ranks
        sampling = self.given.sampling(stage, rows, 1, config.rollout.max_tokens)
        row = round(LONGEST_PROMPT * self.given.prompt) + config.rollout.max_tokens
        setup = self._setup(config, values, micro * row, ranks, sharded)
        training = Training(setup, rows, sampling.prompt + sampling.completion, row, accumulation)
        problems = sum(counts.drawn(task, self.recipe).number for task in config.tasks)
        steps, more = self._steps(values, problems, rows)
        told = (*self._lengths(stage, sampling), *more)
        one = (shape,)
        return Work(stage, "distill", one, steps, ranks, gpus.count, training, engine, sampling, 1, teacher, told)

    def _sampled(self, stage: str, config: Any) -> Work:
        names = [name for name in (config.model, *getattr(config, "models", ())) if name is not None]
        shapes = tuple(self.shape(name) for name in names)
        limit = getattr(config, "problems", None) or math.inf
        count = counts.drawn if config.kind == "rejection_sample" else counts.problems
        problems = [count(task, self.recipe) for task in config.tasks]
        once = [counts.of_harness(name) for name in getattr(config, "harness", ())]
        number = sum(min(each.number, limit) for each in problems) * config.samples
        number += sum(min(each.number, limit) for each in once)
        sampling = self.given.sampling(stage, int(number), config.samples, config.rollout.max_tokens)
        gpus = self._placed(config)
        engine = self._engine(config.rollout, gpus, trains=False)
        told = [Assumption("problems", f"{min(each.number, limit):,}", each.source) for each in (*problems, *once)]
        told += self._lengths(stage, sampling)
        return Work(stage, config.kind, shapes, 1, 0, gpus.count, None, engine, sampling, assumptions=tuple(told))


def _adapts(config: Any) -> bool:
    """Whether a stage could train an adapter, with its other settings as they are."""
    if not isinstance(config, AdaptedConfig):
        return False
    return next(config.model_copy(update={"adapter": AdapterSpec()}).beside_adapter(), None) is None


def works(recipe: Recipe, given: Given) -> list[Work]:
    """All stages of a recipe as numbers, in the order of the file."""
    reader = Reader(recipe, given)
    return [reader.work(stage) for stage in recipe.stages]


def finished(recipe: Recipe, folder: Path) -> dict[str, Artifact]:
    """Finished stages of a run -> their artifacts."""
    from pipeline import artifacts
    from pipeline.runner import graph

    found = {name: artifacts.find(folder, name, node.fingerprint) for name, node in graph.build(recipe).items()}
    return {name: artifact for name, artifact in found.items() if artifact is not None}
