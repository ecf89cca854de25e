"""Trainer fields that stages own. Imported with the stages' configs, so nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

KEEP_CHECKPOINTS = 2
"""The newest one may be incomplete when the process dies; then the one before it counts."""

NO_EVALUATION = (
    "a training stage has no evaluation data: its `watch` scores held-out problems while it trains, and a stage of kind"
    " evaluate its model"
)
FOLLOW_EVALUATIONS = ("reduce_lr_on_plateau", "greedy")
"""Learning rate schedules of transformers that want an `eval_strategy`."""

REMOTE_CODE = frozenset(
    {
        "trust_remote_code",
        "auto_map",
        "code_revision",
        "custom_generate",
        "allow_all_kernels",
        "torch_force_no_weights_only_load",
    }
)
"""Settings of transformers, vLLM and torch, the last a variable of the environment, that let code of a model's run."""

SECRETS = frozenset({"hub_token", "hf_token", "use_auth_token", "auth_token", "access_token", "api_key", "password"})
"""Settings that would write a secret into a recipe, and so into the records of a run."""

_EVALUATION = (
    *("eval_strategy", "eval_on_start", "do_eval", "do_predict", "eval_steps", "eval_delay", "eval_accumulation_steps"),
    *("eval_do_concat_batches", "eval_use_gather_object", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval"),
    *("include_for_metrics", "prediction_loss_only", "per_device_eval_batch_size", "label_names"),
)
_BEST = "set the stage's `keep: best`, which goes by the scores of its `watch`"
_HUB = (
    *("push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push"),
    "hub_revision",
)

_TRACKIO = ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")

RESERVED: Mapping[str, str] = {
    **dict.fromkeys(_EVALUATION, NO_EVALUATION),
    **dict.fromkeys(_HUB, "use a stage of kind export with `publish: {hub: owner/name}`"),
    **dict.fromkeys(_TRACKIO, "set `track: [trackio]` at the top of the recipe; it takes `project`, too"),
    "output_dir": "a stage works in its own scratch folder",
    "seed": "set the stage's `seed`",
    "data_seed": "set the stage's `seed`",
    "do_train": "a training stage trains",
    "resume_from_checkpoint": "an interrupted stage resumes by itself",
    "ignore_data_skip": "a resumed stage would see rows twice",
    "save_strategy": "set save_steps; a stage cannot resume without checkpoints",
    "save_total_limit": f"the newest {KEEP_CHECKPOINTS} are kept, until the stage is published",
    "save_only_model": "a stage cannot resume without its optimizer",
    "load_best_model_at_end": _BEST,
    "metric_for_best_model": _BEST,
    "greater_is_better": _BEST,
    "disable_tqdm": "progress is shown by `zero2r1 run`",
    "use_cpu": "a GPU is used where there is one; hide it by launch: {gpus: 0}",
    "logging_nan_inf_filter": "it would show earlier losses in place of one that is not finite; see `non_finite`",
    "local_rank": "the launcher says it",
    "parallelism_config": "set launch: {accelerate: …}",
    "enable_jit_checkpoint": "a stage that was told to end would take the checkpoint for the end of its training",
    "restore_callback_states_from_checkpoint": "an interrupted stage resumes by itself",
    "length_column_name": "lengths are those of the rows' tokens",
    "skip_memory_metrics": "what it measures is not kept; the report shows each stage's time",
    "remove_unused_columns": "the stage makes the columns",
    "trust_remote_code": "models run with the installed code only",
}
"""Trainer fields that no training stage leaves to the recipe -> why."""

DATA_RESERVED: Mapping[str, str] = {
    "max_length": "set the stage's `max_length`",
    "packing": "set the stage's `packing`",
    "eval_packing": NO_EVALUATION,
    "packing_strategy": "follows from the stage's `packing`; examples are never cut",
    "truncation_mode": "examples are never cut; see `too_long`",
    "completion_only_loss": "only what the assistant says is trained on",
    "assistant_only_loss": "only what the assistant says is trained on",
    "chat_template_path": "set `chat_template` where the model is imported",
    "eos_token": "it is what the chat template ends a turn with",
    "pad_token": "it is the tokenizer's own",
    "dataset_text_field": "rows are tokenised by the stage",
    "dataset_kwargs": "rows are tokenised by the stage",
    "dataset_num_proc": "rows are tokenised by the stage",
    "shuffle_dataset": "rows are shuffled in every epoch",
}
"""Fields of SFTConfig that follow from the stage's own."""

LOW_PRECISION = frozenset({"bfloat16", "float16", "half", "auto", "None"})
"""`dtype` of `model_init_kwargs` in which no weights are trained; `auto` and `null` are the checkpoint's own."""
FULL_PRECISION = frozenset({"float32", "float"})
"""`dtype` of `model_init_kwargs` in which they are."""


def low_precision(trainer: Mapping[str, object], masters: bool) -> str | None:
    """What is wrong with the type that a trainer is to load its model in, in words, if anything is.

    Updates of a small learning rate are below the spacing of bfloat16: at 1e-6, 0.4 % of the weights move at all.

    Args:
        trainer: its fields.
        masters: whether whoever shards the model (FSDP, DeepSpeed) keeps the weights that are trained in float32.
    """
    options = trainer.get("model_init_kwargs")
    given = options if isinstance(options, Mapping) else {}
    dtype = str(given.get("dtype", given.get("torch_dtype", "float32"))).removeprefix("torch.")
    computes_low = trainer.get("bf16", True) or trainer.get("fp16", False)
    if dtype in FULL_PRECISION or (dtype in LOW_PRECISION and masters and computes_low):
        return None
    if dtype not in LOW_PRECISION:
        return f"dtype {dtype} is none that weights are trained in: leave it out, which keeps them in float32"
    return hardly_moves({"None": "the checkpoint's own type"}.get(dtype, dtype))


def hardly_moves(dtype: str) -> str:
    """Why no weights are trained in a type, and what to do."""
    return (
        f"weights that are trained in {dtype} hardly move, since most updates are rounded away: leave dtype out, which"
        " keeps them in float32, and set bf16: true to compute in bfloat16"
    )


TEXT_RESERVED: Mapping[str, str] = {
    **RESERVED,
    **DATA_RESERVED,
    "max_length": "set the stage's `length`",
    "packing": "documents are always packed",
}
"""Fields of SFTConfig that follow from the stage's own."""

TRAINER_FILES = ("deepspeed", "fsdp_config", "accelerator_config")
"""Trainer fields that may name a JSON file; a relative one is read against the recipe's folder."""

PROMPTS_RESERVED: Mapping[str, str] = {
    "shuffle_dataset": "problems are drawn in an order that the stage's `seed` gives",
    "train_sampling_strategy": "problems are drawn in an order that the stage's `seed` gives",
    "dataloader_drop_last": "only full generation batches are trained on",
    "label_smoothing_factor": "the loss has no labels",
    "max_tool_calling_iterations": "models call no tools in training",
}
"""Fields of trainers that sample, which have no effect on a task's problems."""

SAMPLING_RESERVED: Mapping[str, str] = {
    **PROMPTS_RESERVED,
    "vllm_server_host": "set `rollout.server`",
    "vllm_server_port": "set `rollout.server`",
    "use_vllm": "set `rollout.engine`",
    "vllm_mode": "set `rollout.engine`: vllm (in-process) or vllm_server",
    "vllm_server_base_url": "set `rollout.server`",
    "vllm_gpu_memory_utilization": "set `rollout.gpu_memory`",
    "max_completion_length": "set `rollout.max_tokens`",
    "temperature": "set `rollout.temperature`",
    "top_p": "set `rollout.top_p`",
    "top_k": "set `rollout.top_k`",
    "min_p": "set `rollout.min_p`",
}
"""Trainer fields that follow from `rollout`."""

GRPO_RESERVED: Mapping[str, str] = {
    **RESERVED,
    **SAMPLING_RESERVED,
    "reward_weights": "set the rewards' `weight`",
    "log_completions": "samples are written to samples.jsonl; see `sample_every`",
    "log_completions_hub_repo": "samples are written to samples.jsonl",
    "num_generations_eval": NO_EVALUATION,
    "log_unique_prompts": "samples are written to samples.jsonl; see `sample_every`",
    "log_multimodal": "problems are text",
    "num_completions_to_print": "set `samples`",
    "remove_unused_columns": "rewards need the columns",
    "multi_objective_aggregation": "a stage's rewards are one sum, with weights and gates, before it is normalised",
    "pad_to_multiple_of": "rows are padded or packed by the stage",
    "include_num_input_tokens_seen": "tokens are counted as num_tokens",
    "transformers_continuous_batching_config": "it would turn the trained weights into bf16 for good",
    "use_transformers_continuous_batching": "it would turn the trained weights into bf16 for good",
    "use_transformers_paged": "it would turn the trained weights into bf16 for good",
    "use_liger_kernel": "set `efficiency.fused_kernels`: this leaves the reference, and unknown models, as they are",
    "liger_kernel_config": "set `efficiency.fused_kernels`, which takes the kernels that packing works with",
}

CHOICES: Mapping[str, Sequence[str]] = {
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "scale_rewards": ("group", "batch", "none"),
    "vllm_importance_sampling_mode": ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
}
"""The values that TRL's GRPOTrainer knows for these fields; it notices an unknown one only at the first loss."""
