"""How many kernels a layer launches, which is what a pass over few tokens waits for.

The processor takes about as long for a kernel in every architecture, so seconds that were measured on a layer of one
kind hold for another by the ratio of what both launch. The numbers below count the operations of a forward pass under
autocast that are no views, as torch dispatches them; a test counts them anew.
"""

from __future__ import annotations

from pipeline.cost.shape import Latent, Shape

GROUPED = 59
"""Grouped-query attention, a gated MLP and two norms: the layer whose launches `Speed.layer_s` was measured on."""
LATENT = 29
"""Latent attention beyond that: projections and norms of the latents, rotary keys that are split off and joined."""
EXPERTS = 40
"""Routed and shared experts beyond a dense part: gate, groups, top-k, sorting, two grouped products, the way back."""
ADAPTER = 4
"""A linear layer with an adapter beyond one without: two casts and two products (`pipeline.training.lora_linear`)."""


def layers(shape: Shape, mtp: bool = False, adapted: bool = False) -> float:
    """Layers of grouped-query attention and a dense part that launch as many kernels as the layers of a model.

    Args:
        shape: the model.
        mtp: whether its blocks of multi-token prediction are trained along.
        adapted: whether its linear layers carry adapters; routed experts do not count.
    """
    blocks = shape.mtp if mtp else 0
    sparse = shape.sparse_layers + (blocks if shape.experts is not None else 0)
    latent = LATENT if isinstance(shape.attention, Latent) else 0
    linears = sum(count for count, _ in shape.layer_linears()) - shape.sparse_layers * len(shape.routed())
    carried = linears * ADAPTER if adapted else 0
    return ((shape.layers + blocks) * (GROUPED + latent) + sparse * EXPERTS + carried) / GROUPED
