"""vLLM in the trainer's process, as far as it can be tested without vLLM; see tests/rollout/test_vllm_training.py."""

from __future__ import annotations

import inspect
import os
from typing import Any

import pytest
from trl import GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer

from pipeline.rollout import RolloutError
from pipeline.rollout.options import check_options
from pipeline.schema.pieces import RolloutSpec
from pipeline.training.colocated import DIFFERENCE, DRIFT_STEPS, Drift
from pipeline.training.generation import generation_fields


@pytest.mark.parametrize(
    ("hook", "arguments"),
    [
        (GRPOTrainer._generate_single_turn, "prompt_ids images multimodal_fields num_generations has_tool_images"),
        (GRPOTrainer.log, "logs start_time"),
        (VLLMGeneration._init_vllm, ""),
        (VLLMGeneration.sync_weights, ""),
        (VLLMGeneration.generate, "prompts images num_generations profiler"),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_trl_still_has_the_hook(hook: Any, arguments: str) -> None:
    assert list(inspect.signature(hook).parameters)[1:] == arguments.split()


@pytest.mark.parametrize(
    ("where", "line"),
    [
        (GRPOTrainer.__init__, "self.vllm_generation = VLLMGeneration("),
        (GRPOTrainer._generate_single_turn, "_, completion_ids, logprobs, _ = self.vllm_generation.generate("),
        (GRPOTrainer._generate_single_turn, "logprobs = [[lp[0] for lp in seq] for seq in logprobs]"),
        (VLLMGeneration._init_vllm, "self.llm = LLM("),
        (VLLMGeneration.generate, "self.llm.generate(vllm_prompts, sampling_params=sampling_params, use_tqdm=False)"),
        (VLLMGeneration.sync_weights, "self._llm_weights_sleeping = False"),
    ],
    ids=lambda value: getattr(value, "__qualname__", value[:40] if isinstance(value, str) else ""),
)
def test_trl_still_calls_what_is_replaced(where: Any, line: str) -> None:
    assert line in inspect.getsource(where)


def test_trl_still_logs_the_difference() -> None:
    assert f'"{DIFFERENCE}"' in inspect.getsource(grpo_trainer.GRPOTrainer._generate_and_score_completions)


def warnings(values: list[float]) -> list[str]:
    drift = Drift()
    return [text for value in values if (text := drift.add(value)) is not None]


def test_a_difference_that_grows_is_told_and_one_that_stays_is_not() -> None:
    start = [0.012, 0.011, 0.013, 0.012, 0.012]
    assert len(start) == DRIFT_STEPS
    assert warnings(start + [0.03] * 50) == [], "less than three times as much"
    (once,) = warnings(start + [0.05] * 6)
    assert "0.05" in once
    assert "0.012 at the start" in once
    assert len(warnings(start + [0.2] * 50)) == 10, "once in a while, not at every step"
    assert warnings([1e-7] * 5 + [1e-3] * 20) == [], "rounding, however many times as much as before"
    assert warnings([*start, 0.2, 0.01, 0.01, 0.01, 0.01]) == [], "one bad step is none"


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


def test_the_engine_is_in_the_trainers_process_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    generation_fields(RolloutSpec(engine="vllm"))
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
