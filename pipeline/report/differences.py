"""Differences between two scores, with intervals: paired where both were measured on the same problems.

The interval is made from those of the two scores (Newcombe, Statistics in Medicine 17, 1998, method 10; Zou and Donner,
Statistics in Medicine 27, 2008), so it behaves at 0 and 1 as they do. Answers to the same problems rise and fall
together; how much, the correlation of the problems' means says, and the interval is narrower for it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist, correlation, pstdev

from pipeline.records.samples import SAMPLES, UNJUDGED
from pipeline.report.run_data import Run, rows
from pipeline.report.samples import is_correct, model_of
from pipeline.report.scores import Score
from pipeline.report.text import finite

ALPHA = 0.05
"""Chance that an interval misses the truth: those of scores are 95 % intervals."""

Problem = tuple[str, str, str]
"""Id, question and gold answer: what makes a problem the same one."""
Means = Mapping[Problem, float]
"""Problem -> the share of its judged samples that are correct."""
FEWEST_PROBLEMS = 20
"""Problems of a task, at least, whose golds say how often one of them is right by chance."""
COMPARES = 0.8
"""Share of correct answers that are the gold, letter by letter, where the grader compares the two."""
Measured = tuple[str, str, str]
"""Stage, model and task (without its split) of a score."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One score less another.

    Attributes:
        value: of pass@1, between -1 and 1.
        low, high: 95 % interval.
        paired: whether both were measured on the same problems, and the interval knows it.
        problems: how many, of the smaller score.
    """

    value: float
    low: float
    high: float
    paired: bool
    problems: int

    def clear(self, of: int = 1) -> bool:
        """Whether it is no chance, also where it is picked as the largest of so many (Bonferroni's correction)."""
        width = NormalDist().inv_cdf(1 - ALPHA / 2 / max(1, of)) / NormalDist().inv_cdf(1 - ALPHA / 2)
        return self.value + width * (self.low - self.value) > 0 or self.value + width * (self.high - self.value) < 0


def difference(new: Score, old: Score, new_means: Means, old_means: Means) -> Difference | None:
    """How much higher the new score is; `None` where one of them has no pass@1 with an interval.

    Args:
        new, old: the scores.
        new_means, old_means: of the problems behind them, as far as their samples were kept.
    """
    first, second = new.values.get("pass@1"), old.values.get("pass@1")
    if first is None or second is None or new.low is None or new.high is None or old.low is None or old.high is None:
        return None
    together = _correlation(new_means, old_means) if _same_problems(new, old, new_means, old_means) else None
    down = _half(first - new.low, old.high - second, together or 0.0)
    up = _half(new.high - first, second - old.low, together or 0.0)
    value = first - second
    return Difference(value, max(-1.0, value - down), min(1.0, value + up), together is not None, min(new.n, old.n))


def _same_problems(new: Score, old: Score, new_means: Means, old_means: Means) -> bool:
    return new_means.keys() == old_means.keys() and len(new_means) == new.n == old.n


def _half(one: float, other: float, together: float) -> float:
    """Half an interval of a difference, from the halves of both sides and their correlation."""
    return math.sqrt(max(0.0, one**2 + other**2 - 2 * together * one * other))


def _correlation(new_means: Means, old_means: Means) -> float:
    """Of the problems' means, with Newcombe's correction, so that equal answers to few problems prove nothing.

    0 where one side is the same for all problems, so that nothing can be said.
    """
    first, second = list(new_means.values()), [old_means[problem] for problem in new_means]
    scatter = len(first) * pstdev(first) * pstdev(second)
    if not scatter:
        return 0.0
    found = correlation(first, second)
    return max(0.0, found - 0.5 / scatter) if found > 0 else found


def task_name(label: str) -> str:
    """A task without its split, as samples name it: `chain/test` is `chain`."""
    return label.removesuffix("/test").removesuffix("/train")


@dataclass
class Outcomes:
    """What evaluations kept of single problems.

    Attributes:
        means: stage, model and task -> problem -> the share of its judged samples that are correct.
        agreeing: task -> correct samples whose answer is the gold, letter by letter, and correct samples in all.
    """

    means: dict[Measured, dict[Problem, float]] = field(default_factory=dict)
    agreeing: dict[str, tuple[int, int]] = field(default_factory=dict)

    def of(self, score: Score, model: str, task: str) -> Means:
        """The problems behind a score."""
        return self.means.get((score.stage, model, task_name(task)), {})

    def chance(self, task: str) -> float | None:
        """What always giving the commonest gold answer would score; `None` where the grader does not compare with it.

        A grader compares if correct answers are the gold, letter by letter, but for a few that are spelt otherwise.
        """
        task = task_name(task)
        golds = {problem: problem[2] for of, means in self.means.items() if of[2] == task for problem in means}
        same, correct = self.agreeing.get(task, (0, 0))
        if len(golds) < FEWEST_PROBLEMS or not correct or same / correct < COMPARES:
            return None
        (_, most), *others = Counter(golds.values()).most_common()
        return most / len(golds) if others else None


def outcomes(run: Run) -> Outcomes:
    """Read the samples of all evaluations."""
    counts: dict[Measured, dict[Problem, list[int]]] = {}
    agreeing: dict[str, list[int]] = {}
    for stage in run.stages.values():
        for row in rows(stage, SAMPLES) if stage.kind == "evaluate" else ():
            if row.get("status") == UNJUDGED or finite(row.get("score")) is None:
                continue
            good, gold = is_correct(row), str(row.get("answer", ""))
            measured = (stage.name, model_of(stage, row), task_name(str(row.get("task", ""))))
            problem = (str(row.get("id", "")), str(row.get("question", "")), gold)
            tally = counts.setdefault(measured, {}).setdefault(problem, [0, 0])
            tally[0] += good
            tally[1] += 1
            if good:
                compared = agreeing.setdefault(measured[2], [0, 0])
                compared[0] += str(row.get("extracted")).strip() == gold.strip()
                compared[1] += 1
    return Outcomes(
        {of: {at: good / n for at, (good, n) in problems.items()} for of, problems in counts.items()},
        {task: (same, correct) for task, (same, correct) in agreeing.items()},
    )
