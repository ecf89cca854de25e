"""Block-wise quantisation to FP8, in plain torch: the reference that kernels and checkpoints are held against.

A tensor is cut into tiles; each is stored as E4M3 numbers and one FP32 scale, its largest magnitude divided by 448
(DeepSeek-V3, arXiv 2412.19437, section 3.3.2):

* activations and their gradients: 1 x 128, one token and 128 channels;
* weights: 128 x 128, 128 output and 128 input channels;
* both operands of the weight gradient: 128 x 1, since tokens are what that product sums over.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from model.presets import FP8_BLOCK

BLOCK = FP8_BLOCK
"""Length of a tile: the sum over so many products is what the published kernels add up in FP32."""

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
"""Largest finite number of E4M3."""

TINY = 1e-12
"""Smallest magnitude that a tile's scale is made from, so that a tile of zeros has one (torchao's value)."""

Tile = tuple[int, int]
ROW: Tile = (1, BLOCK)
COLUMN: Tile = (BLOCK, 1)
SQUARE: Tile = (BLOCK, BLOCK)

KEPT = frozenset({"embed_tokens", "lm_head", "gate", "eh_proj", "shared_head"})
"""Modules of published models that stay in BF16 or FP32: embedding, head, gating, and MTP's projection and head."""


def in_fp8(name: str) -> bool:
    """Whether the weight matrix or linear layer of this name is FP8, in training and in checkpoints.

    Embedding, output head, MoE gates, norms and the attention operators stay in their precision (section 3.3.1); the
    attention operators have no weights. Of an MTP block, `eh_proj` and `shared_head` stay too, as published.

    Args:
        name: dotted, with or without `.weight`; a fused expert tensor's name counts as well.
    """
    parts = name.split(".")
    return parts[-1] != "bias" and not any(part in KEPT or part.endswith("norm") for part in parts)


def quantise(x: torch.Tensor, tile: Tile) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a tensor to E4M3, tile by tile.

    Args:
        x: shape (…, M, N), any float type; the last tile of a row or column may be incomplete.
        tile: rows and columns of a tile.

    Returns:
        The numbers, E4M3, (…, M, N); their scales, FP32, (…, ceil(M / rows), ceil(N / columns)).
    """
    tiles = _tiled(x.float(), tile)
    scales = tiles.abs().amax(dim=(-3, -1)).clamp(min=TINY) / E4M3_MAX
    numbers = (tiles / scales[..., :, None, :, None]).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)
    return _untiled(numbers, x.shape), scales


def dequantise(
    numbers: torch.Tensor, scales: torch.Tensor, tile: Tile, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """What `quantise` has kept of a tensor.

    Raises:
        ValueError: the scales are not as many as the tiles.
    """
    tiles = _tiled(numbers.float(), tile)
    if scales.shape != tiles.shape[:-3] + tiles.shape[-2:-1]:
        raise ValueError(f"scales of shape {tuple(scales.shape)} for numbers of shape {tuple(numbers.shape)}")
    return _untiled(tiles * scales.float()[..., :, None, :, None], numbers.shape).to(dtype)


def rounded(x: torch.Tensor, tile: Tile) -> torch.Tensor:
    """A tensor after a trip through FP8, as FP32."""
    return dequantise(*quantise(x, tile), tile)


def filled(x: torch.Tensor, tile: Tile) -> torch.Tensor:
    """A tensor (…, M, N) with zeros added below and to the right, up to whole tiles."""
    rows, columns = x.shape[-2:]
    if rows % tile[0] == 0 and columns % tile[1] == 0:
        return x
    return F.pad(x, (0, -columns % tile[1], 0, -rows % tile[0]))


def _tiled(x: torch.Tensor, tile: Tile) -> torch.Tensor:
    """(…, M, N) -> (…, tiles down, rows, tiles across, columns), filled up with zeros."""
    whole = filled(x, tile)
    down, across = whole.shape[-2] // tile[0], whole.shape[-1] // tile[1]
    return whole.reshape(*whole.shape[:-2], down, tile[0], across, tile[1])


def _untiled(tiles: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return tiles.flatten(-2).flatten(-3, -2)[..., : shape[-2], : shape[-1]].contiguous()
