"""FSDP2 as accelerate arranges it, made as exact as one process: what its policy rounds, and what TRL gathers whole.

Three things differ from the same training in one process:

* with bf16, accelerate rounds what a model returns, and the sums of gradients, to bf16 as well, so that
  log-probabilities, entropies and importance ratios have three digits (`exact_policy`);
* the gates of a DeepSeek-V3 compute in float32, but on weights that were rounded on their way (`keep_gates_exact`);
* a reference model is one unit, gathered whole in every forward pass (`shard_layers`).
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard


def launched() -> bool:
    """Whether a launcher started this process as one of several, or of one, that train together."""
    return "RANK" in os.environ


def keeps_masters() -> bool:
    """Whether whoever shards the model keeps weights of its own in float32, whatever type the model was loaded in."""
    return _said("ACCELERATE_USE_FSDP") or _said("ACCELERATE_USE_DEEPSPEED")


def _said(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"


def exact_policy(args: Any) -> MixedPrecisionPolicy:
    """Compute in the type that a trainer's arguments ask for; sums of gradients are float32, outputs stay as they are.

    accelerate gives one policy to the layers and to the whole model. A layer that returned float32 would hand it to the
    next one, whose input FSDP casts in the forward pass alone, and not where gradient checkpointing repeats that.
    """
    compute = torch.bfloat16 if args.bf16 else torch.float16
    return MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, output_dtype=None)


def plugin_arguments(args: Any) -> dict[str, Any] | None:
    """What to build accelerate's FSDP plugin from: what it was given, with `exact_policy` if it shards by FSDP2.

    Args:
        args: a trainer's arguments. What they leave open, the plugin reads from what `accelerate launch` left in the
            environment.
    """
    given: dict[str, Any] | None = args.fsdp_plugin_args
    by_fsdp2 = launched_by_fsdp2() if given is None else given.get("fsdp_version") == 2
    if not by_fsdp2 or not (args.bf16 or args.fp16):
        return given
    return {**(given or {}), "mixed_precision_policy": exact_policy(args)}


def launched_by_fsdp2() -> bool:
    """Whether the accelerate config that launched this process shards by FSDP2."""
    return _said("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") == "2"


def accumulation() -> dict[str, Any]:
    """Trainer fields for micro-batches under FSDP2: each hands its gradients over to the ranks that own them.

    Left alone, every rank keeps the whole gradient of every weight in float32 until the last micro-batch: 28 GB at 7B.
    """
    if not launched_by_fsdp2():
        return {}
    return {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}}


def between_micro_batches(accelerator: Any, model: torch.nn.Module) -> Any:
    """Around a backward pass that is not the last of a step, which exchanges gradients; see `accumulation`."""
    at_once = accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
    return nullcontext() if at_once else accelerator.no_sync(model)


def keep_gates_exact(model: torch.nn.Module, accelerator: Any) -> None:
    """Make each gate of experts, of our class or of transformers', a unit of its own that stays in float32.

    Call it before accelerate shards the model.
    """
    if not _by_fsdp2(accelerator):
        return
    for gate in list(model.modules()):
        if hasattr(gate, "e_score_correction_bias") and not isinstance(gate, FSDPModule):
            fully_shard(gate, **{**_options(accelerator), "mp_policy": MixedPrecisionPolicy()})


def shard_layers(model: torch.nn.Module, accelerator: Any) -> None:
    """Make each layer of a model that only computes a unit under FSDP2; whoever shards the rest calls this first.

    Every unit gives its weights back after its forward pass. accelerate's own way for a policy leaves the head and the
    last norm gathered until a backward pass, which never comes here.
    """
    if not _by_fsdp2(accelerator):
        return
    keep_gates_exact(model, accelerator)
    names = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in names and not isinstance(module, FSDPModule):
            fully_shard(module, **_options(accelerator))


def _by_fsdp2(accelerator: Any) -> bool:
    return bool(getattr(accelerator, "is_fsdp2", False))


def _options(accelerator: Any) -> dict[str, Any]:
    """What accelerate calls `fully_shard` with."""
    plugin, mesh = accelerator.state.fsdp_plugin, getattr(accelerator, "torch_device_mesh", None)
    return {
        "reshard_after_forward": True,
        "offload_policy": plugin.cpu_offload,
        "mp_policy": plugin.mixed_precision_policy or MixedPrecisionPolicy(),
        "mesh": mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)] if mesh is not None else None,
    }
