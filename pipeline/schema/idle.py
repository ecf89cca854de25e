"""Fields that have no effect beside others: told, so that nobody tunes what does nothing.

trainer: {lr_scheduler_type: constant, warmup_steps: 50}    # a constant learning rate has no warm-up
rollout: {engine: transformers, gpu_memory: 0.85}           # the share of the GPU's memory is vLLM's
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.schema.efficiency import Efficiency
from pipeline.schema.health import Health
from pipeline.schema.pieces import Fault, RolloutSpec, StageConfig
from pipeline.schema.strict import Strict

Fields = Mapping[str, Any]
"""Trainer fields with their values: the recipe's, above the stage kind's own."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Fields that are idle.

    Attributes:
        fields: their names; one that is `None`, `False` or 0 is not meant.
        idle: whether they are, given all fields.
        why: says so, and what to set.
    """

    fields: tuple[str, ...]
    idle: Callable[[Fields], bool]
    why: str


def _lacks(name: str, *values: Any) -> Callable[[Fields], bool]:
    """Whether a field that is set has none of these values."""
    return lambda fields: name in fields and fields[name] not in values


def _off(name: str) -> Callable[[Fields], bool]:
    """Whether a switch is off, as it is where nobody has set it."""
    return lambda fields: not fields.get(name)


def _trackers(fields: Fields) -> list[str]:
    named = fields.get("report_to") or []
    return [] if named in ("none", ["none"]) else [named] if isinstance(named, str) else list(named)


def _without_adam(fields: Fields) -> bool:
    return str(fields.get("optim", "")).startswith(("sgd", "adagrad", "rmsprop", "adafactor"))


def _without_targets(fields: Fields) -> bool:
    return not any(kind in str(fields.get("optim", "")) for kind in ("galore", "apollo"))


def _without_arguments(fields: Fields) -> bool:
    return str(fields.get("optim", "adamw_torch")).startswith(("adamw_torch", "adafactor", "lomo", "adalomo")) and not (
        str(fields.get("optim")).endswith("bit")
    )


RULES = (
    Rule(
        ("warmup_steps",),
        lambda fields: fields.get("lr_scheduler_type") == "constant",
        "a constant learning rate has no warm-up: set lr_scheduler_type: constant_with_warmup, or leave it out",
    ),
    Rule(("adam_beta1", "adam_beta2", "adam_epsilon"), _without_adam, "the optimizer of `optim` is no Adam"),
    Rule(("optim_args",), _without_arguments, "the optimizer of `optim` takes no further arguments"),
    Rule(("optim_target_modules",), _without_targets, "it is for the GaLore and APOLLO optimizers of `optim`"),
    Rule(("logging_steps",), _lacks("logging_strategy", "steps"), "logging_strategy says when to log"),
    Rule(
        ("gradient_checkpointing_kwargs",),
        lambda fields: fields.get("gradient_checkpointing") is False,
        "gradient_checkpointing is off",
    ),
    Rule(
        ("dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_multiprocessing_context"),
        _off("dataloader_num_workers"),
        "it needs dataloader_num_workers above 0",
    ),
    Rule(("fsdp_config",), _off("fsdp"), "it needs fsdp; or set launch: {accelerate: fsdp2-1node}"),
    Rule(("liger_kernel_config",), _off("use_liger_kernel"), "it needs use_liger_kernel: true"),
    Rule(
        ("run_name",),
        lambda fields: not _trackers(fields),
        "it is for the trackers of `report_to`, which names none",
    ),
    Rule(("entropy_coef_delta", "entropy_coef_max", "entropy_coef_min", "entropy_target"), _off("use_adaptive_entropy"),
         "it needs use_adaptive_entropy: true"),
    Rule(("sapo_temperature_neg", "sapo_temperature_pos"), _lacks("loss_type", "sapo"), "it needs loss_type: sapo"),
    Rule(("vespo_k_neg", "vespo_k_pos", "vespo_lambda_neg", "vespo_lambda_pos"), _lacks("loss_type", "vespo"),
         "it needs loss_type: vespo"),
    Rule(("sync_ref_model", "use_bias_correction_kl"), lambda fields: fields.get("beta") == 0,
         "with beta: 0 there is no reference model"),
    Rule(("ref_model_mixup_alpha", "ref_model_sync_steps"),
         lambda fields: fields.get("beta") == 0 or fields.get("sync_ref_model") is False,
         "it needs sync_ref_model: true and beta above 0"),
    Rule(
        ("vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min",
         "vllm_importance_sampling_cap"),
        lambda fields: fields.get("vllm_importance_sampling_correction") is False,
        "vllm_importance_sampling_correction is off",
    ),
)  # fmt: skip
"""What holds for every stage."""

SERVER = ("vllm_group_port", "vllm_server_timeout")
INSIDE = ("vllm_enable_sleep_mode", "vllm_model_impl", "vllm_tensor_parallel_size")
ANY_VLLM = ("vllm_structured_outputs_regex", "vllm_max_model_length")
"""Fields for TRL's client of a vLLM server, for vLLM in the trainer's process, and for both."""
ADDRESSED = "a server that runs already"
"""What stands for the engine of a `rollout` with an address: it has its own settings."""
CHOICE = ("engine", "server", "process", "max_staleness", "spare")
"""Fields of `rollout` that choose the engine."""
UNREAD: Mapping[str, tuple[str, ...]] = {
    "transformers": ("gpu_memory", "engine_options", "scheduler_fast_path"),
    "vllm": ("batch_size",),
    "vllm_server": ("batch_size", "scheduler_fast_path"),
    ADDRESSED: ("batch_size", "gpu_memory", "engine_options", "speculative", "scheduler_fast_path"),
}
"""Engine -> the fields of `rollout` that it does not read."""

CUTS: Mapping[str, float] = {"top_p": 1, "top_k": 0, "min_p": 0}
"""Fields of `rollout` that cut the distribution which is sampled from, and the values that cut nothing."""

OF_ROLLOUTS = (
    "length", "truncated", "kl", "mismatch", "effective_samples", "dead_groups", "reward_gap", "repetition",
    "foreign_words",
)  # fmt: skip
"""Thresholds of `health` for metrics that only stages with rollouts log."""


def faults(config: StageConfig) -> Iterator[Fault]:
    """The fields of a stage that others of its own make idle, whatever its engine is."""
    values: Fields = getattr(config, "trainer", {})
    fields = {**config.trainer_defaults, **values}
    for rule in RULES:
        for name in rule.fields:
            if values.get(name) and rule.idle(fields):
                yield ("trainer", name), f"has no effect: {rule.why}"
    if (health := getattr(config, "health", None)) is not None:
        yield from _of_health(config.kind, health, fields)
    if (efficiency := getattr(config, "efficiency", None)) is not None:
        yield from _of_efficiency(efficiency)
    if config.launch.stall is not None and config.launch.accelerate is None:
        yield ("launch", "stall"), "has no effect on a stage of one process: set launch.silence"


def of_engine(config: StageConfig) -> Iterator[Fault]:
    """The fields of a stage's `rollout:`, `trainer:` and `watch:` that its engine does not read; see `chosen_by`."""
    rollout: RolloutSpec | None = getattr(config, "rollout", None)
    if rollout is None:
        return
    for name in unread(rollout, rollout.engine):
        if name not in config.reads:
            sampler = f"the engine {rollout.engine}" if rollout.server is None else f"{ADDRESSED}: it has its own"
            yield ("rollout", name), f"has no effect with {sampler}"
    for name in sorted(CUTS.keys() & _meant(rollout)) if rollout.temperature == 0 else ():
        if getattr(rollout, name) != CUTS[name]:
            yield ("rollout", name), "has no effect with temperature 0, which takes the likeliest token"
    engine = "an engine in a process of its own" if rollout.separate_process else rollout.engine
    values: Fields = getattr(config, "trainer", {})
    idle = {
        "transformers": (*SERVER, *INSIDE, *ANY_VLLM),
        "vllm": (*SERVER, "cache_implementation"),
        "vllm_server": (*SERVER, *INSIDE, "vllm_max_model_length", "cache_implementation"),
        "an engine in a process of its own": (*SERVER, "vllm_enable_sleep_mode", "vllm_model_impl"),
    }
    for name in idle.get(engine, ()):
        if values.get(name):
            yield ("trainer", name), f"has no effect: completions come from {engine} (see `rollout`)"
    watch = getattr(config, "watch", None) if getattr(config, "trains_sampler", False) else None
    elsewhere = rollout.engine == "vllm" or rollout.separate_process
    if elsewhere and watch is not None and "batch_size" in watch.model_fields_set:
        yield ("watch", "batch_size"), "has no effect: the engine of `rollout` answers, and has its own"


