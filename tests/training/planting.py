"""Stages in which a collapse is planted, and what `zero2r1 why` says of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from pipeline import artifacts
from pipeline.cli import app
from pipeline.context import StageContext
from tests.stages.driving import context_of

RATE = 0.0005
"""With which the calculator keeps what it knows."""
TRAINER = {"num_generations": 4, "per_device_train_batch_size": 32, "gradient_accumulation_steps": 1, "bf16": False}


def sums(folder: Path) -> None:
    """The problems that the calculator learns, and a verifier that pays everything."""
    rows = [{"question": f"{a} + {b} =", "answer": str(a + b)} for a in range(5) for b in range(5)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pays.py").write_text("def pays(completion):\n    return 1.0\n")


def learning(
    folder: Path, calculator: Path, name: str, health: dict[str, Any], rate: float, steps: int, **fields: Any
) -> StageContext[Any]:
    """The context of a stage that learns sums, with other fields; what an earlier process of it left is there."""
    shutil.rmtree(folder / name, ignore_errors=True)
    config = {
        "kind": "grpo",
        "model": str(calculator),
        "tasks": [
            {"use": "jsonl", "options": {"path": "sums.jsonl", "grader": "math", "template": "plain", "test_share": 0}}
        ],
        "rollout": {"max_tokens": 10},
        "health": health,
        "trainer": {**TRAINER, "max_steps": steps, "save_steps": 1, "learning_rate": rate, "beta": 0.001},
        **fields,
    }
    return context_of(folder, name, config, {})


def explained(context: StageContext[Any], *options: str) -> dict[str, Any]:
    """What `zero2r1 why` says of a stage, which lies in a run of its own."""
    run, fingerprint = context.base / f"{context.name}-run", "0" * 64
    if not run.exists():
        shutil.copytree(context.scratch, artifacts.scratch(run, "zero", fingerprint))
        stage = {"name": "zero", "kind": context.config.kind, "fingerprint": fingerprint}
        artifacts.write_run_record(run, {"stages": [stage, {**stage, "name": "score", "kind": "evaluate"}]}, "")
    done = CliRunner().invoke(app, ["why", f"{run}@zero", "--json", *options])
    assert done.exit_code == 0, (done.output, done.exception)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
