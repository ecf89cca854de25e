"""Balance losses, and the hook on a gate's affinities through which they act and the load is counted.

A very small loss keeps single sequences from extremes (DeepSeek-V3, arXiv 2412.19437, equations 17 to 20). Loss and
count hang on the gradient of the gates' affinities: what is computed without gradients leaves no trace, and what is
recomputed for gradient checkpointing is counted once, because its gradient arrives once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

BALANCE_ALPHA = 1e-4
"""α of DeepSeek-V3's sequence-wise loss (section 4.2)."""


class BalanceLoss(StrEnum):
    """What is added to the training loss so that experts share the work."""

    NONE = "none"
    SEQUENCE = "sequence"
    """DeepSeek-V3's: for each sequence by itself, counting what the affinities choose without bias and groups."""
    SWITCH = "switch"
    """The Switch Transformer's (arXiv 2101.03961, equation 4): over the whole micro-batch, counting what was chosen."""


@dataclass(slots=True)
class Balance:
    """The balance loss of a model; its gates share one.

    Attributes:
        loss: which one.
        alpha: its weight, a layer.
        scale: share of this forward pass in the optimizer step: that of its sequences, times the ranks whose gradients
            are averaged.
    """

    loss: BalanceLoss = BalanceLoss.NONE
    alpha: float = BALANCE_ALPHA
    scale: float = 1.0


class Gate(Protocol):
    """What a gate keeps.

    Attributes:
        balance: its loss.
        load_E: tokens that chose each expert since this was last `None`.
    """

    balance: Balance
    load_E: Tensor | None


class Sequences(NamedTuple):
    """Where the sequences of a batch lie among its tokens.

    Attributes:
        index_T: number of the sequence that each token of the flattened batch is part of; `number` for padding.
        number: how many there are; some may be empty.
        filled: () how many of them a mean is over; those that have a token if not given.
    """

    index_T: Tensor
    number: int
    filled: Tensor | None = None

    def counted(self) -> Tensor:
        """() How many of them a mean is over."""
        if self.filled is not None:
            return self.filled
        has_S = torch.zeros(self.number + 1, dtype=torch.long, device=self.index_T.device)
        return has_S.index_fill(0, self.index_T, 1)[: self.number].sum()

    def without(self, left_out_T: Tensor) -> Sequences:
        """The same ones with some tokens as padding; a mean stays one over all of them."""
        return Sequences(self.index_T.masked_fill(left_out_T, self.number), self.number, self.counted())

    @classmethod
    def rows(cls, hidden_BTD: Tensor) -> Sequences:
        """Every row is a sequence, and nothing is padding."""
        *batch, length, _ = hidden_BTD.shape
        rows = torch.Size(batch).numel()
        return cls(torch.arange(rows, device=hidden_BTD.device).repeat_interleave(length), rows)

    @classmethod
    def of(cls, ids_BT: Any, mask: Any, position_ids: Tensor | None) -> Sequences:
        """Sequences as the arguments of a forward pass tell them.

        Args:
            ids_BT: anything whose first two dimensions are batch and time.
            mask: 1 for tokens, 0 for padding, as [B, T]; what has another form says nothing about padding.
            position_ids: positions as [B, T]. Where they do not count on, a new document begins: packed documents are
                sequences of their own. Rows that were packed without positions are one sequence each.
        """
        rows, length = ids_BT.shape[:2]
        index_BT = torch.arange(rows, device=ids_BT.device)[:, None].expand(rows, length)
        count = rows
        if position_ids is not None and position_ids.shape == (rows, length):
            starts_BT = torch.ones_like(position_ids)
            starts_BT[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
            index_BT = starts_BT.flatten().cumsum(0).view(rows, length) - 1
            count = int(index_BT[-1, -1]) + 1
        if isinstance(mask, Tensor) and mask.shape == (rows, length):
            index_BT = index_BT.masked_fill(mask == 0, count)
        return cls(index_BT.flatten(), count)


def chosen_mask(ids_TK: Tensor, size: int) -> Tensor:
    """1 for what was chosen, 0 for the rest, as float [T, size]; ids from `size` on stand for nothing."""
    mask = torch.zeros(len(ids_TK), size + 1, device=ids_TK.device)
    return mask.scatter_(1, ids_TK.clamp(max=size), 1.0)[:, :size]


def balance_loss(affinity_TE: Tensor, counted_TE: Tensor, sequences: Sequences) -> Tensor:
    """Mean over the sequences of Σ_i f_i P_i (DeepSeek-V3, equations 17 to 20, without α).

    f_i is the share of choices that fell on expert i, times the number of experts; P_i its mean share of the affinity.
    With the whole batch as one sequence it is the Switch Transformer's loss, with our affinities for its softmax.

    Args:
        affinity_TE: affinities, which gradients flow into.
        counted_TE: 1 for chosen experts, 0 for the others.
        sequences: which tokens belong together.
    """
    share_TE = affinity_TE / affinity_TE.sum(-1, keepdim=True)
    experts, padding = affinity_TE.shape[1], sequences.number
    zeros_SE = affinity_TE.new_zeros(sequences.number + 1, experts)
    counts_SE = zeros_SE.index_add(0, sequences.index_T, counted_TE)[:padding]
    shares_SE = zeros_SE.index_add(0, sequences.index_T, share_TE)[:padding]
    choices_S = counts_SE.sum(-1).clamp(min=1)
    lengths_S = shares_SE.detach().sum(-1)
    mean_SE = shares_SE / lengths_S.clamp(min=1)[:, None]
    loss_S = experts * (counts_SE / choices_S[:, None] * mean_SE).sum(-1)
    return loss_S.sum() / sequences.counted().clamp(min=1)


def attach(router: Gate, affinity_TE: Tensor, chosen_TE: Tensor, counted_TE: Tensor, sequences: Sequences) -> Tensor:
    """The affinities unchanged; when their gradient arrives, the load is counted and the balance loss joins it."""
    balance = router.balance
    with torch.no_grad():  # a pass that has no share in the step is not counted either
        counts_T = (sequences.index_T < sequences.number).to(chosen_TE.dtype) * (balance.scale > 0)
        load_E = counts_T @ chosen_TE
    loss = None
    if balance.loss is not BalanceLoss.NONE and balance.alpha:
        if balance.loss is BalanceLoss.SWITCH:
            whole_T = (sequences.index_T == sequences.number).long()
            sequences = Sequences(whole_T, 1)
        loss = balance.alpha * balance_loss(affinity_TE, counted_TE, sequences)
    attached: Tensor = _Attached.apply(affinity_TE, loss, router, load_E, balance.scale)  # type: ignore[no-untyped-call]
    return attached


class _Attached(torch.autograd.Function):
    """Identity whose backward pass runs once for each gradient."""

    @staticmethod
    def forward(
        ctx: Any, affinity_TE: Tensor, loss: Tensor | None, router: Gate, load_E: Tensor, scale: float
    ) -> Tensor:
        ctx.router, ctx.load_E = router, load_E
        ctx.gradient = None if loss is None else torch.full_like(loss, scale)
        return affinity_TE.view_as(affinity_TE)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        router = ctx.router
        router.load_E = ctx.load_E if router.load_E is None else router.load_E + ctx.load_E
        return gradients[0], ctx.gradient, None, None, None
