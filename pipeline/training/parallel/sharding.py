"""FSDP2 as accelerate arranges it, made as exact as one process, and with one copy of a model in host memory.

Six things differ from the same training in one process:

* with bf16, accelerate rounds what a model returns, and the sums of gradients, to bf16 as well, so that
  log-probabilities, rewards and the losses that follow from them have three digits (`exact_policy`, `exact_outputs`);
* the gates of a DeepSeek-V3 compute in float32, but on weights that were rounded on their way (`keep_gates_exact`);
* the last norm and the head are a unit whose second module never runs, since TRL's fused head only reads the weight
  (`head_in_root`);
* a frozen unit, such as the embedding under an adapter, is gathered into memory that is given away too soon
  (`hold_frozen_units`);
* a reference model is one unit, gathered whole in every forward pass (`shard_layers`);
* every rank reads every weight into host memory: 450 GB for a 7B policy and its reference on eight ranks (`Weights`).
  accelerate's `cpu_ram_efficient_loading` is switched off: with transformers 5 the other ranks still fill whole models,
  with zeros; it fails on buffers such as DeepSeek-V3's routing bias, and TRL's reference would keep the zeros.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import convert_to_fp32
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils import swap_tensors

from pipeline.training.parallel.expert_parallel import expert_ranks

EVERY_RANK_FILLS = "FSDP_CPU_RAM_EFFICIENT_LOADING"
"""Environment variable of accelerate and transformers; `accelerate launch` sets it to true if its config is silent."""


def launched() -> bool:
    """Whether a launcher started this process as one of several, or of one, that train together."""
    return "RANK" in os.environ


def keeps_masters() -> bool:
    """Whether whoever shards the model keeps weights of its own in float32, whatever type the model was loaded in."""
    return _said("ACCELERATE_USE_FSDP") or launched_by_deepspeed()


def _said(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"


def exact_policy(args: Any) -> MixedPrecisionPolicy:
    """Compute in the type that a trainer's arguments ask for; sums of gradients are float32, outputs stay as they are.

    accelerate gives one policy to the layers and to the whole model. A layer that returned float32 would hand it to the
    next one, whose input FSDP casts in the forward pass alone, and not where gradient checkpointing repeats that.
    """
    compute = torch.bfloat16 if args.bf16 else torch.float16
    return MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, output_dtype=None)


def exact_outputs(model: torch.nn.Module) -> None:
    """Have a whole model return float32, which losses are then computed in, as accelerate has it under DDP."""
    model.register_forward_hook(lambda module, given, output: convert_to_fp32(output))


def plugin_arguments(args: Any) -> dict[str, Any] | None:
    """What to build accelerate's FSDP plugin from: what it was given, with `exact_policy` if it shards by FSDP2.

    Args:
        args: a trainer's arguments. What they leave open, the plugin reads from what `accelerate launch` left in the
            environment.
    """
    given: dict[str, Any] | None = args.fsdp_plugin_args
    if not (launched_by_fsdp2() if given is None else given.get("fsdp_version") == 2):
        return given
    os.environ[EVERY_RANK_FILLS] = "false"  # transformers reads this, before accelerate has read the plugin
    policy = {"mixed_precision_policy": exact_policy(args)} if args.bf16 or args.fp16 else {}
    return {**(given or {}), **policy, "cpu_ram_efficient_loading": False}


def launched_by_deepspeed() -> bool:
    """Whether the accelerate config that launched this process names DeepSpeed."""
    return _said("ACCELERATE_USE_DEEPSPEED")


def launched_by_fsdp2() -> bool:
    """Whether the accelerate config that launched this process shards by FSDP2."""
    return _said("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") == "2"


def reads_weights() -> bool:
    """Whether this rank reads a model's weights; under FSDP2 the first one alone does, and `Weights` has the others'.

    Where experts are divided as well, or weights quantised, every rank reads its own.
    """
    return not _first_reads() or os.environ.get("RANK", "0") == "0"


def _first_reads() -> bool:
    return launched() and launched_by_fsdp2() and expert_ranks() == 1


class Weights:
    """The weights of a model that is about to be sharded, where the first rank alone has read them.

    Args:
        model: as `from_pretrained` or a constructor made it, on the `meta` device on ranks that have read nothing. It
            is given memory there that nobody writes to, so that the system does not have to provide it.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_meta:
                swap_tensors(tensor, _unwritten(tensor))  # type: ignore[no-untyped-call]  # so that weights which are tied remain so
        self.first_reads = _first_reads() and getattr(model, "hf_quantizer", None) is None
        self.whole = [weight.data for weight in model.parameters()] if self.first_reads and reads_weights() else []

    @torch.no_grad()
    def hand_out(self, device: torch.device) -> None:
        """Give every rank its shards of the first rank's weights, and all of its buffers. Call it once it is sharded.

        Args:
            device: that this rank computes on; collectives run there.
        """
        if not self.first_reads:
            return
        for number, weight in enumerate(self.model.parameters()):
            if isinstance(weight, DTensor):
                _scatter(weight, self.whole[number] if self.whole else None, device)
            else:
                _broadcast(weight, device)
        for buffer in self.model.buffers():
            _broadcast(buffer, device)
        self.whole = []


