"""Root-mean-square norms as one differentiable operation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RMSNorm


class _RmsNorm(torch.autograd.Function):
    """y = w x / r with r² = mean(x²) + ε. One reduction forward; two, and three passes, backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale, weight)
        return torch.mul(x, scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, scale, weight = ctx.saved_tensors
        product = gradients[0] * x
        along = (product @ weight).unsqueeze(-1).mul_(scale.square()).div_(x.shape[-1])
        weight_gradient = scale.flatten() @ product.flatten(0, -2)
        return torch.addcmul(gradients[0] * weight, x, along, value=-1).mul_(scale), weight_gradient, None


class KernelRMSNorm(DeepseekV3RMSNorm):  # type: ignore[misc]
    """transformers' norm; on a GPU as torch's one kernel.

    transformers' six operations are six kernels there, and a decoding step has no time but that of launching kernels.
    torch's rounds a result in bfloat16 once, transformers' twice. Where activations and weights differ in type, as some
    do under autocast, it is transformers'.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise the last dimension."""
        if hidden_states.device.type == "cuda" and hidden_states.dtype == self.weight.dtype:
            return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
        return super().forward(hidden_states)  # type: ignore[no-any-return]


class V3RMSNorm(KernelRMSNorm):
    """The same; on a CPU in float32 with fewer passes over memory, where they are what it costs.

    Attributes:
        fused: off where a backward pass is split, which torch 2.11 cannot do at a function of ours.
    """

    fused = True

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise the last dimension."""
        fast = hidden_states.device.type == "cpu" and hidden_states.dtype == self.weight.dtype == torch.float32
        if fast and self.fused:  # with and without gradients, so that what is recomputed comes out the same to the bit
            normed: Tensor = _RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
            return normed
        return super().forward(hidden_states)
