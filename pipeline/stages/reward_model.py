"""A reward model: a language model with a head that scores a response, taught by pairs of which one is better.

    helpful:
      kind: reward_model
      model: "@sft"
      data: [pairs.jsonl]        # {"prompt": "…", "chosen": "…", "rejected": "…"}
      scope: summary
      trainer: {learning_rate: 1.0e-5, num_train_epochs: 1}

A GRPO stage uses it as `{use: preference, options: {model: "@helpful", scope: summary}}`. R1's helpfulness model
learned from 66k pairs and judges the final summary only; its harmlessness model looks at the whole response, and was
taught with single labels instead of pairs (Nature s41586-025-09422-z, supplement). The loss is Bradley and Terry's,
-log sigmoid(score of chosen - score of rejected), through TRL's trainer.

With `learns: steps` it becomes a process reward model, for the reward `process` and the stage kind `tree_search`: rows
have a label for every step, such as a `step_labels` stage makes them, and the loss is their cross-entropy.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.context import Outputs, StageContext
from pipeline.data.mixture import DataField
from pipeline.data.shapes import PAIR
from pipeline.data.step_rows import STEPS
from pipeline.schema.adapter import AdaptedConfig
from pipeline.schema.pieces import ModelRef
from pipeline.schema.reserved import RESERVED
from pipeline.tasks.resolve import TestTaskField
from pipeline.training.decontaminate import contamination, left_out

CENTRE = "center_rewards_coefficient"
DEFAULTS: Mapping[str, Any] = {
    "num_train_epochs": 1,
    "learning_rate": 1e-5,
    "lr_scheduler_type": "cosine",
    CENTRE: 0.01,
    "logging_steps": 5,
    "save_steps": 100,
}
"""Ours, where they differ from TRL's. Centring gives the zero of the scores a meaning (Eisenstein et al., arXiv
2312.09244)."""


UNWATCHED = (
    "a reward model scores answers and writes none, so held-out problems say nothing about it: watch the `grpo` stage"
    " that it rewards. Its accuracy on pairs is logged as it trains"
)


class RewardModelConfig(AdaptedConfig):
    """Config of a `reward_model` stage; see `AdaptedConfig` for the other fields. The head is trained in any case.

    Attributes:
        model: the language model to start from.
        data: sources of rows with `prompt` (text or messages), `chosen` and `rejected`; without a `prompt`, both are
            whole conversations that differ in their last message.
        learns: from `pairs`, or from rows with a label for each of their `steps`: `prompt`, `completions` (the steps)
            and `labels` (chances between 0 and 1).
        scope: what the model is shown of a response: the `summary` behind the thought, or the `whole`.
        decontaminate: test tasks that must not be learnt: pairs that ask what one of their problems asks are left
            out, counted as `contaminated`, and written to `left_out.jsonl`; all that the recipe evaluates if not given.
        dedup: leave out what comes a second time; it is counted as `duplicates` either way.
        max_length: longest conversation, in tokens; the model's context if not given. Longer pairs are dropped.
        trainer: fields of TRL's RewardConfig.
    """

    former: ClassVar[Mapping[str, str]] = dict.fromkeys(("watch", "keep", "stop"), UNWATCHED)
    version: ClassVar[int] = 4  # every sequence, pair and token of a step counts alike
    trainer_class: ClassVar[str | None] = "trl.trainer.reward_config:RewardConfig"
    trainer_defaults: ClassVar[Mapping[str, Any]] = DEFAULTS
    reserved: ClassVar[Mapping[str, str]] = {
        **RESERVED,
        "max_length": "set the stage's `max_length`",
        "chat_template_path": "set `chat_template` where the model is imported",
        "eos_token": "it is what the chat template ends a turn with",
        "pad_token": "it is the tokenizer's own",
        "dataset_num_proc": "rows are tokenised by the stage",
        "label_smoothing_factor": "the loss has no labels",
    }

    kind: Literal["reward_model"] = "reward_model"
    model: ModelRef
    data: Annotated[list[DataField], Field(min_length=1)]
    learns: Literal["pairs", "steps"] = "pairs"
    decontaminate: list[TestTaskField] | None = None
    dedup: bool = False
    scope: Literal["summary", "whole"] = "summary"
    max_length: Annotated[int, Field(gt=1)] | None = None

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        if self.learns == "steps" and self.scope != "summary":
            raise ValueError("scope has no effect with learns: steps: all steps are shown")
        if self.learns == "steps" and self.trainer.get(CENTRE) is not None:
            raise ValueError(f"trainer.{CENTRE} has no effect with learns: steps: labels say what 0 means")
        return self

    @property
    def row_keys(self) -> tuple[str, ...]:
        """What a row of its data has."""
        return STEPS if self.learns == "steps" else PAIR


def run(context: StageContext[RewardModelConfig]) -> Outputs:
    """Tokenise the rows, train, save the model."""
    from pipeline.training import setup

    setup.prepare()
    from trl import RewardConfig

    from pipeline.training import adapters, models
    from pipeline.training.fit import fit
    from pipeline.training.trainers.reward import RewardTrainer, StepTrainer

    config = context.config
    model = context.model_path(config.model)
    adapter = adapters.prepare(config, model, adapters.REWARD)
    tokenizer = setup.load_tokenizer(model)
    cleaner = contamination(config.decontaminate, context, config.dedup)
    dataset, account = _tokenised(context, tokenizer, cleaner)
    by_steps = config.learns == "steps"
    fixed = {"max_length": None, **({CENTRE: None} if by_steps else {})}
    args = setup.arguments(RewardConfig, context, DEFAULTS, fixed)
    lost = ", ".join(f"{count} {why.replace('_', ' ')}" for why, count in account["dropped"].items() if count)
    if lost and args.process_index == 0:
        context.note(f"rows that are left out: {lost}")
    kind = partial(StepTrainer, pad=tokenizer.pad_token_id) if by_steps else RewardTrainer
    trainer = adapters.carry(
        kind,
        adapter,
        model=models.loaded_by_trl(model, args, adapters.quantizes(adapter)),
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    return Outputs({**fit(trainer, context), **account, **left_out(cleaner)})


def _tokenised(context: StageContext[RewardModelConfig], tokenizer: Any, cleaner: Any) -> tuple[Any, dict[str, Any]]:
    """The stage's rows as the trainer takes them, and what became of them."""
    from pipeline.data import mixture, pairs, step_rows
    from pipeline.prompts.rendering import Renderer
    from pipeline.training import setup
    from rewards.preference import ConversationReader
    from rewards.process import StepReader

    config = context.config
    max_length = config.max_length or setup.context_length(context.model_path(config.model))
    rows = mixture.mixed(config.data, context, cleaner)
    if config.learns == "steps":
        return step_rows.tokenised(StepReader(tokenizer), rows, max_length)
    reader = ConversationReader(tokenizer, config.scope, tokenizer.pad_token_id)
    renderer = Renderer(tokenizer, {}, "") if tokenizer.chat_template else None
    return pairs.tokenised(reader, rows, max_length, renderer)
