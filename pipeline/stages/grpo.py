"""Reinforcement learning with group-relative advantages (GRPO), on TRL's trainer.

    zero:
      kind: grpo
      model: "@base"
      tasks: [gsm8k/train]
      rewards: [accuracy, {use: think_format, weight: 0.1}]
      rollout: {engine: vllm, max_tokens: 1024}
      trainer: {num_generations: 16, learning_rate: 1.0e-6, max_steps: 300}

The defaults are those of R1 (Nature s41586-025-09422-z) as far as they carry over to small runs: sixteen rollouts a
question, advantages normalised within the group, the loss averaged over each sequence, a constant learning rate, a clip
that hardly ever binds, and a small KL term against a reference that is replaced by the policy every 400 steps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.context import Outputs, StageContext
from pipeline.gpus import named
from pipeline.records.samples import SAMPLES
from pipeline.schema.adapter import POLICY_RANK, AdaptedConfig
from pipeline.schema.efficiency import (
    Efficiency,
    LengthChange,
    PoolSpec,
    check_efficiency,
    check_lengths,
    check_pool,
    kernels_fault,
)
from pipeline.schema.launch import VISIBLE, ProcessSpec
from pipeline.schema.mtp import DraftSpec
from pipeline.schema.pieces import Fault, ModelRef, PromptedConfig, RewardSpec, RolloutSpec
from pipeline.schema.reserved import CHOICES, GRPO_RESERVED
from pipeline.schema.routing import PolicyRouting
from pipeline.tasks.resolve import TaskField, TestTaskField
from pipeline.training.generation import check_generation_kwargs, check_problems, generation_fields, prompted
from pipeline.training.grpo.schedule import check_cycle, merged, outlook
from pipeline.training.held_out.fields import WatchedConfig
from rewards.registry import located

DEFAULTS: Mapping[str, Any] = {
    "loss_type": "grpo",
    "scale_rewards": "group",
    "num_generations": 16,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 8,
    "num_iterations": 1,
    "epsilon": 10.0,
    "beta": 1e-3,
    "use_bias_correction_kl": False,
    "ref_model_sync_steps": 400,
    "ref_model_mixup_alpha": 1.0,
    "learning_rate": 1e-6,
    "lr_scheduler_type": "constant",
    "num_train_epochs": 1,
    "logging_steps": 1,
    "save_steps": 50,
    # TRL's default weighs a whole sequence by the product of its tokens' ratios, which silences long chains of thought.
    "vllm_importance_sampling_mode": "token_truncate",
    "vllm_importance_sampling_clip_max": 2.0,
}
"""Ours, where they differ from TRL's or matter too much to be left to it. `sync_ref_model` is on where beta > 0."""


class TrainingRollout(RolloutSpec):
    """How completions are sampled: the fields of `RolloutSpec`, and those that only training has; see
    docs/guides/rollouts.md.

    Attributes:
        max_staleness: generation batches that sampling may be ahead of training, in a process of its own. 0: each is
            sampled with the weights that train on it. 1: the next one is sampled while the present one is trained on,
            with weights that are one batch old. More: engines never wait for training, and take new weights in the
            middle of what they sample.
        spare: prompts that are sampled on top, as a share of a batch, in a process of its own. Once a batch of groups
            is complete, the others are given up. Those are the long ones: it favours short completions.
    """

    former: ClassVar[Mapping[str, str]] = {"overlap": "is called max_staleness now: 1 for true, 0 for false"}

    max_staleness: Annotated[int, Field(ge=0)] = 0
    spare: Annotated[float, Field(ge=0, le=1)] = 0.0

    @property
    def separate_process(self) -> bool:
        """See `RolloutSpec`."""
        server = self.engine == "vllm_server" or self.server is not None
        return super().separate_process or server or self.max_staleness > 0 or self.spare > 0

    @property
    def needs_vllm(self) -> bool:
        """Whether vLLM is used here: by an engine, or to send weights to a server."""
        return super().needs_vllm or self.server is not None


def _as_reward(value: Any) -> Any:
    return {"use": value} if isinstance(value, str) else value


RewardField = Annotated[RewardSpec, BeforeValidator(_as_reward)]


