"""Step labels from rollouts: the share of continuations, from the end of a step, that come to the right answer.

Math-Shepherd's soft estimation (arXiv 2312.08935, equation 4). It needs no person who labels steps, but is as noisy as
few continuations are, and it measures what the labelling model makes of a step, not whether the step is right: a good
model may recover from an error, and a weak one fails behind a step without any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.rollout.base import derived_seed
from pipeline.search.writer import Row, Writer, judged, right
from rewards import Composite
from rewards.verdict import PREFILL

Beginning = tuple[int, ...]
"""Token ids of an answer up to the end of a step."""


def labelled(
    writer: Writer, judge: Composite, rows: Sequence[Row], samples: int, continuations: int, seed: int
) -> list[dict[str, Any]]:
    """Answers to some problems, each with a label for every step.

    The last step's label is whether the answer is right. Answers to one problem that begin alike share the labels of
    that beginning, and its continuations.

    Args:
        writer: the model.
        judge: the tasks' graders.
        rows: prompt rows.
        samples: answers a problem.
        continuations: from each beginning.
        seed: of all of it.

    Returns:
        A row an answer, as `pipeline.data.step_rows` reads it, with `sampled`: the tokens of the answer and of the
        continuations that it was the first to need. An answer that says nothing, or could not be judged, has no labels.
    """
    prompts = writer.prompts(rows)
    asked = writer.ids(prompts)
    answers = writer.answers(asked, [()] * len(rows), samples, derived_seed(seed, "answers"))
    steps = [[writer.steps(answer.token_ids) for answer in group] for group in answers]
    needed = [
        (at, beginning)
        for at, group in enumerate(steps)
        for beginning in dict.fromkeys(head for cut in group for head in beginnings(cut))
    ]
    tried = writer.answers(
        [asked[at] for at, _ in needed],
        [head for _, head in needed],
        continuations,
        derived_seed(seed, "continuations"),
    )
    verdicts = judged([rows[at] for at, _ in needed], [prompts[at] for at, _ in needed], tried, judge)
    chances = {key: share(right(group)) for key, group in zip(needed, verdicts, strict=True)}
    costs = {
        key: sum(len(rollout.token_ids) - len(key[1]) for rollout in group)
        for key, group in zip(needed, tried, strict=True)
    }
    found = []
    for at, group in enumerate(judged(rows, prompts, answers, judge)):
        for answer, cut, good in zip(answers[at], steps[at], right(group), strict=True):
            heads = beginnings(cut)
            labels = [*(chances[at, head] for head in heads), None if good is None else float(good)]
            spent = len(answer.token_ids) + sum(costs.pop((at, head), 0) for head in heads)
            found.append(row_of(rows[at], prompts[at].begun, [writer.decode(step) for step in cut], labels, spent))
    return found


def beginnings(steps: Sequence[Sequence[int]]) -> list[Beginning]:
    """The answer up to the end of each step but the last: `[[1], [2, 3], [4]]` gives `[(1,), (1, 2, 3)]`."""
    heads: list[Beginning] = []
    for step in steps[:-1]:
        heads.append((*(heads[-1] if heads else ()), *step))
    return heads


def share(good: Sequence[bool | None]) -> float | None:
    """The share of right answers among those that could be judged."""
    known = [one for one in good if one is not None]
    return sum(known) / len(known) if known else None


def row_of(row: Row, begun: str, steps: list[str], labels: list[float | None], spent: int) -> dict[str, Any]:
    """The row of an answer; it has no labels if a step has none, or if it says nothing."""
    whole = any(step.strip() for step in steps) and None not in labels
    return {
        **{name: row[name] for name in ("prompt", "task", "id", "question", "answer")},
        PREFILL: begun,
        "completions": steps,
        "labels": labels if whole else None,
        "sampled": spent,
    }
