"""A cache whose slots are positions, for batches whose rows are at different places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class SlotCache:
    """The part of transformers' cache interface that attention uses, for tokens at slots of their own in every row.

    Args:
        slots: how many a row has.
    """

    def __init__(self, slots: int) -> None:
        self.slots, self.length = slots, 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def at(self, slots_BQ: Tensor) -> Tensor:
        """Say where the next tokens lie, and get their mask [B, 1, Q, S]: true where a query may look."""
        self._rows_B1 = torch.arange(len(slots_BQ), device=slots_BQ.device)[:, None]
        self._slots_BQ, self.length = slots_BQ, int(slots_BQ.max()) + 1
        return torch.arange(self.length, device=slots_BQ.device) <= slots_BQ[:, None, :, None]

    def update(self, latent_B1QR: Tensor, key_B1QP: Tensor, layer_idx: int, *args: Any) -> tuple[Tensor, Tensor]:
        """Store what a layer makes of the tokens, and get all there is up to the last slot in use."""
        news = (latent_B1QR, key_B1QP)
        if layer_idx not in self._layers:
            latent, key = (new.new_zeros(len(new), 1, self.slots, new.shape[-1]) for new in news)
            self._layers[layer_idx] = latent, key
        for whole, new in zip(self._layers[layer_idx], news, strict=True):
            whole[self._rows_B1, 0, self._slots_BQ] = new[:, 0]
        latent, key = self._layers[layer_idx]
        return latent[:, :, : self.length], key[:, :, : self.length]

    def get_mask_sizes(self, queries: int, layer_idx: int = 0) -> tuple[int, int]:
        """Length of the context that queries see, and where it begins."""
        return self.length, 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Slots in use."""
        return self.length

    def keep(self, rows_N: Tensor) -> None:
        """Forget the other rows."""
        self._layers = {layer: (latent[rows_N], key[rows_N]) for layer, (latent, key) in self._layers.items()}
