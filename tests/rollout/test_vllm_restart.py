"""A `grpo` stage whose process dies with vLLM in it: started again, the step redone, nothing lost."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from pipeline import recipe
from pipeline.runner import runner

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

STEPS, SAVED = 4, 2


class Killer:
    """An observer that kills the stage, engine and all, in the step after its checkpoint."""

    def __init__(self) -> None:
        self.killed = False
        self.restarts: list[str] = []

    def event(self, node: Any, event: dict[str, Any]) -> None:
        if event["step"] > SAVED and not self.killed:
            self.killed = True
            (stage,) = psutil.Process().children()
            os.kill(stage.pid, signal.SIGKILL)

    def restarted(self, node: Any, message: str) -> None:
        self.restarts.append(message)

    def planned(self, *_: Any) -> None: ...

    started = finished = failed = planned


def test_a_stage_that_dies_with_its_engine_redoes_the_step(calculator: Path, tmp_path: Path) -> None:
    (tmp_path / "sums.jsonl").write_text(
        "".join(f'{{"question": "{a} + {b} =", "answer": "{a + b}"}}\n' for a in range(5) for b in range(5))
    )
    stage = {
        "kind": "grpo",
        "model": str(calculator),
        "tasks": [{"use": "jsonl", "options": {"path": "sums.jsonl"}, "template": "plain"}],
        "rollout": {
            "engine": "vllm",
            "max_tokens": 12,
            "gpu_memory": 0.1,
            "engine_options": {"enforce_eager": True, "max_model_len": 64},
        },
        "sample_every": 1,
        "trainer": {
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "max_steps": STEPS,
            "save_steps": SAVED,
            "logging_steps": 1,
            "learning_rate": 1e-4,
        },
        "launch": {"restarts": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "dies", "stages": {"zero": stage}}))
    killer = Killer()
    artifact = runner.execute(recipe.load(tmp_path / "recipe.yaml"), tmp_path / "run", killer).artifacts["zero"]
    assert killer.killed
    (message,) = killer.restarts
    assert "stage 'zero' was killed by SIGKILL" in message
    assert artifact.manifest["resumed"] == 1
    steps = [json.loads(line)["step"] for line in (artifact.path / "samples.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(STEPS))
    assert len({steps.count(step) for step in steps}) == 1, "no step is in it twice"
    assert (artifact.path / "model" / "model.safetensors").is_file()
