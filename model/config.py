"""`V3Config`: transformers' DeepseekV3Config, written so that vLLM can serve what is saved."""

from __future__ import annotations

from typing import Any

from transformers import DeepseekV3Config

from model import presets


class V3Config(DeepseekV3Config):  # type: ignore[misc]
    """Config of a DeepSeek-V3 model, in the official names.

    Args:
        topk_method: how experts are selected; `noaux_tc` is V3's biased, group-limited selection.
        scoring_func: the affinity of token and expert: `sigmoid` (V3) or `softmax` (V2).
    """

    topk_method: str = "noaux_tc"
    scoring_func: str = "sigmoid"
    num_mtp_layers: int = 0

    @classmethod
    def preset(cls, name: str, **changes: Any) -> V3Config:
        """A preset under `configs/model/`; `changes` are fields that replace the preset's.

        Raises:
            ValueError: no such preset, or an impossible shape.
        """
        return cls(**presets.fields(presets.load(name)), **changes)
