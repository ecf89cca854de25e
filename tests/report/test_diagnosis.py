"""The diagnosis: each rule against a run that has, or does not have, what it looks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.report.diagnosis import Concern, Finding, diagnose
from pipeline.report.differences import outcomes
from pipeline.report.run_data import read_run
from pipeline.report.scores import build_table
from tests.report import nano_run

TWO: dict[str, dict[str, Any]] = {
    "base": {"kind": "import_model", "model": "some/model"},
    "zero": {"kind": "grpo", "model": "@base", "tasks": ["chain"], "rollout": {"max_tokens": 64}},
    "score": {"kind": "evaluate", "models": ["@base", "@zero"], "tasks": ["chain"]},
}
SAMPLING = {"engine": "vllm", "temperature": 0.6, "max_tokens": 96}


def entry(accuracy: float, n: int = 400, **more: Any) -> dict[str, Any]:
    low, high = nano_run.wilson(accuracy, n)
    return {"n": n, "samples": 1, "pass@1": accuracy, "low": low, "high": high, **more}


def scores(**of: dict[str, Any]) -> dict[str, Any]:
    return {"score": {"sampling": SAMPLING, "scores": of}}


def findings(run: Path) -> dict[Concern, str]:
    found = read_run(run)
    table = build_table(found)
    said: list[Finding] = diagnose(found, table, outcomes(found))
    assert [finding.concern for finding in said] == sorted(finding.concern for finding in said)
    return {finding.concern: finding.text for finding in said}


def risen(first: float = 0.2, last: float = 0.8, **more: float) -> list[dict[str, Any]]:
    return [{"step": at, "reward": first + (last - first) * at / 20 + 0.01 * (at % 3), **more} for at in range(1, 21)]


def test_gain_and_regression_are_named_with_their_intervals(nano: Path) -> None:
    said = findings(nano)
    assert said[Concern.GAIN].startswith(
        "`zero` solves 81.2 % of chain/test, 54.2 points more than `base` (95 % interval "
    )
    assert said[Concern.REGRESSION].startswith(
        "`dev1` falls to 66.0 % of chain/test from the 81.2 % of `zero`, a loss of 15.2 points (95 % interval "
    )
    assert list(said) == [Concern.GAIN, Concern.REGRESSION]


def test_a_task_that_a_stage_was_trained_without_is_lost(tmp_path: Path) -> None:
    """As nano's Dev1 loses the requests, of which its data have none."""
    stages = {
        **{name: TWO[name] for name in ("base", "zero")},
        "cold": {"kind": "rejection_sample", "model": "@zero", "tasks": [{"use": "chain", "problems": 600}]},
        "dev1": {"kind": "sft", "model": "@base", "data": ["@cold"]},
        "score": {"kind": "evaluate", "models": ["@base", "@zero", "@dev1"], "tasks": ["chain", "requests"]},
    }
    metrics = scores(
        base={"chain/test": entry(0.3), "requests/test": entry(0.93)},
        zero={"chain/test": entry(0.9), "requests/test": entry(0.99)},
        dev1={"chain/test": entry(0.97), "requests/test": entry(0.0)},
    )
    said = findings(nano_run.build(tmp_path / "run", stages, metrics=metrics, events={"zero": risen()}))
    assert said[Concern.REGRESSION].startswith(
        "`dev1` falls to 0.0 % of requests/test from the 99.0 % of `zero`, a loss of 99.0 points (95 % interval "
    )
    assert "it was trained without that task: add some of it to `stages.dev1.data`" in said[Concern.REGRESSION]


def test_what_may_be_chance_is_neither_gain_nor_loss(tmp_path: Path) -> None:
    metrics = scores(base={"chain/test": entry(0.50)}, zero={"chain/test": entry(0.48)})
    said = findings(nano_run.build(tmp_path / "run", TWO, metrics=metrics, events={"zero": risen()}))
    assert list(said) == [Concern.NO_GAIN]
    assert said[Concern.NO_GAIN].startswith("No stage is clearly better on chain/test than the model that it was made")


def test_answers_cut_off_name_stage_share_and_setting(tmp_path: Path) -> None:
    metrics = scores(base={"chain/test": entry(0.3, truncated=0.6)}, zero={"chain/test": entry(0.5, truncated=0.31)})
    run = nano_run.build(tmp_path / "eval", TWO, metrics=metrics, events={"zero": risen()})
    assert findings(run)[Concern.CUT_OFF] == (
        "31 % of `zero`'s answers to chain/test are cut off at 96 tokens: raise `stages.score.rollout.max_tokens`."
    )
    metrics = scores(base={"chain/test": entry(0.3)}, zero={"chain/test": entry(0.5)})
    events = {"zero": risen(**{"completions/clipped_ratio": 0.4})}
    run = nano_run.build(tmp_path / "training", TWO, metrics=metrics, events=events)
    assert findings(run)[Concern.CUT_OFF] == (
        "40 % of the answers at the end of `zero` are cut off at 64 tokens: raise `stages.zero.rollout.max_tokens`."
    )
    metrics = scores(base={"chain/test": entry(0.3, truncated=0.25)}, zero={"chain/test": entry(0.5, truncated=0.02)})
    run = nano_run.build(tmp_path / "base", TWO, metrics=metrics, events={"zero": risen()})
    assert findings(run)[Concern.CUT_OFF].startswith("25 % of `base`'s answers")


