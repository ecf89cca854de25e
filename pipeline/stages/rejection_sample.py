"""Rejection sampling: sample several completions a problem, keep what passes, and write it as training rows.

    samples:
      kind: rejection_sample
      model: "@dev2"
      tasks: [gsm8k/train]
      samples: 8
      keep: 2
      require: [accuracy, think_format, {use: language, options: {language: en}}]
      filters: {max_tokens: 2000, max_repetition: 0.2}
      decontaminate: [gsm8k/test]

R1's second SFT learns from 600k such rows (Nature version, Methods). `data.jsonl` holds the rows, `samples.jsonl` some
samples for every reason to keep or drop, and the metrics are an account: where each sample went.

With `pairs: true` a row also has what a reward model learns from: an answer to the same problem that was dropped, and
whether there is one (`rejected`, `paired`):

    helpful:
      kind: reward_model
      model: "@base"
      data: [{from: "@samples", columns: {chosen: messages, rejected: rejected}, filter: {paired: true}}]
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.context import Outputs, StageContext
from pipeline.data.filters import Duplicates, FilterSpec
from pipeline.files.rows import write_rows
from pipeline.prompts.rendering import left_open
from pipeline.prompts.templates import ChatTemplateName, prompt_template
from pipeline.records.samples import SAMPLES
from pipeline.sampling.sampler import Group, Sample, Sampler, record
from pipeline.schema.pieces import ModelRef, Product, PromptedConfig, RewardSpec, RolloutSpec, check_samples
from pipeline.tasks.grading import ACCURACY, check_columns, composite
from pipeline.tasks.resolve import TaskField, TestTaskField
from pipeline.training.decontaminate import clean_prompts
from rewards import Composite
from rewards.verdict import BLAMELESS

logger = logging.getLogger(__name__)

KEPT, ENOUGH, DUPLICATE, UNJUDGED, WRONG = "kept", "enough", "duplicate", "unjudged", "wrong"
EMPTY, LEFT_OPEN = "empty", "thought never closed"
"""Samples that fine-tuning would refuse, whatever is required of them."""
NO_WORSE = (UNJUDGED, DUPLICATE, EMPTY)
"""Reasons to drop a sample that do not make it worse than one that is kept, or leave nothing to compare."""


class NothingKeptError(RuntimeError):
    """Not one sample passed: there is nothing to learn from."""


class Requirement(RewardSpec):
    """A reward that a sample must reach: `{use: language, min: 1.0}`; a plain string is `{use: …}`.

    A reward that gives no score (too few words to tell the language) does not stand in the way.

    Attributes:
        min: the least score with which a sample is kept; 1 is a right answer.
    """

    min: float = 1.0

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"use": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_no_weight(self) -> Self:
        fields = type(self).model_fields
        if useless := [name for name in ("clip", "gate", "weight") if getattr(self, name) != fields[name].default]:
            raise ValueError(f"a requirement has no {', '.join(useless)}: its score is compared with `min`")
        return self


class RejectionSampleConfig(PromptedConfig):
    """Fields of a `rejection_sample` stage; see `PromptedConfig` for `prefill`, which becomes part of the rows.

    Attributes:
        model: the model that samples.
        tasks: where the problems come from.
        samples: samples a problem. More of them find an answer to harder problems, and cost as much more.
        keep: most samples kept of a problem, so that easy problems do not fill the data.
        choose: which of those that pass: the `first` (a random choice, for samples are drawn alike) or the `shortest`.
        rows: most rows in all; sampling stops when there are enough.
        require: rewards that a sample must reach; `accuracy` is each task's own grader.
        filters: rules that a sample must keep to.
        dedup: whether a completion may come once only for the same question.
        decontaminate: tasks whose problems must not be learnt: questions that share ten words in a row are left out;
            all that the recipe evaluates if not given.
        template: prompt template of the written rows; the one that was sampled with if not given.
        pairs: whether each row also has an answer to the same problem that was dropped, as `rejected`, for a
            `reward_model` stage; `paired` says if there is one.
        rollout: how to sample.
        chat_template: chat template to use instead of the tokenizer's own.
        save: samples written to `samples.jsonl` for every reason to keep or drop.
    """

    product: ClassVar[Product] = Product.DATASET
    shared: ClassVar[bool] = True
    version: ClassVar[int] = 3  # what the recipe evaluates is left out

    model: ModelRef
    tasks: Annotated[list[TaskField], Field(min_length=1)]
    samples: Annotated[int, Field(gt=0)] = 4
    keep: Annotated[int, Field(gt=0)] = 1
    choose: Literal["first", "shortest"] = "first"
    rows: Annotated[int, Field(gt=0)] | None = None
    require: list[Requirement] = Field(default_factory=lambda: [Requirement(use=ACCURACY)])
    filters: FilterSpec = FilterSpec()
    dedup: bool = True
    decontaminate: list[TestTaskField] | None = None
    template: str | None = None
    pairs: bool = False
    rollout: RolloutSpec = RolloutSpec()
    chat_template: ChatTemplateName | None = None
    save: Annotated[int, Field(ge=0)] = 100

    @field_validator("template")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None:
            prompt_template(name)
        return name

    @model_validator(mode="after")
    def _differ(self) -> Self:
        check_samples(self.samples, self.rollout.temperature)
        return self


def run(context: StageContext[RejectionSampleConfig]) -> Outputs:
    """Sample, judge, filter; writes `data.jsonl` and `samples.jsonl`."""
    config = context.config
    prompts, left_out = clean_prompts(config.tasks, config.decontaminate, context)
    check_columns(config.require, prompts, context.base)
    sampler = Sampler(
        context.model_path(config.model),
        context.rollout(config.rollout),
        config.samples,
        context.seed,
        context.scratch / "samples",
        config.chat_template,
        config.chat_template_kwargs,
        config.prefill,
        share=context.share,
    )
    judge = _judge(context)
    judge.prepare()
    account = _Account(config)
    try:
        for group in sampler.groups(prompts, judge, "chunks", context.log, ahead=config.rows is None):
            account.take(group)
            if config.rows is not None and len(account.rows) >= config.rows:
                break
    finally:
        sampler.close()
        context.work.add(sampler.seconds)
        judge.close()
    metrics = account.metrics() | sampler.speculation | left_out | sampler.limit.left_out(sampler.left_out)
    logger.info("%s", metrics)
    write_rows(context.output / SAMPLES, account.examples)
    if not account.rows:
        raise NothingKeptError(f"not one of {account.sampled} samples passed: {dict(account.reasons)}")
    write_rows(context.output / "data.jsonl", account.rows)
    return Outputs(metrics)


def _judge(context: StageContext[RejectionSampleConfig]) -> Composite:
    """All requirements; accuracy is always among them, for the account."""
    config = context.config
    specs: list[RewardSpec] = list(config.require)
    if all(spec.label != ACCURACY for spec in specs):
        specs.insert(0, RewardSpec(use=ACCURACY))
    return composite(specs, config.tasks, context)


@dataclass
class _Account:
    """Decides on samples, and remembers where each went."""

    config: RejectionSampleConfig
    rows: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    problems: int = 0
    correct: int = 0
    shares: list[float] = field(default_factory=list)
    tokens: int = 0
    kept_tokens: int = 0
    paired: int = 0
    duplicates: Duplicates = field(default_factory=Duplicates)

    @property
    def sampled(self) -> int:
        """Samples so far."""
        return sum(self.reasons.values())

    def take(self, group: Group) -> None:
        """Decide on the samples of one problem."""
        self.problems += 1
        self.tokens += sum(sample.tokens for sample in group.samples)
        verdicts = [j for sample in group.samples if (j := sample.judgements.get(ACCURACY)) and j.score is not None]
        if verdicts:
            good = sum(verdict.correct for verdict in verdicts)
            self.correct += good
            self.shares.append(good / len(verdicts))
        passed, worse = list[Sample](), list[Sample]()
        for sample in group.samples:
            reason = self._fault(group, sample)
            if reason is None:
                passed.append(sample)
                continue
            self._note(group, sample, reason)
            if reason not in NO_WORSE:
                worse.append(sample)
        if self.config.choose == "shortest":
            passed.sort(key=lambda sample: sample.tokens)
        room = (
            self.config.keep if self.config.rows is None else min(self.config.keep, self.config.rows - len(self.rows))
        )
        for place, sample in enumerate(passed):
            self._note(group, sample, KEPT if place < room else ENOUGH)
        for place, sample in enumerate(passed[:room]):
            self.kept_tokens += sample.tokens
            other = worse[place] if place < len(worse) else None  # an answer stands in one pair only
            self.paired += other is not None
            self.rows.append(self._row(group, sample, other))

    def metrics(self) -> dict[str, Any]:
        """The account."""
        kept = self.reasons[KEPT]
        numbers: dict[str, Any] = {
            "problems": self.problems,
            "sampled": self.sampled,
            "correct": self.correct,
            "kept": kept,
            "dropped": {reason: count for reason, count in sorted(self.reasons.items()) if reason != KEPT},
        }
        if self.shares:
            numbers["pass@1"] = sum(self.shares) / len(self.shares)
        if kept:
            numbers["tokens"] = self.kept_tokens / kept
        if self.sampled:
            numbers["sampled_tokens"] = self.tokens / self.sampled
        if self.config.pairs:
            numbers["pairs"] = self.paired
        return numbers

    def _fault(self, group: Group, sample: Sample) -> str | None:
        """Why a sample is dropped, or `None`."""
        for requirement in self.config.require:
            judgement = sample.judgements.get(requirement.label)
            if judgement is None:
                continue
            if judgement.status in BLAMELESS:
                return UNJUDGED
            if judgement.score is not None and judgement.score < requirement.min:
                return WRONG if requirement.use == ACCURACY else requirement.label
        said = group.begun + sample.completion
        if (fault := self.config.filters.fault(said, sample.tokens, sample.truncated)) is not None:
            return fault
        if not said.strip():
            return EMPTY
        if left_open(said):
            return LEFT_OPEN
        if self.config.dedup and self.duplicates.seen(group.row["question"], sample.completion):
            return DUPLICATE
        return None

    def _note(self, group: Group, sample: Sample, reason: str) -> None:
        self.reasons[reason] += 1
        if self.reasons[reason] <= self.config.save:
            self.examples.append(record(group, sample, ACCURACY, reason=reason))

    def _row(self, group: Group, sample: Sample, worse: Sample | None) -> dict[str, Any]:
        row = group.row
        prompt = row["prompt"]
        if self.config.template is not None:
            prompt = prompt_template(self.config.template)(row["question"])

        def chat(said: Sample) -> list[dict[str, Any]]:
            return [*prompt, {"role": "assistant", "content": (group.begun + said.completion).strip()}]

        pair = {"paired": worse is not None, "rejected": None if worse is None else chat(worse)}
        learnt = {"messages": chat(sample), "task": row["task"], "id": row["id"], "answer": row["answer"]}
        return {**learnt, **(pair if self.config.pairs else {})}
