"""Distillation: a small student learns from a large teacher, in one of two ways.

R1's way: fine-tuning on what the teacher wrote and a verifier accepted::

    student: {kind: distill, model: Qwen/Qwen2.5-1.5B, data: ["@samples"], max_length: 32768}

On-policy: the student writes, and learns the teacher's distribution at every token of what it wrote (Agarwal et al.,
arXiv 2306.13649, through TRL's trainer). Both must have the same vocabulary::

    student: {kind: distill, model: "@small", teacher: "@r1", tasks: [gsm8k/train], trainer: {beta: 1.0}}

R1 distilled by fine-tuning alone: two to three epochs, a cosine that ends at a tenth, batches of 64, a context of
32,768 and a learning rate by the student's size (Nature s41586-025-09422-z, supplement). Those are the defaults, except
for batch and context, which depend on the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.context import Outputs, StageContext
from pipeline.data.mixture import DataField
from pipeline.schema.pieces import SFT_CONFIG, ModelRef, RolloutSpec
from pipeline.schema.reserved import RESERVED, SAMPLING_RESERVED
from pipeline.tasks.resolve import TaskField
from pipeline.training.finetune import DEFAULTS as SFT_DEFAULTS
from pipeline.training.finetune import FinetuneConfig, finetune
from pipeline.training.generation import check_generation_kwargs, generation_fields, prompted

LEARNING_RATES = ((3e9, 1e-4), (10e9, 8e-5), (20e9, 7e-5), (float("inf"), 6e-5))
"""(largest number of parameters, initial learning rate): 1.5B, 7B, 14B and 32B of the paper, Qwen students."""

ON_POLICY_DEFAULTS: Mapping[str, Any] = {
    "num_train_epochs": 1,
    "lr_scheduler_type": "constant",
    "per_device_train_batch_size": 16,
    "logging_steps": 1,
    "save_steps": 50,
}
"""Ours for the on-policy way, where they differ from TRL's."""


class DistillConfig(FinetuneConfig):
    """Config of a `distill` stage; see `FinetuneConfig` for the other fields. `model` is the student.

    Attributes:
        data: rows that the teacher wrote, as in an `sft` stage.
        teacher: the teacher of the on-policy way.
        tasks: where its prompts come from.
        rollout: how the student samples.
        trainer: fields of TRL's SFTConfig, or with a teacher of its DistillationConfig.
    """

    kind: Literal["distill"] = "distill"
    data: list[DataField] = Field(default_factory=list)
    teacher: ModelRef | None = None
    tasks: list[TaskField] = Field(default_factory=list)
    rollout: RolloutSpec = RolloutSpec()

    @property
    def trainer_class(self) -> str:  # type: ignore[override]
        """Which of TRL's config classes `trainer` is passed to."""
        return self.trainer_class_of({"teacher": self.teacher})

    @classmethod
    def trainer_class_of(cls, values: Mapping[str, Any]) -> str:
        """See `StageConfig.trainer_class_of`."""
        return SFT_CONFIG if values.get("teacher") is None else "trl.trainer.distillation_config:DistillationConfig"

    @property
    def trainer_defaults(self) -> Mapping[str, Any]:  # type: ignore[override]
        """See `StageConfig.trainer_defaults`."""
        return FinetuneConfig.trainer_defaults if self.teacher is None else ON_POLICY_DEFAULTS

    @property
    def reserved(self) -> Mapping[str, str]:  # type: ignore[override]
        """See `StageConfig.reserved`."""
        if self.teacher is None:
            return FinetuneConfig.reserved
        return {**RESERVED, **SAMPLING_RESERVED, "teacher_model_name_or_path": "set the stage's `teacher`"}

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.teacher is None and not self.data:
            raise ValueError("give either `data` (what the teacher wrote) or `teacher` and `tasks` (on-policy)")
        if self.teacher is not None and (self.data or not self.tasks):
            raise ValueError("a `teacher` goes with `tasks`, whose prompts the student answers, and not with `data`")
        check_generation_kwargs(self.trainer)
        return self

    @model_validator(mode="after")
    def _nothing_in_vain(self) -> Self:
        if self.teacher is None:
            if self.tasks or self.rollout != RolloutSpec():
                raise ValueError("tasks and rollout are for a `teacher`: nothing is sampled to distil through `data`")
            return self
        if self.packing or self.max_length is not None or self.too_long != "drop":
            raise ValueError(
                "packing, max_length and too_long are for distilling through `data`: with a `teacher`, rows are prompts"
                " and what is sampled, rollout.max_tokens long at most"
            )
        if self.rollout.engine == "vllm_server" or self.rollout.server is not None:
            raise ValueError("rollout.engine: TRL's trainer samples with transformers, or with vLLM in its own process")
        plain = RolloutSpec()
        for name in ("process", "engine_options", "batch_size", "scheduler_fast_path"):
            if getattr(self.rollout, name) != getattr(plain, name):
                raise ValueError(f"rollout.{name} has no effect here: TRL's trainer samples with an engine of its own")
        return self


