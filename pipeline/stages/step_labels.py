"""Labels for the steps of answers, by rollouts: what a process reward model learns from.

    labels:
      kind: step_labels
      model: "@base"
      tasks: [{use: gsm8k, problems: 2000}]
      samples: 4           # answers a problem
      continuations: 8     # from the end of every step

    prm: {kind: reward_model, learns: steps, model: "@base", data: ["@labels"]}

A step's label is the share of its continuations that come to the right answer (Math-Shepherd, arXiv 2312.08935).
`data.jsonl` has a row an answer: `prompt`, `completions` (the steps), `labels`. An experiment, of which nothing in R1's
recipe has need; see docs/results/failed-attempts.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.context import Outputs, StageContext
from pipeline.files.rows import write_rows
from pipeline.rollout.base import derived_seed
from pipeline.schema.pieces import Product, RewardSpec
from pipeline.search.labels import labelled
from pipeline.search.writer import CHUNK_ANSWERS, SteppedConfig, Writer, in_chunks
from pipeline.tasks.grading import ACCURACY, composite
from pipeline.tasks.resolve import TaskField, TestTaskField, once_each
from pipeline.training.decontaminate import clean_prompts


class NoLabelsError(RuntimeError):
    """No answer says anything that could be judged: there is nothing to learn from."""


class StepLabelsConfig(SteppedConfig):
    """Fields of a `step_labels` stage; see `SteppedConfig` for the others.

    Attributes:
        tasks: where the problems come from.
        samples: answers a problem.
        continuations: continuations from the end of each step. Labels have steps of one in so many, and cost as much.
        decontaminate: tasks whose problems must not be learnt; all that the recipe scores if not given.
    """

    product: ClassVar[Product] = Product.DATASET

    kind: Literal["step_labels"] = "step_labels"
    tasks: Annotated[list[TaskField], Field(min_length=1)]
    samples: Annotated[int, Field(gt=0)] = 4
    continuations: Annotated[int, Field(gt=0)] = 8
    decontaminate: list[TestTaskField] | None = None


def run(context: StageContext[StepLabelsConfig]) -> Outputs:
    """Answer, continue, judge; writes `data.jsonl`."""
    config = context.config
    rows, left_out = clean_prompts(config.tasks, config.decontaminate, context)
    rows = once_each(rows)
    writer = Writer(context, rows)
    judge = composite([RewardSpec(use=ACCURACY)], config.tasks, context)
    judge.prepare()

    def work(chunk: Sequence[Mapping[str, Any]], number: int) -> list[dict[str, Any]]:
        seed = derived_seed(context.seed, number)
        return labelled(writer, judge, chunk, config.samples, config.continuations, seed)

    try:
        size = max(1, CHUNK_ANSWERS // config.samples)
        found = list(in_chunks(writer.rows, size, context, work))
    finally:
        writer.close()
        judge.close()
    whole = [row for row in found if row["labels"] is not None]
    if not whole:
        raise NoLabelsError(f"not one of {len(found)} answers could be judged, or all were empty")
    write_rows(context.output / "data.jsonl", whole)
    return Outputs(account(found, whole, config.samples) | left_out | writer.left_out)


def account(found: Sequence[Mapping[str, Any]], whole: Sequence[Mapping[str, Any]], samples: int) -> dict[str, Any]:
    """The stage's metrics.

    Args:
        found: a row an answer.
        whole: those with labels.
        samples: answers a problem.
    """
    labels = [label for row in whole for label in row["labels"]]
    return {
        "problems": len(found) // samples,
        "answers": len(found),
        "correct": sum(row["labels"][-1] for row in whole) / len(whole),
        "unlabelled": len(found) - len(whole),
        "step_labels": len(labels),
        "mean_label": sum(labels) / len(labels),
        "sampled_tokens": sum(row["sampled"] for row in found),
    }
