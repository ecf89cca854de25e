"""What the rollout settings are called in the configs of TRL's trainers that sample."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.prompts.rendering import Renderer
from pipeline.schema.pieces import RewardSpec, RolloutSpec
from rewards.verdict import PREFILL

if TYPE_CHECKING:
    from pipeline.rollout.context_limit import ContextLimit


def prompted(rows: Sequence[Mapping[str, Any]], renderer: Renderer, limit: ContextLimit) -> list[dict[str, Any]]:
    """The rows whose prompts fit, each with what the assistant is made to begin with, for rewards.

    Raises:
        RolloutError: see `ContextLimit.fitting`.
    """
    prompts = renderer.prompts([row["prompt"] for row in rows])
    fitting = limit.fitting(renderer.tokenizer, [prompt.text for prompt in prompts], rows)
    return [{**rows[at], PREFILL: prompts[at].begun} for at in fitting]


STOPPING = ("stop", "stop_token_ids", "stop_strings", "eos_token_id")
"""What engines call what ends a completion."""


def check_generation_kwargs(trainer: Mapping[str, Any]) -> None:
    """Refuse to stop completions by `trainer.generation_kwargs`: whether one was cut off could not be told then.

    Raises:
        ValueError: names the key.
    """
    given = trainer.get("generation_kwargs") or {}
    if isinstance(given, Mapping) and (keys := [key for key in STOPPING if key in given]):
        raise ValueError(f"trainer.generation_kwargs: {keys[0]!r} is not set here; set `rollout.stop`")


def generation_fields(rollout: RolloutSpec) -> dict[str, Any]:
    """What the rollout settings are called in GRPOConfig and DistillationConfig; no server is asked by TRL's trainers.

    Raises:
        ValueError: another model is to draft.
    """
    from pipeline.rollout import TRANSFORMERS, VLLM, engine_name

    chosen = engine_name(rollout)
    fields: dict[str, Any] = {
        "use_vllm": chosen != TRANSFORMERS,
        "max_completion_length": rollout.max_tokens,
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "top_k": rollout.top_k,
        "min_p": rollout.min_p or None,
    }
    if chosen == TRANSFORMERS and rollout.speculative is not None:
        if rollout.speculative.draft is not None:
            raise ValueError("rollout.speculative.draft: transformers drafts with another model one sequence at a time")
        drafts = {"use_mtp": True, "num_assistant_tokens": rollout.speculative.tokens}
        fields["generation_kwargs"] = {name: value for name, value in drafts.items() if value is not None}
    if chosen == VLLM:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine is in this process, whose weights it takes
        fields |= {"vllm_mode": "colocate", "vllm_gpu_memory_utilization": rollout.gpu_memory}
    return fields


def check_problems(rows: Sequence[Mapping[str, Any]], rewards: Sequence[RewardSpec], args: Any) -> None:
    """Make sure that there is something to train on: a whole generation batch, and a problem for every reward.

    Raises:
        ValueError: TRL would drop the only batch, which is not full, or a reward would never be asked.
    """
    from rewards.composite import matches

    needed = args.generation_batch_size // args.num_generations
    if len(rows) < needed:
        raise ValueError(
            f"tasks: {len(rows)} problems do not fill a generation batch, which takes {needed}: take more, or lower"
            " trainer.per_device_train_batch_size or trainer.gradient_accumulation_steps"
        )
    for spec in rewards:
        if not any(all(matches(row.get(column), wanted) for column, wanted in spec.where.items()) for row in rows):
            raise ValueError(f"rewards: {spec.label!r} is asked about no problem: none has {spec.where}")
