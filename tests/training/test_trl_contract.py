"""The hooks of TRL and transformers that `pipeline.training` wraps: when one moves, this says which.

Each of these is private or undocumented. A failure here means: read the new source, and mend the wrapper that is named.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import RandomSampler, SequentialSampler
from transformers import Trainer, training_args
from trl import DistillationTrainer, GRPOTrainer, RewardTrainer, SFTTrainer
from trl.trainer.callbacks import SyncRefModelCallback
from trl.trainer.utils import RepeatSampler, add_fused_lm_head

from pipeline.schema import trainer_fields
from pipeline.schema.reserved import FOLLOW_EVALUATIONS
from pipeline.stages import distill, grpo, pretrain, sft
from pipeline.training import checkpoints

EPOCH = [
    *("model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial"),
    *("ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained"),
    "steps_trained_in_current_epoch",
]
"""Nobody of ours reads these; `_run_epoch` returns nothing, and stops where `should_training_stop` is set."""

LOSS = ["model", "inputs", "return_outputs", "num_items_in_batch"]
HOOKS = [
    (GRPOTrainer, "_get_train_sampler", ["dataset"], "grpo.trainer"),
    (SFTTrainer, "_get_train_sampler", ["train_dataset"], "resumable.Resumable"),
    (DistillationTrainer, "_get_train_sampler", ["dataset"], "resumable.Resumable"),
    (Trainer, "_run_epoch", EPOCH, "resumable.Resumable"),
    (Trainer, "_save_checkpoint", ["model", "trial"], "resumable.Resumable"),
    (Trainer, "_load_from_checkpoint", ["resume_from_checkpoint", "model"], "resumable.Resumable"),
    (Trainer, "_save_optimizer_and_scheduler", ["output_dir"], "grpo.trainer"),
    (Trainer, "_load_optimizer_and_scheduler", ["checkpoint"], "grpo.trainer"),
    (GRPOTrainer, "_prepare_inputs", ["generation_batch"], "grpo.trainer"),
    (GRPOTrainer, "compute_loss", LOSS, "grpo.trainer"),
    *((trainer, "compute_loss", LOSS, "trainers") for trainer in (SFTTrainer, RewardTrainer, DistillationTrainer)),
    (Trainer, "log", ["logs", "start_time"], "metrics.Measured"),
    (GRPOTrainer, "log", ["logs", "start_time"], "grpo.trainer"),
    (Trainer, "get_batch_samples", ["epoch_iterator", "num_batches", "device"], "step_share.StepShare"),
    (
        GRPOTrainer,
        "_calculate_rewards",
        ["inputs", "prompts", "completions", "completion_ids_list"],
        "grpo.trainer, which calls it",
    ),
    (
        GRPOTrainer,
        "_generate_single_turn",
        ["prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"],
        "grpo.sampling, which calls it",
    ),
    (DistillationTrainer, "_generate", ["prompts"], "trainers.distill"),
    (GRPOTrainer, "_tokenize_prompts", ["prompts"], "grpo.sampling, which calls it"),
    (GRPOTrainer, "_log_completion_extra", ["column", "values"], "grpo.trainer"),
    (GRPOTrainer, "_log_metric", ["name", "value"], "grpo.trainer"),
    (GRPOTrainer, "get_high_entropy_mask", ["entropies", "mask", "threshold"], "grpo.trainer, which calls it"),
    (Trainer, "_clip_grad_norm", ["model"], "mtp.BlockTraining"),
    (Trainer, "create_scheduler", ["num_training_steps", "optimizer"], "resumable.Resumable"),
    (
        Trainer,
        "_prepare_for_training",
        ["max_steps", "train_dataloader", "resume_from_checkpoint"],
        "resumable.Resumable",
    ),
    (Trainer, "create_optimizer", ["model"], "expert_parallel.ExpertParallel"),
    (Trainer, "save_model", ["output_dir", "_internal_call"], "expert_parallel.ExpertParallel"),
]
IMAGES = {"pixel_values", "pixel_attention_mask", "spatial_shapes", "num_tiles", "token_type_ids", "mm_token_type_ids"}
"""Arguments that only models with images have."""


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
        ("_inner_training_loop", "_run_epoch"),
        ("_run_epoch", "_clip_grad_norm"),
        ("_run_epoch", "get_batch_samples"),
        ("_prepare_for_training", "create_optimizer"),
        ("_save_checkpoint", "save_model"),
    ],
)
def test_a_hook_is_still_called(caller: str, hook: str) -> None:
    assert f"self.{hook}" in inspect.getsource(getattr(Trainer, caller)), f"Trainer.{caller} no longer calls {hook}"


def test_the_reference_follows_through_the_function_that_is_replaced() -> None:
    """`reference.SyncByName` has another one of that name, and TRL's callback decides when."""
    assert list(inspect.signature(SyncRefModelCallback.sync_target_model).parameters) == [
        "model",
        "target_model",
        "alpha",
    ]
    source = inspect.getsource(SyncRefModelCallback.on_step_end)
    assert "self.sync_target_model(model, self.ref_model, args.ref_model_mixup_alpha)" in source
    assert "self.add_callback(SyncRefModelCallback(" in inspect.getsource(GRPOTrainer.__init__)


