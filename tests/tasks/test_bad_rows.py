"""Rows that hold no problem: counted and named where they stop a task, counted and left out where a recipe says so."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands import doctor
from pipeline.recipe import RecipeError, load
from pipeline.tasks.base import TaskError
from pipeline.tasks.base import load as load_task

GOOD = [{"question": f"{k} + 1?", "problem": f"{k} + 1?", "answer": f"#### {k + 1}"} for k in range(9)]
BAD: dict[str, list[Any]] = {
    "jsonl": [
        "{not json",
        "[1]",
        {"question": "x"},
        {"question": "", "answer": "1"},
        {"question": "x", "answer": None},
        {"question": "x", "answer": math.nan},
    ],
    "gsm8k": [{"question": "x", "answer": "no mark"}, {"answer": "#### 1"}, {"question": "y", "answer": "#### N/A"}],
    "math": [{"problem": "x"}, {"problem": "y", "solution": "It is shown."}, {"problem": "z", "answer": "proof"}],
    "mbpp": ["{", {"task_id": 1}, {"task_id": 2, "text": "t", "code": "c", "test_list": None}],
}
MBPP = {"task_id": 3, "text": "t", "code": "def f(): return 1", "test_list": ["assert f() == 1"]}


def written(folder: Path, name: str, bad: list[Any]) -> str:
    bare = [{**row, "answer": row["answer"].removeprefix("#### ")} for row in GOOD]
    good = {"mbpp": [MBPP], "gsm8k": GOOD}.get(name, bare)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in [*good, *bad]]
    folder.mkdir(exist_ok=True)
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder if name in ("gsm8k", "math") else folder / "train.jsonl")


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_left_out_and_counted_where_the_recipe_says_so(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path, options = written(tmp_path, name, BAD[name]), {"test_share": 0} if name == "jsonl" else {}
    task = load_task(name, {"path": path, "bad_rows": "skip", **options})
    with caplog.at_level(logging.WARNING):
        problems = task.problems("train")
    good = 1 if name == "mbpp" else len(GOOD)
    assert len(problems) == good
    assert len(task.left_out) == len(BAD[name])
    assert f"{len(BAD[name])} of {good + len(BAD[name])} rows left out" in caplog.text
    assert f"train.jsonl:{good + 1}" in " ".join(task.left_out), "every reason names its line"


@pytest.mark.parametrize("name", BAD)
def test_otherwise_they_stop_the_task_and_are_counted_all_the_same(tmp_path: Path, name: str) -> None:
    bad = [row for row in BAD[name] if not (isinstance(row, dict) and row.get("answer") in ("proof", "#### N/A"))]
    task = load_task(name, {"path": written(tmp_path, name, bad * 2)})
    rows = (1 if name == "mbpp" else len(GOOD)) + 2 * len(bad)
    with pytest.raises(
        TaskError, match=rf"train.jsonl:\d+.*{2 * len(bad)} of {rows} rows cannot.*bad_rows: skip"
    ) as told:
        task.problems("train")
    assert str(told.value).count("train.jsonl:") == 3, "the first three are named"


def test_a_gold_that_pays_nobody_does_not_stop_but_doctor_tells(tmp_path: Path) -> None:
    assert len(load_task("math", {"path": written(tmp_path, "math", BAD["math"][2:])}).problems("train")) == 10


def test_where_no_row_is_left_the_task_stops(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "x", "answer": "N/A"}\n')
    with pytest.raises(TaskError, match="1 of 1 rows cannot be used: none is left"):
        load_task("jsonl", {"path": str(tmp_path / "rows.jsonl"), "test_share": 0, "bad_rows": "skip"}).problems(
            "train"
        )


def test_a_line_that_is_no_utf8_is_no_row_to_skip(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"question": "x", "answer": "1"}\n\xff\xfe\n')
    with pytest.raises(TaskError, match="cannot read"):
        load_task("jsonl", {"path": str(tmp_path / "rows.jsonl"), "bad_rows": "skip"}).problems("train")


@pytest.mark.parametrize(
    "place", ["stage", "definition", "option"], ids=["in a stage", "under `tasks:`", "among the options"]
)
def test_a_recipe_says_it_in_either_place_and_doctor_counts(tmp_path: Path, place: str) -> None:
    written(tmp_path, "jsonl", BAD["jsonl"])
    said = {"stage": "", "definition": ", bad_rows: skip", "option": ""}[place]
    option = ", bad_rows: skip" if place == "option" else ""
    used = "{use: rows, split: train, bad_rows: skip}" if place == "stage" else "rows/train"
    (tmp_path / "recipe.yaml").write_text(
        f"name: rows\ntasks:\n  rows: {{use: jsonl, options: {{path: train.jsonl, test_share: 0{option}}}{said}}}\n"
        f"stages:\n  score: {{kind: evaluate, model: none, tasks: [{used}]}}\n"
    )
    left_out, accepted = doctor.recipe(load(tmp_path / "recipe.yaml"))
    assert f"{len(BAD['jsonl'])} rows are left out (bad_rows: skip), such as" in left_out.message
    assert accepted.message == "the grader accepts all 9 golds"


def test_other_values_and_tasks_without_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="bad_rows is error or skip, not 'drop'"):
        load_task("gsm8k", {"path": written(tmp_path, "gsm8k", []), "bad_rows": "drop"})
    (tmp_path / "recipe.yaml").write_text(
        "name: rows\nstages:\n  score: {kind: evaluate, model: none, tasks: [{use: countdown, bad_rows: skip}]}\n"
    )
    with pytest.raises(RecipeError, match=r"countdown.* has no option 'bad_rows'"):
        load(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("grader", "gold", "told"),
    [
        ("math", "proof", "is a word in place of an answer"),
        ("math", "N/A", "is a word in place of an answer"),
        ("math", '["70"]', "is a list written as text"),
        ("math", "We add 3 and 4. We get 7, so the robe takes 7 bolts.", "is a worked solution"),
        ("exact", "N/A", "is a word in place of an answer"),
        ("exact", '["70"]', "is a list written as text"),
    ],
)
def test_doctor_tells_golds_that_pay_nobody(tmp_path: Path, grader: str, gold: str, told: str) -> None:
    rows = [{"question": f"{k}?", "answer": gold if k < 3 else "7"} for k in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(
        f"name: rows\nstages:\n  score: {{kind: evaluate, model: none, tasks: [{{use: jsonl, split: train,"
        f" options: {{path: rows.jsonl, test_share: 0, grader: {grader}}}}}]}}\n"
    )
    (found,) = doctor.recipe(load(tmp_path / "recipe.yaml"))
    assert "the grader refuses 3 of 5 golds" in found.message and told in found.message
