"""Test questions in training data: found however they are dressed up, and told from questions that are others."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.filters import Contamination
from pipeline.data.mixture import DataError, DataSource, asked, mixed
from pipeline.recipe import load
from pipeline.tasks.base import TaskError
from pipeline.tasks.base import load as load_task
from pipeline.training.decontaminate import clean_prompts, contamination
from tests.stages.driving import context_of

SHORT = (
    "What is 12 * 7?",
    "What is the capital of France?",
    "Compute 3 + 4.",
    r"What is $\frac{1}{2}+\frac{1}{3}$?",
    "小明有3个苹果，吃了1个，还剩几个？",
    "Find x.",
)
BOXED = "\n\nReason step by step, and put the final answer, and nothing else, in \\boxed{}."


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("What is 12 * 7, please?", True),
        ("Tell me: what is 12 * 7", True),
        ("What is 12 * 7 in base 9?", True),
        ("What is 12*7?" + BOXED, True),
        ("What is 12 * 7 + 1?", False),
        ("What is 12 * 75?", False),
        ("What is 12 * 7.5?", False),
        ("What is -12 * 7?", False),
        ("What is 12 * 7 3?", False),
        ("What is the capital of France now?", True),
        ("Quick: What is the capital of France?", True),
        ("What is the capital of France?" + BOXED, True),
        ("I went to Paris. What is the capital of France, and why do people care so much about it?", False),
        ("What is the capital of Norway?", False),
        ("Compute 3 + 4 quickly.", True),
        ("Compute 3 + 4 * 2.", False),
        ("Compute 2 * 3 + 4.", False),
        (r"What is $\frac{1}{2}+\frac{1}{3}$ exactly?", True),
        (r"What is $\frac{1}{2}+\frac{1}{3}+1$?", False),
        ("小明有3个苹果，吃了1个，还剩几个呢？", True),
        ("小明有5个苹果，吃了1个，还剩几个？", False),
        ("Find x.", True),
        ("Find x. Given y.", False),
        ("", False),
    ],
)
def test_a_short_test_question_is_found_with_words_around_it(question: str, found: bool) -> None:
    assert Contamination(SHORT).found(question) is found


STORY = "A train leaves Paris at noon with forty red boxes and {} sleepy cats on board. How many boxes are red?"


@pytest.mark.parametrize("times", [1, 2, 3, 7, 100])
def test_a_test_set_that_is_listed_several_times_is_no_wording(times: int) -> None:
    tests = [STORY.format("seven"), *SHORT]
    for question in ("Once more: " + STORY.format("seven"), "What is 12 * 7, please?"):
        assert Contamination(tests * times).found(question)
        assert Contamination([text.upper() + " " * n for n in range(times) for text in tests]).found(question)


def test_a_test_set_in_several_dresses_is_no_wording() -> None:
    story = STORY.format("seven")
    dressed = [
        story,
        f"Question: {story}",
        f"{story}{BOXED}",
        f"Q: {story} A:",
        f"Please solve this one. {story} Thanks!",
    ]
    assert Contamination(dressed).found("Once more: " + story)
    assert Contamination(dressed).found(f"Note: {story}")


@pytest.mark.parametrize(
    ("task", "options"), [("countdown", {}), ("arithmetic", {"order": "left_to_right", "modulo": 10})]
)
def test_other_numbers_in_the_wording_of_a_generated_task_are_other_questions(task: str, options: Any) -> None:
    made = load_task(task, options)
    contamination = Contamination(problem.question for problem in made.problems("test", 500))
    assert not any(contamination.found(problem.question) for problem in made.problems("train", 500))
    assert all(contamination.found(problem.question) for problem in made.problems("test", 50))


def test_what_a_task_puts_around_its_questions_makes_none_of_them_alike(tmp_path: Path) -> None:
    """MBPP's: eight words between text and test, so that `in a string`, and nothing else, would be shared."""
    told = "Write a function to {}"
    train = ("toggle characters case in a string.", "find the largest sum of any three numbers in a row of numbers.")
    test = ("remove the last word in a string.", "find the largest sum of any three numbers in a row of numbers.")
    rows = [(601 + at, text) for at, text in enumerate(train)] + [(11 + at, text) for at, text in enumerate(test)]
    path = tmp_path / "mbpp.jsonl"
    path.write_text(
        "".join(
            json.dumps({"task_id": at, "text": told.format(text), "code": "", "test_list": [f"assert f{at}(1) == 2"]})
            + "\n"
            for at, text in rows
        )
    )
    code = {"use": "mbpp", "options": {"path": str(path)}}
    shown = {**code, "split": "test", "options": {**code["options"], "shown": 3}}
    config = {"kind": "grpo", "model": "m", "tasks": [code], "decontaminate": [shown]}
    stage = context_of(tmp_path, "one", config, {})
    kept, metric = clean_prompts(stage.config.tasks, stage.config.decontaminate, stage)
    assert [row["id"] for row in kept] == ["mbpp-601"] and metric == {"contaminated": 1}
    asked_alike = Contamination(row["question"] for row in kept)
    assert asked_alike.found(kept[0]["question"].replace("characters case", "the letters"))


