"""Majority votes: answers that the grader holds for equal are one candidate, right ones and wrong ones alike."""

from __future__ import annotations

import json
from typing import Any

import pytest

import rewards
from pipeline.records.samples import Judgement
from pipeline.sampling.sampler import Group, Sample
from pipeline.sampling.scores import majority_correct, same_spelling, score
from pipeline.stages.evaluate import LABELS
from pipeline.tasks.base import load
from pipeline.tasks.grading import same_answers
from rewards import Item


@pytest.mark.parametrize(
    ("answers", "gold", "credit"),
    [
        (["3", "3", "0.5", "1/2", r"\frac12"], "3", 0.0),
        (["3", "3.0", r"\frac{6}{2}", "0.5", "1/2"], "3", 1.0),
        (["3", "3", "5", "7", "11"], "3", 1.0),
        (["3", "3", "1,000", "1000"], "3", 0.5),
        (["x+1", "1+x", "x + 1", "2x", r"2\cdot x"], "2x", 0.0),
        (["(1, 2)", "(1,2)", "[1, 2]", "4"], "4", 0.0),
        (["50%", "0.5", r"\frac{1}{2}", "7", "7"], "7", 0.0),
        (["twenty-one", "21", "8"], "8", 0.0),
        (["8", "8", "8"], "8", 1.0),
        (["7", "9"], "8", 0.0),
    ],
)
def test_wrong_answers_are_one_candidate_if_they_are_equal(answers: list[str], gold: str, credit: float) -> None:
    verdicts = rewards.verify("math", [(rf"\boxed{{{answer}}}", gold) for answer in answers])
    right = [verdict.score == 1.0 for verdict in verdicts]
    assert majority_correct(list(zip(answers, right, strict=True))) == credit
    assert voted("math", verdicts) == credit


def voted(grader: str, verdicts: list[rewards.Verdict]) -> float:
    """cons@k of one problem, through what the sampler keeps of its verdicts."""
    kept = [Judgement(**json.loads(json.dumps(vars_of(Judgement.of(verdict))))) for verdict in verdicts]
    samples = tuple(Sample("c", 1, "stop", {LABELS.accuracy: judgement}) for judgement in kept)
    group = Group({"task": "t", "id": "1", "question": "q", "answer": "a"}, "p", samples)
    task = load("jsonl", {"path": __file__, "grader": grader})
    return float(score([group], len(samples), LABELS, same_answers(task) or same_spelling)["cons@k"])


def vars_of(judgement: Judgement) -> dict[str, Any]:
    return {name: getattr(judgement, name) for name in ("status", "score", "extracted", "detail")}


def fenced(program: str) -> str:
    return f"```python\n{program}\n```"


def test_programs_are_one_candidate_if_they_do_the_same() -> None:
    gold = json.dumps({"function": "f", "calls": [{"args": [2], "expected": 4}, {"args": [3], "expected": 9}]})
    right = ["def f(x): return x * x", "def f(x):\n    return x ** 2"]
    doubled = ["def f(x): return x + x", "def f(n):  # twice\n    return 2 * n", "f = lambda x: x * 2"]
    other = ["def f(x): return 5", "def f(x): return object()", "def f(x): return object"]
    for programs, credit in (
        ([*right, *doubled], 0.0),
        ([*right, *doubled[:1], other[0]], 1.0),
        ([*right, *other], 1.0),
    ):
        verdicts = rewards.verify("code", [(fenced(program), gold) for program in programs])
        assert voted("code", verdicts) == credit, [verdict.detail for verdict in verdicts]


def test_other_graders_have_equalities_of_their_own() -> None:
    columns = {"numbers": [3, 7, 25, 50], "target": 82}
    expressions = ["(50 - 25) * 3 + 7", "50 + 25 + 7 - 3", "7 + 25 + 50 - 3", "25 + (50 + 7) - 3", "50 * 25"]
    made = rewards.verify("countdown", [Item(f"<answer>{text}</answer>", columns=columns) for text in expressions])
    assert voted("countdown", made) == 0.0, "three times 79"
    words = rewards.verify("exact", [(f"<answer>{text}</answer>", "sun") for text in ("sun", "Sun", "SUN")])
    assert voted("exact", words) == pytest.approx(1 / 3), "to `exact`, case tells words apart"
    assert voted("think_format", words) == 0.0, "graders that say nothing compare spelling alone"
