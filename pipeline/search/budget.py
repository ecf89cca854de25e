"""Answers found with a number of sampled tokens, and what each way of choosing among them is worth.

Every token that is sampled for a problem has a number, and an answer is there with a budget if its last token has no
larger one. So what was spent is the same for all ways, to the token: an answer that a budget breaks off is no answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.sampling.scores import interval, majority_correct
from rewards.verdict import Verdict

Same = Callable[[Verdict, Verdict], bool | None]


@dataclass(frozen=True, slots=True)
class Found:
    """A whole answer to a problem.

    Attributes:
        at: tokens that had been sampled for the problem when its last one was.
        value: what the value model says of it.
        correct: whether it is right.
        verdict: the grader's, if it found an answer in it.
    """

    at: int
    value: float
    correct: bool
    verdict: Verdict | None = None


def sampling(answers: Sequence[Found], same: Same) -> float:
    """One of the answers, drawn at random: the chance that it is right."""
    return sum(one.correct for one in answers) / len(answers) if answers else 0.0


def majority(answers: Sequence[Found], same: Same) -> float:
    """The answer that most of them give; a tie counts with its chance."""
    return majority_correct([(one.verdict, one.correct) for one in answers], same)


def best(answers: Sequence[Found], same: Same) -> float:
    """The answer that the value model likes best, the first of several."""
    return float(max(answers, key=lambda one: one.value).correct) if answers else 0.0


def covered(answers: Sequence[Found], same: Same) -> float:
    """Whether any answer is right: the most that a choice among them can reach."""
    return float(any(one.correct for one in answers))


SAMPLED: Mapping[str, Callable[[Sequence[Found], Same], float]] = {
    "sampling": sampling,
    "majority": majority,
    "best_of_n": best,
    "sampling_covers": covered,
}
"""Ways of choosing among answers that were sampled independently."""
SEARCHED: Mapping[str, Callable[[Sequence[Found], Same], float]] = {"tree_search": best, "tree_covers": covered}
"""Ways of choosing among those of a tree."""


def ranked(problems: Sequence[Sequence[Found]]) -> dict[str, float]:
    """How well values tell right from wrong answers to the same problem.

    Returns:
        How many such `pairs` there are, and in what share of them the right one has the larger value
        (`right_above_wrong`; ties count half, and one half is chance).
    """
    pairs, above = 0, 0.0
    for answers in problems:
        good, bad = ([one.value for one in answers if one.correct is side] for side in (True, False))
        pairs += len(good) * len(bad)
        above += sum((right > wrong) + (right == wrong) / 2 for right in good for wrong in bad)
    return {"pairs": pairs, **({"right_above_wrong": above / pairs} if pairs else {})}


def at_budget(
    sampled: Sequence[Sequence[Found]], searched: Sequence[Sequence[Found]], budget: int, same: Same
) -> dict[str, Any]:
    """The scores of all ways at one budget.

    Args:
        sampled: each problem's independent answers.
        searched: each problem's answers of its tree.
        budget: tokens a problem.
        same: whether the answers of two verdicts are one.

    Returns:
        Way -> `share` right with its 95 % interval `low`, `high`; and how many answers there were on average.
    """
    scores: dict[str, Any] = {}
    for problems, ways, count in ((sampled, SAMPLED, "sampled"), (searched, SEARCHED, "searched")):
        there = [[one for one in answers if one.at <= budget] for answers in problems]
        for name, way in ways.items():
            shares = [way(answers, same) for answers in there]
            low, high = interval(shares, 1)
            scores[name] = {"share": sum(shares) / len(shares), "low": low, "high": high}
        scores[count] = sum(map(len, there)) / len(there)
    return scores
