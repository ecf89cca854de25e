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

    @staticmethod
    def preset(name: str, **changes: Any) -> V3Config:
        """A preset under `configs/model/`; `changes` are fields that replace the preset's.

        Returns:
            A `V3Config`, or a `V2Config` for a preset with one of V2's gates.

        Raises:
            ValueError: no such preset, or an impossible shape.
        """
        of_shape = presets.Shape.model_fields.keys() & changes.keys()
        shape = presets.load({"preset": name, **{field: changes[field] for field in of_shape}})
        others = {field: value for field, value in changes.items() if field not in of_shape}
        return config_class(shape.topk_method)(**{**presets.fields(shape), **others})


class V2Config(V3Config):
    """Config of a model with one of V2's gates (`greedy`, `group_limited_greedy`), saved as `deepseek_v2`.

    transformers' DeepseekV3 computes V3's gate whatever the config says; its DeepseekV2 computes these.
    """

    model_type = "deepseek_v2"
    topk_method: str = "greedy"
    scoring_func: str = "softmax"
    norm_topk_prob: bool | None = False


def config_class(topk_method: str) -> type[V3Config]:
    """The class of configs with this gate."""
    return V3Config if topk_method == presets.V3_METHOD else V2Config
