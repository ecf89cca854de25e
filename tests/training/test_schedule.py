"""Groups, generation batches and checkpoints: what fits, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trl import GRPOConfig

from pipeline.stages.grpo import DEFAULTS, arguments
from pipeline.training.grpo.schedule import check_cycle, merged, outlook
from tests.stages.driving import context_of


def cycle(processes: int | None = 1, **trainer: Any) -> int:
    return check_cycle({**DEFAULTS, **trainer}, processes)


def test_our_own_defaults_fit() -> None:
    assert cycle() == 1


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 8}, 4),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 8, "num_iterations": 3, "save_steps": 24}, 12),
        ({"gradient_accumulation_steps": 8, "steps_per_generation": 2}, 1),
        ({"gradient_accumulation_steps": 1, "generation_batch_size": 64, "save_steps": 8}, 4),
        ({"num_iterations": 5}, 5),
    ],
)
def test_the_cycle_is_counted_in_optimizer_steps(trainer: dict[str, Any], expected: int) -> None:
    assert cycle(**{"save_steps": 40, **trainer}) == expected


def test_a_cycle_counts_micro_batches_of_all_processes() -> None:
    settings = {"gradient_accumulation_steps": 1, "generation_batch_size": 128, "save_steps": 40}
    assert cycle(**settings) == 8
    assert cycle(processes=4, **settings) == 2


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"num_generations": 1}, "2 or more"),
        ({"per_device_train_batch_size": 6, "gradient_accumulation_steps": 1}, "does not hold whole groups"),
        ({"generation_batch_size": 100}, "not a multiple of per_device_train_batch_size"),
        ({"generation_batch_size": 128, "steps_per_generation": 8}, "not both"),
        ({"gradient_accumulation_steps": 3, "steps_per_generation": 2}, "one must divide the other"),
        ({"num_iterations": 4, "save_steps": 50}, "a multiple of 4"),
        ({"save_steps": 0.1}, "a multiple of 1"),
    ],
)
def test_nonsense_is_refused(trainer: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cycle(**trainer)


def test_with_an_unknown_number_of_processes_only_the_certain_is_refused() -> None:
    assert cycle(processes=None, generation_batch_size=8192) == 1
    with pytest.raises(ValueError, match="one must divide the other"):
        cycle(processes=None, gradient_accumulation_steps=3, steps_per_generation=2)


def batches(model: Path, folder: Path, trainer: dict[str, Any], **stage: Any) -> tuple[int, int, int]:
    """Rows of a micro-batch, micro-batches of an optimizer step, and of a generation batch, as a stage has them."""
    config = {"kind": "grpo", "model": str(model), "tasks": ["gsm8k"], "trainer": trainer, **stage}
    args = arguments(context_of(folder, "zero", config, {}))
    assert args.generation_batch_size == args.per_device_train_batch_size * args.steps_per_generation
    return args.per_device_train_batch_size, args.gradient_accumulation_steps, args.steps_per_generation


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({}, (128, 1, 1)),
        ({"steps_per_generation": 16}, (128, 1, 2)),
        ({"generation_batch_size": 512, "save_steps": 4}, (128, 1, 4)),
        ({"gradient_accumulation_steps": 8, "steps_per_generation": 2}, (32, 4, 1)),
        ({"steps_per_generation": 4, "gradient_accumulation_steps": 6, "num_iterations": 3}, (32, 3, 2)),
    ],
)
def test_micro_batches_that_share_rollouts_and_a_step_are_merged(
    models: Path, tmp_path: Path, trainer: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    assert batches(models / "dense", tmp_path, trainer) == expected


@pytest.mark.parametrize(
    ("model", "trainer", "stage"),
    [
        ("dense", {}, {"efficiency": {"merge_micro_batches": False}}),
        ("dense", {}, {"efficiency": {"packing": False}}),
        ("dense", {"loss_type": "bnpo"}, {}),
        ("dense", {"entropy_coef": 0.01}, {}),
        ("dense", {"top_entropy_quantile": 0.2}, {}),
        ("routed", {"router_aux_loss_coef": 0.01}, {}),
        ("v3", {}, {"routing": {"balance": "sequence"}}),
        ("v3", {}, {"mtp": {}}),
        ("dense", {"use_adaptive_entropy": True}, {}),
    ],
)
def test_micro_batches_stay_where_their_loss_is_their_own(
    models: Path, tmp_path: Path, model: str, trainer: dict[str, Any], stage: dict[str, Any]
) -> None:
    assert batches(models / model, tmp_path, trainer, **stage) == (16, 8, 8)


def test_deepspeed_has_its_own_micro_batches_however_it_is_asked_for(tmp_path: Path) -> None:
    """By accelerate's launcher or by the recipe's `trainer.deepspeed`: either makes a plugin."""
    args = GRPOConfig(str(tmp_path), gradient_accumulation_steps=4, use_cpu=True, bf16=False)
    assert merged(args, router_loss=False)["gradient_accumulation_steps"] == 1
    args.deepspeed_plugin = object()
    assert merged(args, router_loss=False) == {}


def test_a_model_whose_router_loss_is_switched_off_is_merged(models: Path, tmp_path: Path) -> None:
    assert batches(models / "routed", tmp_path, {"router_aux_loss_coef": 0.0}) == (128, 1, 1)


@pytest.mark.parametrize(
    ("settings", "processes", "told"),
    [
        (
            {"per_device_train_batch_size": 128, "gradient_accumulation_steps": 1, "max_steps": 50},
            1,
            "a step: 128 rollouts of at most 16 tokens (8 groups of 16), trained on once; a step takes 1 pass of 128."
            " 50 steps ask 400 questions",
        ),
        (
            {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4, "steps_per_generation": 8},
            2,
            "2 steps: 256 rollouts of at most 16 tokens (16 groups of 16), trained on once;"
            " a step takes 4 passes of 32. All problems are asked once",
        ),
        (
            {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 2, "num_iterations": 3, "max_steps": 30},
            1,
            "3 steps: 128 rollouts of at most 16 tokens (8 groups of 16), trained on 3 times;"
            " a step takes 2 passes of 64. 30 steps ask 80 questions",
        ),
        (
            {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 8, "generation_batch_size": 32},
            1,
            "a step: 128 rollouts of at most 16 tokens (8 groups of 16), trained on once; a step takes 8 passes of 16."
            " All problems are asked once",
        ),
        (
            {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "max_steps": 1},
            1,
            "a step: 16 rollouts of at most 16 tokens (1 group of 16), trained on once; a step takes 1 pass of 16."
            " 1 step asks 1 question",
        ),
    ],
)
def test_a_stage_says_what_it_is_about_to_do(settings: dict[str, Any], processes: int, told: str) -> None:
    """As TRL counts it: its sampler gives every generation batch to all the steps that it serves."""
    assert outlook({**DEFAULTS, "num_generations": 16, **settings}, 16, processes) == told
