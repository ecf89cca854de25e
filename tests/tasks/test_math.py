"""MATH, MATH-500 and AIME from local files: where golds come from, levels, splits, broken rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.tasks.base import TaskError, load

ROWS: list[dict[str, Any]] = [
    {
        "problem": "What is $\\frac12 + \\frac13$?",
        "level": "Level 1",
        "type": "Prealgebra",
        "solution": "The sum is $\\frac{3}{6} + \\frac{2}{6} = \\boxed{\\frac{5}{6}}$.",
    },
    {
        "problem": "Solve $x^2 = 2$ for $x > 0$.",
        "level": "Level 3",
        "type": "Algebra",
        "solution": "$\\boxed{\\sqrt2}$",
    },
    {"problem": "How many?", "level": "Level 5", "type": "Counting & Probability", "solution": "So $\\fbox{1,234}$."},
    {
        "problem": "A set?",
        "level": "Level ?",
        "type": "Geometry",
        "solution": "$\\boxed{\\left\\{1, \\frac{2}{3}\\right\\}}$",
    },
]


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def folder(tmp_path: Path) -> str:
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "test.jsonl", [{"problem": "1 + 1?", "answer": "2", "difficulty": 3.0, "type": "Algebra"}])
    return str(tmp_path)


def test_golds_come_from_the_box_or_the_answer_and_accept_themselves(tmp_path: Path) -> None:
    task = load("math", {"path": folder(tmp_path)})
    train = task.problems("train")
    golds = {p.question: p.answer for p in train}
    assert golds == {
        "What is $\\frac12 + \\frac13$?": "\\frac{5}{6}",
        "Solve $x^2 = 2$ for $x > 0$.": "\\sqrt2",
        "How many?": "1,234",
        "A set?": "\\left\\{1, \\frac{2}{3}\\right\\}",
    }
    test = task.problems("test")
    assert [(p.answer, p.columns) for p in test] == [("2", {"level": 3, "subject": "Algebra"})]
    assert not task.validate(train + test)


def test_levels(tmp_path: Path) -> None:
    path = folder(tmp_path)
    levels = {p.columns.get("level") for p in load("math", {"path": path}).problems("train")}
    assert levels == {1, 3, 5, None}
    chosen = load("math", {"path": path, "levels": [3, 5]}).problems("train")
    assert sorted(p.columns["level"] for p in chosen) == [3, 5]
    with pytest.raises(TaskError, match="levels are from 1 to 5"):
        load("math", {"path": path, "levels": [0]})


def test_the_same_seed_gives_the_same_order_and_repeated_questions_count_once(tmp_path: Path) -> None:
    rows = [{"problem": f"{n}?", "answer": str(n)} for n in range(20)]
    task = load("math500", {"path": write(tmp_path / "math500.jsonl", rows + rows[:5])})
    drawn = task.problems("test", seed=3)
    assert len(drawn) == 20
    assert drawn == task.problems("test", seed=3) != task.problems("test", seed=4)
    assert drawn[:7] == task.problems("test", 7, seed=3)
    assert len({p.id for p in drawn}) == 20


def test_math_500_and_aime_are_for_tests_only(tmp_path: Path) -> None:
    aime = {"problem": "Find $m+n$.", "answer": 42, "year": "2024"}
    task = load("aime", {"path": write(tmp_path / "aime.jsonl", [aime])})
    problems = task.problems("test")
    assert [p.answer for p in problems] == ["42"]
    assert not task.validate(problems)
    for name in ("aime", "math500"):
        with pytest.raises(TaskError, match=f"{name} has no train problems, only test ones"):
            load(name, {"path": str(tmp_path / "aime.jsonl")}).problems("train")
    with pytest.raises(TaskError, match="2024 or 2025, not 1999"):
        load("aime", {"year": 1999})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"problem": "?", "solution": "no box"}, "a row needs an answer, or a solution with a box"),
        ({"problem": "?", "answer": "  "}, "a row needs an answer"),
        ({"problem": "?", "answer": True}, "a row needs an answer"),
        ({"question": "?", "answer": "1"}, "field problem"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    file = write(tmp_path / "broken.jsonl", [{"problem": "1?", "answer": "1"}, row])
    with pytest.raises(TaskError, match=words) as caught:
        load("math500", {"path": file}).problems("test")
    assert "broken.jsonl:2" in str(caught.value)


def test_golds_that_no_grader_can_accept_are_found(tmp_path: Path) -> None:
    rows = [{"problem": "good?", "answer": "3"}, {"problem": "bad?", "answer": "\\frac{1}{"}]
    task = load("math500", {"path": write(tmp_path / "golds.jsonl", rows)})
    assert [problem.question for problem, _ in task.validate(task.problems("test"))] == ["bad?"]


def test_a_question_with_two_answers_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that stands there twice with the same answer counts once."""
    rows = [("one", "1"), ("two", "2"), ("one", "1"), ("three", "3"), ("two", "22")]
    lines = [json.dumps({"problem": problem, "answer": answer, "level": "Level 1"}) for problem, answer in rows]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n")
    found = load("math", {"path": str(tmp_path)}).problems("train")
    assert sorted(problem.question for problem in found) == ["one", "three"]
    assert "1 questions that stand there with several answers" in caplog.text and "'two'" in caplog.text
