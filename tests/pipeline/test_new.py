"""`zero2r1 new`: whatever is answered, the recipe that it writes is one that can run."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.recipe import load
from pipeline.tasks.resolve import resolve

ROW = {"problem": "What is 2 + 3?", "solution": "2 and 3 are 5.\n#### 5"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{**ROW, "problem": f"What is {n} + 3?", "solution": f"#### {n + 3}"} for n in range(60)]
    Path("mine.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def new(*arguments: str, answers: str = "", code: int = 0) -> str:
    done = CliRunner().invoke(app, ["new", "x.yaml", *arguments], input=answers)
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


@pytest.mark.parametrize(
    ("goal", "data", "hardware"),
    [*product(["rl", "score"], ["gsm8k", "countdown", "mine.jsonl"], ["cpu", "1", "8"]), ("sft", "mine.jsonl", "2")],
)
def test_every_answer_gives_a_recipe_that_is_checked(goal: str, data: str, hardware: str) -> None:
    said = new("--model", "some/base", "--data", data, "--hardware", hardware, "--goal", goal)
    assert "next:    zero2r1 plan x.yaml" in said
    recipe = load("x.yaml")
    assert (
        list(recipe.stages)
        == {"rl": ["base", "zero", "score"], "score": ["base", "score"], "sft": ["base", "tuned"]}[goal]
    )
    assert recipe.stages["base"].chat_template == "r1_zero"  # type: ignore[attr-defined]
    if goal == "rl":
        zero = recipe.stages["zero"]
        assert zero.launch.gpus == (8 if hardware == "8" else None)
        assert zero.rollout.engine == ("transformers" if hardware == "cpu" else "vllm")  # type: ignore[attr-defined]


def test_the_fields_of_a_file_are_found_in_its_first_row() -> None:
    new("--model", "some/model-instruct", "--data", "mine.jsonl", "--hardware", "cpu", "--goal", "rl")
    recipe = load("x.yaml")
    definitions = {name: task.model_dump() for name, task in recipe.tasks.items()}
    (spec,) = recipe.stages["zero"].tasks  # type: ignore[attr-defined]
    problems = resolve(spec, definitions, recipe.base).task.problems("train")
    assert {(p.question, p.answer) for p in problems} <= {(f"What is {n} + 3?", str(n + 3)) for n in range(60)}
    assert len(problems) > 30
    assert recipe.stages["base"].chat_template is None, "a model that was instructed has its own"  # type: ignore[attr-defined]


def test_what_is_not_given_is_asked() -> None:
    said = new(answers="some/base\n\n\nscore\n")
    for question in (
        "Model (hub id or folder)",
        "Data (",
        "[gsm8k]",
        "Hardware (cpu, or how many GPUs) [cpu]",
        "Goal (",
    ):
        assert question in said
    assert list(load("x.yaml").stages) == ["base", "score"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--goal fly", "--goal: 'fly' is not one of rl, sft, score"),
        ("--hardware tpu", "--hardware: 'tpu' is neither cpu nor a number of GPUs"),
        ("--goal sft", "--data: fine-tuning needs a .jsonl file of examples, and 'gsm8k' is not one"),
        ("--data gms8k", "there is no task 'gms8k' (did you mean 'gsm8k'?)"),
        ("--data gone.jsonl", "gone.jsonl"),
    ],
)
def test_an_answer_that_cannot_be_is_told_and_nothing_is_written(arguments: str, message: str) -> None:
    given = {"--model": "some/base", "--data": "gsm8k", "--hardware": "cpu", "--goal": "rl"}
    given |= dict([tuple(arguments.split())])  # type: ignore[list-item]
    said = new(*(word for pair in given.items() for word in pair), code=2)
    assert message in said
    assert not Path("x.yaml").exists()


def test_what_is_there_is_kept() -> None:
    Path("x.yaml").write_text("mine")
    assert "x.yaml exists already" in new("--goal", "rl", code=2)
    assert Path("x.yaml").read_text() == "mine"
