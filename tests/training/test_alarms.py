"""Alarms: each collapse is told, with its threshold and what it may mean, and a sound run raises none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.schema.health import Health
from pipeline.training.alarms import Alarm, Alarms, HealthError
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
    ],
)
def test_each_collapse_is_told_once_it_lasts(metric: str, value: float, words: str) -> None:
    alarms = Alarms(Health())
    assert not any(alarms.look(SOUND) for _ in range(4))
    crossed = {**SOUND, metric: value}
    assert [len(alarms.look(crossed)) for _ in range(2)] == [0, 0]
    (reason,) = alarms.look(crossed)
    assert re.search(words, reason)
    assert not any(alarms.look(crossed) for _ in range(5)), "told once"
    assert not alarms.look(SOUND)
    assert [len(alarms.look(crossed)) for _ in range(3)] == [0, 0, 1], "and again after it has recovered"


def test_one_bad_step_and_what_is_not_logged_raise_no_alarm() -> None:
    alarms = Alarms(Health())
    for step in range(50):
        assert not alarms.look({**SOUND, "grad_norm": 100.0 if step % 4 == 3 else 0.5})
    assert not any(Alarms(Health()).look({"loss": 1.0, "epoch": 0.1}) for _ in range(9))


@pytest.mark.parametrize("then", ["warn", "stop"])
def test_an_alarm_is_a_note_or_the_end_of_the_stage(then: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "kind": "grpo",
        "model": "m",
        "tasks": ["chain"],
        "health": {"on_alarm": then, "patience": 1},
    }
    context = context_of(tmp_path, "zero", config, {})
    alarm = Alarm(context, context.config.health)
    state = SimpleNamespace(global_step=7, is_world_process_zero=True)
    logs = {**SOUND, "kl": 2.0}
    if then == "stop":
        with pytest.raises(HealthError, match=r"alarm after step 7: 2 nats .*set health.on_alarm: warn"):
            alarm.on_log(None, state, None, logs)
        return
    alarm.on_log(None, state, None, logs)
    (event,) = map(json.loads, context.events.read_text().splitlines())
    assert event["note"].startswith("alarm after step 7: 2 nats a token")


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
