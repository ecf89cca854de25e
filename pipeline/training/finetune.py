"""Fine-tuning on rows as `sft` and `distill` do it: what their configs share, and the work itself.

Imported with the stages' configs, so nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.context import Outputs, StageContext
from pipeline.data.mixture import DataSource
from pipeline.schema.adapter import AdaptedConfig
from pipeline.schema.mtp import MtpSpec
from pipeline.schema.pieces import SFT_CONFIG, ModelRef, Precision, PromptedConfig
from pipeline.schema.reserved import DATA_RESERVED, RESERVED
from pipeline.schema.routing import FinetuneRouting
from pipeline.tasks.resolve import TestTaskField
from pipeline.training.decontaminate import contamination, left_out
from pipeline.training.held_out.fields import WatchedConfig

DEFAULTS: Mapping[str, Any] = {
    "num_train_epochs": 2,
    "learning_rate": 5e-5,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "logging_steps": 5,
    "save_steps": 100,
}
"""Ours, where they differ from TRL's."""


class FinetuneConfig(PromptedConfig, AdaptedConfig, WatchedConfig):
    """What stages share that fine-tune on rows; see `PromptedConfig`, `AdaptedConfig` and `WatchedConfig`, too.

    Attributes:
        model: what to start from.
        max_length: longest example, in tokens; the model's context if not given. A longer one is never cut.
        too_long: `drop` longer examples and count them, or stop with an `error`.
        packing: put several examples into one row, without letting them see each other.
        precision: `fp8` multiplies in FP8, block by block (H100, H200; simulated on a CPU); `trainer` leaves it to
            `trainer.bf16`.
        routing: how the experts are balanced, if the model is a DeepSeek-V3.
        mtp: how blocks of multi-token prediction are trained along; they stay as they are if not given.
        decontaminate: test tasks that must not be learnt: rows that ask what one of their problems asks are left
            out, counted as `contaminated`, and written to `left_out.jsonl`; all that the recipe evaluates if not given.
        dedup: leave out what comes a second time; it is counted as `duplicates` either way.
        trainer: fields of TRL's config class.
    """

    version: ClassVar[int] = 4  # every sequence, pair and token of a step counts alike
    trainer_class: ClassVar[str | None] = SFT_CONFIG
    reserved: ClassVar[Mapping[str, str]] = {**RESERVED, **DATA_RESERVED}
    trainer_defaults: ClassVar[Mapping[str, Any]] = DEFAULTS

    model: ModelRef
    max_length: Annotated[int, Field(gt=1)] | None = None
    too_long: Literal["drop", "error"] = "drop"
    packing: bool = False
    precision: Precision = "trainer"
    routing: FinetuneRouting = FinetuneRouting()
    mtp: MtpSpec | None = None
    decontaminate: list[TestTaskField] | None = None
    dedup: bool = False

    @model_validator(mode="after")
    def _packable(self) -> Self:
        if self.packing and self.max_length is None:
            raise ValueError("packing needs a max_length: the length of a packed row")
        return self


def finetune(context: StageContext[Any], data: Sequence[DataSource], defaults: Mapping[str, Any]) -> Outputs:
    """Fine-tune on rows as an `sft` stage does; the stage's config is a `FinetuneConfig`."""
    from pipeline.training import setup

    setup.prepare()
    from trl import SFTConfig

    from pipeline.data import examples, mixture
    from pipeline.training import adapters, models
    from pipeline.training.fit import fit
    from pipeline.training.trainers import sft

    config: FinetuneConfig = context.config
    model = context.model_path(config.model)
    adapter = adapters.prepare(config, model, adapters.CAUSAL)
    tokenizer = setup.load_tokenizer(model)
    renderer = setup.renderer(model, tokenizer, config)
    max_length = config.max_length or setup.context_length(model)
    fixed = {
        "max_length": max_length if config.packing else None,
        "packing": config.packing,
        "packing_strategy": "bfd",  # would cut what is longer than a row, but nothing is
    }
    args = setup.arguments(SFTConfig, context, defaults, fixed)

    def make() -> tuple[Any, examples.Account]:
        cleaner = contamination(config.decontaminate, context, config.dedup)
        rows = mixture.mixed(data, context, cleaner)
        file = context.unnamed_examples
        made, account = examples.completions(tokenizer, rows, max_length, config.too_long, renderer, file)
        return made, replace(account, left_out=left_out(cleaner))

    dataset, account = examples.shared(context.examples, args, make)
    setup.warn_if_dropped(context, args, account, max_length)
    trainer = sft.build(
        config,
        adapter,
        model=models.policy(model, args, adapters.quantizes(adapter)),
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        mtp=config.mtp,
    )
    return Outputs({**fit(trainer, context), **account.metrics()})
