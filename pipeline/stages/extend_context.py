"""Longer context by YaRN and a short training on long texts, as DeepSeek-V3 got from 4K to 32K and on to 128K tokens.

    long:
      kind: extend_context
      model: "@base"
      context: 32768
      factor: 40                    # the same in both stages
      corpus: {from: books.jsonl}   # documents as long as the context
      trainer: {per_device_train_batch_size: 1, gradient_accumulation_steps: 32}
    longer:
      kind: extend_context
      model: "@long"
      context: 131072
      factor: 40
      corpus: {from: books.jsonl}

The published model's config carries the new rotary positions (see `model.yarn`), so transformers and vLLM read it as it
is. The defaults are DeepSeek-V3's: 1000 steps at the constant learning rate that its pre-training ended with
(arXiv 2412.19437, section 4.3). Documents are packed into rows as by `pretrain`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.context import Outputs, StageContext
from pipeline.data import corpora
from pipeline.data.corpora import CorpusField
from pipeline.schema.adapter import AdaptedConfig
from pipeline.schema.mtp import MtpSpec
from pipeline.schema.pieces import SFT_CONFIG, Fault, ModelRef, Precision
from pipeline.schema.reserved import TEXT_RESERVED
from pipeline.schema.routing import FinetuneRouting
from pipeline.tasks.resolve import TestTaskField
from pipeline.training.decontaminate import contamination, left_out
from pipeline.training.held_out.fields import WatchedConfig

logger = logging.getLogger(__name__)

DEFAULTS: Mapping[str, Any] = {
    "max_steps": 1000,
    "learning_rate": 7.3e-6,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "logging_steps": 5,
    "save_steps": 100,
}
"""Ours, where they differ from TRL's."""


class ExtendContextConfig(AdaptedConfig, WatchedConfig):
    """Config of an `extend_context` stage; see `AdaptedConfig` and `WatchedConfig` for the others.

    Attributes:
        model: a model with rotary positions, extended before or not.
        context: the new context, in tokens.
        factor: YaRN's s, by which positions are interpolated; context over original context if not given. Stages that
            follow each other share one, large enough for the last.
        corpus: the text, or a list of several; documents as long as the context teach to use it.
        decontaminate: test tasks that must not be learnt: documents that ask what one of their problems asks are left
            out, counted as `contaminated`, and written to `left_out.jsonl`; all that the recipe evaluates if not given.
        dedup: leave out what comes a second time; it is counted as `duplicates` either way.
        length: tokens in a row; the new context if not given.
        precision: `fp8` multiplies in FP8, block by block (H100, H200; simulated on a CPU); `trainer` leaves it to
            `trainer.bf16`.
        mtp: how blocks of multi-token prediction are trained along; they stay as they are if not given.
        routing: how the experts are balanced, if the model is a DeepSeek-V3.
        trainer: fields of TRL's SFTConfig.
    """

    version: ClassVar[int] = 4  # every sequence, pair and token of a step counts alike
    trainer_class: ClassVar[str | None] = SFT_CONFIG
    reserved: ClassVar[Mapping[str, str]] = TEXT_RESERVED
    trainer_defaults: ClassVar[Mapping[str, Any]] = DEFAULTS

    kind: Literal["extend_context"] = "extend_context"
    model: ModelRef
    context: Annotated[int, Field(gt=1)]
    factor: Annotated[float, Field(gt=1)] | None = None
    corpus: CorpusField
    decontaminate: list[TestTaskField] | None = None
    dedup: bool = False
    length: Annotated[int, Field(gt=1)] | None = None
    precision: Precision = "trainer"
    mtp: MtpSpec | None = None
    routing: FinetuneRouting = FinetuneRouting()

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        if self.length is not None and self.length > self.context:
            raise ValueError(f"rows of length={self.length} exceed the context of {self.context} tokens")
        return self

    def faults(self, base: Path) -> Iterator[Fault]:
        """A generated corpus that does not exist, or has no such option."""
        yield from super().faults(base)
        yield from corpora.faults(self.corpus, base)


def run(context: StageContext[ExtendContextConfig]) -> Outputs:
    """Change the config, train on long rows, save the model."""
    from pipeline.training import setup

    setup.prepare()
    from transformers import AutoConfig
    from trl import SFTConfig

    from model import yarn
    from pipeline.data import examples
    from pipeline.training import adapters, models
    from pipeline.training.fit import fit
    from pipeline.training.trainers import sft

    config = context.config
    path = context.model_path(config.model)
    adapter = adapters.prepare(config, path, adapters.CAUSAL)
    before = AutoConfig.from_pretrained(path, trust_remote_code=False)
    after = yarn.extended(before, config.context, config.factor)
    tokenizer = setup.load_tokenizer(path)
    tokenizer.model_max_length = max(tokenizer.model_max_length, config.context)
    changes = {"max_position_embeddings": config.context, "rope_parameters": after.rope_parameters}
    fixed = {
        "max_length": config.length or config.context,
        "packing": True,
        "packing_strategy": "wrapped",
        "model_init_kwargs": {**(config.trainer.get("model_init_kwargs") or {}), **changes},
    }
    args = setup.arguments(SFTConfig, context, DEFAULTS, fixed)

    def make() -> tuple[Any, examples.Account]:
        cleaner = contamination(config.decontaminate, context, config.dedup)
        made, account = examples.documents(
            tokenizer, corpora.texts(config.corpus, context, cleaner), context.unnamed_examples
        )
        return made, replace(account, left_out=left_out(cleaner))

    dataset, account = examples.shared(context.examples, args, make)
    if account.longest <= before.max_position_embeddings:
        logger.warning(
            "the longest document has %d tokens and the model reads %d already: nothing teaches it to look further",
            account.longest,
            before.max_position_embeddings,
        )
    trainer = sft.build(
        config,
        adapter,
        model=models.policy(path, args, adapters.quantizes(adapter)),
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        mtp=config.mtp,
        document_ends=(tokenizer.eos_token_id,),
    )
    return Outputs(
        {
            **fit(trainer, context),
            "context_before": before.max_position_embeddings,
            "context": config.context,
            "factor": after.rope_parameters["factor"],
            "documents": account.examples,
            "corpus_tokens": account.tokens,
            "longest": account.longest,
            **account.left_out,
        }
    )
