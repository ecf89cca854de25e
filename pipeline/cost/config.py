"""The shape of a decoder, read from its Hugging Face config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.cost.shape import Attention, Experts, Latent, Shape


class ShapeError(ValueError):
    """A config that says too little, or is of an architecture that is not known here."""


def from_config(config: Mapping[str, Any]) -> Shape:
    """The shape that a Hugging Face config.json describes.

    Args:
        config: the file's content; of a multimodal model its text part counts.

    Raises:
        ShapeError: the architecture is not known, or a field is missing; says which.
    """
    nested = config.get("text_config")
    text: Mapping[str, Any] = {**config, **nested} if isinstance(nested, Mapping) else config
    kind = str(text.get("model_type", ""))
    if kind not in _READERS:
        raise ShapeError(f"model_type {kind or '(none)'} has no arithmetic here. Known: {', '.join(sorted(_READERS))}")
    try:
        return _READERS[kind](text, kind)
    except KeyError as error:
        raise ShapeError(f"the config of a {kind} model lacks {error.args[0]}") from None
    except (TypeError, ValueError) as error:
        raise ShapeError(f"the config of a {kind} model has a field that is not a size: {error}") from None


def _decoder(text: Mapping[str, Any], kind: str, attention: Attention | Latent, **more: Any) -> Shape:
    return Shape(
        hidden=_size(text, "hidden_size"),
        layers=_size(text, "num_hidden_layers"),
        vocabulary=_size(text, "vocab_size"),
        intermediate=_size(text, "intermediate_size"),
        attention=attention,
        tied=bool(text.get("tie_word_embeddings", kind in _TIED_UNLESS_SAID)),
        context=int(text.get("max_position_embeddings") or 0),
        model_type=kind,
        **more,
    )


def _grouped(text: Mapping[str, Any], kind: str) -> Shape:
    heads = _size(text, "num_attention_heads")
    width = int(text.get("head_dim") or _size(text, "hidden_size") // heads)
    kv_heads = int(text.get("num_key_value_heads") or heads)
    qwen2, told = kind == "qwen2", bool(text.get("attention_bias", False))
    attention = Attention(heads, kv_heads, width, qwen2 or told, told and not qwen2, norms=kind.startswith("qwen3"))
    experts = None
    if kind == "mixtral":
        width = _size(text, "intermediate_size")
        experts = Experts(_size(text, "num_local_experts"), _size(text, "num_experts_per_tok"), 0, width)
    elif kind == "qwen3_moe":
        told_experts = int(text.get("num_local_experts") or text.get("num_experts") or _size(text, "num_experts"))
        experts = Experts(told_experts, _size(text, "num_experts_per_tok"), 0, _size(text, "moe_intermediate_size"))
        if text.get("mlp_only_layers") or text.get("decoder_sparse_step", 1) != 1:
            raise ShapeError(
                "qwen3_moe with some dense layers (mlp_only_layers, decoder_sparse_step) is not known here"
            )
    return _decoder(text, kind, attention, experts=experts, mlp_bias=bool(text.get("mlp_bias", False)))


def _deepseek(text: Mapping[str, Any], kind: str) -> Shape:
    rank = text.get("q_lora_rank")
    attention = Latent(
        heads=_size(text, "num_attention_heads"),
        nope=_size(text, "qk_nope_head_dim"),
        rope=_size(text, "qk_rope_head_dim"),
        value=_size(text, "v_head_dim"),
        kv_rank=_size(text, "kv_lora_rank"),
        query_rank=None if rank is None else int(rank),
    )
    experts = Experts(
        routed=_size(text, "n_routed_experts"),
        active=_size(text, "num_experts_per_tok"),
        shared=int(text.get("n_shared_experts") or 0),
        width=_size(text, "moe_intermediate_size"),
        dense_layers=int(text.get("first_k_dense_replace", 0)),
    )
    return _decoder(text, kind, attention, experts=experts, mtp=int(text.get("num_nextn_predict_layers") or 0))


def _size(text: Mapping[str, Any], name: str) -> int:
    value = text[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}")
    return value


_READERS: Mapping[str, Callable[[Mapping[str, Any], str], Shape]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3", "mixtral", "qwen3_moe"), _grouped),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), _deepseek),
}
_TIED_UNLESS_SAID = frozenset({"smollm3"})
"""Architectures whose embedding and head are tied where a config does not say otherwise."""