class GrpoConfig(PromptedConfig, AdaptedConfig, WatchedConfig):
    """Config of a `grpo` stage; see `PromptedConfig`, `AdaptedConfig` and `WatchedConfig` for the others.

    Attributes:
        model: what to start from.
        tasks: where the problems come from.
        decontaminate: test tasks that must not be learnt: problems that ask what one of their problems asks are left
            out, counted as `contaminated`, and written to `left_out.jsonl`; all that the recipe evaluates if not given.
        dedup: leave out what comes a second time; it is counted as `duplicates` either way.
        rewards: what is rewarded; `accuracy` is each task's own grader.
        rollout: how completions are sampled.
        efficiency: how the work of a step is arranged; all switches off is stock TRL.
        pool: problems that every rollout solves, or none, come up less often; all come up as often if not given.
        length_schedule: steps from which on completions may have another number of tokens than `rollout.max_tokens`,
            such as [{step: 8200, max_tokens: 65536}].
        routing: how the experts are balanced, if the model is a DeepSeek-V3.
        mtp: how blocks of multi-token prediction follow the policy; they stay as they are if not given.
        sample_every: steps between two looks at the completions, which are written to `samples.jsonl`.
        samples: how many completions are written at each look.
        trainer: fields of TRL's GRPOConfig.
    """

    version: ClassVar[int] = 6  # every sequence, pair and token of a step counts alike
    trainer_class: ClassVar[str | None] = "trl.trainer.grpo_config:GRPOConfig"
    reserved: ClassVar[Mapping[str, str]] = GRPO_RESERVED
    trainer_defaults: ClassVar[Mapping[str, Any]] = DEFAULTS
    choices: ClassVar[Mapping[str, Sequence[str]]] = CHOICES
    adapter_rank: ClassVar[int] = POLICY_RANK
    trains_sampler: ClassVar[bool] = True

    kind: Literal["grpo"] = "grpo"
    model: ModelRef
    tasks: Annotated[list[TaskField], Field(min_length=1)]
    decontaminate: list[TestTaskField] | None = None
    dedup: bool = False
    rewards: Annotated[list[RewardField], Field(min_length=1)] = Field(
        default_factory=lambda: [RewardSpec(use="accuracy")]
    )
    rollout: TrainingRollout = TrainingRollout()
    efficiency: Efficiency = Efficiency()
    pool: PoolSpec | None = None
    length_schedule: list[LengthChange] = Field(default_factory=list)
    routing: PolicyRouting = PolicyRouting()
    mtp: DraftSpec | None = None
    sample_every: Annotated[int, Field(gt=0)] = 20
    samples: Annotated[int, Field(ge=0)] = 16

    @model_validator(mode="after")
    def _sampled(self) -> GrpoConfig:
        rollout = self.rollout
        check_generation_kwargs(self.trainer)
        if rollout.temperature == 0:
            raise ValueError("rollout.temperature is 0: all rollouts of a group would be the same, and nothing learnt")
        if rollout.spare and (rollout.engine == "vllm_server" or rollout.server is not None):
            raise ValueError("rollout.spare: a vLLM server is not told to give completions up")
        if rollout.max_staleness and not self.trainer.get("vllm_importance_sampling_correction", True):
            raise ValueError(
                "rollout.max_staleness: rollouts of older weights are trained on, so importance weights must stay on"
            )
        if rollout.batch_size != RolloutSpec().batch_size and not rollout.separate_process:
            raise ValueError("rollout.batch_size has no effect here: set trainer.per_device_train_batch_size")
        return self

    @model_validator(mode="after")
    def _scheduled(self) -> GrpoConfig:
        trainer = {**DEFAULTS, **self.trainer}
        check_cycle(trainer, processes=None if self.launch.accelerate else 1)
        check_efficiency(self.efficiency, trainer, self.learns_from_every_row)
        check_lengths(self.rollout.max_tokens, self.length_schedule)
        check_pool(self.pool, trainer)
        if trainer.get("sync_ref_model") and trainer["beta"] == 0:
            raise ValueError("trainer.sync_ref_model needs a reference model, and with beta: 0 there is none")
        return self

    def faults(self, base: Path) -> Iterator[Fault]:
        """Fused kernels for a policy that cannot have them; see also `AdaptedConfig`."""
        yield from super().faults(base)
        if self.efficiency.fused_kernels and (why := kernels_fault(located(self.model, base))) is not None:
            yield ("efficiency", "fused_kernels"), why

    def outlook(self, processes: int) -> str:
        """Rollouts, groups and passes of a step."""
        return outlook({**DEFAULTS, **self.trainer}, self.rollout.max_tokens, processes)

    @property
    def switches(self) -> Efficiency:
        """`efficiency` for the trainer, which does not see the stage's other fields."""
        if self.efficiency.drop_dead_groups == "auto" and self.learns_from_every_row:
            return self.efficiency.model_copy(update={"drop_dead_groups": False})
        return self.efficiency

    @property
    def learns_from_every_row(self) -> str | None:
        """What gives rows a gradient besides their advantage, if anything does."""
        if self.mtp is not None:
            return "`mtp` learns from every row"
        if self.routing.balance != "none" or self.routing.bias_update_speed:
            return "`routing` balances the experts over every row"
        return None


