"""Puzzles of reasoning-gym: the same for the same seed, and judged without trusting the library's scorers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("reasoning_gym")

import reasoning_gym
from reasoning_gym.factory import DATASETS

from pipeline.tasks.base import Problem, TaskError, load
from rewards import Item, Status, Verdict
from rewards.reasoning_gym import EXECUTING, OWN_SCORER, ReasoningGym

EXECUTES = re.compile(r"\b(?:eval|exec|parse_expr|sympify)\(")
DATASETS_TRIED = ["chain_sum", "gcd", "spell_backward", "countdown", "mini_sudoku", "knights_knaves", "word_sorting"]


@pytest.fixture(scope="module")
def grader() -> Iterator[ReasoningGym]:
    verifier = ReasoningGym(workers=1, deadline_s=20)
    yield verifier
    verifier.close()


def item(problem: Problem, answer: str) -> Item:
    return Item(f"<think>hm</think><answer>{answer}</answer>", problem.answer, problem.question, None, problem.columns)


def judge(grader: ReasoningGym, problem: Problem, *answers: str) -> list[Verdict]:
    return grader.verify([item(problem, answer) for answer in answers])


def test_problems_follow_from_the_seed_and_golds_accept_themselves() -> None:
    task = load("reasoning_gym", {"dataset": DATASETS_TRIED, "grader_options": {"workers": 1}})
    train, test = task.problems("train", 42, seed=1), task.problems("test", 14, seed=2)
    assert train == task.problems("train", 42, seed=1)
    assert train[:7] == task.problems("train", 7, seed=1)
    assert train[0] != task.problems("train", 42, seed=2)[0]
    assert {p.columns["dataset"] for p in train} == set(DATASETS_TRIED)
    assert not {p.id for p in train} & {p.id for p in test}
    assert not task.validate(train + test)


def test_config_reaches_the_datasets_that_have_the_field() -> None:
    task = load("reasoning_gym", {"dataset": ["chain_sum", "gcd"], "config": {"min_terms": 7, "max_terms": 7}})
    for problem in task.problems("train", 10):
        puzzle = json.loads(problem.columns["puzzle"])
        assert bool(puzzle["config"]) == (puzzle["dataset"] == "chain_sum")
        if puzzle["config"]:
            assert problem.question.count("+") + problem.question.count(" - ") >= 6


def test_the_scorer_accepts_other_right_answers_and_only_at_full_marks(grader: ReasoningGym) -> None:
    (puzzle,) = load("reasoning_gym", {"dataset": "basic_arithmetic"}).problems("train", 1)
    gold, padded = puzzle.answer, f"{puzzle.answer} " + "or something else " * 3
    assert [v.score for v in judge(grader, puzzle, gold, f" {gold} ", f"{gold}1", padded, "nonsense")] == [
        1,
        1,
        0,
        0,
        0,
    ]
    (jugs,) = load("reasoning_gym", {"dataset": "jugs"}).problems("train", 1)
    moves = json.loads(jugs.answer)
    verdicts = judge(grader, jugs, json.dumps(moves, indent=1), json.dumps(moves[:-1]), json.dumps(moves[:1]), "[]")
    assert [v.score for v in verdicts] == [1, 0, 0, 0]


def test_countdown_is_judged_here_and_not_by_the_library(grader: ReasoningGym, tmp_path: Path) -> None:
    (puzzle,) = load("reasoning_gym", {"dataset": "countdown"}).problems("train", 1)
    canary = tmp_path / "canary"
    numbers, target = (json.loads(puzzle.columns["puzzle"])[key] for key in ("numbers", "target"))
    attack = f"__import__('pathlib').Path({str(canary)!r}).touch() or {target}"
    tower = "9**9**9**9"
    started = time.monotonic()
    verdicts = judge(
        grader, puzzle, puzzle.answer, f"({puzzle.answer})", attack, tower, str(target), "+".join(map(str, numbers))
    )
    assert [v.score for v in verdicts] == [1, 1, 0, 0, 0, 0]
    assert not canary.exists()
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("name", sorted(EXECUTING))
def test_datasets_whose_scorer_executes_the_answer_are_refused(grader: ReasoningGym, name: str) -> None:
    with pytest.raises(TaskError, match=f"the scorer of {name} executes"):
        load("reasoning_gym", {"dataset": ["gcd", name]})
    columns = {"puzzle": json.dumps({"dataset": name, "config": {}, "seed": 1, "index": 0})}
    verdict = grader.verify([Item("<answer>1</answer>", "1", "?", None, columns)])[0]
    assert (verdict.status, verdict.score) == (Status.BAD_GOLD, None)


def test_the_graders_processes_make_the_same_puzzles(grader: ReasoningGym) -> None:
    """They have another hash seed than this one; a puzzle that depends on it would be a bad gold there."""
    for problem in load("reasoning_gym", {"dataset": DATASETS_TRIED}).problems("train", 21, seed=5):
        assert judge(grader, problem, "nonsense")[0].status is Status.WRONG, problem.columns["dataset"]
    with pytest.raises(TaskError, match="word_ladder makes other puzzles of the same seed"):
        load("reasoning_gym", {"dataset": "word_ladder"})


def test_no_other_module_of_the_library_executes_text() -> None:
    """Fails when an update of the library brings a tenth scorer that does; each module here was read."""
    folder = Path(reasoning_gym.__file__).parent
    executing = {file.stem for file in folder.rglob("*.py") if EXECUTES.search(file.read_text(encoding="utf-8"))}
    their_own_text = {
        "basic_arithmetic",
        "bitwise_arithmetic",
        "codeio",
        "generators_00_49",
        "generators_50_99",
        "number_sorting",
        "propositional_logic",
    }
    assert executing == (EXECUTING - {"composite"}) | {OWN_SCORER} | their_own_text
    assert set(DATASETS) >= EXECUTING


def test_a_scorer_that_hangs_or_raises_is_the_answers_fault(grader: ReasoningGym, tmp_path: Path) -> None:
    (puzzle,) = load("reasoning_gym", {"dataset": "chain_sum"}).problems("train", 1)
    long = judge(grader, puzzle, "1" * 30_000)[0]
    assert (long.status, long.score) == (Status.REJECTED, 0.0)
    for text in ("", "<think>hm</think>42", "<think><answer>42</answer>"):
        verdict = grader.verify([Item(text, "42", "?", None, puzzle.columns)])[0]
        assert (verdict.status, verdict.score) == (Status.NO_ANSWER, 0.0)


def test_rows_without_a_puzzle_or_from_another_library_version_have_no_score(grader: ReasoningGym) -> None:
    (puzzle,) = load("reasoning_gym", {"dataset": "gcd"}).problems("train", 1)
    columns: list[dict[str, Any]] = [{}, {"puzzle": None}, {"puzzle": "{}"}, {"puzzle": '{"dataset": "gcd"}'}]
    for broken in columns:
        verdict = grader.verify([Item("<answer>1</answer>", "1", "?", None, broken)])[0]
        assert (verdict.status, verdict.score) == (Status.BAD_GOLD, None), broken
    verdict = grader.verify([Item("<answer>1</answer>", "not its gold", "?", None, puzzle.columns)])[0]
    assert verdict.status is Status.BAD_GOLD
    assert "another problem" in verdict.detail


def test_datasets_without_gold_answers_are_refused() -> None:
    with pytest.raises(TaskError, match="rubiks_cube gives puzzles without an answer"):
        load("reasoning_gym", {"dataset": "rubiks_cube"}).problems("train", 1)


def test_senseless_options_name_the_nearest() -> None:
    with pytest.raises(TaskError, match="did you mean 'chain_sum'"):
        load("reasoning_gym", {"dataset": "chain_sums"})
    with pytest.raises(TaskError, match="did you mean 'min_terms'"):
        load("reasoning_gym", {"dataset": "chain_sum", "config": {"min_term": 3}})
