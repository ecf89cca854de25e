"""Every field of TRL's configs that `trainer:` may have: it acts, or it is refused, or a reason is listed here."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe import RecipeError, load
from pipeline.schema import idle, trainer_fields
from pipeline.schema.pieces import StageConfig
from pipeline.stages.registry import config_class

STAGES: dict[str, dict[str, Any]] = {
    "pretrain": {"model": "nano", "vocabulary": {"kind": "words"}, "corpus": {"from": "rows.jsonl"}, "length": 8},
    "extend_context": {"model": "some/model", "context": 64, "corpus": {"from": "rows.jsonl"}},
    "sft": {"model": "some/model", "data": ["rows.jsonl"]},
    "distill": {"model": "some/model", "data": ["rows.jsonl"]},
    "distill on policy": {"model": "some/model", "teacher": "some/other", "tasks": ["arithmetic"]},
    "grpo": {"model": "some/model", "tasks": ["arithmetic"]},
    "reward_model": {"model": "some/model", "data": ["rows.jsonl"]},
}
"""Every stage kind that has a `trainer:`, in every way that it can be used."""

OPTIMIZER = "what the optimizer does at a step; `test_it_changes_what_is_learnt`"
FORWARD = "what a forward pass or the loss computes; `test_it_changes_what_is_learnt`, or TRL's own tests"
STEPS = "how many steps there are, of how many rows"
LOGS = "what is logged, and when; the log and the report show it"
DATA = "how rows are loaded; speed, not content, but for the last batch of an epoch"
SAVES = "when checkpoints are written"
MEMORY = "memory or speed on a GPU; the numbers stay the same up to rounding"
PROCESSES = "several processes or machines"
TRACKERS = "trackers that `report_to` names"
DEBUGGING = "finds overflows, or makes every operation deterministic"
SAMPLING = "how completions are sampled"
OBJECTIVE = "the objective of GRPO; tests/training/test_reference.py holds it against an independent one"
ENGINE = "vLLM, as an engine of TRL's"

ACTS: Mapping[str, str] = {
    **dict.fromkeys(("adam_beta1", "adam_beta2", "adam_epsilon", "learning_rate", "lr_scheduler_kwargs"), OPTIMIZER),
    **dict.fromkeys(("lr_scheduler_type", "max_grad_norm", "optim", "optim_args", "optim_target_modules"), OPTIMIZER),
    **dict.fromkeys(("warmup_steps", "weight_decay"), OPTIMIZER),
    **dict.fromkeys(("neftune_noise_alpha", "label_smoothing_factor", "loss_type", "model_init_kwargs"), FORWARD),
    **dict.fromkeys(("router_aux_loss_coef", "center_rewards_coefficient", "disable_dropout", "beta"), FORWARD),
    **dict.fromkeys(("pad_to_multiple_of", "padding_free", "cast_lm_head_to_fp32", "bf16", "fp16", "tf32"), FORWARD),
    **dict.fromkeys(("max_steps", "num_train_epochs", "per_device_train_batch_size"), STEPS),
    **dict.fromkeys(("gradient_accumulation_steps", "generation_batch_size", "steps_per_generation"), STEPS),
    **dict.fromkeys(("num_generations", "num_iterations"), STEPS),
    **dict.fromkeys(("logging_first_step", "logging_steps", "logging_strategy"), LOGS),
    **dict.fromkeys(("log_level", "log_level_replica", "log_on_each_node", "include_num_input_tokens_seen"), LOGS),
    **dict.fromkeys(("log_completions", "log_unique_prompts", "num_completions_to_print"), LOGS),
    **dict.fromkeys(("dataloader_drop_last", "dataloader_in_order", "dataloader_multiprocessing_context"), DATA),
    **dict.fromkeys(("dataloader_num_workers", "dataloader_persistent_workers", "dataloader_pin_memory"), DATA),
    **dict.fromkeys(("dataloader_prefetch_factor", "train_sampling_strategy", "accelerator_config"), DATA),
    **dict.fromkeys(("save_steps", "save_on_each_node"), SAVES),
    **dict.fromkeys(("auto_find_batch_size", "gradient_checkpointing", "gradient_checkpointing_kwargs"), MEMORY),
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode", "use_cache"), MEMORY),
    **dict.fromkeys(("torch_empty_cache_steps", "use_liger_kernel", "liger_kernel_config"), MEMORY),
    **dict.fromkeys(("activation_offloading",), MEMORY),
    **dict.fromkeys(("average_tokens_across_devices", "ddp_backend", "ddp_broadcast_buffers"), PROCESSES),
    **dict.fromkeys(("ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ddp_static_graph"), PROCESSES),
    **dict.fromkeys(("ddp_timeout", "deepspeed", "fsdp", "fsdp_config", "ds3_gather_for_generation"), PROCESSES),
    **dict.fromkeys(("report_to", "run_name"), TRACKERS),
    **dict.fromkeys(("debug", "full_determinism"), DEBUGGING),
    **dict.fromkeys(("cache_implementation", "chat_template_kwargs", "generation_kwargs"), SAMPLING),
    **dict.fromkeys(("repetition_penalty", "teacher_model_init_kwargs", "teacher_model_revision"), SAMPLING),
    **dict.fromkeys(("delta", "entropy_coef", "entropy_coef_delta", "entropy_coef_max", "entropy_coef_min"), OBJECTIVE),
    **dict.fromkeys(("entropy_target", "epsilon", "epsilon_high", "importance_sampling_level"), OBJECTIVE),
    **dict.fromkeys(("mask_truncated_completions", "off_policy_mask_threshold", "ref_model_mixup_alpha"), OBJECTIVE),
    **dict.fromkeys(("ref_model_sync_steps", "sapo_temperature_neg", "sapo_temperature_pos"), OBJECTIVE),
    **dict.fromkeys(("scale_rewards", "sync_ref_model", "top_entropy_quantile", "use_adaptive_entropy"), OBJECTIVE),
    **dict.fromkeys(("use_bias_correction_kl", "vespo_k_neg", "vespo_k_pos", "vespo_lambda_neg"), OBJECTIVE),
    **dict.fromkeys(("vespo_lambda_pos", "vllm_importance_sampling_cap"), OBJECTIVE),
    **dict.fromkeys(("vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min"), OBJECTIVE),
    **dict.fromkeys(("vllm_importance_sampling_correction", "vllm_importance_sampling_mode"), OBJECTIVE),
    **dict.fromkeys(("vllm_enable_sleep_mode", "vllm_group_port", "vllm_max_model_length", "vllm_model_impl"), ENGINE),
    **dict.fromkeys(("vllm_server_timeout", "vllm_structured_outputs_regex", "vllm_tensor_parallel_size"), ENGINE),
}
"""Field -> what it acts on. A field that TRL has not yet is in no table, and the walk below names it."""


def stage(name: str, **more: Any) -> StageConfig:
    kind = name.partition(" ")[0]
    return config_class(kind).model_validate({"kind": kind, **STAGES[name], **more})


def cases() -> Iterator[tuple[str, str]]:
    for name in STAGES:
        for field in trainer_fields.fields(str(stage(name).trainer_class)):
            yield name, field


def test_every_kind_with_a_trainer_is_walked() -> None:
    from pipeline.stages.registry import KINDS

    assert {name.partition(" ")[0] for name in STAGES} == {
        kind for kind in KINDS if "trainer" in config_class(kind).model_fields
    }


@pytest.mark.parametrize("name", STAGES)
def test_every_field_acts_or_is_refused(name: str, tmp_path: Path) -> None:
    import yaml

    config = stage(name)
    known = trainer_fields.fields(str(config.trainer_class))
    unsorted = sorted(field for field in known if field not in config.reserved and field not in ACTS)
    assert not unsorted, "say in reserved.py why it is refused, or here what it acts on"
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    values = {field: value_for(known[field]) for field in config.reserved if field in known}
    stages = {"a": {"kind": config.kind, **STAGES[name], "trainer": values}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "r", "stages": stages}))
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "recipe.yaml")
    told = [str(issue) for issue in caught.value.issues]
    for field in values:
        reason = f"stages.a.trainer.{field}: cannot be set here: {config.reserved[field]}"
        assert any(reason in line for line in told), field


def value_for(field: trainer_fields.TrainerField) -> Any:
    """Some value that a field takes."""
    for alternative in field.annotation.split(" | "):
        if texts := field.choices or trainer_fields._members(field.module, alternative):
            return texts[0]
    kinds = {"bool": False, "int": 1, "float": 0.5, "str": "x", "list": ["x"], "dict": {}}
    return next((value for kind, value in kinds.items() if field.annotation.startswith(kind)), "x")


def test_nothing_is_listed_that_no_config_has() -> None:
    every = {field for name in STAGES for field in trainer_fields.fields(str(stage(name).trainer_class))}
    assert not ACTS.keys() - every
    assert not {name for name in STAGES for field in stage(name).reserved if field not in every}
    assert not {field for rule in idle.RULES for field in rule.fields} - every
    assert not {*idle.SERVER, *idle.INSIDE, *idle.ANY_VLLM} - every


@pytest.mark.parametrize("name", STAGES)
def test_every_field_that_acts_is_read_by_somebody(name: str) -> None:
    """A field that neither the trainers nor anything of ours reads cannot act."""
    import transformers
    from trl import DistillationTrainer, GRPOTrainer, RewardTrainer, SFTTrainer

    config = stage(name)
    trainer = {"SFT": SFTTrainer, "GRP": GRPOTrainer, "Rew": RewardTrainer, "Dis": DistillationTrainer}
    cls = trainer[str(config.trainer_class).rpartition(":")[2][:3]]
    room = Path(inspect.getfile(transformers)).parent
    theirs = Path(inspect.getfile(cls))
    config_file = theirs.with_name(theirs.name.replace("_trainer", "_config"))
    files = [
        theirs,
        config_file,
        theirs.with_name("callbacks.py"),
        *room.glob("trainer*.py"),
        room / "training_args.py",
        room / "optimization.py",
    ]
    files += [*(room / "integrations").glob("*.py"), *(Path(__file__).parents[2] / "pipeline").rglob("*.py")]
    text = "\n".join(path.read_text() for path in files)
    read = {*re.findall(r"\.(\w+)", text), *re.findall(r"getattr\(\w+(?:\.\w+)*, \"(\w+)\"", text)}
    acting = [f for f in trainer_fields.fields(str(config.trainer_class)) if f not in config.reserved]
    assert not [field for field in acting if field not in read]


CHANGES: Mapping[str, Any] = {
    "adam_beta1": 0.5,
    "adam_beta2": 0.5,
    "adam_epsilon": 1.0,
    "learning_rate": 1e-4,
    "weight_decay": 0.9,
    "lr_scheduler_type": "constant",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.9},
    "max_grad_norm": 1e-3,
    "optim": "sgd",
    "warmup_steps": 2,
    "neftune_noise_alpha": 5.0,
    "label_smoothing_factor": 0.5,
    "loss_type": "dft",
    "max_steps": 2,
    "num_train_epochs": 1.0,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "train_sampling_strategy": "sequential",
    "dataloader_drop_last": True,
    "model_init_kwargs": {"attention_dropout": 0.5},
}
"""Field -> a value that must change the weights of a short fine-tuning."""
KEEPS: Mapping[str, Any] = {"logging_steps": 1, "save_steps": 2}
"""Field -> a value that must not."""


@pytest.fixture(scope="module")
def rows() -> list[dict[str, list[int]]]:
    """Seven tokenised rows of different lengths."""
    return [
        {"input_ids": [1, 2, 3, 4, 5, 6, 7][: 3 + n % 5] * 2, "labels": [1, 2, 3, 4, 5, 6, 7][: 3 + n % 5] * 2}
        for n in range(7)
    ]


def learnt(calculator: Path, folder: Path, rows: list[dict[str, list[int]]], **trainer: Any) -> Any:
    """The weights after a fine-tuning with these fields, as one tensor."""
    import torch
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTConfig

    from pipeline.training import models, setup
    from pipeline.training.trainers import sft
    from tests.stages.driving import context_of

    given = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, **trainer}
    config = {"kind": "sft", "model": str(calculator), "data": ["rows.jsonl"], "trainer": given}
    context = context_of(folder, "taught", config, {})
    args = setup.arguments(SFTConfig, context, type(context.config).trainer_defaults, {"max_length": None})
    set_seed(0)
    built = sft.build(
        context.config,
        model=models.policy(str(calculator), args),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=setup.load_tokenizer(str(calculator)),
    )
    built.train()
    return torch.cat([weight.detach().flatten() for weight in built.model.parameters()])


def test_it_changes_what_is_learnt(calculator: Path, tmp_path: Path, rows: list[dict[str, list[int]]]) -> None:
    assert ACTS.keys() >= CHANGES.keys()
    plain = learnt(calculator, tmp_path / "plain", rows)
    assert learnt(calculator, tmp_path / "again", rows).equal(plain), "the same twice"
    for field, value in KEEPS.items():
        assert learnt(calculator, tmp_path / field, rows, **{field: value}).equal(plain), field
    idle_fields = [
        field
        for field, value in CHANGES.items()
        if learnt(calculator, tmp_path / field, rows, **{field: value}).equal(plain)
    ]
    assert not idle_fields
    momentum = {"optim": "sgd", "optim_args": "momentum=0.9"}
    assert not learnt(calculator, tmp_path / "momentum", rows, **momentum).equal(
        learnt(calculator, tmp_path / "none", rows, optim="sgd")
    )


IDLE = {
    "warm-up": ("sft", {"lr_scheduler_type": "constant", "warmup_steps": 5}, "warmup_steps", "constant_with_warmup"),
    "warm-up of a default": ("grpo", {"warmup_steps": 0.1}, "warmup_steps", "constant_with_warmup"),
    "on policy": ("distill on policy", {"warmup_steps": 3}, "warmup_steps", "constant_with_warmup"),
    "betas": ("sft", {"optim": "sgd", "adam_beta1": 0.5}, "adam_beta1", "no Adam"),
    "arguments": ("sft", {"optim_args": "amsgrad=True"}, "optim_args", "no further arguments"),
    "targets": ("sft", {"optim_target_modules": "all-linear"}, "optim_target_modules", "GaLore"),
    "logging": ("sft", {"logging_strategy": "epoch", "logging_steps": 3}, "logging_steps", "logging_strategy"),
    "workers": ("sft", {"dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor", "dataloader_num_workers"),
    "trackers": ("sft", {"run_name": "x"}, "run_name", "report_to"),
    "trackers off": ("sft", {"report_to": "none", "run_name": "x"}, "run_name", "report_to"),
    "entropy": ("grpo", {"entropy_target": 0.5}, "entropy_target", "use_adaptive_entropy"),
    "sapo": ("grpo", {"sapo_temperature_neg": 2.0}, "sapo_temperature_neg", "loss_type: sapo"),
    "reference": ("grpo", {"beta": 0, "ref_model_sync_steps": 5}, "ref_model_sync_steps", "beta above 0"),
    "correction": (
        "grpo",
        {"vllm_importance_sampling_correction": False, "vllm_importance_sampling_clip_max": 3.0},
        "vllm_importance_sampling_clip_max",
        "is off",
    ),
}


@pytest.mark.parametrize("case", IDLE)
def test_a_field_without_effect_beside_others_is_told(case: str) -> None:
    name, trainer, field, words = IDLE[case]
    told = list(idle.faults(stage(name, trainer=trainer)))
    assert [loc for loc, _ in told] == [("trainer", field)]
    assert words in told[0][1]


@pytest.mark.parametrize(
    ("name", "health", "trainer", "told"),
    [
        ("sft", {"kl": 0.5, "grad_norm": 5}, {}, {"kl": "only `grpo` stages log"}),
        ("grpo", {"kl": 0.5, "length": 3}, {"beta": 0}, {"kl": "set trainer.beta above 0"}),
        ("grpo", {"kl": 0.5, "length": 3}, {}, {}),
        ("grpo", {"rollbacks": 2, "on_alarm": "stop"}, {}, {"rollbacks": "set on_alarm: rollback"}),
        ("grpo", {"rollbacks": 2, "on_alarm": "rollback"}, {}, {}),
        ("sft", {}, {}, {}),
    ],
)
def test_a_threshold_of_health_without_effect_is_told(
    name: str, health: dict[str, Any], trainer: dict[str, Any], told: dict[str, str]
) -> None:
    found = dict(idle.faults(stage(name, health=health, trainer=trainer)))
    assert found.keys() == {("health", field) for field in told}
    assert all(words in found["health", field] for field, words in told.items())


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        ("grpo", {"efficiency": {"packing": False, "tokens_per_pass": 60}}, {("efficiency", "tokens_per_pass")}),
        ("grpo", {"efficiency": {"dynamic_sampling_queue": 3}}, {("efficiency", "dynamic_sampling_queue")}),
        ("grpo", {"efficiency": {"dynamic_sampling_queue": 3, "dynamic_sampling_rounds": 1}}, set()),
        ("grpo", {"efficiency": {"packing": False, "tokens_per_pass": 8192}}, set()),
        ("sft", {"launch": {"stall": 30}}, {("launch", "stall")}),
        ("sft", {"launch": {"stall": 30, "accelerate": "ddp"}}, set()),
    ],
)
def test_a_switch_without_effect_beside_others_is_told(
    kind: str, settings: dict[str, Any], told: set[tuple[str, str]]
) -> None:
    assert {loc for loc, _ in idle.faults(stage(kind, **settings))} == told


@pytest.mark.parametrize(
    ("name", "trainer"),
    [
        ("sft", {"warmup_steps": 5}),
        ("grpo", {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, "ref_model_sync_steps": 3}),
        ("sft", {"optim": "adamw_torch", "adam_beta1": 0.5, "logging_steps": 3}),
        ("sft", {"lr_scheduler_type": "constant", "warmup_steps": 0}),
        ("sft", {"optim": "sgd", "optim_args": "momentum=0.9"}),
        ("sft", {"optim": "adamw_torch_8bit", "optim_args": "block_size=128"}),
        ("sft", {"report_to": ["clearml"], "run_name": "x"}),
        ("grpo", {"loss_type": "sapo", "sapo_temperature_neg": 2.0}),
    ],
)
def test_a_field_with_an_effect_is_not_told(name: str, trainer: dict[str, Any]) -> None:
    assert not list(idle.faults(stage(name, trainer=trainer)))


@pytest.mark.parametrize(
    ("rollout", "field"),
    [
        ({"engine": "transformers"}, "vllm_tensor_parallel_size"),
        ({"engine": "transformers"}, "vllm_structured_outputs_regex"),
        ({"engine": "vllm"}, "vllm_server_timeout"),
        ({"engine": "vllm"}, "cache_implementation"),
        ({"process": {}}, "vllm_enable_sleep_mode"),
    ],
)
def test_a_field_of_another_engine_is_told(rollout: dict[str, Any], field: str) -> None:
    (told,) = idle.of_engine(stage("grpo", rollout=rollout, trainer={field: 2}))
    assert told[0] == ("trainer", field)
    assert "completions come from" in told[1]
