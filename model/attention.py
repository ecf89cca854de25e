"""Multi-head latent attention (MLA): keys and values are kept as one small latent a token."""

from __future__ import annotations

from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention


class V3Attention(DeepseekV3Attention):  # type: ignore[misc]
    """transformers' MLA."""
