"""A stage that is killed and started again ends in the weights of one that was never touched, to the bit."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from model import factory, presets
from tests.stages.driving import SUMS, TINY, Drive, start

pytestmark = pytest.mark.slow

GRPO = {
    "kind": "grpo",
    "model": "@base",
    "tasks": ["sums.py:Sums"],
    "rewards": ["sums.py:shape"],
    "rollout": {"max_tokens": 8},
    "sample_every": 1,
    "samples": 2,
}
GROUPS = {"num_generations": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1}
SFT = {"kind": "sft", "model": "@base", "data": ["rows.jsonl"]}
STAGES: dict[str, dict[str, Any]] = {
    "pretrain": {
        "kind": "pretrain",
        "model": TINY,
        "vocabulary": {"kind": "words"},
        "corpus": {"use": "corpus.py:Sums", "documents": 60},
        "length": 16,
        "trainer": {"max_steps": 12, "save_steps": 3, "logging_steps": 1, "warmup_steps": 0},
    },
    # 25 rows in batches of 8 are 4 steps an epoch: the kill falls into the second
    "sft": {**SFT, "trainer": {"num_train_epochs": 3, "save_steps": 3, "logging_steps": 1, "learning_rate": 1e-3}},
    "sft-packed": {
        **SFT,
        "packing": True,
        "max_length": 40,
        "trainer": {"max_steps": 12, "save_steps": 3, "logging_steps": 1, "per_device_train_batch_size": 2},
    },
    "reward_model": {
        "kind": "reward_model",
        "model": "@base",
        "data": ["pairs.jsonl"],
        "trainer": {"num_train_epochs": 3, "save_steps": 3, "logging_steps": 1, "learning_rate": 1e-3},
    },
    # 25 problems, 4 groups a generation batch: 6 batches an epoch, so the kill falls into the second
    "grpo": {
        **GRPO,
        "trainer": {**GROUPS, "gradient_accumulation_steps": 2, "beta": 0.0, "max_steps": 12, "save_steps": 3},
    },
    "grpo-reused": {
        **GRPO,
        "trainer": {
            **GROUPS,
            "gradient_accumulation_steps": 1,
            "steps_per_generation": 2,
            "num_iterations": 2,
            "beta": 0.0,
            "max_steps": 12,
            "save_steps": 4,
        },
    },
    "grpo-reference": {
        **GRPO,
        "trainer": {
            **GROUPS,
            "gradient_accumulation_steps": 1,
            "beta": 0.1,
            "max_steps": 12,
            "save_steps": 3,
            "ref_model_sync_steps": 4,
        },
    },
    "sft-adapter": {
        **SFT,
        "adapter": {"dropout": 0.1, "targets": ["q_proj", "kv_b_proj", "down_proj"]},
        "trainer": {"num_train_epochs": 3, "save_steps": 3, "logging_steps": 1},
    },
    # Stacks of experts carry adapters, and the base is the reference
    "grpo-adapter": {
        **GRPO,
        "adapter": {"rank": 4},
        "rollout": {"max_tokens": 4},
        "trainer": {**GROUPS, "gradient_accumulation_steps": 1, "beta": 0.1, "max_steps": 12, "save_steps": 3},
    },
    # Groups wait in the queue when it is killed, and completions are longer from the step after that on
    "grpo-refilled": {
        **GRPO,
        "rewards": ["sums.py:rare"],
        "efficiency": {"dynamic_sampling_rounds": 2, "tokens_per_pass": 100},
        "length_schedule": [{"step": 4, "max_tokens": 12}, {"step": 9, "max_tokens": 6}],
        "trainer": {**GROUPS, "gradient_accumulation_steps": 2, "beta": 0.0, "max_steps": 12, "save_steps": 3},
    },
    "distill": {
        "kind": "distill",
        "model": "@base",
        "teacher": "./elder",
        "tasks": ["sums.py:Sums"],
        "rollout": {"max_tokens": 8, "temperature": 1.5},
        "trainer": {
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "max_steps": 12,
            "save_steps": 3,
            "beta": 0.5,
        },
    },
}


@pytest.fixture(scope="module")
def folder(chain: Drive, base: Path) -> Path:
    """The chain's folder, with a base model, data and a task."""
    where: Path = chain.folder  # type: ignore[attr-defined]
    rows = [
        {"prompt": f"User: {a} + {b} = Assistant:", "completion": f" <answer> {a + b} </answer>"}
        for a in range(5)
        for b in range(5)
    ]
    (where / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": " <answer> 9 </answer>"} for row in rows
    ]
    (where / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (where / "sums.py").write_text(SUMS)
    shutil.copytree(base / "model", where / "elder")
    factory.build(presets.load(TINY), 20, eos_token_id=1, pad_token_id=0, seed=99).save_pretrained(where / "elder")
    return where


def digests(folder: Path) -> dict[str, str]:
    """Hash of every file that a stage published."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def logged(folder: Path, name: str, metric: str) -> dict[int, float]:
    """The last logged value of a metric at each step."""
    lines = (folder / f"{name}-scratch" / "events.jsonl").read_text().splitlines()
    return {event["step"]: event[metric] for event in map(json.loads, lines) if metric in event}


@pytest.mark.parametrize("die", [("step", 8), ("save", 2)], ids=["kill-at-a-step", "kill-while-saving"])
@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_resumed_equals_untouched(folder: Path, stage: str, die: tuple[str, int]) -> None:
    whole, broken = f"{stage}-whole", f"{stage}-{die[0]}"
    if not (folder / whole).exists():
        assert start(folder, whole, STAGES[stage]) == 0
    assert start(folder, broken, STAGES[stage], die) == -signal.SIGKILL
    assert start(folder, broken, STAGES[stage]) == 0
    assert digests(folder / broken) == digests(folder / whole)
    assert logged(folder, broken, "loss") == logged(folder, whole, "loss")
    assert logged(folder, broken, "grad_norm") == logged(folder, whole, "grad_norm")


@pytest.mark.parametrize("stage", STAGES)
def test_killed_after_the_last_step_trains_no_further(folder: Path, stage: str) -> None:
    """The checkpoint of the last step is there, the published model is not: a stock trainer takes one more step."""
    whole = f"{stage}-whole"
    if not (folder / whole).exists():
        assert start(folder, whole, STAGES[stage]) == 0
    before = digests(folder / whole)
    assert start(folder, whole, STAGES[stage]) == 0
    assert digests(folder / whole) == before
