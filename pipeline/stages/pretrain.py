"""Pre-training from nothing: a DeepSeek-V3 model of any size, and a tokenizer made from the corpus.

    base:
      kind: pretrain
      model: nano                                     # configs/model/nano.yaml, or a mapping of its fields
      vocabulary: {kind: words, tokens: ["User:", "Assistant:", "<think>", "</think>"]}
      corpus: {use: my_corpus.py:Sums, documents: 20000}
      length: 128
      trainer: {max_steps: 1000, learning_rate: 3.0e-3, per_device_train_batch_size: 32}

Documents are joined, each closed by the end-of-sequence token, and cut into rows of `length` tokens. Attention may
cross the border between two documents, as in DeepSeek-V3's own pre-training (arXiv 2412.19437, section 4.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from model import presets
from model.presets import FP8_BLOCK
from pipeline.context import Outputs, StageContext
from pipeline.data import corpora
from pipeline.data.corpora import CorpusField
from pipeline.data.vocabulary import VocabularySpec
from pipeline.schema.mtp import MtpSpec
from pipeline.schema.pieces import SFT_CONFIG, Fault, ModelRef, Precision
from pipeline.schema.reserved import TEXT_RESERVED
from pipeline.schema.routing import Routing
from pipeline.tasks.resolve import TestTaskField
from pipeline.training.decontaminate import contamination, left_out
from pipeline.training.held_out.fields import WatchedConfig

DEFAULTS: Mapping[str, Any] = {
    "num_train_epochs": 1,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "warmup_steps": 50,
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "logging_steps": 5,
    "save_steps": 200,
}
"""Ours, where they differ from TRL's. Decay, beta2 and the end at a tenth are DeepSeek-V3's (section 4.2)."""


class PretrainConfig(WatchedConfig):
    """Config of a `pretrain` stage.

    Attributes:
        model: a preset under `configs/model/`, or a mapping of its fields (see `model.presets.Shape`).
        vocabulary: the tokenizer to make from the corpus.
        tokenizer: a model whose tokenizer is taken instead.
        corpus: the text, or a list of several.
        decontaminate: test tasks that must not be learnt: documents that ask what one of their problems asks are left
            out, counted as `contaminated`, and written to `left_out.jsonl`; all that the recipe evaluates if not given.
        dedup: leave out what comes a second time; it is counted as `duplicates` either way.
        length: tokens in a row; documents are packed into rows of this length.
        precision: `fp8` multiplies in FP8, block by block, as DeepSeek-V3 was trained (H100, H200; simulated on a CPU);
            `trainer` leaves it to `trainer.bf16`.
        mtp: how the shape's blocks of multi-token prediction are trained along; DeepSeek-V3's way if not given.
        routing: how the experts are balanced.
        trainer: fields of TRL's SFTConfig.
    """

    version: ClassVar[int] = 4  # every sequence, pair and token of a step counts alike
    trainer_class: ClassVar[str | None] = SFT_CONFIG
    reserved: ClassVar[Mapping[str, str]] = {
        **TEXT_RESERVED,
        "model_init_kwargs": "a new model is made from the stage's `model`, in float32",
    }
    trainer_defaults: ClassVar[Mapping[str, Any]] = DEFAULTS

    kind: Literal["pretrain"] = "pretrain"
    model: str | dict[str, Any]
    vocabulary: VocabularySpec | None = None
    tokenizer: ModelRef | None = None
    corpus: CorpusField
    decontaminate: list[TestTaskField] | None = None
    dedup: bool = False
    length: Annotated[int, Field(gt=1)]
    precision: Precision = "trainer"
    mtp: MtpSpec | None = None
    routing: Routing = Routing()

    @field_validator("model")
    @classmethod
    def _possible(cls, model: str | dict[str, Any]) -> str | dict[str, Any]:
        presets.load(model)
        return model

    @model_validator(mode="after")
    def _consistent(self) -> PretrainConfig:
        if (self.vocabulary is None) == (self.tokenizer is None):
            raise ValueError("give either `vocabulary` (made from the corpus) or `tokenizer` (taken from a model)")
        shape = presets.load(self.model)
        if self.length > (limit := shape.max_position_embeddings):
            raise ValueError(f"length={self.length} exceeds the model's max_position_embeddings={limit}")
        if self.precision == "fp8" and not shape.experts_fit_fp8:
            raise ValueError(f"precision: fp8 needs hidden_size and moe_intermediate_size as multiples of {FP8_BLOCK}")
        if self.mtp is not None and not presets.load(self.model).num_nextn_predict_layers:
            raise ValueError("mtp: the model has no blocks of multi-token prediction: set its num_nextn_predict_layers")
        return self

    @property
    def blocks(self) -> MtpSpec | None:
        """See `TrainingConfig`; a shape that has blocks trains them."""
        return (self.mtp or MtpSpec()) if presets.load(self.model).num_nextn_predict_layers else None

    def faults(self, base: Path) -> Iterator[Fault]:
        """A generated corpus that does not exist, or has no such option; see also `WatchedConfig`."""
        yield from super().faults(base)
        yield from corpora.faults(self.corpus, base)


def run(context: StageContext[PretrainConfig]) -> Outputs:
    """Make the tokenizer and the model, train on the corpus, save both."""
    from pipeline.training import setup

    setup.prepare()
    from trl import SFTConfig

    from model import factory
    from pipeline.data import examples, vocabulary
    from pipeline.training import models
    from pipeline.training.fit import fit
    from pipeline.training.trainers import sft

    config = context.config
    cleaner = contamination(config.decontaminate, context, config.dedup)
    texts: Iterable[str] = corpora.texts(config.corpus, context, cleaner)
    if config.vocabulary is not None:
        texts = list(texts)
        tokenizer = vocabulary.build(config.vocabulary, texts)
    else:
        tokenizer = setup.load_tokenizer(context.model_path(str(config.tokenizer)))
    shape = presets.load(config.model)
    ids = (len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    model = models.fresh(lambda: factory.build(shape, *ids, context.seed))
    fixed = {"max_length": config.length, "packing": True, "packing_strategy": "wrapped"}
    args = setup.arguments(SFTConfig, context, DEFAULTS, fixed)

    def make() -> tuple[Any, examples.Account]:
        made, account = examples.documents(tokenizer, texts, context.unnamed_examples)
        return made, replace(account, left_out=left_out(cleaner))

    dataset, account = examples.shared(context.examples, args, make)
    trainer = sft.build(
        config,
        model=models.expert_parallel(model, context.scratch / "undivided"),
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        mtp=config.blocks,
        document_ends=(tokenizer.eos_token_id,),
    )
    summary = fit(trainer, context)
    size = factory.count(shape, len(tokenizer))
    return Outputs(
        {
            **summary,
            "documents": account.examples,
            "corpus_tokens": account.tokens,
            "vocabulary": len(tokenizer),
            "parameters": size.total,
            "active_parameters": size.active,
            **account.left_out,
        }
    )
