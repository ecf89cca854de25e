"""Shapes of DeepSeek-V3 models: a preset is a small YAML file under `configs/model/`, or a mapping in a recipe.

    >>> from model import presets
    >>> shape = presets.load("nano")
    >>> model = presets.build(shape, vocab_size=96, eos_token_id=1, pad_token_id=0, seed=0)
    >>> presets.count(shape, vocab_size=96).active

A shape is checked before torch is imported, so that a recipe with an impossible model fails at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from model import V3Config, V3ForCausalLM

Size = Annotated[int, Field(gt=0)]

SELECTION = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
"""How V3 routes. transformers implies it; vLLM reads it from the saved config and fails without."""

GROUP_SCORE_EXPERTS = 2
"""A group of experts is scored by the sum of its two best affinities (DeepSeek-V3, section 2.1.2)."""


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
        kv_lora_rank, q_lora_rank: width of the latent of keys and values, and of queries (`None`: not compressed).
        qk_nope_head_dim, qk_rope_head_dim, v_head_dim: width of a head's query and key without and with rotation,
            and of its value.
        max_position_embeddings: context, in tokens.
        rope_theta: base of the rotary frequencies.
        routed_scaling_factor: what the routed experts' normalised weights are multiplied with.
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
    first_k_dense_replace: Annotated[int, Field(ge=0)] = 1
    kv_lora_rank: Size
    q_lora_rank: Size | None = None
    qk_nope_head_dim: Size
    qk_rope_head_dim: Size
    v_head_dim: Size
    max_position_embeddings: Size
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    routed_scaling_factor: float = 1.0
    initializer_range: Annotated[float, Field(gt=0)] = 0.006
    rms_norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    tie_word_embeddings: bool = False

    @model_validator(mode="after")
    def _possible(self) -> Shape:
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim is rotated in pairs and must be even, not {self.qk_rope_head_dim}")
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ValueError(f"first_k_dense_replace={self.first_k_dense_replace} exceeds num_hidden_layers")
        if self.n_routed_experts % self.n_group:
            raise ValueError(f"n_group={self.n_group} does not divide n_routed_experts={self.n_routed_experts}")
        group = self.n_routed_experts // self.n_group
        if group < GROUP_SCORE_EXPERTS:
            raise ValueError(f"a group is scored by its two best experts, but n_group={self.n_group} leaves {group}")
        if self.topk_group > self.n_group:
            raise ValueError(f"topk_group={self.topk_group} exceeds n_group={self.n_group}")
        if self.num_experts_per_tok > group * self.topk_group:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} exceeds the {group * self.topk_group} experts in the"
                f" {self.topk_group} groups that a token may use"
            )
        return self


@dataclass(frozen=True, slots=True)
class Parameters:
    """How many weights a model has.

    Attributes:
        total: all of them.
        active: those that one token meets: everything but the routed experts it is not sent to.
    """

    total: int
    active: int


def names() -> list[str]:
    """The presets under `configs/model/`."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load(preset: str | Mapping[str, Any]) -> Shape:
    """A shape by the name of its preset, or from a mapping.

    Raises:
        ValueError: no such preset, an unknown key, or an impossible shape (pydantic's error is one).
    """
    if isinstance(preset, str):
        path = _folder() / f"{preset}.yaml"
        if not path.is_file():
            raise ValueError(f"there is no model preset {preset!r}. Known: {', '.join(names())}")
        preset = yaml.safe_load(path.read_text(encoding="utf-8"))
    return Shape.model_validate(preset)


def fields(shape: Shape) -> dict[str, Any]:
    """A shape as fields of `V3Config`."""
    return {
        **shape.model_dump(exclude={"rope_theta"}),
        **SELECTION,
        "num_key_value_heads": shape.num_attention_heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "bos_token_id": None,
        "dtype": "float32",
    }


def config(shape: Shape, vocab_size: int, eos_token_id: int, pad_token_id: int) -> V3Config:
    """The config of a shape, written so that vLLM can serve the saved model."""
    from model.config import V3Config

    tokens = {"vocab_size": vocab_size, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
    return V3Config(**fields(shape), **tokens)


def build(shape: Shape, vocab_size: int, eos_token_id: int, pad_token_id: int, seed: int) -> V3ForCausalLM:
    """A randomly initialised model in float32; the same seed gives the same weights."""
    import torch

    from model import V3ForCausalLM

    torch.manual_seed(seed)
    return V3ForCausalLM(config(shape, vocab_size, eos_token_id, pad_token_id))


def count(shape: Shape, vocab_size: int) -> Parameters:
    """Count the weights of a shape without allocating them."""
    import torch

    from model import V3ForCausalLM

    with torch.device("meta"):
        model = V3ForCausalLM(config(shape, vocab_size, eos_token_id=0, pad_token_id=0))
    total = sum(weight.numel() for weight in model.parameters())
    routed = sum(weight.numel() for name, weight in model.named_parameters() if ".mlp.experts." in name)
    return Parameters(
        total, total - routed * (shape.n_routed_experts - shape.num_experts_per_tok) // shape.n_routed_experts
    )


def _folder() -> Path:
    return Path(str(files("configs"))) / "model"
