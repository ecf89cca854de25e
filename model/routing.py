"""Routing of tokens to experts."""

from __future__ import annotations

from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE, DeepseekV3TopkRouter


class V3Router(DeepseekV3TopkRouter):  # type: ignore[misc]
    """transformers' V3 gate."""


class V3MoE(DeepseekV3MoE):  # type: ignore[misc]
    """Routed and shared experts, chosen by `V3Router`."""

    def __init__(self, config: object) -> None:
        super().__init__(config)
        self.gate = V3Router(config)
