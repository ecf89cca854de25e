"""What a stage's process is started with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from pipeline.runner.process import allocator
from pipeline.stages.registry import config_class

GROWING = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
TASKS = {"tasks": ["gsm8k"], "rewards": ["accuracy"]}


@pytest.mark.parametrize(
    ("kind", "fields", "env", "expected"),
    [
        ("grpo", TASKS, {}, GROWING),
        ("grpo", {**TASKS, "trainer": {"vllm_enable_sleep_mode": True}}, {}, {}),
        ("grpo", TASKS, {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:512"}, {}),
        ("grpo", TASKS, {"PYTORCH_ALLOC_CONF": ""}, {}),
        ("evaluate", {"tasks": ["gsm8k"], "models": ["m"]}, {}, {}),
    ],
    ids=["training", "an engine that sleeps", "the user's own", "switched off", "no training"],
)
def test_training_takes_memory_of_a_gpu_in_blocks_that_grow(
    kind: str, fields: Mapping[str, Any], env: Mapping[str, str], expected: Mapping[str, str]
) -> None:
    model = {} if kind == "evaluate" else {"model": "m"}
    config = config_class(kind).model_validate({"kind": kind, **model, **fields})
    assert allocator(config, env) == expected


def test_a_thread_that_is_left_behind_does_not_keep_a_stage_from_its_end() -> None:
    code = (
        "import logging, threading, time; from pipeline.runner.worker import end_within; logging.basicConfig();"
        "threading.Thread(target=time.sleep, args=(100_000,), name='mine').start(); end_within(0.1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0 and "it ends now, with the threads mine" in done.stderr
