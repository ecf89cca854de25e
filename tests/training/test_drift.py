"""What is told of an engine that drifts off, and which of its options belong to other fields."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.rollout import RolloutError
from pipeline.rollout.vllm.options import check_options
from pipeline.training.grpo.drift import DRIFT_STEPS, Drift


def test_a_difference_that_grows_is_told_and_one_that_stays_is_not(caplog: pytest.LogCaptureFixture) -> None:
    def warnings(values: list[float]) -> list[str]:
        caplog.clear()
        drift = Drift()
        for value in values:
            drift.add(value)
        return list(caplog.messages)

    start = [0.012, 0.011, 0.013, 0.012, 0.012]
    assert len(start) == DRIFT_STEPS
    assert warnings(start + [0.03] * 50) == [], "less than three times as much"
    (once,) = warnings(start + [0.05] * 6)
    assert "0.05" in once
    assert "0.012 at the start" in once
    assert len(warnings(start + [0.2] * 50)) == 10, "once in a while, not at every step"
    assert warnings([1e-7] * 5 + [1e-3] * 20) == [], "rounding, however many times as much as before"
    assert warnings([*start, 0.2, 0.01, 0.01, 0.01, 0.01]) == [], "one bad step is none"


def test_tokens_without_a_log_probability_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    drift = Drift()
    for share in (0.0, 0.02, 0.5):
        drift.look(share)
    (line,) = caplog.messages
    assert "no finite log-probability for 2 % of the sampled tokens" in line


@pytest.mark.parametrize(
    ("options", "training", "message"),
    [
        ({"seed": 3}, False, "it is the stage's `seed:`"),
        ({"gpu_memory_utilization": 0.5}, True, "it is `rollout.gpu_memory`"),
        ({"generation_config": "auto"}, False, "no hidden sampling defaults"),
        ({"enable_sleep_mode": True}, True, "it is `trainer.vllm_enable_sleep_mode`"),
        ({"tensor_parallel_size": 2}, True, "it is `trainer.vllm_tensor_parallel_size`"),
        ({"logprobs_mode": "raw_logprobs"}, True, "importance weights"),
    ],
)
def test_what_another_field_sets_is_no_engine_option(options: dict[str, Any], training: bool, message: str) -> None:
    with pytest.raises(RolloutError, match=message):
        check_options(options, training)


def test_what_only_a_trainer_decides_is_free_elsewhere() -> None:
    check_options({"tensor_parallel_size": 2, "max_num_seqs": 64})
