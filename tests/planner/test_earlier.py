"""`zero2r1 plan --cost` of lengths and rows that a run has told, or the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import comb
from pathlib import Path
from typing import Any

import pytest

from pipeline import artifacts
from pipeline.recipe import load
from pipeline.runner import graph
from tests.planner.plans import RECIPE, invoked, planned, stage

MORE = """
  kept:
    kind: rejection_sample
    model: "@zero"
    tasks: [{use: gsm8k, problems: 100}, {use: math, problems: 300}]
    samples: 4
    keep: 2
    rollout: {engine: vllm, max_tokens: 600}
  learnt: {kind: sft, model: "@zero", data: [{from: "@kept", filter: {task: gsm8k}}], max_length: 1024}
"""
SCORES = {"base": {"gsm8k/test": {"tokens": 90.0}}, "taught": {"gsm8k/test": {"tokens": 130.0}}}
KEPT = {"problems": 400, "sampled": 1600, "kept": 100, "tokens": 150.0, "sampled_tokens": 200.0}
METRICS: dict[str, tuple[str, dict[str, Any]]] = {
    "zero": ("grpo", {"steps": 2}),
    "score": ("evaluate", {"scores": SCORES}),
    "kept": ("rejection_sample", KEPT),
}


@pytest.fixture
def longer(recipe: Path) -> Path:
    recipe.write_text(RECIPE + MORE)
    return recipe


def ran(folder: Path, stages: Mapping[str, tuple[str, Mapping[str, Any]]], fingerprints: Mapping[str, str]) -> Path:
    """A run with finished stages that have these metrics; `zero` had answers of 60 and 80 tokens."""
    for name, (kind, metrics) in stages.items():
        source = folder / "scratch" / name
        source.mkdir(parents=True)
        steps = [{"step": n, "completions/mean_length": length} for n, length in enumerate((60.0, 80.0), 1)]
        (source / "events.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps) + '{"step": 3, "comp')
        manifest = {"stage": name, "kind": kind, "fingerprint": fingerprints[name], "metrics": metrics}
        artifacts.publish(source, artifacts.folder(folder, name, fingerprints[name]), manifest)
    rows = [{"name": n, "kind": kind, "fingerprint": fingerprints[n], "inputs": []} for n, (kind, _) in stages.items()]
    artifacts.write_run_record(folder, {"name": folder.name, "stages": rows}, "name: ran")
    return folder


def told(found: dict[str, Any], name: str) -> dict[str, tuple[str, str]]:
    """What is assumed of a stage -> value and source."""
    return {line["what"]: (line["value"], line["source"]) for line in stage(found, name)["assumptions"]}


def test_a_finished_run_says_how_long_answers_get_and_how_many_are_kept(longer: Path, tmp_path: Path) -> None:
    run = ran(tmp_path / "ran", METRICS, dict.fromkeys(METRICS, "0" * 64))
    words = (longer, "--runs", tmp_path / "none", "--gpus", "H200", "--completion-tokens", 300)
    found = planned(*words, "--like", run)
    assert told(found, "zero")["completion"] == ("70 of 400 tokens", f"{run}@zero")
    assert told(found, "score")["completion"] == ("110 of 1,024 tokens", f"{run}@score")
    assert told(found, "kept")["completion"] == ("200 of 600 tokens", f"{run}@kept"), "of all samples"
    rows, source = told(found, "learnt")["rows of @kept"]
    assert rows.startswith("25 x 278 tokens"), "a quarter of a row for each of 100 problems, of 128 + 150 tokens"
    assert source.startswith(f"{run}@kept: 0.25 a problem")
    assert found["seconds"] < planned(*words)["seconds"]
    assert told(planned(*words), "zero")["completion"] == ("300 of 400 tokens", "--completion-tokens")
    result = invoked("plan", *words, "--cost", "--like", run)
    assert f"{run}@zero" in result.stdout.replace("\n", "").replace(" ", "")


def test_finished_stages_of_the_recipe_itself_say_more_than_another_run(longer: Path, tmp_path: Path) -> None:
    nodes = graph.build(load(longer))
    other = ran(tmp_path / "ran", METRICS, dict.fromkeys(METRICS, "0" * 64))
    own = {"kept": ("rejection_sample", {**KEPT, "kept": 400})}
    ran(tmp_path / "planned", own, {"kept": nodes["kept"].fingerprint})
    found = planned(longer, "--runs", tmp_path, "--gpus", "H200", "--like", other)
    assert told(found, "learnt")["rows of @kept"][0].startswith("100 x ")
    assert told(found, "zero")["completion"][1] == f"{other}@zero"


def test_a_share_of_samples_that_are_kept(longer: Path, tmp_path: Path) -> None:
    """Of four samples at most two are kept, each of which passes by itself."""
    words = (longer, "--runs", tmp_path, "--gpus", "H200")
    for rate in (0.05, 0.3, 1.0):
        pass_one = comb(4, 1) * rate * (1 - rate) ** 3
        mean = pass_one + 2 * (1 - (1 - rate) ** 4 - pass_one)
        rows, source = told(planned(*words, "--pass-rate", rate), "learnt")["rows of @kept"]
        assert int(rows.split()[0]) == pytest.approx(100 * mean, abs=0.51)
        assert f"--pass-rate {rate:g}" in source


def test_what_is_assumed_says_how_to_tell(longer: Path, tmp_path: Path) -> None:
    words = (longer, "--runs", tmp_path, "--gpus", "H200")
    (line,) = [line for line in planned(*words)["assumptions"] if line["what"] == "lengths, rows"]
    assert "--like RUN" in line["source"] and "--pass-rate" in line["source"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--like", "nowhere"), "--like: there is no run nowhere"),
        (("--like", "."), "--like: . is not the folder of a run"),
        (("--pass-rate", "1.5"), "--pass-rate"),
        (("--pass-rate", "0"), "--pass-rate 0 keeps no sample"),
    ],
)
def test_a_wrong_run_is_one_line(
    longer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoked("plan", longer, "--cost", *options)
    assert result.exit_code == 2 and said in result.output and "Traceback" not in result.output, result.output
    without = invoked("plan", longer, *options)
    assert without.exit_code == 2


def test_a_run_of_another_recipe_says_nothing(longer: Path, tmp_path: Path) -> None:
    other = {"zero": METRICS["kept"], "elsewhere": METRICS["zero"]}
    run = ran(tmp_path / "ran", other, dict.fromkeys(other, "0" * 64))
    result = invoked("plan", longer, "--cost", "--like", run)
    assert result.exit_code == 2 and "no finished stage" in result.output, result.output
