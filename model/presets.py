"""Shapes of DeepSeek-V3 models: presets are small YAML files under `configs/model/`, whose fields a recipe may change.

    >>> from model import factory, presets
    >>> shape = presets.load("nano")
    >>> model = factory.build(shape, vocab_size=96, eos_token_id=1, pad_token_id=0, seed=0)
    >>> factory.count(shape, vocab_size=96).active

A shape is checked before torch is imported, so that a recipe with an impossible model fails at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

Size = Annotated[int, Field(gt=0)]

V3_METHOD = "noaux_tc"
"""The name, in configs, of V3's selection without an auxiliary loss."""

GATES = {V3_METHOD: "sigmoid", "greedy": "softmax", "group_limited_greedy": "softmax"}
"""Ways to choose experts -> the affinity that goes with each: V3's, V2-Lite's, V2's."""

FP8_BLOCK = 128
"""Side of a block of weights that shares a scale in FP8 (DeepSeek-V3, section 3.3.2)."""

GROUP_SCORE_EXPERTS = 2
"""V3 scores a group of experts by the sum of its two best affinities (DeepSeek-V3, section 2.1.2), V2 by its best."""

VLLM_WIDTHS = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "kv_lora_rank": 512}
"""What vLLM's kernels for latent attention on GPUs are written for: the published models' widths."""


class Yarn(BaseModel):
    """YaRN's extension of the context (Peng et al., arXiv 2309.00071), in the names of published configs.

    Attributes:
        factor: how many times longer the context is than the original one.
        original_max_position_embeddings: context before the extension, in tokens.
        beta_fast, beta_slow: rotations within the original context above which a dimension is kept as it is, and
            below which it is interpolated.
        mscale, mscale_all_dim: scale of the attention's temperature; DeepSeek-V3 sets both to 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    factor: Annotated[float, Field(gt=1)]
    original_max_position_embeddings: Size
    beta_fast: Annotated[float, Field(gt=0)] = 32.0
    beta_slow: Annotated[float, Field(gt=0)] = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0


class Shape(BaseModel):
    """The shape of a DeepSeek-V3 model, in the official names.

    Attributes:
        hidden_size: width of the residual stream.
        intermediate_size: width of the dense feed-forward layers.
        moe_intermediate_size: width of one expert.
        num_hidden_layers: number of layers; the first `first_k_dense_replace` are dense.
        num_attention_heads: number of heads.
        n_shared_experts, n_routed_experts, num_experts_per_tok: experts that see every token, experts to choose
            from, and how many of those see a token.
        n_group, topk_group: groups that the experts are split into, and how many of them a token may use.
        topk_method, scoring_func: how experts are chosen, and the affinity they are chosen by: `noaux_tc` and `sigmoid`
            (V3), `group_limited_greedy` and `softmax` (V2), `greedy` and `softmax` (V2-Lite).
        norm_topk_prob: whether the chosen experts' weights are made to sum to one.
        kv_lora_rank, q_lora_rank: width of the latent of keys and values, and of queries (`None`: not compressed).
        qk_nope_head_dim, qk_rope_head_dim, v_head_dim: width of a head's query and key without and with rotation,
            and of its value.
        max_position_embeddings: context, in tokens.
        rope_theta: base of the rotary frequencies.
        rope_scaling: extension of the context by YaRN.
        num_nextn_predict_layers: blocks of multi-token prediction on top of the layers.
        routed_scaling_factor: what the routed experts' weights are multiplied with.
        initializer_range: standard deviation of the initial weights.
        rms_norm_eps: added to the mean square in every norm.
        tie_word_embeddings: whether embedding and head share their weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    hidden_size: Size
    intermediate_size: Size
    moe_intermediate_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    n_shared_experts: Size = 1
    n_routed_experts: Size
    num_experts_per_tok: Size
    n_group: Size = 1
    topk_group: Size = 1
    topk_method: Literal["noaux_tc", "greedy", "group_limited_greedy"] = "noaux_tc"
    scoring_func: Literal["sigmoid", "softmax"] = "sigmoid"
    norm_topk_prob: bool = True
    first_k_dense_replace: Annotated[int, Field(ge=0)] = 1
    kv_lora_rank: Size
    q_lora_rank: Size | None = None
    qk_nope_head_dim: Size
    qk_rope_head_dim: Size
    v_head_dim: Size
    max_position_embeddings: Size
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    rope_scaling: Yarn | None = None
    num_nextn_predict_layers: Annotated[int, Field(ge=0)] = 0
    routed_scaling_factor: float = 1.0
    initializer_range: Annotated[float, Field(gt=0)] = 0.006
    rms_norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    tie_word_embeddings: bool = False

    @property
    def experts_fit_fp8(self) -> bool:
        """Whether the experts' weights divide into whole FP8 blocks."""
        return self.hidden_size % FP8_BLOCK == 0 and self.moe_intermediate_size % FP8_BLOCK == 0

    @model_validator(mode="after")
    def _possible(self) -> Shape:
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim is rotated in pairs and must be even, not {self.qk_rope_head_dim}")
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ValueError(f"first_k_dense_replace={self.first_k_dense_replace} exceeds num_hidden_layers")
        return self

    @model_validator(mode="after")
    def _routable(self) -> Shape:
        if GATES[self.topk_method] != self.scoring_func:
            known = ", ".join(f"{method} with {affinity}" for method, affinity in GATES.items())
            raise ValueError(f"no gate has {self.topk_method} with {self.scoring_func}; there are {known}")
        if self.topk_method == "greedy" and self.n_group > 1:
            raise ValueError(f"greedy knows no groups: with n_group={self.n_group} use group_limited_greedy")
        if self.n_routed_experts % self.n_group:
            raise ValueError(f"n_group={self.n_group} does not divide n_routed_experts={self.n_routed_experts}")
        group = self.n_routed_experts // self.n_group
        if self.topk_method == V3_METHOD and group < GROUP_SCORE_EXPERTS:
            raise ValueError(f"a group is scored by its two best experts, but n_group={self.n_group} leaves {group}")
        if self.topk_group > self.n_group:
            raise ValueError(f"topk_group={self.topk_group} exceeds n_group={self.n_group}")
        if self.num_experts_per_tok > group * self.topk_group:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} exceeds the {group * self.topk_group} experts in the"
                f" {self.topk_group} groups that a token may use"
            )
        if self.norm_topk_prob and self.topk_method != V3_METHOD:
            raise ValueError(
                f"norm_topk_prob with {self.topk_method}: DeepSeek-V2's gates do not make weights sum to one, and"
                " transformers' cannot; set it to false"
            )
        return self

    @model_validator(mode="after")
    def _extended(self) -> Shape:
        if self.rope_scaling is not None:
            longest = int(self.rope_scaling.factor * self.rope_scaling.original_max_position_embeddings)
            if self.max_position_embeddings > longest:
                raise ValueError(
                    f"max_position_embeddings={self.max_position_embeddings} exceeds what YaRN reaches: {longest}"
                )
        return self


