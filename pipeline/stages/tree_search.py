"""Monte Carlo tree search with a value model, against ways to spend as many tokens without a tree.

    search:
      kind: tree_search
      model: "@base"
      value: "@prm"                  # a reward_model stage with learns: steps
      tasks: [{use: gsm8k, problems: 200}]
      budgets: [512, 2048, 8192]     # sampled tokens a problem

For every budget the stage scores one independent sample (`sampling`), the majority of them (`majority`), the one that
the value model likes best (`best_of_n`), and the answer that it likes best of a tree (`tree_search`, by PUCT; see
`pipeline.search.tree`). `sampling_covers` and `tree_covers` say how often any answer was right. All are given the same
number of tokens, to the token; what the value model reads is counted apart. `values` says how often it puts a right
answer above a wrong one to the same problem. An experiment, of which nothing in R1's
recipe has need; see docs/results/failed-attempts.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from pipeline.context import Outputs, StageContext
from pipeline.files.rows import write_rows
from pipeline.records.samples import SAMPLES, Judgement
from pipeline.rollout.base import derived_seed
from pipeline.sampling.sampler import Group, record
from pipeline.sampling.scores import same_spelling
from pipeline.schema.pieces import ModelRef, Product, RewardSpec
from pipeline.search.budget import Found, at_budget, ranked
from pipeline.search.search import Answer, Search, Values, sampled
from pipeline.search.writer import CHUNK_ANSWERS, Row, SteppedConfig, Writer, in_chunks, judged
from pipeline.tasks.grading import ACCURACY, composite, same_answers
from pipeline.tasks.resolve import TestTaskField, problem_rows, resolve
from rewards import Composite


class TreeSearchConfig(SteppedConfig):
    """Fields of a `tree_search` stage; see `SteppedConfig` for the others.

    Attributes:
        value: the value model: what a `reward_model` stage with `learns: steps` has made.
        tasks: what on; the split is `test` where none is given.
        budgets: sampled tokens a problem; a search goes on to the largest, and is looked at on the way.
        width: steps that are sampled at a node; equal ones are one child.
        exploration: weight of the priors when a child is chosen; values lie between 0 and 1.
        save: problems whose answers are written to `samples.jsonl`.
    """

    product: ClassVar[Product] = Product.METRICS
    default_split: ClassVar[Literal["train", "test"]] = "test"
    reads: ClassVar[frozenset[str]] = frozenset({"batch_size"})  # that of the value model, too

    kind: Literal["tree_search"] = "tree_search"
    value: ModelRef
    tasks: Annotated[list[TestTaskField], Field(min_length=1)]
    budgets: Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=1)]
    width: Annotated[int, Field(gt=0)] = 4
    exploration: Annotated[float, Field(ge=0)] = 1.0
    save: Annotated[int, Field(ge=0)] = 20

    @field_validator("budgets")
    @classmethod
    def _rising(cls, budgets: list[int]) -> list[int]:
        if sorted(set(budgets)) != budgets:
            raise ValueError(f"budgets rise from one to the next, unlike {budgets}")
        return budgets


def run(context: StageContext[TreeSearchConfig]) -> Outputs:
    """Sample, search, judge, score; writes `samples.jsonl`."""
    config = context.config
    tasks = [resolve(spec, context.tasks, context.base) for spec in config.tasks]
    of_task = {task.label: problem_rows(task, context) for task in tasks}
    writer = Writer(context, [row for rows in of_task.values() for row in rows])
    judge = composite([RewardSpec(use=ACCURACY)], config.tasks, context)
    judge.prepare()
    try:
        chunks = _Chunks(context, writer, judge)
        found = list(in_chunks(writer.rows, max(1, CHUNK_ANSWERS // config.width), context, chunks.work))
    finally:
        writer.close()
        judge.close()
    write_rows(context.output / SAMPLES, (line for row in found[: config.save] for line in row["lines"]))
    scores: dict[str, Any] = {}
    for task in tasks:
        mine = [row for row in found if row["task"] == task.name]
        same = same_answers(task.task, context.base) or same_spelling
        arms = [[_read(row[arm]) for row in mine] for arm in ("sampled", "searched")]
        scores[task.label] = {"n": len(mine), "values": ranked(arms[0])} | {
            str(budget): at_budget(arms[0], arms[1], budget, same) for budget in config.budgets
        }
    counts = {
        name: sum(row[name] for row in found) for name in ("nodes", "exhausted", "read_by_sampling", "read_by_tree")
    }
    return Outputs({"budgets": scores, **counts, **writer.left_out})


class _Chunks:
    """What becomes of a chunk of problems.

    The value model is loaded when the first chunk needs it.
    """

    def __init__(self, context: StageContext[TreeSearchConfig], writer: Writer, judge: Composite) -> None:
        self.context, self.writer, self.judge = context, writer, judge
        self._values: Values | None = None

    @property
    def values(self) -> Values:
        """The value model."""
        if self._values is None:
            from transformers import AutoTokenizer

            from rewards.process import StepReader, StepScorer

            model = self.context.model_path(self.context.config.value)
            tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
            batch = self.context.config.rollout.batch_size
            self._values = Values(StepScorer(model, batch_size=batch), StepReader(tokenizer), self.writer)
        return self._values

    def work(self, rows: Sequence[Row], number: int) -> list[dict[str, Any]]:
        """A row a problem, with its answers by sampling and by search."""
        config, values = self.context.config, self.values
        prompts = self.writer.prompts(rows)
        budget, seed = config.budgets[-1], derived_seed(self.context.seed, number)
        scorer = values.scorer
        plain = sampled(self.writer, prompts, budget, seed)
        start = scorer.tokens
        known = [self._valued(prompt, answers) for prompt, answers in zip(prompts, plain, strict=True)]
        between = scorer.tokens
        search = Search(self.writer, values, config.width, config.exploration)
        searched = search.answers(prompts, budget, seed)
        end = scorer.tokens
        liked = [self._valued(prompt, answers) for prompt, answers in zip(prompts, searched, strict=True)]
        arms = {"sampled": (plain, known), "searched": (searched, liked)}
        judgements = {
            arm: judged(rows, prompts, [[one.rollout for one in answers] for answers in found], self.judge)
            for arm, (found, _) in arms.items()
        }
        told = [
            {"task": row["task"], "nodes": 0, "exhausted": 0, "read_by_sampling": 0, "read_by_tree": 0} for row in rows
        ]
        told[0] |= {"nodes": search.grown, "exhausted": search.exhausted}
        told[0] |= {"read_by_sampling": between - start, "read_by_tree": end - between}
        for at, row in enumerate(told):
            row["lines"] = []
            for arm, (found, scores) in arms.items():
                group = judgements[arm][at]
                row[arm] = [_kept(*one) for one in zip(found[at], scores[at], group.samples, strict=True)]
                row["lines"] += _lines(arm, group, row[arm])
        return told

    def _valued(self, prompt: Any, answers: Sequence[Answer]) -> list[float]:
        return self.values.of([prompt] * len(answers), [one.rollout.token_ids for one in answers])


def _kept(answer: Answer, value: float, sample: Any) -> dict[str, Any]:
    """An answer as a chunk keeps it."""
    judgement = sample.judgements.get(ACCURACY)
    verdict = None if judgement is None else {"status": judgement.status, "score": judgement.score}
    if verdict is not None:
        verdict |= {"extracted": judgement.extracted, "detail": judgement.detail}
    return {"at": answer.at, "value": value, "verdict": verdict}


def _read(kept: Sequence[Mapping[str, Any]]) -> list[Found]:
    """The answers to a problem, from a chunk; those that could not be judged are wrong."""
    found = []
    for one in kept:
        judgement = None if one["verdict"] is None else Judgement(**one["verdict"])
        verdict = judgement.verdict() if judgement is not None and judgement.extracted else None
        found.append(Found(one["at"], one["value"], judgement is not None and judgement.correct, verdict))
    return found


def _lines(arm: str, group: Group, kept: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        record(group, sample, ACCURACY, model=arm, value=one["value"], at=one["at"])
        for sample, one in zip(group.samples, kept, strict=True)
    ]