def run(context: StageContext[GrpoConfig]) -> Outputs:
    """Sample, reward and train; save the model and a few completions along the way."""
    from pipeline.training import setup

    setup.prepare()
    from transformers import AutoConfig

    from pipeline.tasks.grading import composite
    from pipeline.training import fused
    from pipeline.training.fit import fit
    from pipeline.training.grpo.judging import Judge

    config = context.config
    if config.efficiency.fused_kernels:
        fused.check(AutoConfig.from_pretrained(context.model_path(config.model), trust_remote_code=False))
    reward = Judge(composite(config.rewards, config.tasks, context).parts, context.base)
    reward.prepare()
    trainer = build(context, reward)
    try:
        summary = fit(trainer, context)
    finally:
        reward.close()
        trainer.sampler.close()
    if trainer.is_world_process_zero():
        trainer.samples.publish(context.output)
    return Outputs({**summary, "problems": len(trainer.train_dataset), **trainer.left_out})


def open_process(context: StageContext[GrpoConfig], launched: bool, logprobs: bool) -> Any:
    """The engine, or engines, in processes of their own.

    One that shares the trainer's GPU has started when this returns: it measures the memory that is free, and the
    trainer takes its own afterwards.

    Args:
        context: the stage.
        launched: whether a launcher has given each process of the trainer a GPU.
        logprobs: whether the trainer needs those of the sampled tokens.

    Raises:
        RolloutError: the engine does not start.
        ValueError: there is a GPU for it, but the trainer would take that one, too.
    """
    import torch

    from pipeline.rollout import engine_name, open_processes

    rollout = context.config.rollout
    process, ours = rollout.process or ProcessSpec(), os.environ.get(VISIBLE)
    several = torch.cuda.device_count() > 1
    everything = ",".join(map(str, range(torch.cuda.device_count()))) if ours is None else ours
    shared = torch.cuda.is_available() and rollout.server is None and shares_gpu(process, everything)
    if several and (shared or not launched):
        raise ValueError(
            "the trainer would spread over the engine's GPUs: say how many the stage has (launch: {gpus: 2}), and which"
            " of them are engines' (rollout: {process: {devices: [1]}})"
        )
    spec = context.rollout(rollout).model_copy(update={"engine": engine_name(rollout)})
    engine = open_processes(spec, context.model_path(context.config.model), context.seed, logprobs, True)
    if shared:
        _ = engine.dtype
    return engine


def shares_gpu(process: ProcessSpec, ours: str) -> bool:
    """Whether an engine sees a GPU that this process sees, too; `ours` as `CUDA_VISIBLE_DEVICES` has it."""
    seen = process.devices or [process.env.get(VISIBLE, ours)]
    theirs, own = (named(name.strip() for each in some for name in each.split(",")) for some in (seen, [ours]))
    return not {gpu.key for gpu in theirs}.isdisjoint(gpu.key for gpu in own)


