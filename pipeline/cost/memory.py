"""Bytes that a model takes on one GPU, by part: while it is trained, and in an engine.

What a layer keeps for the backward pass is counted operation by operation, as transformers' decoders compute it under
autocast: a residual stream in float32 (the master weights' type), matrices in bfloat16. Compared with measured peaks by
`python -m benchmarks.planner`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.cost.shape import Latent, Shape

Base = Literal["float32", "bfloat16", "fp8", "nf4"]
"""What the weights of the trained model are held in; all but float32 are frozen beneath an adapter."""
ADAM_8BIT = ("adamw_8bit", "paged_adamw_8bit", "adamw_bnb_8bit", "paged_adamw", "adamw_torch_8bit")
"""transformers' names of optimizers whose moments take a byte a weight."""

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A weight in NF4 with double quantisation: 4 bits, a byte of scale for 64 weights, and a float for 256 scales
(Dettmers et al., arXiv 2305.14314, section 3)."""
FP8_BYTES = 1 + 4 / 128**2
"""A weight in FP8 with a float of scale for each block of 128 x 128 (DeepSeek-V3, section 3.3.2)."""
CONTEXT_BYTES = 600e6
"""CUDA's context, and the libraries' workspaces: measured on an H200, about 0.5-0.7 GB a process."""
FRAGMENTATION = 0.08
"""Share that torch's allocator reserves on top of what is in use; 5-10 % in runs of varying lengths (GRPO's passes)."""
GRAPHS_BYTES = 1e9
"""vLLM's CUDA graphs, which it captures beyond its share."""
HEAD_TILE_BYTES = 2 * 4096 * 32_768
"""Logits that TRL's fused head holds at a time: a tile of tokens by vocabulary in bfloat16."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How a model is trained, as far as memory goes.

    Attributes:
        tokens: of one forward and backward pass on a GPU.
        ranks: GPUs that weights, gradients and optimizer are divided among (FSDP); 1 where each has all.
        checkpointing: only each layer's input is kept, and a layer at a time computed again.
        fused_kernels: Liger's norms, rotary positions and MLPs.
        base: what the weights are held in.
        adapter_rank: of LoRA on all matrices of the layers; `None` trains all weights.
        optimizer: transformers' name; those of `ADAM_8BIT` have small moments.
        reference: whether a second, frozen model is there for the KL term. An adapter needs none: it is switched off.
        fused_head: whether logits are computed in tiles (GRPO, on-policy distillation) rather than all at once.
        accumulates: whether a step has several passes, so that gradients lie there while activations do. With one pass
            they come as activations go.
        fp8: whether the layers are multiplied in FP8, whose copies of weights and inputs come on top.
        measured: whether the allocator's reserve and CUDA's context count, as a GPU's own counter sees them.
    """

    tokens: int
    ranks: int = 1
    checkpointing: bool = False
    fused_kernels: bool = False
    base: Base = "float32"
    adapter_rank: int | None = None
    optimizer: str = "adamw_torch_fused"
    reference: bool = False
    fused_head: bool = True
    accumulates: bool = True
    fp8: bool = False
    measured: bool = True


def stored(shape: Shape, base: Base) -> float:
    """Bytes of a model's weights. Of quantised ones embedding, head, norms and router stay in bfloat16."""
    every = shape.parameters.total + shape.parameters.mtp
    if base in ("float32", "bfloat16"):
        return every * (4.0 if base == "float32" else 2.0)
    small = NF4_BYTES if base == "nf4" else FP8_BYTES
    return shape.linear_weights * small + (every - shape.linear_weights) * 2.0


def training(shape: Shape, setup: Setup) -> dict[str, float]:
    """Bytes by part on one GPU at the peak of a training step, an engine beside it not counted.

    Args:
        shape: the trained model.
        setup: how it is trained.

    Returns:
        weights, adapter, gradients, optimizer, reference, activations, working, reserve, context; parts without bytes
        are left out.
    """
    every = shape.parameters.total + shape.parameters.mtp
    adapter = 0 if setup.adapter_rank is None else shape.lora(setup.adapter_rank)
    trained = every if setup.adapter_rank is None else adapter
    moments = 2.0 if setup.optimizer in ADAM_8BIT else 8.0
    held = stored(shape, setup.base)
    kept, gradients = activations(shape, setup), 4.0 * trained / setup.ranks
    parts = {
        "weights": held / setup.ranks,
        "adapter": 4.0 * adapter / setup.ranks,
        "gradients": gradients if setup.accumulates else max(0.0, gradients - kept),
        "optimizer": moments * trained / setup.ranks,
        "reference": held / setup.ranks if setup.reference and setup.adapter_rank is None else 0.0,
        "activations": kept,
        "working": working(shape, setup),
    }
    if setup.measured:
        parts["reserve"] = FRAGMENTATION * sum(parts.values())
        parts["context"] = CONTEXT_BYTES
    return {name: size for name, size in parts.items() if size}


RESIDENT = ("weights", "adapter", "optimizer", "reference", "context")
"""Parts that are there between steps, too."""


def resident(parts: Mapping[str, float]) -> dict[str, float]:
    """What of a trainer's parts is there while an engine beside it samples."""
    return {name: size for name, size in parts.items() if name in RESIDENT}


STATE_BYTES = 12
"""Of a trained weight in a checkpoint: itself and Adam's two moments, in float32."""


