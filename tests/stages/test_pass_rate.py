"""How hard problems are: rates against a count of the samples by hand, and what a filter makes of them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.context import StageContext
from pipeline.recipe import load
from pipeline.report.page import _difficulty
from pipeline.report.run_data import Stage
from pipeline.stages.pass_rate import PassRateConfig, account, run
from pipeline.tasks.base import TaskError
from pipeline.tasks.resolve import once_each, prompt_rows
from tests.stages.driving import context_of


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def rates(calculator: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What a stage measured of sums, some of which the calculator has never seen."""
    folder = tmp_path_factory.mktemp("rates")
    rows = [{"question": f"{a} + {b} =", "answer": str(a + b), "first": a} for a in range(5) for b in range(5)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"path": "sums.jsonl", "grader": "exact", "template": "plain", "test_share": 0, "columns": ["first"]}
    config = PassRateConfig.model_validate(
        {
            "kind": "pass_rate",
            "model": str(calculator),
            "tasks": [{"use": "jsonl", "options": options, "weight": 2}],
            "samples": 6,
            "rollout": {"max_tokens": 12, "batch_size": 32},
            "save": 1000,
        }
    )
    for part in ("output", "scratch"):
        (folder / part).mkdir()
    metrics = run(
        StageContext("rates", config, {}, folder / "output", folder / "scratch", folder, 3, folder / "events.jsonl")
    ).metrics
    return folder, dict(metrics)