def run(context: StageContext[DistillConfig]) -> Outputs:
    """Distil in the way that the config asks for."""
    config = context.config
    if config.teacher is not None:
        return _on_policy(context, context.model_path(config.teacher))
    rate = learning_rate(context.model_path(config.model))
    return finetune(context, config.data, {**SFT_DEFAULTS, "learning_rate": rate})


def learning_rate(student: str) -> float:
    """The paper's initial learning rate for a student of this size; hub ids count as the smallest."""
    from pipeline.conversion.importing import weights

    size = weights(Path(student))[0] if Path(student).is_dir() else 0
    return next(rate for largest, rate in LEARNING_RATES if size <= largest)


def _on_policy(context: StageContext[DistillConfig], teacher: str) -> Outputs:
    from pipeline.training import setup

    setup.prepare()
    from datasets import Dataset
    from trl import DistillationConfig

    from pipeline.rollout.context_limit import ContextLimit, context_of
    from pipeline.training import adapters, experts, models
    from pipeline.training.decontaminate import clean_prompts
    from pipeline.training.fit import fit
    from pipeline.training.trainers.distill import DistillTrainer

    config = context.config
    model = context.model_path(config.model)
    adapter = adapters.prepare(config, model, adapters.CAUSAL)
    tokenizer = setup.load_tokenizer(model)
    if tokenizer.get_vocab() != setup.load_tokenizer(teacher).get_vocab():
        raise ValueError(
            f"student ({model}) and teacher ({teacher}) have different vocabularies, so their distributions cannot be"
            " compared: distil through `data`, or choose a teacher of the same family"
        )
    renderer = setup.renderer(model, tokenizer, config)
    limit = ContextLimit(
        context_of(model, config.rollout.engine_options), config.rollout.max_tokens, config.rollout.too_long
    )
    rows, left_out = clean_prompts(config.tasks, config.decontaminate, context, config.dedup)
    every, rows = rows, prompted(rows, renderer, limit)
    left_out |= limit.left_out(len(every) - len(rows))
    prompts = [{"prompt": row["prompt"]} for row in rows]
    args = setup.arguments(DistillationConfig, context, ON_POLICY_DEFAULTS, generation_fields(config.rollout))
    if config.rollout.speculative is not None and args.use_vllm:
        raise ValueError("rollout.speculative has no effect here with vLLM: set rollout.engine: transformers")
    trainer = adapters.carry(
        DistillTrainer,
        adapter,
        model=models.policy(model, args, adapters.quantizes(adapter)),
        teacher_model=teacher,
        args=args,
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
        mtp=config.mtp,
        stop=config.rollout.stop,
    )
    renderer.guide(trainer)
    setup.set_precision(trainer.model, config.precision)
    experts.balance(trainer, config.routing)
    return Outputs({**fit(trainer, context), "problems": len(prompts), **left_out})
