"""Settings that would do nothing, or harm, under whoever trains the model: refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from pipeline.checks import launch
from pipeline.recipe import load
from pipeline.stages.registry import config_class

SFT = {"kind": "sft", "model": "m", "data": ["rows.jsonl"]}
GRPO = {"kind": "grpo", "model": "m", "tasks": ["gsm8k"]}
ON_POLICY = {"kind": "distill", "model": "m", "teacher": "t", "tasks": ["gsm8k"]}
DEEPSPEED = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "DEEPSPEED", "num_processes": 2}


def faults(config: dict[str, Any], folder: Path = Path()) -> dict[str, str]:
    """What is wrong with a stage, by the place of it."""
    checked = config_class(config["kind"]).model_validate(config)
    return {".".join(map(str, where)): what for where, what in launch.faults(checked, folder)}


@pytest.mark.parametrize("stage", [SFT, GRPO, ON_POLICY], ids=lambda stage: stage["kind"])
@pytest.mark.parametrize("launch", [{}, {"accelerate": "ddp"}], ids=["alone", "ddp"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "auto", "torch.bfloat16", "half", None])
def test_weights_are_trained_in_float32(stage: dict[str, Any], launch: dict[str, Any], dtype: str | None) -> None:
    trainer = {"model_init_kwargs": {"dtype": dtype, "attn_implementation": "sdpa"}}
    found = faults({**stage, "launch": launch, "trainer": trainer})
    assert "hardly move" in found["trainer.model_init_kwargs"]


@pytest.mark.parametrize("dtype", ["bf16", "float64", "float8_e4m3fn", 16, {"": "bfloat16"}], ids=str)
def test_weights_are_trained_in_no_other_type(dtype: Any) -> None:
    """transformers knows some of these, and fails at others in words of its own, once earlier stages have run."""
    for launched in ({}, {"accelerate": "fsdp2-1node"}):
        found = faults({**SFT, "launch": launched, "trainer": {"model_init_kwargs": {"dtype": dtype}}})
        assert f"dtype {dtype} is none that weights are trained in" in found["trainer.model_init_kwargs"]


@pytest.mark.parametrize("stage", [SFT, GRPO, ON_POLICY], ids=lambda stage: stage["kind"])
def test_a_mapping_in_a_text_is_refused(stage: dict[str, Any]) -> None:
    """transformers would parse it, and what it says would have passed every check."""
    with pytest.raises(ValueError, match="model_init_kwargs is a mapping in a text"):
        faults({**stage, "trainer": {"model_init_kwargs": '{"dtype": "bfloat16"}'}})
    assert not faults({**stage, "trainer": {"deepspeed": "zero.json"}})


@pytest.mark.parametrize(
    ("trainer", "accelerate", "refused"),
    [
        ({"model_init_kwargs": {"dtype": "float32"}}, None, False),
        ({"model_init_kwargs": None}, None, False),
        ({"model_init_kwargs": {"dtype": "bfloat16"}}, "fsdp2-1node", False),
        ({"model_init_kwargs": {"dtype": "bfloat16"}, "bf16": False}, "fsdp2-1node", True),
        ({"model_init_kwargs": {"dtype": "bfloat16"}, "bf16": False, "fp16": True}, "fsdp2-1node", False),
        ({"model_init_kwargs": {"dtype": "bfloat16"}}, "deepspeed.yaml", False),
    ],
)
def test_whoever_shards_the_model_may_keep_the_weights_that_are_trained(
    tmp_path: Path, trainer: dict[str, Any], accelerate: str | None, refused: bool
) -> None:
    (tmp_path / "deepspeed.yaml").write_text(yaml.safe_dump(DEEPSPEED))
    found = faults({**SFT, "trainer": trainer, "launch": {"accelerate": accelerate}}, tmp_path)
    assert ("trainer.model_init_kwargs" in found) == refused


@pytest.mark.parametrize(
    ("said", "trainer", "way"),
    [
        ("bf16", {}, None),
        ("fp16", {"bf16": False, "fp16": True}, None),
        ("no", {"bf16": False}, None),
        (False, {}, None),
        ("bf16", {"bf16": False}, "set trainer.bf16: true"),
        ("fp16", {}, "set trainer.fp16: true"),
        ("fp8", {}, "set the stage's `precision: fp8`"),
    ],
)
def test_the_precision_of_a_launcher_is_the_trainers(
    tmp_path: Path, said: Any, trainer: dict[str, Any], way: str | None
) -> None:
    (tmp_path / "two.yaml").write_text(yaml.safe_dump({"distributed_type": "MULTI_GPU", "mixed_precision": said}))
    found = faults({**SFT, "trainer": trainer, "launch": {"accelerate": "two.yaml"}}, tmp_path)
    assert (way or "") in found.get("launch.accelerate", "") and (way is None) == (not found)


def test_deepspeed_skips_no_steps(tmp_path: Path) -> None:
    (tmp_path / "deepspeed.yaml").write_text(yaml.safe_dump(DEEPSPEED))
    launch = {"accelerate": "deepspeed.yaml"}
    assert "no step can be skipped" in faults({**SFT, "non_finite": "skip", "launch": launch}, tmp_path)["non_finite"]
    assert not faults({**SFT, "launch": launch}, tmp_path) and not faults({**SFT, "non_finite": "skip"})


@pytest.mark.parametrize(
    "field",
    [
        {"packing": True, "max_length": 512},
        {"max_length": 512},
        {"too_long": "error"},
        {"rollout": {"engine_options": {"max_num_seqs": 4}}},
        {"rollout": {"batch_size": 8}},
        {"rollout": {"process": {}}},
    ],
    ids=lambda field: next(iter(field)),
)
def test_what_does_nothing_with_a_teacher_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"are for distilling through `data`|has no effect here"):
        config_class("distill").model_validate({**ON_POLICY, **field})


@pytest.mark.parametrize("field", [{"tasks": ["gsm8k"]}, {"rollout": {"max_tokens": 64}}])
def test_what_does_nothing_without_a_teacher_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="tasks and rollout are for a `teacher`"):
        config_class("distill").model_validate({"kind": "distill", "model": "m", "data": ["rows.jsonl"], **field})


def test_a_recipes_stall_is_for_the_stages_of_several_processes(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    score = {"kind": "evaluate", "models": ["@it"], "tasks": ["gsm8k/test"]}
    data = {"name": "x", "launch": {"accelerate": "ddp", "stall": 50}, "stages": {"it": GRPO, "score": score}}
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    assert {name: each.launch.stall for name, each in load(file).stages.items()} == {"it": 50, "score": None}
