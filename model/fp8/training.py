"""Switch a model's linear layers and experts to FP8 for training, in place and without touching its weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn

from model.fp8.experts import implementation
from model.fp8.linear import FP8Linear
from model.fp8.quantise import BLOCK, in_fp8

log = logging.getLogger(__name__)

Backend = Literal["torchao", "reference"]

TRIED = {"num_warps": 4, "num_stages": 2}
"""Of the ways to launch one of torchao's quantisation kernels, those that are tried."""
HOPPER = 9
"""Compute capability, its major number, of the GPUs that multiply FP8 with a scale for every block."""


def usable_backend() -> Backend:
    """torchao's kernels on a GPU; the reference, which is as slow as it is exact, on a CPU.

    Raises:
        RuntimeError: there is a GPU, but not one that multiplies FP8 block by block, or torchao is not installed.
    """
    if not torch.cuda.is_available():
        log.warning("there is no GPU: FP8 is simulated, with the numbers of FP8 but slower than without it")
        return "reference"
    if torch.cuda.get_device_capability()[0] != HOPPER:
        raise RuntimeError("FP8 training needs a GPU of compute capability 9.0 (H100, H200)")
    if find_spec("torchao") is None:
        raise RuntimeError("FP8 training needs torchao: pip install 'torchao==0.18.*'")
    return "torchao"


def tune_quickly() -> int:
    """Let torchao try fewer ways to launch each of its quantisation kernels; returns how many kernels that concerns.

    It would compile up to 45 for every kernel and width before the first step is done, one after another: more than
    two minutes for the preset `small` on an H200. The kernels wait for memory, whatever the way.
    """
    from torchao.prototype.blockwise_fp8_training import kernels

    tuned = [kernel for name, kernel in vars(kernels).items() if "_quant_" in name and hasattr(kernel, "configs")]
    for kernel in tuned:
        few = [
            config for config in kernel.configs if all(getattr(config, key) == value for key, value in TRIED.items())
        ]
        kernel.configs = few or kernel.configs
    return len(tuned)


def fp8_training(model: Any, backend: Backend) -> Sequence[str]:
    """Let the linear layers and the routed experts of a transformers model multiply in FP8.

    Parameters, their names and their precision stay as they are, so optimizer, checkpoints and resuming are unchanged.
    Which modules keep their precision is `in_fp8`'s to say. Linear layers of any size are filled up to whole blocks.

    Args:
        model: a transformers model; call this before it is wrapped for several processes.
        backend: `torchao` (SM90) or `reference` (anywhere).

    Returns:
        Names of the modules that are in FP8 now.

    Raises:
        ValueError: an expert's width or the hidden size is not a multiple of 128. Gate and up projection share a
            tensor, and a block must not straddle both.
    """
    linears = {name: module for name, module in model.named_modules() if _is_plain(module) and in_fp8(name)}
    for name, linear in linears.items():
        model.set_submodule(name, FP8Linear(linear, backend))
    experts = [name for name, module in model.named_modules() if _is_experts(module)]
    for name in experts:
        _, hidden, width = model.get_submodule(name).down_proj.shape
        if hidden % BLOCK or width % BLOCK:
            raise ValueError(f"{name}: experts in FP8 need a hidden size and a width that are multiples of {BLOCK}")
    if backend == "torchao":
        tune_quickly()
    if experts:
        from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

        ALL_EXPERTS_FUNCTIONS.register(f"fp8_{backend}", implementation(backend))
        model.set_experts_implementation(f"fp8_{backend}")
    return [*linears, *experts]


def _is_plain(module: nn.Module) -> bool:
    return type(module) is nn.Linear and module.bias is None


def _is_experts(module: nn.Module) -> bool:
    return all(isinstance(getattr(module, name, None), nn.Parameter) for name in ("gate_up_proj", "down_proj"))
