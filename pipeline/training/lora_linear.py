"""Linear layers with an adapter whose forward and backward pass touch memory as little as they can.

PEFT computes `base(x) + B(A(x)) * scaling` by separate operations, some in float32, which read and write whole
activations. Here the product of `A(x)` and `B` is added where the base's output already lies, in both directions: for a
1.5B model a third of the bytes. `benchmarks/lora.py` measures it.

Axes: T tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


class AddLowRank(torch.autograd.Function):
    """`x W' + bias + scaling * (x A') B'`, with gradients for x, A and B alone; sums are rounded once."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TI: torch.Tensor,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        down_RI: torch.Tensor,
        up_OR: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        low_TR = linear(x_TI, down_RI)
        ctx.save_for_backward(x_TI, weight_OI, down_RI, up_OR, low_TR)
        ctx.scaling = scaling
        return linear(x_TI, weight_OI, bias_O).addmm_(low_TR, up_OR.T, alpha=scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TI, weight_OI, down_RI, up_OR, low_TR = ctx.saved_tensors
        low_grad_TR = ctx.scaling * (grad_TO @ up_OR)
        x_grad_TI = (grad_TO @ weight_OI).addmm_(low_grad_TR, down_RI) if ctx.needs_input_grad[0] else None
        return x_grad_TI, None, None, low_grad_TR.T @ x_TI, ctx.scaling * (grad_TO.T @ low_TR), None


class LoraLinear(Linear):  # type: ignore[misc]
    """PEFT's layer; where one plain adapter is at work on a frozen base, computed by `AddLowRank`."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        name = self._plain_adapter()
        if name is None or args or kwargs:
            return super().forward(x, *args, **kwargs)  # type: ignore[no-any-return]
        device = x.device.type
        computed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        base, down, up = self.base_layer, self.lora_A[name], self.lora_B[name]
        weights = (base.weight, base.bias, down.weight, up.weight)
        with torch.autocast(device, enabled=False):
            cast = [None if weight is None else weight.to(computed) for weight in weights]
            flat: torch.Tensor = AddLowRank.apply(  # type: ignore[no-untyped-call]
                x.to(computed).reshape(-1, x.shape[-1]), *cast, self.scaling[name]
            )
        return flat.view(*x.shape[:-1], -1)

    def _plain_adapter(self) -> str | None:
        """The adapter at work, if it is the only one and nothing but `A` and `B`."""
        frozen = not self.base_layer.weight.requires_grad
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1 or not frozen:
            return None
        (name,) = self.active_adapters
        plain = name in self.lora_A and name not in self.lora_variant and not self.lora_bias[name]
        return name if plain and isinstance(self.lora_dropout[name], nn.Identity) else None


def lighten(model: nn.Module) -> None:
    """Have PEFT's layers with ordinary linear layers in them computed by `AddLowRank`."""
    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) is nn.Linear:
            module.__class__ = LoraLinear