def local_part(tensor: Any) -> Any:
    """This rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _unwritten(tensor: torch.Tensor) -> torch.Tensor:
    """The same weight or buffer in host memory, with whatever was there."""
    blank = torch.empty_like(tensor, device="cpu")
    return torch.nn.Parameter(blank, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else blank


def _scatter(weight: DTensor, whole: torch.Tensor | None, device: torch.device) -> None:
    """Copy this rank's shard of the first rank's whole weight into its own."""
    if whole is None:
        whole = torch.empty(weight.shape, dtype=weight.dtype, device=device)
    sent = distribute_tensor(whole.to(device, weight.dtype), weight.device_mesh, weight.placements)
    weight.to_local().copy_(sent.to_local())


def _broadcast(tensor: torch.Tensor, device: torch.device) -> None:
    sent = tensor.to(device)
    torch.distributed.broadcast(sent, src=0)
    tensor.copy_(sent)


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
    if not accelerator.is_fsdp2:
        return
    for gate in list(model.modules()):
        if hasattr(gate, "e_score_correction_bias") and not isinstance(gate, FSDPModule):
            fully_shard(gate, **{**_options(accelerator), "mp_policy": MixedPrecisionPolicy()})


NOWHERE = "-"
"""A `base_model_prefix` under which no model has a backbone."""


@contextmanager
def head_in_root(model: Any, accelerator: Any) -> Iterator[None]:
    """While accelerate shards a policy, leave its last norm and its head to the root unit.

    accelerate makes the two a unit of their own. FSDP gathers such a unit before its first module runs, and finishes it
    after its last one; but TRL's fused head reads the weight of the head, which itself never runs. So the hooks that
    register the backward pass are never reached, torch 2.11 skips those of the next forward pass too, and weights that
    were gathered for a pass without gradient are used again after they changed. The root runs in every pass.

    accelerate asks the model for these modules, and is told here that there are none. The embedding remains a unit of
    its own, unless it is the head as well.
    """
    if not accelerator.is_fsdp2 or (head := model.get_output_embeddings()) is None:
        yield
        return
    hidden: dict[str, Any] = {"base_model_prefix": NOWHERE, "get_output_embeddings": lambda: None}
    if model.get_input_embeddings().weight is head.weight:
        hidden["get_input_embeddings"] = lambda: None
    vars(model).update(hidden)
    try:
        yield
    finally:
        for name in hidden:
            delattr(model, name)


def refuse_sharded_head(model: Any) -> None:
    """Stop the forward pass of a policy whose head is still sharded when its weight is read.

    TRL's fused head would gather it by itself, and each process would keep the gradient of its own tokens alone.

    Args:
        model: a policy without wrappers, which FSDP2 shards.
    """

    def check(module: torch.nn.Module, given: Any, output: Any) -> None:
        if isinstance(model.get_output_embeddings().weight, DTensor):
            raise RuntimeError(
                "FSDP2 has not gathered the weight of the language model's head within a forward pass, so its gradients"
                " would be wrong; train with `launch: {accelerate: ddp}`, or report this model"
            )

    if model.get_output_embeddings() is not None:
        model.base_model.register_forward_hook(check)


def hold_frozen_units(model: torch.nn.Module) -> None:
    """Have the memory of each all-gather of a frozen unit kept until the gather is over. Call it on a sharded model.

    In a backward pass, FSDP2 gathers each unit while the one after it is at work. The units before the first trained
    weight, such as the embedding under an adapter, have no backward pass: such a gather is given up when the pass ends.
    Torch means to wait for it there, but calls `torch.Stream.wait_event` with a `torch.cuda.Event`, which does nothing
    (2.11 and 2.13). So the next gather took the same memory while another rank still wrote to it: half a row of a
    head was the embedding's, log-probabilities were off by up to 1.8, and gradients by 9 % (two H200s, torch 2.11).
    """
    for unit in model.modules():
        if isinstance(unit, FSDPModule) and not any(weight.requires_grad for weight in unit.parameters()):
            unit.set_custom_all_gather(_HeldAllGather())  # type: ignore[arg-type]  # torch's class for it is private


class _HeldAllGather:
    """FSDP2's own all-gather, whose buffer the allocator gives to nobody before the gather is over."""

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any, async_op: bool) -> Any:
        work = torch.distributed.all_gather_into_tensor(output_tensor, input_tensor, group, async_op)
        if output_tensor.is_cuda:
            output_tensor.record_stream(torch.cuda.current_stream())
        return work


def reshard(model: torch.nn.Module) -> None:
    """After forward passes without gradient: the next one gathers the root unit's weights anew, as they are then.

    FSDP2 keeps them for a backward pass, which does not come, and does not see that they change in the meantime.
    """
    if isinstance(model, FSDPModule):
        model.reshard()


def shard_layers(model: torch.nn.Module, accelerator: Any) -> None:
    """Make each layer of a model that only computes a unit under FSDP2; whoever shards the rest calls this first.

    Every unit gives its weights back after its forward pass. accelerate's own way for a policy leaves the head and the
    last norm gathered until a backward pass, which never comes here.
    """
    if not accelerator.is_fsdp2:
        return
    keep_gates_exact(model, accelerator)
    names = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in names and not isinstance(module, FSDPModule):
            fully_shard(module, **_options(accelerator))


def _options(accelerator: Any) -> dict[str, Any]:
    """What accelerate calls `fully_shard` with."""
    plugin, mesh = accelerator.state.fsdp_plugin, accelerator.torch_device_mesh
    return {
        "reshard_after_forward": True,
        "offload_policy": plugin.cpu_offload,
        "mp_policy": plugin.mixed_precision_policy or MixedPrecisionPolicy(),
        "mesh": mesh[tuple(accelerator.parallelism_config.fsdp_dim_names)] if mesh is not None else None,
    }
