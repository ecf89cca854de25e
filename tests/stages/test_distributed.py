"""A stage that several processes share publishes the weights that one process does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.stages.base import StageContext, run_function
from tests.stages.driving import CORPUS, TINY, context_of

ROWS = 8


def stage(processes: int) -> dict[str, Any]:
    """Six steps of eight rows, divided by the processes."""
    return {
        "kind": "pretrain",
        "model": {**TINY, "num_nextn_predict_layers": 1},
        "vocabulary": {"kind": "words", "tokens": ["<think>", "</think>", "<answer>", "</answer>"]},
        "corpus": {"use": "corpus.py:Sums", "documents": 400},
        "length": 32,
        "trainer": {
            "max_steps": 6,
            "learning_rate": 5e-3,
            "warmup_steps": 0,
            "adam_epsilon": 1e-4,
            "per_device_train_batch_size": ROWS // processes,
            "bf16": False,
            "logging_steps": 1,
        },
    }


def assert_alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert (weight.float() - other[name].float()).abs().max() <= tolerance * weight.abs().max(), name


def rank(number: int, context: StageContext, processes: int) -> None:
    os.environ.update(RANK=str(number), LOCAL_RANK=str(number), WORLD_SIZE=str(processes))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29713")
    torch.set_num_threads(1)
    run_function("pretrain")(context)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_cpu_processes_publish_what_one_does(tmp_path: Path) -> None:
    """`accelerate launch` starts several processes on GPUs alone: here the ranks are started as torchrun would."""
    (tmp_path / "corpus.py").write_text(CORPUS)
    alone, shared = (context_of(tmp_path, name, stage(n), {}) for name, n in (("one", 1), ("two", 2)))
    run_function("pretrain")(alone)
    torch.multiprocessing.spawn(rank, (shared, 2), nprocs=2)
    one, two = (load_file(context.output / "model" / "model.safetensors") for context in (alone, shared))
    assert_alike(one, two, tolerance=1e-3)


def published(folder: Path, processes: int, launch: dict[str, Any]) -> dict[str, torch.Tensor]:
    folder.mkdir()
    (folder / "corpus.py").write_text(CORPUS)
    recipe = {"name": "shared", "seed": 3, "stages": {"base": {**stage(processes), "launch": launch}}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "pipeline.cli", "run", str(folder / "recipe.yaml"), "--runs", str(folder / "runs")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (weights,) = (folder / "runs").glob("**/base/*/model/model.safetensors")
    return load_file(weights)


@pytest.mark.gpu
@pytest.mark.parametrize("launch", ["ddp", "fsdp2-1node"])
def test_two_gpus_publish_what_one_does(tmp_path: Path, launch: str) -> None:
    if torch.cuda.device_count() != 2:
        pytest.skip("the recipe divides its batch by two GPUs")
    one = {"env": {"CUDA_VISIBLE_DEVICES": "0"}}
    assert_alike(published(tmp_path / "one", 1, one), published(tmp_path / "two", 2, {"accelerate": launch}), 1e-2)
