"""Linear layers whose three products (forward, gradient of the input, gradient of the weight) are in FP8.

    y  = x · Wᵀ    x in tiles of 1 x 128,   W in 128 x 128
    dx = dy · W    dy in 1 x 128,           W in 128 x 128
    dW = dyᵀ · x   both in 128 x 1

Weights, their gradients and the optimizer keep the precision they have (section 3.3.1 of arXiv 2412.19437). The
reference multiplies dequantised numbers in FP32: products of E4M3 numbers are exact in it, so it differs from the
kernels by the order of summation alone. As torchao does, it quantises the input anew for dW from its unrounded values;
DeepSeek keeps the FP8 input of the forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from model.fp8.quantise import BLOCK, COLUMN, ROW, SQUARE, filled, rounded


class _Reference(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x_TK, weight_NK)
        return _product(rounded(x_TK, ROW), rounded(weight_NK, SQUARE).T).to(x_TK.dtype)

    @staticmethod
    def backward(ctx: Any, grad_TN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x_TK, weight_NK = ctx.saved_tensors
        grad_TK = _product(rounded(grad_TN, ROW), rounded(weight_NK, SQUARE))
        grad_NK = _product(rounded(grad_TN, COLUMN).T, rounded(x_TK, COLUMN))
        return grad_TK.to(x_TK.dtype), grad_NK.to(weight_NK.dtype)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    with torch.autocast(a.device.type, enabled=False):  # the accumulator is FP32 whatever the trainer's precision is
        return a @ b


def reference(x_TK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
    """x · Wᵀ with FP8 operands, differentiable, on any device; T, N and K may be any numbers."""
    y_TN: torch.Tensor = _Reference.apply(x_TK, weight_NK)  # type: ignore[no-untyped-call]
    return y_TN


def torchao(x_TK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
    """x · Wᵀ by torchao's block-wise kernels (SM90), differentiable.

    They want every dimension to be a multiple of 128: what is missing is filled up with zeros, which changes no tile.
    """
    from torchao.prototype.blockwise_fp8_training.linear import fp8_blockwise_mm

    x, weight = filled(x_TK, SQUARE).contiguous(), filled(weight_NK, SQUARE).contiguous()
    y_TN: torch.Tensor = fp8_blockwise_mm.apply(x, weight, BLOCK, torch.bfloat16, False)
    y_TN = y_TN[: x_TK.shape[0], : weight_NK.shape[0]]
    return y_TN if torch.is_autocast_enabled(x_TK.device.type) else y_TN.to(x_TK.dtype)


PRODUCTS = {"reference": reference, "torchao": torchao}


class FP8Linear(nn.Linear):
    """A linear layer that shares the weight of another and multiplies in FP8.

    Args:
        linear: the layer to stand in for; it has no bias.
        backend: a key of `PRODUCTS`.
    """

    def __init__(self, linear: nn.Linear, backend: str) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.backend = backend

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(…, in) -> (…, out)."""
        y_TN = PRODUCTS[self.backend](input.reshape(-1, self.in_features), self.weight)
        return y_TN.view(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """As `nn.Linear`'s, with the backend."""
        return f"{super().extra_repr()}, backend={self.backend}"
