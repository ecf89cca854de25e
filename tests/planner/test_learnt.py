"""`zero2r1 plan --cost` counts the rows and problems that a stage takes, and how long they are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.planner.plans import planned, stage


@pytest.mark.parametrize(
    ("source", "rows"),
    [
        ("{from: {hub: someone/chats}}", 1000),
        ("shards/*.parquet", 60),
        ("shards", 60),
        ("table.csv", 50),
        ("rows.jsonl.gz", 50),
    ],
)
def test_rows_are_counted_wherever_they_lie(recipe: Path, tmp_path: Path, source: str, rows: int) -> None:
    import gzip

    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "shards").mkdir()
    for name, count in (("a", 20), ("b", 40)):
        table = pa.table({"prompt": ["one and one?"] * count, "completion": ["2" * 1000] * count})
        parquet.write_table(table, tmp_path / "shards" / f"{name}.parquet")
    (tmp_path / "table.csv").write_text("prompt,completion\n" + "1 + 1?,2\n" * 50)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))
    found = planned(recipe, "--runs", tmp_path, "--gpus", "H200", f"stages.taught.data=[{source}]")
    said = [line for line in stage(found, "taught")["assumptions"] if line["what"].startswith("rows of ")]
    assert said[0]["value"].startswith(f"{rows:,} x ")
    if "shards" in source:
        assert 250 <= int(said[0]["value"].split()[2]) <= 270, "1,000 characters and a few words"


def rows_of(recipe: Path, *changes: str) -> tuple[dict[str, Any], str]:
    """The planned stage `taught`, and what is said of its rows."""
    taught = stage(planned(recipe, "--runs", recipe.parent, "--gpus", "H200", *changes), "taught")
    return taught, next(line["value"] for line in taught["assumptions"] if line["what"].startswith("rows of "))


@pytest.mark.parametrize(
    ("filter", "rows"), [("{level: 3}", 20), ("{level: [2, 3]}", 40), ("{level: [easy, 1]}", 20), ("{level: 9}", None)]
)
def test_rows_that_a_filter_leaves_out_are_not_counted(recipe: Path, filter: str, rows: int | None) -> None:
    """Longer rows are of the higher levels."""
    lines = [{"prompt": "?", "completion": "x" * 400 * (n % 3 + 1), "level": n % 3 + 1} for n in range(60)]
    (recipe.parent / "levels.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = f"stages.taught.data=[{{from: levels.jsonl, filter: {filter}}}]"
    if rows is None:  # refused with the run; a plan says how many there are
        assert rows_of(recipe, data)[1].startswith("60 x ")
        return
    taught, said = rows_of(recipe, data, "stages.taught.trainer={num_train_epochs: 1}")
    assert said.startswith(f"{rows} x ")
    assert taught["steps"] == math.ceil(rows / 8)
    longest = int(said.split()[4])
    assert longest == pytest.approx(100 if "easy" in filter else 300, rel=0.15), "four characters a token"


def test_columns_that_are_not_learnt_are_not_counted(recipe: Path) -> None:
    lines = [{"ask": "1 + 1?", "say": "2" * 400, "proof": "y" * 40_000}] * 10
    (recipe.parent / "wide.json").write_text(json.dumps(lines, indent=1))
    source = "{from: wide.json, columns: {prompt: ask, completion: say}}"
    assert rows_of(recipe, f"stages.taught.data=[{source}]")[1] == "10 x 102 tokens, 103 at most"


def test_without_a_longest_example_the_data_say_how_long_rows_are(recipe: Path) -> None:
    """The model's context of 32,768 tokens would need 16 times a card that short rows fit on."""
    data = json.loads((recipe.parent / "rows.jsonl").read_text().splitlines()[0])
    open_ended, said = rows_of(recipe, "stages.taught.max_length=null")
    longest = int(said.split()[4])
    assert longest == pytest.approx(len(json.dumps(data)) / 4, rel=0.2)
    assert open_ended["memory"] == rows_of(recipe, f"stages.taught.max_length={longest}")[0]["memory"]
    unread, said = rows_of(recipe, "stages.taught.max_length=null", "stages.taught.data=[{from: {hub: a/b}}]")
    assert said == "1,000 x 2048 tokens, 4,096 at most"
    assert (
        unread["memory"]
        == rows_of(recipe, "stages.taught.max_length=4096", "stages.taught.data=[{from: {hub: a/b}}]")[0]["memory"]
    )


@pytest.mark.parametrize(
    ("more", "problems"),
    [
        ("", 50),
        (", filter: {level: [3, 4]}", 20),
        (", filter: {level: 1}, problems: 7", 7),
        (", test_share: 0.5, split: test", None),
    ],
)
def test_problems_of_files_are_those_that_a_stage_takes(recipe: Path, more: str, problems: int | None) -> None:
    lines = [{"question": f"{n} + 1?", "answer": str(n + 1), "level": n % 5} for n in range(50)]
    (recipe.parent / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    share = "" if "test_share" in more else ", test_share: 0, split: train"
    task = f"{{use: jsonl, path: sums.jsonl{share}{more}}}"
    found = planned(recipe, "--runs", recipe.parent, "--gpus", "H200", f"stages.score.tasks=[{task}]")
    said = next(line for line in stage(found, "score")["assumptions"] if line["what"] == "problems")
    assert 10 < int(said["value"]) < 40 if problems is None else said["value"] == str(problems), said


def test_rows_of_rejection_sampling_are_those_of_the_tasks_that_a_filter_wants(recipe: Path) -> None:
    """Of 10 + 30 problems at most two answers each are kept; half of them are of no task that the filter names."""
    kept = (
        "{kind: rejection_sample, model: '@zero', tasks: [{use: gsm8k, problems: 10}, {use: math, problems: 30}],"
        " samples: 4, keep: 2}"
    )

    def rows(source: str, more: str = "") -> str:
        found = planned(recipe, f"stages.kept={kept}", *more.split(), f"stages.taught.data=[{source}]")
        (line,) = [line for line in stage(found, "taught")["assumptions"] if line["what"].startswith("rows of")]
        return f"{line['value'].split()[0]} {'not counted' in line['source']}"

    assert rows("'@kept'") == "80 False"
    assert rows("{from: '@kept', filter: {task: gsm8k}}") == "20 False"
    assert rows("{from: '@kept', filter: {task: [math]}, weight: 2}") == "120 False"
    assert rows("{from: '@kept', filter: {task: math, paired: true}}") == "60 True"
    assert rows("{from: '@kept', filter: {task: math}}", "stages.kept.rows=40") == "30 False"
    assert rows("{from: '@kept', filter: {task: math}}", "stages.kept.samples=1") == "30 False"
