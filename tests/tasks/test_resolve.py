"""From the words of a recipe to rows: names, definitions, weights, and the reward `accuracy`."""

from __future__ import annotations

import inspect
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.context import StageContext
from pipeline.schema.pieces import RewardSpec, StageConfig
from pipeline.schema.task import TaskSpec
from pipeline.tasks.base import TaskError
from pipeline.tasks.grading import Accuracy, accuracy_options, composite
from pipeline.tasks.resolve import TaskField, TestTaskField, prompt_rows, resolve
from rewards import Item, RewardFunction, Status

OWN_TASK = """
from pipeline.tasks.base import Problem, Task

class Letters(Task):
    grader = "exact"
    template = "plain"

    def __init__(self, upper: bool = False) -> None:
        self.upper = upper

    def problems(self, split, n=None, seed=0):
        letters = "ABC" if self.upper else "abc"
        return [Problem(f"letter-{x}", f"Say {x}.", x, {"shape": "letter"}) for x in letters][:n]
"""


def context(folder: Path, tasks: dict[str, Any] | None = None, seed: int = 0) -> StageContext[Any]:
    return StageContext(
        "s", StageConfig(kind="grpo"), {}, folder, folder, folder, seed, folder / "events.jsonl", tasks or {}
    )


def spec(value: Any) -> TaskSpec:
    return TypeAdapter(TaskField).validate_python(value)


def test_a_plain_name_means_the_split_that_the_stage_is_about() -> None:
    assert spec("gsm8k") == TaskSpec(use="gsm8k", split="train")
    assert spec("gsm8k/test") == TaskSpec(use="gsm8k", split="test")
    assert spec("my/tasks.py:Letters/test") == TaskSpec(use="my/tasks.py:Letters", split="test")
    assert spec("my/tasks.py:Letters") == TaskSpec(use="my/tasks.py:Letters")
    adapter = TypeAdapter(TestTaskField)
    assert adapter.validate_python("gsm8k") == TaskSpec(use="gsm8k", split="test")
    assert adapter.validate_python({"use": "gsm8k", "problems": 3}).split == "test"
    assert adapter.validate_python("gsm8k/train").split == "train"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("gsm8k/tset", "did you mean 'test'"),
        ({"use": "gsm8k", "template": "r1_zer0"}, "did you mean 'r1_zero'"),
        ({"use": "gsm8k", "problem": 3}, "problem"),
        ({"use": "gsm8k", "weight": 0.0}, "greater than 0"),
        (3, "TaskSpec"),
    ],
)
def test_words_that_mean_nothing_are_refused(value: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        spec(value)


def test_a_name_is_looked_up_in_the_recipe_first_and_errors_name_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN_TASK)
    tasks = {"letters": {"use": "own.py:Letters", "options": {"upper": True}, "template": "Please: {question}"}}
    (first, *_) = prompt_rows([spec({"use": "letters", "problems": 1})], context(tmp_path, tasks))
    assert first["prompt"] == [{"role": "user", "content": "Please: Say A."}]
    assert (first["task"], first["answer"], first["shape"]) == ("letters", "A", "letter")

    overridden = {"use": "letters", "problems": 1, "template": "plain", "options": {"upper": False}}
    (row,) = prompt_rows([spec(overridden)], context(tmp_path, tasks))
    assert (row["prompt"][0]["content"], row["answer"]) == ("Say a.", "a")

    for value, words in (
        ("lettres", "did you mean 'letters'"),
        ("countdwon", "did you mean 'countdown'"),
        ({"use": "letters", "options": {"uper": True}}, "did you mean 'upper'"),
        ("missing.py:Letters", "there is no file"),
        ("own.py:Leters", "has no"),
    ):
        with pytest.raises(TaskError, match=words):
            resolve(spec(value), tasks, tmp_path)