def test_chance_is_said_once(tmp_path: Path) -> None:
    rows = [
        {
            "task": "chain", "id": str(at), "question": f"q{at}", "answer": str(at % 4), "extracted": str(at % 4),
            "completion": str(at % 4), "status": "correct" if at < good else "wrong", "score": float(at < good),
            "model": model,
        }
        for model, good in (("base", 30), ("zero", 80)) for at in range(100)
    ]  # fmt: skip
    metrics = scores(base={"chain/test": entry(0.3, 100)}, zero={"chain/test": entry(0.8, 100)})
    run = nano_run.build(tmp_path / "run", TWO, metrics=metrics, samples={"score": rows}, events={"zero": risen()})
    said = findings(run)
    assert said[Concern.GAIN].endswith("; always giving the commonest right answer would score 25.0 %.")
    assert sum("commonest" in text for text in said.values()) == 1
    assert said[Concern.NOTHING_WRONG].startswith("Nothing looks wrong")


def test_a_reward_that_does_not_rise_is_said_unless_all_is_solved(tmp_path: Path) -> None:
    metrics = scores(base={"chain/test": entry(0.3)}, zero={"chain/test": entry(0.3)})
    run = nano_run.build(tmp_path / "flat", TWO, metrics=metrics, events={"zero": risen(0.3, 0.3)})
    assert findings(run)[Concern.FLAT].startswith(
        "The reward of `zero` did not rise: 0.312 at its beginning, 0.312 at its end"
    )
    solved = risen(1.0, 1.0, **{"rewards/accuracy/score": 0.98})
    run = nano_run.build(tmp_path / "solved", TWO, metrics=metrics, events={"zero": solved})
    assert Concern.FLAT not in findings(run)


def test_dead_groups_by_the_threshold_of_the_stage(tmp_path: Path) -> None:
    metrics = scores(base={"chain/test": entry(0.3)}, zero={"chain/test": entry(0.9)})
    dead = {"zero": risen(**{"groups/all_failed": 0.1, "groups/all_equal_above_zero": 0.75})}
    assert Concern.DEAD_GROUPS not in findings(nano_run.build(tmp_path / "a", TWO, metrics=metrics, events=dead))
    strict = TWO | {"zero": TWO["zero"] | {"health": {"dead_groups": 0.8}}}
    assert findings(nano_run.build(tmp_path / "b", strict, metrics=metrics, events=dead))[Concern.DEAD_GROUPS] == (
        "85 % of the groups at the end of `zero` teach nothing, because all their answers are right, so harder problems"
        " would teach more."
    )


def test_an_alarm_is_named_with_what_came_of_it(tmp_path: Path) -> None:
    reason = "the policy's entropy is 1.15, at first 0.185 (health.entropy_rise 3): it falls apart"
    alarm = {"step": 12, "note": "alarm", "alarm": "entropy_rise", "metric": "entropy", "reason": reason}
    other = {"step": 3, "note": "alarm", "alarm": "dead_groups", "reason": "told by its own rule"}
    logged = [*risen(), other, alarm | {"kept": "kept/step-12", "rollback_to": 8}]
    run = nano_run.build(tmp_path / "r", stages=TWO, events={"zero": logged})
    assert findings(run)[Concern.ALARM] == (
        f"`zero` raised an alarm after step 12: {reason}; it went back to an earlier checkpoint;"
        " `zero2r1 why runs/r@zero` says what makes it go away."
    )
    run = nano_run.build(tmp_path / "s", stages=TWO, events={"zero": [*risen(), alarm, alarm | {"step": 15}]})
    assert findings(run)[Concern.ALARM] == f"`zero` raised 2 alarms, the first after step 12: {reason}."
    run = nano_run.build(tmp_path / "t", stages=TWO, events={"zero": [*risen(), other]})
    assert Concern.ALARM not in findings(run)


def test_rejection_sampling_that_keeps_little_says_why(tmp_path: Path) -> None:
    stages = {"base": TWO["base"], "cold": {"kind": "rejection_sample", "model": "@base"}}
    kept = {"sampled": 2000, "kept": 30, "dropped": {"wrong": 400, "mixed_language": 1570}}
    said = findings(nano_run.build(tmp_path / "run", stages, metrics={"cold": kept}))
    assert said[Concern.FEW_KEPT] == "`cold` kept 1.5 % of 2,000 samples, mostly dropped as mixed language."


def test_a_stage_that_failed_comes_first(tmp_path: Path) -> None:
    run = nano_run.build(tmp_path / "run", TWO, unfinished=("zero",), waiting=("score",))
    said = findings(run)
    assert next(iter(said)) is Concern.FAILED
    assert said[Concern.FAILED] == "`zero` failed with `RuntimeError: out of <memory> & time`."
