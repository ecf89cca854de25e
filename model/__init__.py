"""The DeepSeek-V3 architecture, trainable, in the official tensor names.

    >>> from model import V3Config, V3ForCausalLM
    >>> model = V3ForCausalLM(V3Config.preset("nano", vocab_size=96))

What is saved loads in `transformers.AutoModelForCausalLM` and in vLLM without remote code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.config import V3Config
    from model.modeling import DeepseekV3ForCausalLM as V3ForCausalLM

__all__ = ["V3Config", "V3ForCausalLM"]


def __getattr__(name: str) -> Any:
    """Import the classes, and torch with them, only when they are asked for."""
    if name == "V3Config":
        from model.config import V3Config

        return V3Config
    if name == "V3ForCausalLM":
        from model.modeling import DeepseekV3ForCausalLM

        return DeepseekV3ForCausalLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
