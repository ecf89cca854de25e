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

from typing import Annotated, Literal

from pydantic import Field

from pipeline.context import Outputs, StageContext
from pipeline.data.mixture import DataField
from pipeline.training.finetune import DEFAULTS, FinetuneConfig, finetune


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