def test_a_weight_says_how_often_a_problem_comes_up(tmp_path: Path) -> None:
    mixed = [
        spec({"use": "chain", "problems": 40, "weight": 2.5}),
        spec({"use": "requests", "problems": 30}),
        spec({"use": "countdown", "problems": 20, "weight": 0.5}),
    ]
    rows = prompt_rows(mixed, context(tmp_path))
    assert Counter(row["task"] for row in rows) == {"chain": 100, "requests": 30, "countdown": 10}
    times = Counter(row["id"] for row in rows if row["task"] == "chain")
    assert Counter(times.values()) == {2: 20, 3: 20}
    assert all(row.keys() == rows[0].keys() for row in rows), "a data set needs the same columns everywhere"
    assert {row["numbers"] is None for row in rows if row["task"] == "chain"} == {True}
    assert [row["task"] for row in rows[:60]] != sorted(row["task"] for row in rows[:60])
    assert rows == prompt_rows(mixed, context(tmp_path))
    assert rows != prompt_rows(mixed, context(tmp_path, seed=1))


def test_a_weight_that_leaves_no_problem_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="leaves none"):
        prompt_rows([spec({"use": "chain", "problems": 5, "weight": 0.001})], context(tmp_path))


TRL_READS = {"image", "images", "completion", "environments"}
REWARD_TAKES = set(inspect.signature(RewardFunction.__call__).parameters) - {"columns"}


@pytest.mark.parametrize("name", sorted({"prompt", "answer", "question"} | TRL_READS | REWARD_TAKES))
def test_columns_may_not_take_the_place_of_what_is_there_already(tmp_path: Path, name: str) -> None:
    row = {"question": "What is 2 + 3?", "answer": "5", "field": "x"}
    (tmp_path / "problems.jsonl").write_text(json.dumps(row) + "\n")
    options = {"path": str(tmp_path / "problems.jsonl"), "test_share": 0.0, "columns": {name: "field"}}
    with pytest.raises(TaskError, match=rf"reserved names: \['{name}'\]"):
        prompt_rows([spec({"use": "jsonl", "options": options})], context(tmp_path))


def test_accuracy_is_each_tasks_own_grader(tmp_path: Path) -> None:
    tasks = [resolve(spec(name), {}, tmp_path) for name in ("countdown", "chain")]
    accuracy = Accuracy(**accuracy_options(tasks, tmp_path))
    numbers = {"task": "countdown", "numbers": [2, 3], "target": 6}
    verdicts = accuracy.verify(
        [
            Item("<answer>6</answer>", "6", columns={"task": "chain"}),
            Item("<answer>2 * 3</answer>", "2 * 3", columns=numbers),
            Item("<answer>2 * 3</answer>", "6", columns={"task": "chain"}),
            Item("<answer>6</answer>", "2 * 3", columns=numbers),
        ]
    )
    assert [v.status for v in verdicts] == [Status.CORRECT, Status.CORRECT, Status.WRONG, Status.WRONG]
    with pytest.raises(ValueError, match="no grader for task 'gsm8k'"):
        accuracy.verify([Item("6", "6", columns={"task": "gsm8k"})])


def test_accuracy_within_a_composite_survives_pickling_and_gates(tmp_path: Path) -> None:
    rewards = [RewardSpec(use="accuracy"), RewardSpec(use="think_format", weight=0.1, gate="accuracy")]
    made = composite(rewards, [spec("chain"), spec("requests")], context(tmp_path))
    made = pickle.loads(pickle.dumps(made))
    thought = "<think>7 0</think><answer>0</answer>"
    scores = made(
        ["p"] * 4,
        [thought, "<answer>0</answer>", "<think>7 1</think><answer>1</answer>", "<answer>sun cat</answer>"],
        task=["chain", "chain", "chain", "requests"],
        answer=["0", "0", "0", "sun cat"],
    )
    assert scores == [pytest.approx(1.1), 1.0, 0.0, 1.0]


def test_one_name_is_graded_in_one_way(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n')
    as_math = spec({"use": "jsonl", "options": {"path": "rows.jsonl"}})
    as_text = spec({"use": "jsonl", "options": {"path": "rows.jsonl", "grader": "exact"}})
    with pytest.raises(TaskError, match="graded differently"):
        composite([RewardSpec(use="accuracy")], [as_math, as_text], context(tmp_path))
