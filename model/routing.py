"""Routing: which experts see a token, and with what weight.

A gate turns a token's logits over the experts into affinities, chooses `num_experts_per_tok` experts, and weighs them
by their affinities. Every expert computes every token that chose it: none has a capacity, and no token is dropped.

    V3 (`noaux_tc`):               sigmoid; a bias is added for choosing and not for weighing; groups of experts compete
                                   by the sum of their two best (DeepSeek-V3, arXiv 2412.19437, equations 12 to 16)
    V2 (`group_limited_greedy`):   softmax; groups compete by their best expert (DeepSeek-V2, arXiv 2405.04434, 2.2.2)
    V2-Lite (`greedy`):            softmax, no groups
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.utils.generic import maybe_autocast

from model.balance_loss import Balance, BalanceLoss, Sequences, attach, chosen_mask
from model.experts import V3Experts
from model.presets import GROUP_SCORE_EXPERTS

EPSILON = 1e-20
"""Added to the sum of the chosen affinities, which underflows where all of them do."""


def within_groups(scores_TE: Tensor, groups: int, best: int, experts_a_group: int) -> Tensor:
    """Scores with -inf for every expert outside of the token's best groups.

    Args:
        scores_TE: what experts are chosen by.
        groups: how many groups the experts form, neighbours together.
        best: how many of them a token may use.
        experts_a_group: a group's score is the sum of this many best experts in it.
    """
    if best == groups:
        return scores_TE
    scores_TGe = scores_TE.view(len(scores_TE), groups, -1)
    scores_TG = scores_TGe.topk(experts_a_group, dim=-1).values.sum(-1)
    allowed_TG = chosen_mask(scores_TG.topk(best, dim=-1, sorted=False).indices, groups).bool()
    limited_TGe: Tensor = scores_TGe.masked_fill(~allowed_TG.unsqueeze(-1), float("-inf"))
    return limited_TGe.flatten(-2)


class V3Router(nn.Module):
    """The gate of a layer of experts, with what training adds to it (see `model.balance`).

    Attributes:
        weight: one row an expert; called `gate.weight` in checkpoints.
        e_score_correction_bias: the selection bias, in float32 whatever the model's type is; `None` with V2 gates.
        balance: the balance loss, shared by all gates of a model.
        load_E: tokens that each expert has been chosen by since the last optimizer step, padding left out.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.num_experts = config.n_routed_experts
        self.hidden_dim = config.hidden_size
        self.routed_scaling_factor = config.routed_scaling_factor
        self.norm_topk_prob = config.norm_topk_prob
        self.sigmoid = config.scoring_func == "sigmoid"
        self.groups = 1 if config.topk_method == "greedy" else config.n_group
        self.topk_group = 1 if config.topk_method == "greedy" else config.topk_group
        self.weight = nn.Parameter(torch.zeros(self.num_experts, self.hidden_dim))
        biased = config.topk_method == "noaux_tc"
        self.group_score_experts = GROUP_SCORE_EXPERTS if biased else 1
        self.e_score_correction_bias = nn.Buffer(torch.zeros(self.num_experts, dtype=torch.float32)) if biased else None
        self.balance = Balance()
        self.load_E: Tensor | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> V3Router:
        """Move or cast the gate; the bias stays in float32, whose spacing its small updates need."""
        kept = self.e_score_correction_bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = self.e_score_correction_bias
        if kept is not None and moved is not None and moved.dtype != torch.float32:
            self.e_score_correction_bias = nn.Buffer(kept.to(moved.device, torch.float32))
        return self

    def forward(self, hidden_BTD: Tensor, sequences: Sequences | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Route tokens.

        Args:
            hidden_BTD: hidden states, with any number of leading dimensions.
            sequences: where sequences lie in them; each row is one, without padding, if not given.

        Returns:
            logits_TE, weights_TK (differentiable) and experts_TK (ids from 0 to E-1), in float32.
        """
        with maybe_autocast(device_type=hidden_BTD.device.type, enabled=False):
            hidden_TD = hidden_BTD.reshape(-1, self.hidden_dim).float()
            logits_TE = F.linear(hidden_TD, self.weight.float())
            affinity_TE = logits_TE.sigmoid() if self.sigmoid else logits_TE.softmax(-1)
            experts_TK = self._choose(affinity_TE.detach())
            if torch.is_grad_enabled() and affinity_TE.requires_grad and self.training:
                affinity_TE = self._observed(affinity_TE, experts_TK, sequences or Sequences.rows(hidden_BTD))
            weights_TK = affinity_TE.gather(1, experts_TK)
            if self.norm_topk_prob:
                weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + EPSILON)
            return logits_TE, weights_TK * self.routed_scaling_factor, experts_TK

    def _choose(self, affinity_TE: Tensor) -> Tensor:
        bias_E = self.e_score_correction_bias
        scores_TE = affinity_TE if bias_E is None else affinity_TE + bias_E
        scores_TE = within_groups(scores_TE, self.groups, self.topk_group, self.group_score_experts)
        return scores_TE.topk(self.top_k, dim=-1, sorted=False).indices

    def _observed(self, affinity_TE: Tensor, experts_TK: Tensor, sequences: Sequences) -> Tensor:
        """The affinities, with the balance loss and the count of what was chosen tied to their gradient."""
        chosen_TE = chosen_mask(experts_TK, self.num_experts)
        if self.balance.loss is BalanceLoss.SEQUENCE:  # equation 18 asks what the affinities alone would choose
            alone_TK = affinity_TE.detach().topk(self.top_k, dim=-1, sorted=False).indices
            counted_TE = chosen_mask(alone_TK, self.num_experts)
        else:
            counted_TE = chosen_TE
        return attach(self, affinity_TE, chosen_TE, counted_TE, sequences)


class V3MoE(DeepseekV3MoE):  # type: ignore[misc]
    """Routed experts, chosen by `V3Router`, and shared ones that see every token."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.experts = V3Experts(config)
        self.gate = V3Router(config)

    def forward(self, hidden_BTD: Tensor, sequences: Sequences | None = None) -> Tensor:
        """The experts' output; see `V3Router.forward`."""
        _, weights_TK, experts_TK = self.gate(hidden_BTD, sequences)
        routed_TD: Tensor = self.experts(hidden_BTD.flatten(0, -2), experts_TK, weights_TK)
        shared_BTD: Tensor = self.shared_experts(hidden_BTD)
        return shared_BTD + routed_TD.view_as(hidden_BTD)
