"""How hard each problem is for a model: the share of its samples that are right, problem by problem.

    rates:
      kind: pass_rate
      model: "@base"
      tasks: [gsm8k/train]
      samples: 8
    zero:
      kind: grpo
      model: "@base"
      tasks: [{use: gsm8k, filter: {pass_rate: [0.1, 0.9]}}]     # from "@rates", the recipe's only such stage

A problem that a model always or never solves teaches nothing: all rollouts of its group have the same advantage, 0.
`data.jsonl` has a row a problem, with the columns `pass_rate`, `correct`, `samples`, `tokens` (mean length),
`truncated` (share of the samples) and `verdicts`; the report shows a histogram.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.context import Outputs, StageContext
from pipeline.files.rows import write_rows
from pipeline.prompts.templates import ChatTemplateName
from pipeline.records.samples import SAMPLES, UNJUDGED
from pipeline.sampling.sampler import Group, Sampler, record
from pipeline.schema.pieces import ModelRef, Product, PromptedConfig, RewardSpec, RolloutSpec, check_samples
from pipeline.tasks.grading import ACCURACY, composite
from pipeline.tasks.resolve import TaskField, once_each, prompt_rows

BINS = 10
"""Of the histogram, between the problems that are never solved and those that always are."""


class PassRateConfig(PromptedConfig):
    """Fields of a `pass_rate` stage; see `PromptedConfig` for the other fields.

    Attributes:
        model: the model that samples.
        tasks: where the problems come from.
        samples: samples a problem. The rate has steps of one in so many.
        rollout: how to sample; as GRPO does if not given, at temperature 1.
        chat_template: chat template to use instead of the tokenizer's own.
        save: problems whose samples are written to `samples.jsonl`.
    """

    product: ClassVar[Product] = Product.DATASET
    shared: ClassVar[bool] = True

    kind: Literal["pass_rate"] = "pass_rate"
    model: ModelRef
    tasks: Annotated[list[TaskField], Field(min_length=1)]
    samples: Annotated[int, Field(gt=0)] = 8
    rollout: RolloutSpec = RolloutSpec()
    chat_template: ChatTemplateName | None = None
    save: Annotated[int, Field(ge=0)] = 100

    @model_validator(mode="after")
    def _differ(self) -> Self:
        check_samples(self.samples, self.rollout.temperature)
        return self


def run(context: StageContext[PassRateConfig]) -> Outputs:
    """Sample, judge, and count; writes `data.jsonl` and `samples.jsonl`."""
    config = context.config
    prompts = once_each(prompt_rows(config.tasks, context))
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
    judge = composite([RewardSpec(use=ACCURACY)], config.tasks, context)
    judge.prepare()
    rows: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []
    try:
        for group in sampler.groups(prompts, judge, "chunks", context.log):
            rows.append(measured(group))
            if len(rows) <= config.save:
                kept += [record(group, sample, ACCURACY) for sample in group.samples]
    finally:
        sampler.close()
        context.work.add(sampler.seconds)
        judge.close()
    write_rows(context.output / SAMPLES, kept)
    write_rows(context.output / "data.jsonl", rows)
    return Outputs(account(rows) | sampler.speculation | sampler.limit.left_out(sampler.left_out))


def measured(group: Group) -> dict[str, Any]:
    """The row of a problem. Samples that could not be judged count as neither right nor wrong."""
    judged = [j for sample in group.samples if (j := sample.judgements.get(ACCURACY)) and j.score is not None]
    correct = sum(judgement.correct for judgement in judged)
    status = [j.status if (j := sample.judgements.get(ACCURACY)) else UNJUDGED for sample in group.samples]
    return {
        **{name: value for name, value in group.row.items() if name != "prompt"},
        "pass_rate": correct / len(judged) if judged else None,
        "correct": correct,
        "samples": len(group.samples),
        "tokens": sum(sample.tokens for sample in group.samples) / len(group.samples),
        "truncated": sum(sample.truncated for sample in group.samples) / len(group.samples),
        "verdicts": dict(sorted(Counter(status).items())),
    }


def account(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The stage's metrics, with a histogram of the pass rates: `{"0": never, "0-10 %": …, "100 %": always}`."""
    rates = [row["pass_rate"] for row in rows if row["pass_rate"] is not None]
    edges = [f"{100 * at // BINS}-{100 * (at + 1) // BINS} %" for at in range(BINS)]
    histogram = dict.fromkeys(["never", *edges, "always"], 0)
    for rate in rates:
        name = "never" if rate == 0 else "always" if rate == 1 else edges[min(int(rate * BINS), BINS - 1)]
        histogram[name] += 1
    return {
        "problems": len(rows),
        "unjudged": len(rows) - len(rates),
        "samples": sum(row["samples"] for row in rows),
        **({"pass_rate": sum(rates) / len(rates)} if rates else {}),
        **({"tokens": sum(row["tokens"] for row in rows) / len(rows)} if rows else {}),
        "never": histogram["never"],
        "always": histogram["always"],
        "histogram": histogram,
    }
