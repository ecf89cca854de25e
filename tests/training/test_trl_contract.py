"""The hooks of TRL and transformers that `pipeline.training` wraps: when one moves, this says which.

Each of these is private or undocumented. A failure here means: read the new source, and mend the wrapper that is named.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import RandomSampler, SequentialSampler
from transformers import Trainer
from trl import DistillationTrainer, GRPOTrainer, SFTTrainer
from trl.trainer.utils import RepeatSampler

from pipeline import trainer_fields
from pipeline.stages import distill, grpo, pretrain, sft
from pipeline.training import checkpoints

HOOKS = [
    (GRPOTrainer, "_get_train_sampler", ["dataset"], "resumable.Resumable"),
    (SFTTrainer, "_get_train_sampler", ["train_dataset"], "resumable.Resumable"),
    (DistillationTrainer, "_get_train_sampler", ["dataset"], "resumable.Resumable"),
    (Trainer, "_save_checkpoint", ["model", "trial"], "resumable.Resumable"),
    (Trainer, "_load_from_checkpoint", ["resume_from_checkpoint", "model"], "resumable.Resumable"),
    (Trainer, "_save_optimizer_and_scheduler", ["output_dir"], "grpo.GrpoTrainer"),
    (Trainer, "_load_optimizer_and_scheduler", ["checkpoint"], "grpo.GrpoTrainer"),
    (
        GRPOTrainer,
        "_calculate_rewards",
        ["inputs", "prompts", "completions", "completion_ids_list"],
        "grpo.GrpoTrainer",
    ),
]


@pytest.mark.parametrize(("trainer", "hook", "arguments", "wrapper"), HOOKS, ids=lambda value: str(value)[:40])
def test_a_hook_has_the_arguments_that_its_wrapper_passes(
    trainer: type[Any], hook: str, arguments: list[str], wrapper: str
) -> None:
    found = list(inspect.signature(getattr(trainer, hook)).parameters)[1:]
    assert found == arguments, f"{trainer.__name__}.{hook} now takes {found}: mend pipeline.training.{wrapper}"


@pytest.mark.parametrize(
    ("caller", "hook"),
    [
        ("train", "_load_from_checkpoint"),
        ("_prepare_for_training", "_load_optimizer_and_scheduler"),
        ("_save_checkpoint", "_save_optimizer_and_scheduler"),
        ("_maybe_log_save_evaluate", "_save_checkpoint"),
        ("get_train_dataloader", "_get_train_sampler"),
    ],
)
def test_a_hook_is_still_called(caller: str, hook: str) -> None:
    assert f"self.{hook}" in inspect.getsource(getattr(Trainer, caller)), f"Trainer.{caller} no longer calls {hook}"


def test_rewards_are_calculated_through_the_hook() -> None:
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert "self._calculate_rewards(inputs, prompts, completions, completion_ids_list)" in source


@pytest.mark.parametrize(
    "attribute",
    ["self.reward_funcs", "self.eos_token_ids", "self.num_generations", "self.ref_model", 'self._metrics = {"train"'],
)
def test_grpo_has_the_attributes_that_we_read(attribute: str) -> None:
    assert attribute in inspect.getsource(GRPOTrainer.__init__)


def test_a_checkpoint_is_called_what_we_look_for() -> None:
    source = inspect.getsource(Trainer._save_checkpoint)
    assert 'f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"' in source
    assert checkpoints.step_of(Path("checkpoint-120")) == 120


def test_samplers_draw_from_their_generator() -> None:
    """`EpochSampler` sets it; a sampler that draws from elsewhere would be out of its hands."""
    for sampler in (RandomSampler, RepeatSampler):
        assert "self.generator" in inspect.getsource(sampler.__iter__), sampler
    assert list(SequentialSampler(range(3))) == [0, 1, 2]


def test_upstream_still_replays_the_first_epoch() -> None:
    """When this fails, TRL's sampler follows the epoch by itself, and `EpochSampler` may go."""
    assert not hasattr(RepeatSampler, "set_epoch")


@pytest.mark.parametrize(
    ("where", "defaults"),
    [
        ("trl.trainer.sft_config:SFTConfig", sft.DEFAULTS),
        ("trl.trainer.sft_config:SFTConfig", pretrain.DEFAULTS),
        ("trl.trainer.grpo_config:GRPOConfig", grpo.DEFAULTS),
        ("trl.trainer.distillation_config:DistillationConfig", distill.ON_POLICY_DEFAULTS),
    ],
)
def test_our_defaults_are_fields(where: str, defaults: dict[str, Any]) -> None:
    known = trainer_fields.fields(where)
    assert not [name for name in defaults if name not in known]


@pytest.mark.parametrize(
    ("where", "reserved"),
    [
        ("trl.trainer.sft_config:SFTConfig", sft.SftConfig.reserved),
        ("trl.trainer.sft_config:SFTConfig", pretrain.PretrainConfig.reserved),
        ("trl.trainer.grpo_config:GRPOConfig", grpo.GrpoConfig.reserved),
    ],
)
def test_what_is_reserved_exists(where: str, reserved: dict[str, str]) -> None:
    known = trainer_fields.fields(where)
    assert not [name for name in reserved if name not in known]
