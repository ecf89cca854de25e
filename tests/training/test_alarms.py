"""Alarms: each collapse is told, with its threshold and what it may mean, and a sound run raises none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.schema.health import Health
from pipeline.training.health.alarm import HealthError
from pipeline.training.health.thresholds import MISMATCH, Alarms
from tests.stages.driving import context_of

SOUND = {
    "loss": 0.1,
    "grad_norm": 0.5,
    "entropy": 1.0,
    "completions/mean_length": 100.0,
    "completions/clipped_ratio": 0.05,
    "kl": 0.01,
    "sampling/sampling_logp_difference/mean": 0.001,
    "groups/all_failed": 0.3,
    "groups/all_equal_above_zero": 0.3,
    "sampling/effective_sample_size": 0.99,
    "completions/repetition": 0.02,
    "completions/foreign_words": 0.01,
    "reward": 0.4,
    "rewards/accuracy/score": 0.3,
}


@pytest.mark.parametrize(
    ("metric", "value", "words"),
    [
        ("grad_norm", 5.1, "norm is 5.1, usually 0.5 .health.grad_norm 10.: lower the learning rate"),
        ("entropy", 0.09, "entropy is 0.09, at first 1 .health.entropy_fall 10.: it no longer explores"),
        ("entropy", 3.1, "entropy is 3.1, at first 1 .health.entropy_rise 3.: it falls apart"),
        ("completions/mean_length", 401.0, "completions have 401 tokens, at first 100"),
        ("completions/clipped_ratio", 0.51, "0.51 of the completions are cut off .health.truncated 0.5"),
        ("kl", 1.1, "1.1 nats a token lie between policy and reference"),
        ("sampling/sampling_logp_difference/mean", 0.2, "0.2 nats lie between the engine's log-probabilities and ours"),
        ("groups/all_equal_above_zero", 0.65, "95% of the groups teach nothing .*: the verifier pays everything"),
        ("groups/all_failed", 0.65, "95% of the groups teach nothing .*: problems are too hard"),
        ("sampling/effective_sample_size", 0.2, "0.2 of the tokens count .health.effective_samples 0.3.: engine and"),
        ("completions/repetition", 0.6, "0.6 of what the policy writes it has written .* .health.repetition 0.5"),
        ("completions/foreign_words", 0.2, "0.2 of the words are in another script .* .health.foreign_words 0.1"),
        ("non_finite/skipped", 1.0, "100% of the steps were skipped, since their loss or gradients were not finite"),
    ],
)
def test_each_collapse_is_told_once_it_lasts(metric: str, value: float, words: str) -> None:
    alarms = Alarms(Health())
    assert not any(alarms.look(SOUND) for _ in range(4))
    crossed = {**SOUND, metric: value}
    assert [len(alarms.look(crossed)) for _ in range(2)] == [0, 0]
    (reason,) = alarms.look(crossed)
    assert re.search(words, reason.reason)
    assert reason.value > reason.limit or metric in ("sampling/effective_sample_size", "entropy")
    assert not any(alarms.look(crossed) for _ in range(5)), "told once"
    assert not alarms.look(SOUND)
    assert [len(alarms.look(crossed)) for _ in range(3)] == [0, 0, 1], "and again after it has recovered"


def test_one_bad_step_and_what_is_not_logged_raise_no_alarm() -> None:
    alarms = Alarms(Health())
    for step in range(50):
        assert not alarms.look({**SOUND, "grad_norm": 100.0 if step % 4 == 3 else 0.5})
    assert not any(Alarms(Health()).look({"loss": 1.0, "epoch": 0.1}) for _ in range(9))


def test_a_loss_that_is_not_finite_is_told_at_once() -> None:
    (alarm,) = Alarms(Health()).look({**SOUND, "loss": float("nan")})
    assert (alarm.alarm, alarm.fields()["value"]) == ("loss", "nan")


def test_a_reward_that_rises_while_accuracy_does_not() -> None:
    """Means of five steps at the start and of the last five are compared: noise is no rise."""
    told, sound, plain = (Alarms(Health(), "rewards/accuracy/score") for _ in range(3))
    told_at = []
    for step in range(20):
        rising = {**SOUND, "reward": 0.2 + 0.03 * step}
        noise = 0.05 * (-1) ** step
        told_at += [step for alarm in told.look({**rising, "rewards/accuracy/score": 0.3 + noise}) if alarm.alarm]
        assert not sound.look({**rising, "rewards/accuracy/score": 0.3 + 0.03 * step})
        assert not plain.look({**SOUND, "reward": 0.2 + 0.2 * (-1) ** step})
    assert told_at == [11], "0.15 after ten steps, and it lasts"


def test_a_learning_rate_that_is_far_too_high_stops_a_stage(calculator: Path, tmp_path: Path) -> None:
    from pipeline.stages.registry import run_function

    rows = [{"prompt": f"User: {n} + 1 =\nAssistant:", "completion": f" <answer> {n + 1} </answer>"} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config: dict[str, Any] = {
        "kind": "sft",
        "model": str(calculator),
        "data": ["rows.jsonl"],
        "health": {"on_alarm": "stop", "patience": 1, "grad_norm": 5.0},
        "trainer": {"bf16": False, "per_device_train_batch_size": 4, "max_steps": 20, "logging_steps": 1},
    }
    sound = {**config["trainer"], "learning_rate": 1e-6, "lr_scheduler_type": "constant", "lr_scheduler_kwargs": {}}
    run_function("sft")(context_of(tmp_path, "sound", {**config, "trainer": {**sound, "max_steps": 6}}, {}))
    wild = {**sound, "learning_rate": 1.0, "warmup_steps": 12, "lr_scheduler_type": "constant_with_warmup"}
    with pytest.raises(
        HealthError, match=r"alarm after step \d: the (gradient|policy).s (norm|entropy) is .*, (usually|at first)"
    ):
        run_function("sft")(context_of(tmp_path, "wild", {**config, "trainer": wild}, {}))


@pytest.mark.parametrize(
    ("health", "exact", "gap", "limit"),
    [
        ({}, False, 0.02, None),
        ({}, False, 0.2, 0.1),
        ({}, True, 0.00001, None),
        ({}, True, 0.001, 0.0003),
        ({"mismatch": 0.01}, True, 0.001, None),
        ({"mismatch": 0.01}, False, 0.02, 0.01),
    ],
)
def test_how_far_an_engine_may_be_depends_on_what_both_compute_in(
    health: dict[str, Any], exact: bool, gap: float, limit: float | None
) -> None:
    alarms = Alarms(Health(patience=1, **health), exact=exact)
    assert [one.limit for one in alarms.look({**SOUND, MISMATCH: gap})] == ([] if limit is None else [limit])


@pytest.mark.parametrize(("loss", "words"), [(0.05, None), (0.8, "its loss is 0.8, and it is sure all the same")])
def test_entropy_that_falls_while_rows_are_learnt_is_no_collapse(loss: float, words: str | None) -> None:
    alarms = Alarms(Health(patience=1), explores=False)
    assert alarms.look({"loss": 0.7, "entropy": 2.0}) == []
    told = [one.reason for one in alarms.look({"loss": loss, "entropy": 0.01})]
    assert told == [] if words is None else len(told) == 1 and words in told[0]