def state(shape: Shape, adapter_rank: int | None = None) -> float:
    """Bytes of a trainer's state, as a checkpoint has it; beneath an adapter of a rank that of the adapter alone."""
    every = shape.parameters.total + shape.parameters.mtp
    return STATE_BYTES * (every if adapter_rank is None else shape.lora(adapter_rank))


def activations(shape: Shape, setup: Setup) -> float:
    """Bytes kept for the backward pass of one pass: of all layers, or each layer's input and one layer whole."""
    stream = 4 if setup.base == "float32" else 2
    dense = layer_bytes(shape, False, stream, setup.fused_kernels)
    sparse = layer_bytes(shape, True, stream, setup.fused_kernels)
    blocks = shape.mtp * (sparse if shape.experts is not None else dense)
    if not setup.checkpointing:
        return setup.tokens * (shape.dense_layers * dense + shape.sparse_layers * sparse + blocks)
    largest = max(dense if shape.dense_layers else 0, sparse if shape.sparse_layers else 0)
    return setup.tokens * (shape.layers * stream * shape.hidden + largest + blocks)


def layer_bytes(shape: Shape, sparse: bool, stream: int, fused: bool) -> float:
    """Bytes a token that one layer keeps for its backward pass.

    Args:
        shape: the model.
        sparse: whether the layer has experts.
        stream: bytes of a number of the residual stream.
        fused: whether Liger's kernels compute norms and the MLP.
    """
    hidden, attention = shape.hidden, shape.attention
    norms = 2 * stream * hidden * (1 if fused else 2)  # their inputs; without a fused kernel, what they normed as well
    if isinstance(attention, Latent):
        latents = attention.kv_rank + (attention.query_rank or 0)
        keys = attention.heads * (attention.nope + attention.rope)
        both = attention.heads * (attention.nope + attention.value)
        # The latents' norms keep input, normed and both casts; queries and keys are kept as projected and as rotated.
        kept = 2 * 2 * hidden + 8 * latents + 2 * (attention.query + keys + both + attention.heads * attention.value)
    else:
        kept = 3 * 2 * hidden + 2 * (2 * attention.query + attention.cached)  # casts for q, k, v; q, output, k and v
    if not sparse or shape.experts is None:
        return float(norms + kept + _mlp_bytes(hidden, shape.intermediate, fused))
    each = shape.experts
    routed = each.active * (2 * 2 * hidden + 8 * each.width)  # rows in the experts' order, and what comes back
    router = 4 * hidden + 4 * each.routed
    shared = _mlp_bytes(hidden, each.shared * each.width, fused) if each.shared else 0
    return float(norms + kept + routed + router + shared)


def _mlp_bytes(hidden: int, width: int, fused: bool) -> int:
    """The casts for gate and up; gate, its activation, up, their product. A fused kernel computes one of them anew."""
    return 2 * 2 * hidden + (6 if fused else 8) * width


def working(shape: Shape, setup: Setup) -> float:
    """Bytes that come and go within a step: weights as they are multiplied, logits, the largest gradients."""
    matrix = shape.vocabulary * shape.hidden
    layer = shape.linear_weights / shape.layers
    gathered = layer * 2.0 if setup.ranks > 1 or setup.base != "float32" else 0.0
    if setup.ranks > 1:  # embedding and head are a unit of FSDP's, which stays gathered
        gathered += 2.0 * (shape.parameters.embedding + shape.parameters.head)
    if setup.adapter_rank is not None and shape.experts is not None:  # an adapted stack of experts is built whole
        gathered += 2.0 * sum(matrix.weights for matrix in shape.routed())
    casts = 2.0 * shape.linear_weights if setup.base == "float32" and setup.ranks == 1 else gathered
    if setup.fp8:  # weights in both orientations, and what is multiplied with them, a byte each
        casts += 2.0 * shape.linear_weights
        casts += setup.tokens * sum(layers * one.active * one.inputs for layers, one in shape.layer_linears())
    heads = 2 * 4.0 * matrix if setup.adapter_rank is None else 2.0 * matrix  # gradients of head and embedding
    logits = HEAD_TILE_BYTES if setup.fused_head else 10.0 * setup.tokens * shape.vocabulary
    active = 0 if shape.experts is None else (shape.experts.active + shape.experts.shared) * shape.experts.width
    wide = shape.intermediate if shape.dense_layers else 0
    backward = 3 * 2.0 * setup.tokens * max(wide, active)  # gradients of gate, up and their product
    return casts + heads + logits + backward


def kv_cache_bytes(shape: Shape, bits: int = 16) -> float:
    """Bytes of the cache a token."""
    return shape.kv_elements() * bits / 8


def engine(
    shape: Shape, share: float, device_bytes: float, base: Base = "bfloat16", tensor: int = 1
) -> dict[str, float]:
    """Bytes by part that vLLM takes of a GPU: weights, cache and graphs.

    Args:
        shape: the model.
        share: `rollout.gpu_memory`.
        device_bytes: memory of the GPU.
        base: what its weights are held in.
        tensor: GPUs that one engine is divided among.
    """
    held = stored(shape, base) / tensor
    return {"engine weights": held, "engine cache": share * device_bytes - held, "engine graphs": GRAPHS_BYTES}


def total(parts: Mapping[str, float]) -> float:
    """Bytes of all parts."""
    return float(sum(parts.values()))
