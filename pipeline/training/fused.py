"""Liger's fused kernels in place of a model's RMSNorm, rotary positions and gated MLP.

Each of them is several operations in transformers, which read and write all activations anew and keep them for the
backward pass. Liger's Triton kernels (Hsu et al., arXiv 2410.10989) do each in one. The language model's head and the
loss stay what they are: log-probabilities come from TRL's fused head, in chunks (see `grpo.logprobs`).
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

from pipeline.schema import extras
from pipeline.schema.efficiency import OUR_CLASSES, own_class

log = logging.getLogger(__name__)

LAYERS_ALONE = {"cross_entropy": False, "fused_linear_cross_entropy": False}
"""What Liger is asked for: the second of its losses would take the place of `forward`, which TRL's fused head wraps."""


def check(config: Any) -> None:
    """Refuse a model that Liger's kernels would compute wrongly or leave alone, which Liger itself only logs.

    Args:
        config: the model's, as transformers reads it.

    Raises:
        ValueError: there are no kernels for the model's architecture or its activation.
        RuntimeError: there is no GPU, or liger-kernel is not installed.
    """
    kind = config.model_type
    if kind in OUR_CLASSES:
        raise ValueError(own_class(kind))
    if not torch.cuda.is_available():
        raise RuntimeError("efficiency.fused_kernels: Liger's kernels need a GPU, and there is none; set it to false")
    if not is_liger_kernel_available():
        raise RuntimeError("efficiency.fused_kernels needs liger-kernel: " + extras.install("liger-kernel"))
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ValueError(f"efficiency.fused_kernels: Liger has no kernels for {kind} models; set it to false")
    # An MLP that exists already is given the kernel of its architecture's activation, whatever its own one is.
    own, usual = (getattr(each, "hidden_act", None) for each in (config, type(config)()))
    if own != usual:
        raise ValueError(
            f"efficiency.fused_kernels: Liger's kernel for {kind} models computes {usual}, and this one has {own};"
            " set it to false"
        )


def fuse(model: Any) -> None:
    """Let a model compute with Liger's kernels; its weights and their names stay.

    Norms and MLPs change in this model only, the rotary positions in every model of its architecture in this process.

    Args:
        model: on a GPU, and not wrapped yet.

    Raises:
        ValueError, RuntimeError: see `check`.
    """
    check(model.config)
    apply_liger_kernel(model, LAYERS_ALONE)
    changed = sum(module.forward.__module__.startswith("liger_kernel") for module in model.modules())
    if not changed:
        raise ValueError(f"efficiency.fused_kernels: Liger changed nothing in this {model.config.model_type} model")
    log.info("%d modules compute with Liger's kernels", changed)
