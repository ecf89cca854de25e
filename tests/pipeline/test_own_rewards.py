"""Reward functions of one's own in a recipe: what they want is told when it is read, what they return by `doctor`."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.commands import doctor
from pipeline.commands.doctor import Level
from pipeline.recipe import RecipeError, load
from pipeline.training.grpo.judging import Judge
from rewards import Composite, Part, ScoreError

OWN = '''
from pipeline.tasks.base import Problem, Task


def brevity(completion):
    return 1.0 if len(completion) < 50 else 0.0


def harder(completion, difficulty):
    return float(difficulty)


def harder_batch(completions, difficulty, question, task, answer, **columns):
    return [float(one) for one in difficulty]


def softer(completion, difficulty=None):
    return 1.0


def forgotten(completion):
    score = 1.0 if len(completion) < 50 else 0.0


def never(completion):
    return None if completion else 1.0


def talks(completion):
    return "good"


def falls(completion, answer):
    return 1.0 / len(answer.strip("0123456789-"))


def watches(completions, trainer_state):
    return [0.0] * len(completions)


async def later(completion, answer):
    return {"score": float(answer in completion), "seen": answer}


def gold(completions, solution, **columns):
    return [1.0] * len(completions)


class Letters(Task):
    """Its columns are known only once its problems are made."""

    def problems(self, split, n=None, seed=0):
        return [Problem(f"{k}", f"{k}?", str(k), {"difficulty": k}) for k in range(n or 20)]
'''


def recipe(folder: Path, rewards: str, tasks: str = "[arithmetic]", kind: str = "grpo", more: str = "") -> Path:
    (folder / "own.py").write_text(OWN)
    (folder / "rows.jsonl").write_text('{"question": "1 + 1?", "answer": "2", "difficulty": 3}\n' * 3)
    key = "rewards" if kind == "grpo" else "require"
    (folder / "recipe.yaml").write_text(
        f"name: own\n{more}stages:\n  base: {{kind: import_model, model: some/model}}\n"
        f"  one: {{kind: {kind}, model: '@base', tasks: {tasks}, {key}: {rewards}}}\n"
    )
    return folder / "recipe.yaml"


ROWS = "{use: jsonl, options: {path: rows.jsonl, test_share: 0}}"


@pytest.mark.parametrize("kind", ["grpo", "rejection_sample"])
@pytest.mark.parametrize("name", ["harder", "harder_batch"])
@pytest.mark.parametrize(
    ("tasks", "fix"),
    [
        ("[arithmetic]", "write difficulty=None among its parameters"),
        (f"[{ROWS}]", r"add to the task's options: columns: \[difficulty\]"),
        ("[countdown, {use: own.py:Letters}]", r"add to the reward: where: {task: \[own.py:Letters\]}"),
    ],
)
def test_a_column_that_no_task_hands_over_is_told_with_the_recipe(
    tmp_path: Path, kind: str, name: str, tasks: str, fix: str
) -> None:
    with pytest.raises(RecipeError, match=rf"recipe.yaml:4.*'own.py:{name}' needs difficulty, which the task .*{fix}"):
        load(recipe(tmp_path, f"[accuracy, own.py:{name}]", tasks, kind))


@pytest.mark.parametrize(
    ("rewards", "tasks"),
    [
        ("[own.py:harder]", "[{use: jsonl, options: {path: rows.jsonl, columns: [difficulty]}}]"),
        ("[own.py:harder_batch]", "[{use: jsonl, options: {path: rows.jsonl, columns: {difficulty: answer}}}]"),
        ("[own.py:harder]", "[{use: own.py:Letters}]"),
        ("[accuracy, {use: own.py:harder, where: {task: own.py:Letters}}]", "[countdown, {use: own.py:Letters}]"),
        ("[own.py:softer, own.py:brevity, own.py:later]", "[arithmetic]"),
        ("[{use: countdown, where: {task: countdown}}]", "[countdown, arithmetic]"),
    ],
)
def test_columns_that_are_there_or_have_a_default_are_fine(tmp_path: Path, rewards: str, tasks: str) -> None:
    load(recipe(tmp_path, rewards, tasks))


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        ("[own.py:gold]", "needs solution, which the task 'arithmetic' does not hand over .it has: answer, task, id"),
        ("[countdown]", "reward 'countdown' needs numbers, target"),
        ("[reasoning_gym]", "reward 'reasoning_gym' needs puzzle"),
    ],
)
def test_every_kind_of_reward_says_what_it_wants(tmp_path: Path, rewards: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load(recipe(tmp_path, rewards))


def test_a_grader_whose_columns_its_own_task_lacks_is_told(tmp_path: Path) -> None:
    tasks = "[{use: jsonl, options: {path: rows.jsonl, grader: countdown}}]"
    with pytest.raises(RecipeError, match=r"reward 'countdown' needs numbers, target.*columns: \[numbers, target\]"):
        load(recipe(tmp_path, "[accuracy]", tasks))


@pytest.mark.parametrize(
    ("name", "level", "words"),
    [
        ("brevity", Level.OK, "scores 8 of 8 gold answers, from 1 to 1"),
        ("later", Level.OK, "scores 8 of 8 gold answers, from 1 to 1"),
        ("watches", Level.OK, "not tried: it needs trainer_state"),
        ("forgotten", Level.ERROR, "a `return` is missing"),
        ("never", Level.ERROR, "gives no score to any of 8 gold answers"),
        ("talks", Level.ERROR, "returned the text 'good' for row 0 (completion"),
        ("falls", Level.ERROR, "raised ZeroDivisionError"),
    ],
)
def test_doctor_asks_reward_functions_about_gold_answers(tmp_path: Path, name: str, level: Level, words: str) -> None:
    path = recipe(tmp_path, f"[accuracy, think_format, own.py:{name}]", "[{use: arithmetic, problems: 20}]")
    (found,) = [finding for finding in doctor.recipe(load(path)) if finding.subject.startswith("one: ")]
    assert (found.subject, found.level) == (f"one: {name}", level)
    assert words in found.message


def test_the_trainers_composite_stops_after_its_first_batch(tmp_path: Path) -> None:
    recipe(tmp_path, "[accuracy]")
    reward = Judge(Composite([Part("own.py:never")], tmp_path).parts, tmp_path)
    with pytest.raises(ScoreError, match="not one row of the first batch has a reward, so nothing would be learnt"):
        reward(["q"] * 4, ["a"] * 4)
