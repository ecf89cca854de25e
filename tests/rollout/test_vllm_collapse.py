"""Planted collapses with vLLM: the stage goes back with an engine of its own, and `why` names what was planted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from pipeline.stages.registry import run_function  # noqa: E402
from pipeline.training.health.alarm import HealthError, RollbackError  # noqa: E402
from tests.training.planting import RATE, explained, learning, sums  # noqa: E402

OPTIONS = {"enforce_eager": True, "max_model_len": 64, "max_num_batched_tokens": 512}


@pytest.fixture(autouse=True)
def parallel_groups() -> Iterator[None]:
    """vLLM makes its process groups once a process, and the next engine may want others."""
    yield
    from vllm.distributed.parallel_state import destroy_model_parallel

    destroy_model_parallel()


def rollout(**options: Any) -> dict[str, Any]:
    return {"engine": "vllm", "max_tokens": 10, "gpu_memory": 0.1, "engine_options": {**OPTIONS, **options}}


def test_a_stage_goes_back_and_its_rate_is_named(calculator: Path, tmp_path: Path) -> None:
    sums(tmp_path)
    run, health = run_function("grpo"), {"on_alarm": "rollback", "rollback_lr": 1 / 128, "patience": 1}
    context = learning(tmp_path, calculator, "back", health, 128 * RATE, 3, rollout=rollout())
    with pytest.raises(RollbackError, match=r"Rollback 1 of 3: back to the beginning of the stage, and"):
        run(context)
    context = learning(tmp_path, calculator, "back", health, 128 * RATE, 3, rollout=rollout())
    assert run(context).metrics["rollbacks"] == 1
    steps = [event["step"] for event in map(json.loads, context.events.read_text().splitlines()) if "loss" in event]
    assert steps[-3:] == [1, 2, 3], "all steps anew, behind those that were given up"
    found = explained(context)
    assert found["cause"] == "learning rate" and found["changes"][0]["symptom"]


def test_an_engine_in_the_wrong_precision_is_named(calculator: Path, tmp_path: Path) -> None:
    sums(tmp_path)
    asked = rollout(dtype="bfloat16")
    context = learning(tmp_path, calculator, "rounds", {"on_alarm": "stop", "patience": 1}, RATE, 3, rollout=asked)
    with pytest.raises(HealthError, match=r"nats lie between the engine's log-probabilities"):
        run_function("grpo")(context)
    found = explained(context)
    assert found["cause"] == "engine precision"
    assert "the engine seems to compute in bfloat16, with kernels of its own" in found["conclusion"]
