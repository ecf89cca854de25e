"""The recipe of what R1's authors tried and dropped: every stage of it, with little to do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.failed_attempts import against_truth, rl_table, search_table
from pipeline.recipe import load
from pipeline.runner import graph
from pipeline.stages.registry import run_function
from tests.stages.driving import TINY, context_of

ROOT = Path(__file__).resolve().parents[2]
RL = ("by_rules", "by_min", "by_mean", "by_both")
LITTLE = (
    f"stages.base.model={json.dumps(TINY)}",
    "stages.base.corpus.documents=400",
    "stages.base.trainer.max_steps=10",
    "stages.labels.tasks=[{use: chain, problems: 12}]",
    "stages.labels.continuations=2",
    "stages.prm.trainer.num_train_epochs=1",
    *(f"stages.{stage}.trainer={{max_steps: 1, num_generations: 4, per_device_train_batch_size: 8}}" for stage in RL),
    "stages.score.tasks=[{use: chain, problems: 8}]",
    "stages.search.tasks=[{use: chain, problems: 6}]",
    "stages.search.budgets=[16, 40]",
)


def test_every_stage_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe = load("nano/failed-attempts", LITTLE)
    tasks = {name: definition.model_dump() for name, definition in recipe.tasks.items()}
    done: dict[str, Path] = {}
    metrics = {}
    for name in graph.build(recipe):
        config = recipe.stages[name]
        context = context_of(tmp_path, name, json.loads(config.model_dump_json(by_alias=True)), done, recipe.seed)
        metrics[name] = run_function(config.kind)(replace(context, tasks=tasks)).metrics
        done[name] = context.output
    assert metrics["labels"]["answers"] == metrics["prm"]["rows"] + metrics["labels"]["unlabelled"] == 12
    assert set(metrics["score"]["scores"]) == {"base", *RL}
    (scores,) = metrics["search"]["budgets"].values()
    assert set(scores) == {"n", "values", "16", "40"}
    rewarded = [json.loads(line) for line in (done["by_min"] / "samples.jsonl").read_text().splitlines()]
    assert {"process", "accuracy"} <= rewarded[0]["rewards"].keys()
    assert rewarded[0]["score"] == pytest.approx(rewarded[0]["rewards"]["process"]), "accuracy is only looked at"


def test_nothing_of_the_main_path_names_it() -> None:
    kinds = {"step_labels", "tree_search"}
    for recipe in ("nano/r1", "nano/r1-zero", "r1/r1", "v3-small/r1-zero", "v3-small/r1"):
        assert not kinds & {config.kind for config in load(recipe).stages.values()}


def test_the_page_shows_the_committed_results() -> None:
    runs = json.loads((ROOT / "benchmarks" / "results" / "failed-attempts.json").read_text(encoding="utf-8"))["runs"]
    page = (ROOT / "docs" / "results" / "failed-attempts.md").read_text(encoding="utf-8")
    assert len({run["seed"] for run in runs}) == 3
    assert not [line for line in (*rl_table(runs), *search_table(runs)) if line not in page]


def test_labels_are_held_against_what_a_chain_comes_to() -> None:
    """7 +3 *7 comes to 7, 0, 0: the second answer goes wrong with its second step."""
    rows = [
        {"question": "7 +3 *7 =", "completions": ["seven", "零", "zero", "0"], "labels": [0.5, 1.0, 0.0, 1.0]},
        {"question": "7 +3 *7 =", "completions": ["seven", "one", "zero", "0"], "labels": [0.5, 0.25, 0.0, 1.0]},
    ]
    found = against_truth(rows)
    assert found["of_right_steps"] == {"n": 4, "mean": 0.5, "hard": 0.75}
    assert found["of_wrong_steps"] == {"n": 2, "mean": 0.125, "hard": 0.5}
    assert found["mean_of_right_by_step"] == [0.5, 1.0, 0.0]
