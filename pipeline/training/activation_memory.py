"""What the activations of a pass take, and whether to compute them twice rather than keep them."""

from __future__ import annotations

from typing import Any

_PER_HIDDEN = 44
"""Bytes that a layer keeps for the backward pass, a token and unit of hidden size, in mixed precision: two norms keep
their inputs in float32, and the attention about eighteen vectors in bfloat16."""
_PER_INTERMEDIATE = 8
"""Bytes a token and unit of the feed-forward part's width: gate, its activation, up, and their product in bfloat16."""
_SHARE = 0.15
"""Share of the GPU that activations may take; the rest is for weights, gradients, the optimizer and the engine."""


def activation_bytes(config: Any, tokens: int) -> int:
    """Bytes that the layers of a decoder keep for the backward pass of so many tokens, roughly.

    Args:
        config: of a transformers model; its text part counts. Of experts, those that a token is sent to.
        tokens: of one pass.
    """
    text = config.get_text_config()
    width = text.intermediate_size
    if experts := getattr(text, "num_experts_per_tok", None):
        shared = getattr(text, "n_shared_experts", None) or 0
        width = max(width, (experts + shared) * getattr(text, "moe_intermediate_size", width))
    a_token = text.num_hidden_layers * (_PER_HIDDEN * text.hidden_size + _PER_INTERMEDIATE * width)
    return int(tokens * a_token)


def keeps_activations(config: Any, tokens: int, device_bytes: int) -> bool:
    """Whether activations of a pass of so many tokens are small enough to be kept on a device of this size."""
    return activation_bytes(config, tokens) <= _SHARE * device_bytes