def test_wording_of_many_different_questions_is_still_no_content() -> None:
    numbers = ("one", "two", "three", "four", "five", "six", "seven")
    contamination = Contamination([STORY.format(number) for number in numbers] * 5)
    assert not contamination.found(STORY.format("eight"))
    assert contamination.found(STORY.format("seven"))


def chat(question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]


SAID = [{"role": "assistant", "content": "I cannot say what is 12 * 7 to you."}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [*chat("{}"), *SAID]},
        {"messages": [*chat("Hello!"), *SAID, {"role": "user", "content": "{}"}, *SAID]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "{}"}]}, *SAID]},
        {"prompt": chat("{}"), "completion": SAID},
        {"prompt": "Question: {} Answer:", "completion": " 84"},
        {"prompt": chat("{}"), "chosen": SAID, "rejected": SAID},
        {"chosen": [*chat("{}"), *SAID], "rejected": [*chat("{}"), *SAID]},
        {"text": "Notes. {} It is 84."},
    ],
)
def test_rows_of_every_form_are_asked_about(row: dict[str, Any]) -> None:
    def filled(question: str) -> Any:
        return json.loads(json.dumps(row).replace("{}", question))

    found = Contamination(SHORT)
    assert found.found(asked(filled("What is 12 * 7?")))
    assert not found.found(asked(filled("What is 13 * 7?")))


def written(path: Path, *questions: str) -> str:
    rows = [{"prompt": question, "completion": " 7", "question": question, "answer": "7"} for question in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def held_out(tmp_path: Path) -> dict[str, Any]:
    options = {"path": written(tmp_path / "test.jsonl", "What is 12 * 7?", STORY.format("nine"))}
    return {"use": "jsonl", "split": "train", "options": {**options, "test_share": 0}}


def test_every_source_of_a_mixture_is_cleaned_before_rows_are_taken(tmp_path: Path) -> None:
    one = written(tmp_path / "one.jsonl", "What is 12 * 7, please?", "What is 1 * 1?", "What is 2 * 2?")
    two = written(tmp_path / "two.jsonl", "What is 5 * 5?", "Well: " + STORY.format("nine"))
    stage = context_of(
        tmp_path, "one", {"kind": "sft", "model": "m", "data": [one], "decontaminate": [held_out(tmp_path)] * 3}, {}
    )
    unclean = contamination(stage.config.decontaminate, stage)
    sources = [DataSource.model_validate({"from": one, "take": 2}), DataSource.model_validate({"from": two})]
    rows = mixed(sources, stage, unclean)
    assert Counter(row["question"] for row in rows) == Counter(["What is 1 * 1?", "What is 2 * 2?", "What is 5 * 5?"])
    assert unclean.left_out == 2
    with pytest.raises(DataError, match=r"one.jsonl has 2 rows, fewer than the 3 to be taken"):
        mixed([DataSource.model_validate({"from": one, "take": 3})], stage, unclean)
    with pytest.raises(DataError, match="ask test questions"):
        mixed([DataSource.model_validate({"from": held_out(tmp_path)["options"]["path"]})], stage, unclean)


def test_prompts_of_rl_are_cleaned_and_counted(tmp_path: Path) -> None:
    train = {"path": written(tmp_path / "train.jsonl", "What is 12 * 7 now?", "What is 1 * 1?"), "test_share": 0}
    tasks = [{"use": "jsonl", "options": train}]
    config = {"kind": "grpo", "model": "m", "tasks": tasks, "decontaminate": [held_out(tmp_path)]}
    stage = context_of(tmp_path, "one", config, {})
    rows, metric = clean_prompts(stage.config.tasks, stage.config.decontaminate, stage)
    assert [row["question"] for row in rows] == ["What is 1 * 1?"]
    assert metric == {"contaminated": 1}
    plain = stage.config.model_copy(update={"decontaminate": []})
    rows, metric = clean_prompts(plain.tasks, plain.decontaminate, stage)
    assert (len(rows), metric) == (2, {})
    with pytest.raises(TaskError, match="all 2 problems of the stage are those of its test sets"):
        clean_prompts(stage.config.decontaminate, stage.config.decontaminate, stage)


@pytest.mark.parametrize(
    "stage",
    [
        "kind: grpo, model: some/model, tasks: [arithmetic]",
        "kind: sft, model: some/model, data: [rows.jsonl]",
        "kind: distill, model: some/model, data: [rows.jsonl]",
        "kind: distill, model: some/model, teacher: some/teacher, tasks: [arithmetic]",
        "kind: reward_model, model: some/model, data: [rows.jsonl]",
        "kind: rejection_sample, model: some/model, tasks: [arithmetic]",
        "kind: pretrain, model: nano, tokenizer: some/model, length: 64, corpus: {from: rows.jsonl}",
        "kind: extend_context, model: some/model, context: 64, corpus: {from: rows.jsonl}",
    ],
)
def test_every_stage_with_data_has_the_field(tmp_path: Path, stage: str) -> None:
    written(tmp_path / "rows.jsonl", "What is 1 * 1?")
    (tmp_path / "recipe.yaml").write_text(f"name: r\nstages:\n  one: {{{stage}, decontaminate: [gsm8k, math/test]}}\n")
    (spec, other) = load(tmp_path / "recipe.yaml").stages["one"].decontaminate  # type: ignore[attr-defined]
    assert (spec.label, other.label) == ("gsm8k/test", "math/test")
