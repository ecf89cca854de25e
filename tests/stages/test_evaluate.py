"""Scores against independent references, and the stage on a tiny model."""

from __future__ import annotations

import json
import math
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.context import StageContext
from pipeline.prompts.templates import TemplateError
from pipeline.records.samples import Judgement
from pipeline.sampling import sampler as sampling
from pipeline.sampling.sampler import Group, Sample
from pipeline.sampling.scores import interval, majority_correct, pass_at_k, score, sentence
from pipeline.stages.evaluate import LABELS, EvaluateConfig, evaluate_model, run


@pytest.mark.parametrize(("n", "correct"), [(1, 0), (1, 1), (5, 0), (5, 1), (5, 3), (6, 5), (6, 6)])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(n: int, correct: int) -> None:
    samples = [True] * correct + [False] * (n - correct)
    for k in range(1, n + 1):
        subsets = [any(subset) for subset in combinations(samples, k)]
        assert pass_at_k(n, correct, k) == pytest.approx(sum(subsets) / len(subsets))


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 5), (4, 1, 0)])
def test_pass_at_k_is_not_defined_beyond_the_samples(n: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(n, correct, k)


def test_with_one_sample_a_problem_the_interval_is_wilsons() -> None:
    # 8 of 10: Wilson's interval is [0.490, 0.943] (Brown, Cai and DasGupta 2001, by their formula).
    low, high = interval([1.0] * 8 + [0.0] * 2, samples=1)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    # 0 of 20: from 0 to z^2 / (n + z^2).
    assert interval([0.0] * 20, samples=1) == (0.0, pytest.approx(3.841459 / (20 + 3.841459), abs=1e-6))


def test_the_interval_counts_problems_not_samples() -> None:
    alike = interval([1.0] * 30 + [0.0] * 20, samples=16)
    assert alike == interval([1.0] * 30 + [0.0] * 20, samples=1), "samples that always agree add nothing"
    scattered = interval([0.6] * 50, samples=16)
    assert scattered == pytest.approx(interval([1.0] * 480 + [0.0] * 320, samples=1)), "at best all are independent"
    mixed = interval([0.9] * 25 + [0.3] * 25, samples=16)
    assert alike[1] - alike[0] > mixed[1] - mixed[0] > scattered[1] - scattered[0]


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    import random

    rng, hits, trials = random.Random(5), 0, 600
    for _ in range(trials):
        chances = [rng.betavariate(0.8, 1.2) for _ in range(60)]
        means = [sum(rng.random() < chance for _ in range(4)) / 4 for chance in chances]
        low, high = interval(means, samples=4)
        hits += low <= 0.4 <= high
    assert 0.92 <= hits / trials <= 0.98


@pytest.mark.parametrize(
    ("answers", "credit"),
    [
        ([("4", True), ("4.0", True), ("5", False)], 1.0),
        ([("4", True), ("5", False), (" 5. ", False)], 0.0),
        ([("4", True), ("5", False)], 0.5),
        ([("4", True), ("5", False), ("6", False)], 1 / 3),
        ([(None, False), (None, False), ("4", True)], 1.0),
        ([(None, False), ("", False)], 0.0),
        ([("X", False), ("x", False), ("4", True), ("four", True)], 0.5),
        ([("3", True), ("3", True), ("0.5", False), ("1/2", False), (r"\frac12", False)], 0.0),
        ([("3", False), ("3", False), ("0.5", True), ("1/2", True), (r"\frac12", True)], 1.0),
        ([("2", True), ("-2", True), ("5", False), ("5.0", False)], 0.0),  # a gold of two values
        ([("(1, 2)", True), ("(1,2)", True), ("2, 1", False)], 1.0),
    ],
)
def test_the_majority_vote(answers: list[tuple[str | None, bool]], credit: float) -> None:
    assert majority_correct(answers) == pytest.approx(credit)


def group(*scores: float | None, finish: str = "stop", language: float | None = None) -> Group:
    row = {"task": "t", "id": "1", "question": "q", "answer": "a"}
    status = {1.0: "correct", 0.0: "wrong", None: "infra"}
    samples = []
    for number, value in enumerate(scores):
        judgements = {LABELS.accuracy: Judgement(status[value], value, f"answer {value}")}
        if language is not None:
            judgements[LABELS.language] = Judgement("wrong", language)
        samples.append(Sample("<think>so</think>a" if value else "a", 10 + number, finish, judgements))
    return Group(row, "prompt", tuple(samples))


def test_scores_of_judged_samples() -> None:
    entry = score([group(1.0, 1.0, 0.0, 0.0), group(0.0, 0.0, 0.0, 0.0, finish="length", language=0.5)], 4, LABELS)
    assert entry["n"] == 2
    assert entry["pass@1"] == pytest.approx(0.25)
    assert entry["pass@2"] == pytest.approx((1 - 1 / 6) / 2)
    assert entry["pass@k"] == pytest.approx(0.5)
    assert entry["cons@k"] == pytest.approx(0.25), "a tie counts half"
    assert (entry["thinking"], entry["truncated"], entry["tokens"]) == (0.25, 0.5, 11.5)
    assert entry["language"] == 0.5
    assert "unjudged" not in entry


def test_what_could_not_be_judged_is_left_out_and_counted() -> None:
    entry = score([group(1.0, None), group(None, None), group(0.0, 0.0)], 2, LABELS)
    assert (entry["n"], entry["pass@1"], entry["unjudged"]) == (2, 0.5, 3)
    assert entry["pass@k"] == 0.0, "only the problem with two judged samples counts"
    with pytest.raises(ValueError, match="not one sample could be judged"):
        score([group(None)], 1, LABELS)


def test_no_number_without_its_circumstances() -> None:
    entry = score([group(1.0, 0.0)], 2, LABELS)
    facts = {"temperature": 0.6, "top_p": 0.95, "max_tokens": 64, "engine": "transformers"}
    words = sentence("zero", "chain/test", entry, facts)
    for part in ("50.0 % [", "n=1", "2 samples", "temperature 0.6", "top-p 0.95", "64 tokens", "pass@2 100.0 %"):
        assert part in words
    for missing in ("n", "samples", "low"):
        with pytest.raises(KeyError):
            sentence("zero", "chain/test", {k: v for k, v in entry.items() if k != missing}, facts)
    with pytest.raises(KeyError):
        sentence("zero", "chain/test", entry, {k: v for k, v in facts.items() if k != "temperature"})


def sums(folder: Path) -> dict[str, Any]:
    rows = [{"question": f"{a} + {b} =", "answer": str(a + b), "language": "en"} for a in range(5) for b in range(5)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"path": "sums.jsonl", "test_path": "sums.jsonl", "grader": "exact", "template": "plain"}
    return {"use": "jsonl", "options": options}


def context(folder: Path, name: str, **fields: Any) -> StageContext[EvaluateConfig]:
    config = EvaluateConfig.model_validate(
        {"kind": "evaluate", "tasks": [sums(folder)], "rollout": {"max_tokens": 12, "batch_size": 32}, **fields}
    )
    config = EvaluateConfig.model_validate_json(config.model_dump_json())  # as the stage's process gets it
    place = folder / name
    for part in ("output", "scratch"):
        (place / part).mkdir(parents=True)
    return StageContext(name, config, {}, place / "output", place / "scratch", folder, 3, place / "events.jsonl")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_several_models_in_one_stage_and_an_interruption_that_changes_nothing(
    calculator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "CHUNK_SEQUENCES", {"transformers": 32})
    (tmp_path / "copy").symlink_to(calculator)
    whole = context(tmp_path, "whole", models=[str(calculator), "copy"])
    metrics = run(whole).metrics
    assert metrics["sampling"]["temperature"] == 0.6
    assert metrics["sampling"]["top_p"] == 0.95
    first, second = (metrics["scores"][label]["jsonl/test"] for label in (str(calculator), "copy"))
    assert first == second, "one model, one seed: one score"
    assert (first["n"], first["samples"]) == (25, 4)
    assert first["low"] < first["pass@1"] < first["high"]
    assert first["pass@1"] <= first["pass@2"] <= first["pass@k"]
    assert first["cons@k"] > first["pass@1"], "two answers in three are right"

    samples = [sample for sample in lines(whole.output / "samples.jsonl") if sample["model"] == "copy"]
    assert len(samples) == 100
    assert sum(sample["score"] for sample in samples) == pytest.approx(100 * first["pass@1"])
    assert [event["step"] for event in lines(whole.events)][-1] == 200

    broken = context(tmp_path, "broken", models=[str(calculator), "copy"])
    chunks = sorted(path.relative_to(whole.scratch) for path in whole.scratch.rglob("*.jsonl"))
    for chunk in chunks[: len(chunks) // 2]:
        (broken.scratch / chunk).parent.mkdir(parents=True, exist_ok=True)
        (broken.scratch / chunk).write_bytes((whole.scratch / chunk).read_bytes())
    assert run(broken).metrics == metrics
    assert (broken.output / "samples.jsonl").read_bytes() == (whole.output / "samples.jsonl").read_bytes()


def test_greedy_with_a_prefilled_thought_outside_of_a_recipe(
    calculator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = sums(tmp_path)
    task["options"]["columns"] = ["language"]
    fields: dict[str, Any] = {"samples": 1, "problems": 20, "save": 2}
    fields["rollout"] = {"temperature": 0.0, "max_tokens": 12}
    forced = evaluate_model(calculator, [task], tmp_path / "forced", prefill="<think>", **fields)
    entry = forced["scores"][str(calculator)]["jsonl/test"]
    assert (entry["n"], entry["samples"], entry["truncated"]) == (20, 1, 0.0)
    assert entry["pass@1"] > 0.9
    assert "pass@k" not in entry
    assert forced["sampling"]["prefill"] == "<think>"
    kept = lines(tmp_path / "forced" / "output" / "samples.jsonl")
    assert [(row["begun"], row["rewards"]["accuracy"]) for row in kept] == [("<think>", row["score"]) for row in kept]
    assert len(kept) == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "which `model:` or `models:`"),
        ({"model": "a", "models": ["b"]}, "one of the two"),
        ({"model": "a", "rollout": {"temperature": 0.0}}, "temperature 0 gives the same sample every time"),
        ({"model": "a", "samples": 0}, "greater than 0"),
        ({"model": "a", "sampels": 4}, "sampels"),
        ({"models": ["a", "a"]}, "model 'a' is given twice"),
        ({"model": "a", "tasks": ["gsm8k", "math500", "gsm8k/test"]}, "task 'gsm8k/test' is given twice"),
        ({"model": "a", "chat_template": "chatmll"}, "did you mean 'chatml'"),
        ({"model": "a", "chat_template": "own.jinja"}, "a Jinja file is named where a model is imported"),
    ],
)
def test_nonsense_is_refused_before_anything_runs(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        context(tmp_path, "x", **fields)


def test_all_correct_has_an_interval_that_is_honest() -> None:
    low, high = interval([1.0] * 50, samples=8)
    assert high == 1.0
    assert math.isclose(low, 50 / (50 + 3.841459), rel_tol=1e-6)


def test_models_whose_names_differ_by_a_dash_are_told_apart(calculator: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    for name in ("z/mm", "z-mm"):
        shutil.copytree(calculator, tmp_path / name)
    model = AutoModelForCausalLM.from_pretrained(calculator)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # says nothing that makes sense
    model.save_pretrained(tmp_path / "z-mm")
    stage = context(tmp_path, "both", models=["./z/mm", "./z-mm"], tasks=[sums(tmp_path)], save=1)
    run(stage)
    rows = [json.loads(line) for line in (stage.output / "samples.jsonl").read_text().splitlines()]
    said = {row["model"]: row for row in rows}
    assert len(said) == 2
    first, second = ({**row, "model": ""} for row in said.values())
    assert first != second


def test_a_chat_template_that_ends_where_the_model_does_not_is_refused(calculator: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / "model"
    shutil.copytree(calculator, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(TemplateError, match=r"ends a turn with <\|im_end\|>, but .* stops at <eos>"):
        run(context(tmp_path, "x", model=str(folder), chat_template="chatml"))
