"""Whether a GRPO stage keeps a pass's activations for its backward pass, or computes them twice."""

from __future__ import annotations

from typing import Any

from pipeline.cost import memory
from pipeline.cost.config import ShapeError, from_config
from pipeline.cost.shape import Shape

KEPT_SHARE = 0.15
"""Share of the GPU that activations may take; the rest is for weights, gradients, the optimizer and the engine."""


def activation_bytes(config: Any, tokens: int) -> int:
    """Bytes that the layers of a decoder keep for the backward pass of so many tokens.

    Args:
        config: of a transformers model; its text part counts. Of experts, those that a token is sent to.
        tokens: of one pass.
    """
    return int(memory.activations(_shape(config.get_text_config()), memory.Setup(tokens)))


def keeps_activations(config: Any, tokens: int, device_bytes: int) -> bool:
    """Whether activations of a pass of so many tokens are small enough to be kept on a device of this size."""
    return activation_bytes(config, tokens) <= KEPT_SHARE * device_bytes


def _shape(text: Any) -> Shape:
    """The shape of a model; one of an architecture that is not known counts as a Llama of its widths."""
    try:
        return from_config(text.to_dict())
    except ShapeError:
        width = text.intermediate_size
        if experts := getattr(text, "num_experts_per_tok", None):
            shared = getattr(text, "n_shared_experts", None) or 0
            width = max(width, (experts + shared) * getattr(text, "moe_intermediate_size", width))
        sizes = {
            "hidden_size": text.hidden_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": getattr(text, "num_key_value_heads", None),
            "head_dim": getattr(text, "head_dim", None),
            "intermediate_size": width,
            "vocab_size": text.vocab_size,
        }
        return from_config({"model_type": "llama", **sizes})
