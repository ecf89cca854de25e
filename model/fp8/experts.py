"""Routed experts in FP8, as implementations that transformers' experts modules can be switched to.

Tokens are sorted by expert; each expert's products are those of `model.fp8.linear` over its own tokens, so that no tile
of the weight gradient mixes the tokens of two experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from model.fp8.linear import reference

Grouped = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(x_TK sorted by expert, weight_ENK, where each expert's tokens end) -> y_TN."""


def grouped_reference(x_TK: torch.Tensor, weight_ENK: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    """Each expert's x · Wᵀ by the reference, one expert after another."""
    parts, start = [], 0
    for weight_NK, end in zip(weight_ENK.unbind(), ends_E.tolist(), strict=True):
        parts.append(reference(x_TK[start:end], weight_NK))
        start = end
    return torch.cat(parts)


def grouped_torchao(x_TK: torch.Tensor, weight_ENK: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    """Each expert's x · Wᵀ by torchao: DeepGEMM's kernels where installed, else dequantised BF16 products."""
    from torchao.prototype.moe_training.blockwise_fp8.grouped_mm import _to_fp8_blockwise_then_scaled_grouped_mm

    y_TN: torch.Tensor = _to_fp8_blockwise_then_scaled_grouped_mm(
        x_TK.contiguous(), weight_ENK.transpose(-2, -1), offs=ends_E, out_dtype=torch.bfloat16
    )
    return y_TN


GROUPED: dict[str, Grouped] = {"reference": grouped_reference, "torchao": grouped_torchao}


def implementation(backend: str) -> Callable[..., torch.Tensor]:
    """The forward pass of an experts module, as transformers' `ExpertsInterface` takes it."""
    grouped = GROUPED[backend]

    def forward(
        self: nn.Module, hidden_TD: torch.Tensor, top_k_index_TK: torch.Tensor, top_k_weights_TK: torch.Tensor
    ) -> torch.Tensor:
        module: Any = self
        ids_S, order_S = top_k_index_TK.flatten().sort(stable=True)
        counts_E = torch.bincount(ids_S, minlength=module.num_experts)[: module.num_experts]
        ends_E = counts_E.cumsum(0).to(torch.int32)
        kept_S = order_S[: int(ends_E[-1])]  # expert parallelism marks other ranks' tokens with an id past the last
        token_S = kept_S // top_k_index_TK.shape[-1]
        hidden_SI = module._apply_gate(grouped(hidden_TD[token_S], module.gate_up_proj, ends_E))
        out_SD = grouped(hidden_SI, module.down_proj, ends_E) * top_k_weights_TK.flatten()[kept_S, None]
        return torch.zeros_like(hidden_TD).index_add(0, token_S, out_SD.to(hidden_TD.dtype))

    return forward
