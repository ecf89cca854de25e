"""What the rollout settings are called in the configs of TRL's trainers that sample."""

from __future__ import annotations

import os
from typing import Any

from pipeline.schema.pieces import RolloutSpec


def generation_fields(rollout: RolloutSpec) -> dict[str, Any]:
    """What the rollout settings are called in GRPOConfig."""
    from pipeline.rollout import TRANSFORMERS, VLLM, VLLM_SERVER, engine_name

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
    if chosen == VLLM_SERVER:
        fields |= {"vllm_mode": "server", "vllm_server_base_url": rollout.server}
    return fields
