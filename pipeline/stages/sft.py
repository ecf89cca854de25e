"""Supervised fine-tuning on chats, or on prompts with completions; only what the assistant says is trained on.

    cold_start:
      kind: sft
      model: "@base"
      data: ["@rewritten", {from: general.jsonl, take: 2000}]
      max_length: 4096
      trainer: {learning_rate: 5.0e-5, per_device_train_batch_size: 16}

The defaults are those of R1's second fine-tuning (two epochs, cosine from 5e-5 to a tenth; Nature s41586-025-09422-z).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.data.mixture import DataField, DataSource
from pipeline.stages.base import SFT_CONFIG, ModelRef, Outputs, Precision, Product, StageConfig, StageContext
from pipeline.stages.routing import FinetuneRouting
from pipeline.training.fields import RESERVED
from pipeline.training.mtp import MtpSpec

DEFAULTS: Mapping[str, Any] = {
    "num_train_epochs": 2,
    "learning_rate": 5e-5,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "logging_steps": 5,
    "save_steps": 100,
}
"""Ours, where they differ from TRL's."""

DATA_RESERVED: Mapping[str, str] = {
    "max_length": "set the stage's `max_length`",
    "packing": "set the stage's `packing`",
    "packing_strategy": "follows from the stage's `packing`; examples are never cut",
    "truncation_mode": "examples are never cut; see `too_long`",
    "completion_only_loss": "only what the assistant says is trained on",
    "assistant_only_loss": "only what the assistant says is trained on",
    "chat_template_path": "set `chat_template` where the model is imported",
    "eos_token": "it is what the chat template ends a turn with",
    "pad_token": "it is the tokenizer's own",
    "dataset_text_field": "rows are tokenised by the stage",
    "dataset_kwargs": "rows are tokenised by the stage",
    "dataset_num_proc": "rows are tokenised by the stage",
    "shuffle_dataset": "rows are shuffled in every epoch",
}
"""Fields of SFTConfig that follow from the stage's own."""


class FinetuneConfig(StageConfig):
    """What stages share that fine-tune on rows.

    Attributes:
        model: what to start from.
        max_length: longest example, in tokens; the model's context if not given. A longer one is never cut.
        too_long: `drop` longer examples and count them, or stop with an `error`.
        packing: put several examples into one row, without letting them see each other.
        precision: `fp8` multiplies in FP8, block by block (H100, H200; simulated on a CPU); `trainer` leaves it to
            `trainer.bf16`.
        routing: how the experts are balanced, if the model is a DeepSeek-V3.
        mtp: how blocks of multi-token prediction are trained along; they stay as they are if not given.
        trainer: fields of TRL's config class.
    """

    product: ClassVar[Product] = Product.MODEL
    distributed: ClassVar[bool] = True
    trainer_class: ClassVar[str | None] = SFT_CONFIG
    reserved: ClassVar[Mapping[str, str]] = {**RESERVED, **DATA_RESERVED}

    model: ModelRef
    max_length: Annotated[int, Field(gt=1)] | None = None
    too_long: Literal["drop", "error"] = "drop"
    packing: bool = False
    precision: Precision = "trainer"
    routing: FinetuneRouting = FinetuneRouting()
    mtp: MtpSpec | None = None
    trainer: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _packable(self) -> Self:
        if self.packing and self.max_length is None:
            raise ValueError("packing needs a max_length: the length of a packed row")
        return self


class SftConfig(FinetuneConfig):
    """Config of an `sft` stage; see `FinetuneConfig` for the other fields.

    Attributes:
        data: sources of rows (see `pipeline.data.mixture`): `@stage`, a JSONL file, or `{from, take, weight}`.
    """

    kind: Literal["sft"] = "sft"
    data: Annotated[list[DataField], Field(min_length=1)]


def run(context: StageContext[SftConfig]) -> Outputs:
    """Tokenise the rows, train, save the model."""
    return finetune(context, context.config.data, DEFAULTS)


def finetune(context: StageContext[Any], data: Sequence[DataSource], defaults: Mapping[str, Any]) -> Outputs:
    """Fine-tune on rows as an `sft` stage does; the stage's config is a `FinetuneConfig`."""
    from pipeline.training import setup

    setup.prepare()
    from trl import SFTConfig

    from pipeline.data import examples, mixture
    from pipeline.training import models, sft
    from pipeline.training.fit import fit

    config: FinetuneConfig = context.config
    model = context.model_path(config.model)
    tokenizer = setup.load_tokenizer(model)
    max_length = config.max_length or setup.context_length(model)
    fixed = {
        "max_length": max_length if config.packing else None,
        "packing": config.packing,
        "packing_strategy": "bfd",  # would cut what is longer than a row, but nothing is
    }
    args = setup.arguments(SFTConfig, context, defaults, fixed)
    dataset, account = examples.shared(
        context.examples,
        args,
        lambda: examples.completions(tokenizer, mixture.mixed(data, context), max_length, config.too_long),
    )
    setup.warn_if_dropped(account, max_length)
    trainer = sft.build(
        config,
        model=models.policy(model, args),
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        mtp=config.mtp,
    )
    return Outputs({**fit(trainer, context), **account.metrics()})