def names() -> list[str]:
    """The presets under `configs/model/`."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load(preset: str | Mapping[str, Any]) -> Shape:
    """A shape by the name of its preset, or from a mapping of fields.

    A mapping with the key `preset` takes the fields that it lacks from there: `{preset: small, rope_theta: 50000.0}`.

    Raises:
        ValueError: no such preset, an unknown key, or an impossible shape (pydantic's error is one).
    """
    if isinstance(preset, str):
        return load({"preset": preset})
    changes = dict(preset)
    if (name := changes.pop("preset", None)) is None:
        return Shape.model_validate(changes)
    if name not in names():
        raise ValueError(f"there is no model preset {name!r}. Known: {', '.join(names())}")
    preset_fields = yaml.safe_load((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    return Shape.model_validate({**preset_fields, **changes})


def fields(shape: Shape) -> dict[str, Any]:
    """A shape as fields of `V3Config`."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_theta}
    if shape.rope_scaling is not None:
        rope |= {"rope_type": "yarn", **shape.rope_scaling.model_dump()}
    return {
        **shape.model_dump(exclude={"rope_theta", "rope_scaling"}),
        "num_key_value_heads": shape.num_attention_heads,
        "rope_parameters": rope,
        "bos_token_id": None,
        "dtype": "float32",
    }


def check_vllm(config: Any) -> str | None:
    """Why vLLM's GPU kernels cannot serve the latent attention of a shape or a config, if they cannot."""
    wrong = {name: getattr(config, name) for name, width in VLLM_WIDTHS.items() if getattr(config, name) != width}
    if not wrong:
        return None
    return (
        f"vLLM's kernels for latent attention on GPUs need {_listed({name: VLLM_WIDTHS[name] for name in wrong})}, and"
        f" this model has {_listed(wrong)}: set VLLM_MLA_DISABLE=1 to serve it with ordinary attention"
    )


def _listed(widths: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={width}" for name, width in widths.items())


def _folder() -> Path:
    return Path(str(files("configs"))) / "model"