def test_rates_are_those_of_the_samples(rates: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = rates
    samples = lines(folder / "output" / "samples.jsonl")
    found = {row["id"]: row for row in lines(folder / "output" / "data.jsonl")}
    assert len(found) == metrics["problems"] == 25, "a weight asks no problem twice"
    for identity, row in found.items():
        own = [sample for sample in samples if sample["id"] == identity]
        assert row["pass_rate"] == pytest.approx(sum(sample["status"] == "correct" for sample in own) / 6)
        assert row["tokens"] == pytest.approx(sum(sample["tokens"] for sample in own) / 6)
        assert row["verdicts"] == Counter(sample["status"] for sample in own)
        assert row["answer"] == str(sum(map(int, row["question"].replace("=", "").split("+"))))
    rates_found = [row["pass_rate"] for row in found.values()]
    assert metrics["pass_rate"] == pytest.approx(sum(rates_found) / 25)
    assert 0 < metrics["pass_rate"] < 1
    assert sum(metrics["histogram"].values()) == 25
    assert metrics["always"] == rates_found.count(1.0)


def test_the_histogram_has_a_bar_for_every_tenth() -> None:
    row = {"samples": 10, "tokens": 5.0}
    found = account([{**row, "pass_rate": rate} for rate in (0, 0.05, 0.1, 0.19, 0.5, 0.95, 1, 1, None)])
    assert found["histogram"] | {} == {
        **dict.fromkeys((f"{at}-{at + 10} %" for at in range(0, 100, 10)), 0),
        "never": 1,
        "0-10 %": 1,
        "10-20 %": 2,
        "50-60 %": 1,
        "90-100 %": 1,
        "always": 2,
    }
    assert (found["unjudged"], found["problems"]) == (1, 9)
    shown = _difficulty(Stage("rates", "pass_rate", (), {}, manifest={"metrics": found}))
    assert shown is not None and (shown.problems, shown.bars["always"]) == (8, 2)


RECIPE = """name: r
tasks:
  sums: {{use: jsonl, path: sums.jsonl, grader: exact, template: plain, test_share: 0}}
stages:
  rates: {{kind: pass_rate, model: some/model, tasks: [sums]}}
{more}  zero: {{kind: grpo, model: some/model, tasks: [{task}], rewards: [accuracy]}}
"""


def context(folder: Path, task: str, more: str = "") -> StageContext[Any]:
    (folder / "recipe.yaml").write_text(RECIPE.format(task=task, more=more))
    recipe = load(folder / "recipe.yaml")
    tasks = {name: definition.model_dump() for name, definition in recipe.tasks.items()}
    inputs = {"rates": folder / "output"}
    return StageContext("z", recipe.stages["zero"], inputs, folder, folder, folder, 0, folder / "events", tasks)


def test_a_filter_takes_the_problems_of_a_range(rates: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = rates
    found = {row["question"]: row["pass_rate"] for row in lines(folder / "output" / "data.jsonl")}
    low, *_, high = sorted(set(found.values()))[1:]  # what the model solves depends on the processor, a little
    wanted = {question for question, rate in found.items() if low <= rate <= high}
    assert 0 < len(wanted) < 25
    stage = context(folder, f"{{use: sums, filter: {{pass_rate: [{low}, {high}]}}}}")
    assert stage.config.tasks[0].filter.source == "@rates", "the recipe's only stage of that kind"
    assert {row["question"] for row in prompt_rows(stage.config.tasks, stage)} == wanted
    filtered = f"filter: {{pass_rate: [{low}, {high}], from: '@rates'}}"
    stage = context(folder, f"{{use: sums, problems: 2, {filtered}}}")
    assert len(prompt_rows(stage.config.tasks, stage)) == 2
    stage = context(folder, "{use: sums, filter: {pass_rate: [0.99999, 0.999999]}}")
    with pytest.raises(TaskError, match=r"sums/train: 0 of 25 problems pass the filter .*, so none is left"):
        prompt_rows(stage.config.tasks, stage)


def test_a_filter_takes_problems_by_their_own_fields(tmp_path: Path) -> None:
    rows = [{"question": f"{n} + 0 =", "answer": str(n), "level": n} for n in range(10)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = context(tmp_path, "{use: sums, filter: {level: [3, 5]}}")
    assert {row["level"] for row in prompt_rows(stage.config.tasks, stage)} == {3, 4, 5}
    stage = context(tmp_path, "{use: sums, filter: {levle: [3, 5]}}")
    with pytest.raises(TaskError, match=r"there is no field levle .did you mean 'level'"):
        prompt_rows(stage.config.tasks, stage)


COUNTED = """
from pipeline.tasks.base import Problem, Task

class Counted(Task):
    def __init__(self, by=1):
        self.by = by

    def problems(self, split, n=None, seed=0):
        return [Problem(str(n), f"{n} * {self.by} =", str(n * self.by)) for n in range(4)]

class Twice(Task):
    def problems(self, split, n=None, seed=0):
        return [Problem("same", f"{n} + 1 =", str(n + 1)) for n in range(2)]
"""


def test_tasks_that_count_their_problems_alike_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(COUNTED)
    two = [{"use": "own.py:Counted", "name": name, "options": {"by": by}} for name, by in (("ones", 1), ("tens", 10))]
    rates = [
        {"task": task, "id": str(n), "pass_rate": 0.5 if (task == "ones") == (n < 2) else 1.0}
        for task in ("ones", "tens")
        for n in range(4)
    ]
    (tmp_path / "rates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rates))
    wanted = {"pass_rate": [0.1, 0.9], "from": "rates.jsonl"}
    config = {"kind": "grpo", "model": "m", "tasks": [{**task, "filter": wanted} for task in two]}
    stage = context_of(tmp_path, "zero", config, {})
    found = {(row["task"], row["id"]) for row in prompt_rows(stage.config.tasks, stage)}
    assert found == {("ones", "0"), ("ones", "1"), ("tens", "2"), ("tens", "3")}
    plain = context_of(tmp_path, "every", {**config, "tasks": [{**task, "weight": 2} for task in two]}, {})
    assert len(once_each(prompt_rows(plain.config.tasks, plain))) == 8
    twice = context_of(tmp_path, "twice", {**config, "tasks": [{"use": "own.py:Twice"}]}, {})
    with pytest.raises(
        TaskError, match=r"task own.py:Twice: two problems have the id same, and would be taken for one"
    ):
        once_each(prompt_rows(twice.config.tasks, twice))
