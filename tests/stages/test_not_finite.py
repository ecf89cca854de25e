"""A model with a weight that is NaN or infinite is taken into no run, and handed out by none."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.files import finite
from pipeline.rollout.base import RolloutError
from pipeline.stages.registry import run_function
from pipeline.training.health.finite import NonFiniteError
from tests.stages.driving import SUMS, context_of


@pytest.fixture
def spoilt(base: Path, tmp_path: Path) -> Path:
    """The base model, with one weight of one number infinite."""
    folder = tmp_path / "spoilt"
    shutil.copytree(base / "model", folder)
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    weights["model.norm.weight"][5] = -math.inf
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "import_model"},
        {"kind": "import_model", "dtype": "bfloat16"},
        {"kind": "export"},
        {"kind": "export", "dtype": "bfloat16"},
        {"kind": "export", "shard_size": "1MB"},
        {"kind": "export", "format": "torchtitan"},
    ],
    ids=lambda config: "-".join(map(str, config.values())),
)
def test_no_kind_publishes_it(tmp_path: Path, spoilt: Path, config: dict[str, Any]) -> None:
    context = context_of(tmp_path, "out", {**config, "model": str(spoilt)}, {})
    told = r"weights that are not finite: model\.norm\.weight \(1 of 32 numbers\) in model.*\.safetensors"
    with pytest.raises(ValueError, match=told):
        run_function(config["kind"])(context)


@pytest.mark.parametrize(
    "config",
    [{"kind": "evaluate"}, {"kind": "rejection_sample"}, {"kind": "pass_rate", "samples": 2}],
    ids=lambda config: str(config["kind"]),
)
def test_nothing_is_sampled_with_it(tmp_path: Path, spoilt: Path, config: dict[str, Any]) -> None:
    """Greedy decoding would answer something, which a verifier scores 0."""
    (tmp_path / "sums.py").write_text(SUMS)
    named = {"models": [str(spoilt)]} if config["kind"] == "evaluate" else {"model": str(spoilt)}
    asked = {"tasks": ["sums.py:Sums"], "rollout": {"engine": "transformers", "max_tokens": 4}}
    context = context_of(tmp_path, "out", {**config, **named, **asked}, {})
    with pytest.raises(RolloutError, match=r"spoilt: weights that are not finite: model\.norm\.weight"):
        run_function(config["kind"])(context)


def test_no_student_learns_from_it(tmp_path: Path, base: Path, spoilt: Path) -> None:
    """Where steps may be skipped all would be, and going back at an alarm would be in vain."""
    (tmp_path / "sums.py").write_text(SUMS)
    config = {"kind": "distill", "model": str(base / "model"), "teacher": str(spoilt), "tasks": ["sums.py:Sums"]}
    config |= {"trainer": {"max_steps": 1, "per_device_train_batch_size": 2}, "rollout": {"max_tokens": 2}}
    config |= {"non_finite": "skip", "health": {"on_alarm": "rollback"}}
    context = context_of(tmp_path, "out", config, {})
    with pytest.raises(NonFiniteError, match=r"the teacher is not finite: model\.norm\.weight\. Its files are damaged"):
        run_function("distill")(context)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_every_type_of_weight_is_looked_at(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {"good": torch.ones(3, 4).to(dtype), "bad": torch.ones(3, 4).to(dtype)}
    weights["bad"].view(torch.uint8).view(-1)[-weights["bad"].element_size() :] = 0xFF
    save_file(weights, tmp_path / "model.safetensors")
    assert list(finite.not_finite(tmp_path)) == ["bad (1 of 12 numbers) in model.safetensors"]


def test_bounds_that_never_bind_and_whole_numbers_are_no_fault(tmp_path: Path) -> None:
    weights = {
        "bound": torch.tensor(math.inf),
        "ids": torch.arange(4),
        "empty": torch.zeros(0, 3),
        "mask": torch.tensor([True, False]),
    }
    save_file(weights, tmp_path / "model.safetensors")
    finite.check(tmp_path)
    save_file({"scale": torch.tensor(math.nan)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"scale \(1 of 1 numbers\)"):
        finite.check(tmp_path)
