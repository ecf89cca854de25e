"""Plans of a small recipe, through the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from pipeline.cli import app

ROOT = Path(__file__).resolve().parents[2]


RECIPE = """
name: planned
stages:
  base: {kind: import_model, model: Qwen/Qwen2.5-0.5B}
  zero:
    kind: grpo
    model: "@base"
    tasks: [{use: gsm8k, problems: 640}]
    rollout: {engine: vllm, max_tokens: 400, gpu_memory: 0.3}
    trainer: {num_generations: 8, per_device_train_batch_size: 64, gradient_accumulation_steps: 8, beta: 0.0}
  taught: {kind: sft, model: "@zero", data: [rows.jsonl], max_length: 1024}
  score: {kind: evaluate, models: ["@base", "@taught"], tasks: [gsm8k/test], samples: 2, rollout: {engine: vllm}}
"""


def invoked(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def planned(*words: object) -> dict[str, Any]:
    result = invoked("plan", *words, "--cost", "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def stage(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in found["stages"] if each["stage"] == name)
