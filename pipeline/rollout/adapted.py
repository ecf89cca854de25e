"""The weights of a policy as one model, whatever it is made of: shards, quantised matrices, a base with an adapter.

    for name, read in parameters(policy):   # the names of the model without its adapter
        weight = read(torch.bfloat16)       # W + (alpha / rank) B A, in float32, rounded once

Nothing is merged in place. In bfloat16 that would alter the base: after fifty rounds of merging and unmerging, 3 to
43 % of its weights have moved, and the reference of the KL divergence with them. A quantised matrix is read as the
values that its base computes with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

Read = Callable[[torch.dtype | None], Tensor]
"""Gives the whole tensor in some type, its own if `None`. Collective where it is sharded."""

QUANTISED = ("Params4bit", "Int8Params")
"""Classes of bitsandbytes' parameters, by name: the package need not be there."""
BASE = ".base_layer"
"""What PEFT puts into the names of what carries an adapter."""


def base_of(model: Any) -> Any:
    """The model that carries an adapter; a model without one is its own base. Wrappers must be off."""
    from accelerate.utils import is_peft_model

    return model.get_base_model() if is_peft_model(model) else model


def parameters(model: Any) -> Iterator[tuple[str, Read]]:
    """Names and readers of a model's parameters, tied ones once; a base and its adapter are one."""
    base = base_of(model)
    if base is model:
        yield from ((name, partial(whole, parameter)) for name, parameter in model.named_parameters())
        return
    owners = {id(weight): module for module in base.modules() for weight in module.parameters(recurse=False)}
    updates, own = _updates(base)
    for name, parameter in base.named_parameters():
        if id(parameter) in own or ".original_module." in name:
            continue
        plain = name.replace(BASE, "").replace(".modules_to_save.default", "")
        yield plain, partial(_read, parameter, owners[id(parameter)], updates.get(id(parameter)))


def whole(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The full tensor without gradient, in some type; cast before it is gathered, which halves what is sent."""
    tensor = tensor.detach()
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    if isinstance(tensor, DTensor):
        sharded: Any = tensor.to(tensor.device_mesh.device_type)  # it may be off-loaded
        tensor = sharded.full_tensor()
    return tensor


def _updates(base: nn.Module) -> tuple[dict[int, Any], set[int]]:
    """PEFT's layer of each parameter that carries an adapter, and the adapters' own parameters, all by `id`."""
    from peft.tuners.lora.layer import LoraLayer

    updates: dict[int, Any] = {}
    own: set[int] = set()
    for layer in base.modules():
        if not isinstance(layer, LoraLayer):
            continue
        updates[id(getattr(layer.get_base_layer(), getattr(layer, "parameter_name", "weight")))] = layer
        for name in layer.adapter_layer_names:
            own |= {id(parameter) for parameter in getattr(layer, name).parameters()}
    return updates, own


@torch.no_grad()
def _read(parameter: Tensor, owner: Any, layer: Any, dtype: torch.dtype | None) -> Tensor:
    """A weight of the base with the update of its layer, if it has one."""
    if type(parameter).__name__ in QUANTISED:
        dequantised, computed = _dequantised(owner)
        if layer is None:
            return dequantised.to(dtype or computed)
        return _updated(dequantised.float(), layer).to(dtype or computed)
    if layer is None:
        return whole(parameter, dtype)
    return _updated(whole(parameter).float(), layer).to(dtype or parameter.dtype)


def _dequantised(owner: Any) -> tuple[Tensor, torch.dtype]:
    """The values of a quantised matrix, and the type that its layer computes in."""
    from peft.utils.integrations import dequantize_module_weight

    computed = getattr(owner, "compute_dtype", None) or torch.float16  # LLM.int8() computes in float16
    values: Tensor = dequantize_module_weight(owner)
    return values, computed


def _updated(weight: Tensor, layer: Any) -> Tensor:
    """W + s B A, for each expert of a stack by itself; with DoRA its columns have the magnitudes that were learnt.

    Args:
        weight: the base's, in float32: (out, in); Conv1D's (in, out); or (experts, …, …).
        layer: PEFT's.
    """
    (adapter,) = layer.lora_A.keys()
    a, b = (whole(part[adapter].weight, torch.float32).to(weight.device) for part in (layer.lora_A, layer.lora_B))
    experts = getattr(layer, "num_experts", 1)
    if experts > 1:  # A: (experts * rank, in), B: (out, rank * experts)
        a, b = a.view(experts, -1, a.size(-1)), b.view(b.size(0), -1, experts).permute(2, 0, 1)
    delta = layer.scaling[adapter] * (b @ a)
    transposed = layer.fan_in_fan_out if experts == 1 else not layer._did_swap_in_out_features
    updated: Tensor = weight + (delta.mT if transposed else delta)
    if not layer.use_dora.get(adapter, False):
        return updated
    norms = updated.norm(dim=0 if transposed else 1)
    ratio = whole(layer.lora_magnitude_vector[adapter].weight, torch.float32).to(weight.device) / norms
    magnified: Tensor = updated * (ratio if transposed else ratio[:, None])
    return magnified