def test_the_longest_completion_is_read_where_lengths_sets_it() -> None:
    from trl.generation.vllm_generation import VLLMGeneration

    assert "self.generation_config" in inspect.getsource(GRPOTrainer._generate_single_turn)
    assert "self.max_completion_length" in inspect.getsource(VLLMGeneration.generate)


def test_the_fused_head_takes_shifted_labels() -> None:
    source = inspect.getsource(add_fused_lm_head)
    assert "fused_lm_head=False, labels=None, shift_labels=None" in source
    assert "if shift_labels is None:" in source


@pytest.mark.parametrize(
    "attribute",
    ["self._entropy_bonus_enabled", "self.top_entropy_quantile", "self.aux_loss_enabled", "self.loss_type"],
)
def test_grpo_says_whether_a_micro_batch_can_be_divided(attribute: str) -> None:
    assert f"{attribute} =" in inspect.getsource(GRPOTrainer.__init__)


@pytest.mark.parametrize(
    "attribute",
    [
        *("self.reward_funcs", "self.eos_token_ids", "self.num_generations", "self.ref_model", "self._step = 0"),
        *("self.reward_weights", "self.mask_truncated_completions", "self.scale_rewards", "self.shuffle_dataset"),
        *("self.entropy_coef", "self._last_world_entropy", "self._entropy_window_stats", "self.router_aux_loss_coef"),
        'self._metrics = {"train"',
    ],
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


ENUMS = {
    "eval_strategy": "IntervalStrategy",
    "hub_strategy": "HubStrategy",
    "logging_strategy": "IntervalStrategy",
    "lr_scheduler_type": "SchedulerType",
    "optim": "OptimizerNames",
    "save_strategy": "SaveStrategy",
}


@pytest.mark.parametrize(("name", "enum"), ENUMS.items())
def test_a_field_takes_the_members_of_its_enum_and_nothing_else(name: str, enum: str) -> None:
    field = trainer_fields.fields("trl.trainer.sft_config:SFTConfig")[name]
    members = [member.value for member in getattr(training_args, enum)]
    assert [trainer_fields.mismatch(field, member) for member in members] == [None] * len(members)
    fault = trainer_fields.mismatch(field, "nothing like it")
    assert fault is not None
    assert fault.endswith(f"Known: {', '.join(members)}")


def compared_with(name: str) -> set[str]:
    """The texts that GRPOTrainer compares an attribute with."""
    texts: set[str] = set()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(GRPOTrainer)))):
        if isinstance(node, ast.Compare) and ast.unparse(node.left) in (f"self.{name}", f"args.{name}"):
            found = ast.literal_eval(node.comparators[0])
            texts |= {found} if isinstance(found, str) else set(found)
    return texts


@pytest.mark.parametrize("name", grpo.CHOICES)
def test_the_choices_of_a_field_are_those_that_grpo_knows(name: str) -> None:
    assert set(grpo.CHOICES[name]) == compared_with(name)
    assert trainer_fields.fields("trl.trainer.grpo_config:GRPOConfig")[name].choices == (), "TRL tells them itself"


def test_schedules_that_follow_evaluations_are_those_that_transformers_refuses_without() -> None:
    source = inspect.getsource(training_args.TrainingArguments._validate_args)
    refused = [member for member in training_args.SchedulerType if f"== SchedulerType.{member.name}:" in source]
    assert {member.value for member in refused} == set(FOLLOW_EVALUATIONS)
    assert source.count("requires an eval strategy") == len(FOLLOW_EVALUATIONS)
