"""Which of vLLM's engine arguments a recipe may give as `rollout.engine_options`; checked without importing vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.rollout.base import RolloutError
from pipeline.schema import trainer_fields
from rewards.registry import nearest

ENGINE_ARGUMENTS = "vllm.engine.arg_utils:EngineArgs"
OURS: Mapping[str, str] = {
    "model": "the stage's `model:`",
    "seed": "the stage's `seed:`",
    "gpu_memory_utilization": "`rollout.gpu_memory`",
    "generation_config": "always 'vllm', so that no hidden sampling defaults apply",
    **dict.fromkeys(
        ("nnodes", "node_rank", "master_addr", "master_port"),
        "`vllm serve`'s on each of several hosts, of which `rollout.server` names the first",
    ),
}
"""Engine arguments that are not a recipe's to give -> what sets them."""
TRAINERS: Mapping[str, str] = {
    "distributed_executor_backend": "the trainer's own, since its processes hold the engines",
    "enable_sleep_mode": "`trainer.vllm_enable_sleep_mode`",
    "logprobs_mode": "always 'processed_logprobs', which importance weights are taken from",
    "model_impl": "`trainer.vllm_model_impl`",
    "tensor_parallel_size": "`trainer.vllm_tensor_parallel_size`",
}
"""Further ones for an engine inside a trainer."""
PLAIN = {"int", "float", "bool", "str", "None"}
"""Types that a value can be held against; vLLM takes some others in several forms, and judges them itself."""


def check_options(options: Mapping[str, Any], training: bool = False) -> None:
    """Refuse engine options that the installed vLLM does not have, of a wrong type, or that are set elsewhere.

    Args:
        options: what a recipe says.
        training: whether the engine is one inside a trainer.

    Raises:
        RolloutError: names the nearest option, the type, or what to set instead.
    """
    elsewhere = {**OURS, **TRAINERS} if training else OURS
    try:
        known = trainer_fields.fields(ENGINE_ARGUMENTS)
    except LookupError:  # vLLM is on another machine; there it is asked again
        known = None
    for name, value in options.items():
        if name in elsewhere:
            raise RolloutError(f"engine_options: {name!r} is not set here; it is {elsewhere[name]}")
        if known is None:
            continue
        if name not in known:
            raise RolloutError(f"engine_options: vLLM has no option {name!r}{nearest(name, known)}")
        plain = set(known[name].annotation.split(" | ")) <= PLAIN
        if plain and (fault := trainer_fields.mismatch(known[name], value)) is not None:
            raise RolloutError(f"engine_options: {name!r} {fault}")