def build(context: StageContext[GrpoConfig], reward: Any) -> Any:
    """The trainer of a stage, with its model, its problems and this reward."""
    from datasets import Dataset

    from pipeline.rollout.context_limit import ContextLimit, context_of
    from pipeline.tasks.grading import check_columns
    from pipeline.training import adapters, experts, models, setup
    from pipeline.training.decontaminate import clean_prompts
    from pipeline.training.grpo import reference
    from pipeline.training.grpo.judging import Samples
    from pipeline.training.grpo.trainer import GrpoTrainer

    config = context.config
    model = context.model_path(config.model)
    adapter = adapters.prepare(config, model, adapters.CAUSAL)
    args = arguments(context)
    rows, left_out = clean_prompts(config.tasks, config.decontaminate, context, config.dedup)
    tokenizer = setup.load_tokenizer(model)
    renderer = setup.renderer(model, tokenizer, config)
    longest = max([config.rollout.max_tokens, *(change.max_tokens for change in config.length_schedule)])
    options = {"max_model_len": getattr(args, "vllm_max_model_length", None), **config.rollout.engine_options}
    limit = ContextLimit(context_of(model, options), longest, config.rollout.too_long)
    every, rows = rows, prompted(rows, renderer, limit)
    left_out |= limit.left_out(len(every) - len(rows))
    check_problems(rows, config.rewards, args)
    check_columns(config.rewards, rows, context.base)
    with reference.loaded_as_policy(args):
        trainer = adapters.carry(
            GrpoTrainer,
            adapter,
            sampler=sampler(context, args),
            model=models.policy(model, args, adapters.quantizes(adapter)),
            reward_funcs=reward,
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            samples=Samples(context.scratch / SAMPLES, config.sample_every, config.samples),
            efficiency=config.switches,
            length_schedule=config.length_schedule,
            pool_spec=config.pool,
            mtp=config.mtp,
            stop=config.rollout.stop,
        )
    if config.health is not None:
        trainer.group_watch.limit = None
    trainer.left_out = left_out
    renderer.guide(trainer)
    experts.balance(trainer, config.routing)
    return trainer


def sampler(context: StageContext[GrpoConfig], args: Any) -> Any:
    """Where the trainer's rollouts come from: a function of the trainer. Engines of their own start already."""
    from pipeline.rollout import VLLM, engine_name
    from pipeline.training.grpo.engines import EngineSampler
    from pipeline.training.grpo.sampling import TrlSampler, VllmSampler, wants_logprobs

    rollout = context.rollout(context.config.rollout)
    if context.config.rollout.separate_process:
        first = args.distributed_state.is_main_process
        engine = open_process(context, args.distributed_state.use_distributed, wants_logprobs(args)) if first else None
        ahead, spare = context.config.rollout.max_staleness, context.config.rollout.spare
        return lambda trainer: EngineSampler(trainer, engine, ahead, spare)
    if engine_name(rollout) == VLLM:
        return lambda trainer: VllmSampler(trainer, rollout, context.model_path(context.config.model))
    return TrlSampler


def arguments(context: StageContext[GrpoConfig]) -> Any:
    """TRL's GRPOConfig for a stage."""
    from transformers import AutoConfig
    from trl import GRPOConfig

    from pipeline.rollout import TRANSFORMERS, VLLM, engine_name
    from pipeline.training import setup

    config, policy = (
        context.config,
        AutoConfig.from_pretrained(context.model_path(context.config.model), trust_remote_code=False),
    )
    rollout = config.rollout
    if rollout.separate_process or engine_name(rollout) == VLLM:  # TRL must not open an engine
        rollout = rollout.model_copy(update={"engine": TRANSFORMERS, "speculative": None})
    defaults = {**trainer_defaults(config), **checkpointing(config, policy)}
    fixed = generation_fields(rollout)
    args = setup.arguments(GRPOConfig, context, defaults, fixed)
    if not (config.efficiency.packing and config.efficiency.merge_micro_batches) or config.learns_from_every_row:
        return args
    router_loss = hasattr(policy.get_text_config(), "output_router_logits") and args.router_aux_loss_coef != 0
    changes = merged(args, router_loss)
    return setup.arguments(GRPOConfig, context, defaults, {**fixed, **changes}) if changes else args


def checkpointing(config: GrpoConfig, policy: Any) -> dict[str, Any]:
    """Whether activations are computed twice: on a GPU, unless those of a packed pass are small against its memory."""
    import torch

    from pipeline.training.grpo.activation_memory import keeps_activations

    if not torch.cuda.is_available() or not config.efficiency.packing:
        return {}
    longest = max(config.rollout.max_tokens, *(change.max_tokens for change in config.length_schedule), 0)
    tokens = max(config.efficiency.tokens_per_pass, longest)
    device = torch.cuda.get_device_properties(0).total_memory
    return {"gradient_checkpointing": not keeps_activations(policy, tokens, device)}


def trainer_defaults(config: GrpoConfig) -> dict[str, Any]:
    """`DEFAULTS`, with a synced reference where there is a reference of its own: that of an adapter is its base."""
    beta = config.trainer.get("beta", DEFAULTS["beta"])
    return {**DEFAULTS, "sync_ref_model": beta > 0 and config.adapter is None}