def chosen_by(loc: Sequence[str | int]) -> tuple[str, ...]:
    """The fields of `rollout` that decide whether a field which `of_engine` names has an effect."""
    return ("temperature",) if loc[-1] in CUTS else CHOICE


def unread(rollout: RolloutSpec, engine: str) -> list[str]:
    """Fields that a `rollout` sets and an engine does not read; none where `auto` has not become one yet."""
    meant = _meant(rollout)
    return [name for name in UNREAD.get(engine if rollout.server is None else ADDRESSED, ()) if name in meant]


def _meant(settings: Strict) -> set[str]:
    """Fields whose values are other than their defaults."""
    fields = type(settings).model_fields
    return {name for name in fields if getattr(settings, name) != fields[name].get_default(call_default_factory=True)}


def _of_efficiency(efficiency: Efficiency) -> Iterator[Fault]:
    meant = _meant(efficiency)
    if not efficiency.packing and "tokens_per_pass" in meant:
        yield ("efficiency", "tokens_per_pass"), "has no effect: packing is off"
    if not efficiency.dynamic_sampling_rounds and "dynamic_sampling_queue" in meant:
        yield ("efficiency", "dynamic_sampling_queue"), "has no effect: set dynamic_sampling_rounds above 0"


def _of_health(kind: str, health: Health, fields: Fields) -> Iterator[Fault]:
    for name in sorted(health.model_fields_set):
        if name in OF_ROLLOUTS and kind != "grpo":
            yield ("health", name), "has no effect: only `grpo` stages log what it is a threshold of"
        elif name == "kl" and not fields.get("beta"):
            yield ("health", name), "has no effect: there is no reference to be far from; set trainer.beta above 0"
        elif name in ("rollbacks", "rollback_lr") and health.on_alarm != "rollback":
            yield ("health", name), f"has no effect: on_alarm is {health.on_alarm}; set on_alarm: rollback"
