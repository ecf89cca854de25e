"""YaRN: a model pre-trained on short texts reads long ones after a short training (arXiv 2309.00071).

Rotary dimensions that turn often within the original context keep their frequency, those that turn less than once are
slowed down by the factor s, and a ramp lies between; attention logits are sharpened by (0.1 ln s + 1)², because a
softmax over more keys is flatter. DeepSeek-V3 did this twice with the same s = 40 (arXiv 2412.19437, section 4.3): 1000
steps at 32K tokens, then 1000 at 128K, from 4K.

    >>> longer = yarn.extended(config, context=32_768, factor=40)
    >>> longest = yarn.extended(longer, context=131_072, factor=40)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

BETA_FAST, BETA_SLOW = 32, 1
"""Turns within the original context: dimensions with more keep their frequency, those with fewer are slowed down by s;
YaRN's β and α, and DeepSeek-V3's."""
SHARPNESS: Mapping[str, float] = {"deepseek_v2": 0.707, "deepseek_v3": 1.0}
"""Models that rotate only a part of every head -> m; their logits are sharpened by (0.1 m ln s + 1)² in the softmax."""


def parameters(original: int, factor: float, theta: float, sharpness: float | None) -> dict[str, Any]:
    """The `rope_parameters` of a config in transformers; vLLM reads them too.

    Args:
        original: tokens of context in pre-training.
        factor: s, by how much positions are interpolated.
        theta: base of the rotary frequencies.
        sharpness: m, for models that sharpen their logits in the softmax; `None` for those that are rotated as a
            whole, where transformers scales cosine and sine instead, to the same effect.
    """
    common = {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": float(factor),
        "original_max_position_embeddings": original,
        "beta_fast": BETA_FAST,
        "beta_slow": BETA_SLOW,
    }
    return common if sharpness is None else {**common, "mscale": sharpness, "mscale_all_dim": sharpness}


def extended(config: Any, context: int, factor: float | None = None) -> Any:
    """A copy of a model's config that reads `context` tokens.

    Args:
        config: of a transformers model with rotary positions, extended before or not.
        context: longest sequence, in tokens.
        factor: YaRN's s; context over original context if not given. Where several stages follow each other, give
            each the same one, as DeepSeek-V3 did: a model then gets used to one set of frequencies only.

    Raises:
        ValueError: the model has no rotary positions, or already scales them in another way; it reads that many tokens
            already; or the factor does not reach that far.
    """
    rope = getattr(config, "rope_parameters", None)
    if not rope or "rope_theta" not in rope:
        raise ValueError(f"{config.model_type} has no rotary positions, or several kinds; YaRN needs one")
    if rope["rope_type"] not in ("default", "yarn"):
        raise ValueError(f"the model's rotary positions are scaled already: {rope['rope_type']}")
    if context <= (now := config.max_position_embeddings):
        raise ValueError(f"the model reads {now} tokens already; {context} would extend nothing")
    original = rope.get("original_max_position_embeddings") or now
    factor = context / original if factor is None else factor
    if factor * original < context:
        raise ValueError(
            f"factor {factor:g} reaches {factor * original:g} tokens (original context {original}), not {context}"
        )
    longer = copy.deepcopy(config)
    longer.max_position_embeddings = context
    longer.rope_parameters = parameters(original, factor, rope["rope_theta"], SHARPNESS.get(config.model_type))
    return longer
