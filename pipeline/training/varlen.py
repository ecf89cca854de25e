"""Attention within sequences that lie one after another in one row, for transformers' models.

Left alone, transformers sees from restarting `position_ids` that a row is packed, and builds a block-diagonal mask of
tokens x tokens: right, but its cost grows with the square of the row, and on a GPU it rules the fast kernels out. Here
a model is told to attend through `attention`, which is transformers' own SDPA unless it is given the boundaries of
sequences (`cu_seq_lens_q`: flash attention's callers, and TRL's packed batches, call them so). With boundaries it uses
torch's variable-length flash kernel on a GPU, and one causal SDPA call a sequence elsewhere; neither can see across a
boundary.
"""

from __future__ import annotations

import inspect
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "zero2r1_varlen"
_KERNEL_DTYPES = (torch.bfloat16, torch.float16)
_KERNEL_HEAD = 256
"""Widest attention head that flash attention takes."""


def install(model: Any) -> bool:
    """Let a model attend through `attention`, if it attends with plain SDPA over whole sequences.

    Returns:
        Whether it does now. A model with another implementation (flash attention, flex, eager), or with sliding
        windows, keeps its own, and packed rows are told apart by their positions alone.
    """
    config = model.config.get_text_config()
    plain = {"full_attention"} >= set(getattr(config, "layer_types", None) or ())
    if model.config._attn_implementation == NAME:
        return True
    if model.config._attn_implementation != "sdpa" or not plain:
        return False
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)
    model.set_attn_implementation(NAME)
    return bool(model.config._attn_implementation == NAME)


def boundaries(lengths: list[int], device: torch.device) -> dict[str, Any]:
    """What to call a model with, besides ids and positions, so that sequences of these lengths are told apart."""
    ends_S = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    longest = max(lengths)
    return {
        "cu_seq_lens_q": ends_S,
        "cu_seq_lens_k": ends_S,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def mask(
    batch_size: int, q_length: int, kv_length: int, attention_mask: Any = None, device: Any = "cpu", **kwargs: Any
) -> torch.Tensor | None:
    """The mask that `attention` is given; see transformers' `AttentionMaskInterface`.

    None is needed for a packed row, which transformers announces by ruling out a plain causal mask. It gets one without
    elements: a layer that has lost the boundaries on the way then fails, instead of attending across them. None is
    needed either where rows are padded on the right alone: no token looks ahead, and nothing asks what padding becomes.
    """
    plain = kwargs.get("allow_is_causal_skip", True)
    if attention_mask is None and q_length == kv_length and not plain:
        return torch.empty((1, 1, 0, 0), dtype=torch.bool, device=device)
    if attention_mask is not None and q_length == kv_length and plain and _padded_right(attention_mask):
        return None
    found: torch.Tensor | None = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        attention_mask=attention_mask,
        device=device,
        **kwargs,
    )
    return found


def _padded_right(mask_BT: torch.Tensor) -> bool:
    """Whether each row is real tokens first, and padding behind them."""
    if mask_BT.dim() != 2:
        return False
    real_BT = mask_BT.bool()
    return bool(real_BT[:, 0].all() and (real_BT[:, :-1] | ~real_BT[:, 1:]).all())


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend; see transformers' `AttentionInterface`.

    Args:
        query, key, value: (batch, heads, tokens, width); with boundaries the batch is 1.
        cu_seq_lens_q: (sequences + 1,) where each sequence begins, and where the last one ends.
        max_length_q: tokens of the longest sequence.

    Returns:
        (batch, tokens, heads, width of the values)
    """
    if cu_seq_lens_q is None or max_length_q is None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if _kernel_can(query, dropout):
        return _kernel(query, key, value, cu_seq_lens_q, max_length_q, scaling), None
    pieces = [
        scaled_dot_product_attention(
            query[:, :, start:end],
            key[:, :, start:end],
            value[:, :, start:end],
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=key.size(1) != query.size(1),
        )
        for start, end in pairwise(cu_seq_lens_q.tolist())
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


def _kernel_can(query: torch.Tensor, dropout: float) -> bool:
    if query.device.type != "cuda" or dropout or query.size(-1) > _KERNEL_HEAD or query.size(-1) % 8:
        return False
    return _dtype(query) in _KERNEL_DTYPES


@cache
def _kernel_groups() -> bool:
    """Whether this torch's kernel takes fewer keys than queries; 2.11's does not."""
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def _dtype(query: torch.Tensor) -> torch.dtype:
    """The type that SDPA would compute in: autocast casts it, and knows nothing of the variable-length kernel."""
    device = query.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype


def _kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends_S: torch.Tensor, longest: int, scale: float | None
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    width, groups = value.size(-1), query.size(1) // key.size(1)
    value = pad(value, (0, query.size(-1) - width))  # latent attention has narrower values; the kernel wants one width
    grouped: dict[str, Any] = {"enable_gqa": groups > 1} if _kernel_groups() else {}
    if not grouped and groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    q_THD, k_THD, v_THD = (part[0].transpose(0, 1).to(_dtype(query)).contiguous() for part in (query, key, value))
    scale = query.size(-1) ** -0.5 if scale is None else scale
    causal = (-1, 0)
    out_THD: Any = varlen_attn(
        q_THD, k_THD, v_THD, ends_S, ends_S, longest, longest, scale=scale, window_size=causal, **grouped
    )
    result: torch.Tensor = out_THD[..., :width].unsqueeze(0)
    return result
