"""Routed experts: tokens are sorted by expert once, each matrix is one grouped product, and results come back in order.

transformers' grouped implementation computes the same. Its gradients scatter into tokens by adding; here a token's
copies are known, so they are gathered and summed: no atomic additions, no sorting in the backward pass, and results
that do not depend on the order in which threads finish.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts

GROUPED = "grouped_mm"
"""The implementation, in transformers' words, that this module replaces."""


class _Spread(torch.autograd.Function):
    """Copies of tokens in the order of their experts."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token_S: Tensor, place_S: Tensor) -> Tensor:
        ctx.save_for_backward(place_S)
        ctx.tokens = len(x_TD)
        return x_TD.index_select(0, token_S)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (place_S,) = ctx.saved_tensors
        return gradients[0].index_select(0, place_S).view(ctx.tokens, -1, gradients[0].shape[1]).sum(1), None, None


class _Gather(torch.autograd.Function):
    """Each token's sum over its experts: the adjoint of `_Spread`."""

    @staticmethod
    def forward(ctx: Any, y_SD: Tensor, token_S: Tensor, place_S: Tensor, tokens: int) -> Tensor:
        ctx.save_for_backward(token_S)
        return y_SD.index_select(0, place_S).view(tokens, -1, y_SD.shape[1]).sum(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (token_S,) = ctx.saved_tensors
        return gradients[0].index_select(0, token_S), None, None, None


class _SwiGlu(torch.autograd.Function):
    """silu(gate) · up, which keeps two tensors for its gradient instead of three."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradients[0] * up, gate), F.silu(gate).mul_(gradients[0])


class V3Experts(DeepseekV3Experts):  # type: ignore[misc]
    """The routed experts of a layer, under transformers' names."""

    def forward(self, hidden_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Each token's weighted sum over its experts' outputs.

        transformers' implementations run where others are asked for, and where a rank holds only some of the experts.

        Args:
            hidden_TD: tokens.
            experts_TK: ids of each token's experts.
            weights_TK: their weights.
        """
        whole = len(self.gate_up_proj) == self.config.n_routed_experts
        if self.config._experts_implementation != GROUPED or not whole:
            return super().forward(hidden_TD, experts_TK, weights_TK)  # type: ignore[no-any-return]
        device = hidden_TD.device
        casts = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if casts else self.gate_up_proj.dtype
        tokens, chosen = experts_TK.shape
        sorted_S, order_S = experts_TK.flatten().sort(stable=True)
        place_S = torch.empty_like(order_S).scatter_(0, order_S, torch.arange(len(order_S), device=device))
        experts_E = torch.arange(len(self.gate_up_proj), device=device)
        ends_E = torch.searchsorted(sorted_S, experts_E, right=True).int()
        token_S = order_S // chosen
        x_SD: Tensor = _Spread.apply(hidden_TD.to(dtype), token_S, place_S)  # type: ignore[no-untyped-call]
        inner_SJ = F.grouped_mm(x_SD, self.gate_up_proj.to(dtype).transpose(1, 2), offs=ends_E)
        weight_S = weights_TK.flatten().index_select(0, order_S)
        inner_SI: Tensor = _SwiGlu.apply(*inner_SJ.chunk(2, dim=-1))  # type: ignore[no-untyped-call]
        inner_SI = inner_SI * weight_S.unsqueeze(-1).to(dtype)
        y_SD = F.grouped_mm(inner_SI, self.down_proj.to(dtype).transpose(1, 2), offs=ends_E)
        out_TD: Tensor = _Gather.apply(y_SD, token_S, place_S, tokens)  # type: ignore[no-untyped-call]
        return out_TD.to(hidden_TD.dtype)
