"""Multi-token prediction (MTP): every position also predicts tokens further ahead (DeepSeek-V3, section 2.2).

Block d, `model.layers[num_hidden_layers + d - 1]`, takes at position i what the block before it made of that position
(the first one takes the decoder's own output, after its last norm) and the embedding of token i+d, and predicts token
i+d+1 through the decoder's own head:

    h'_i^d = eh_proj [enorm(emb(t_{i+d})) ; hnorm(h_i^{d-1})]                             (equation 21)
    h_i^d  = shared_head.norm(block(h'^d)_i)          p(t_{i+d+1}) = head(h_i^d)          (equations 22, 23)

The loss is λ/D · Σ_d CE_d (equations 24, 25). It joins the training loss inside the model: `Objective` runs the blocks
after the decoder and lets the gradient of the decoder's output carry theirs, so that trainers which never see the
hidden states (TRL's fused head among them), wrappers that shard the weights, and several passes a step need no changes.

The paper leaves open what the next block is given: transformers and vLLM give it h_i^d with its norm, and so do we.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.masking_utils import create_causal_mask

from model.balance_loss import Sequences
from model.labels import IGNORED

CHUNK = 4096
"""Positions whose logits are held at a time: half a gigabyte of bfloat16 at V3's vocabulary of 129,280."""
OTHERS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "use_cache", "sequences")
"""Arguments of the decoder that its layers are given in another form, or that mean the decoder alone."""


@dataclass(slots=True)
class DepthCount:
    """What was counted at one depth.

    Attributes:
        loss: summed cross-entropy, in nats.
        tokens: targets.
        agreed: positions at which the block's best token is the decoder's own best one: what greedy verification
            would accept, were all drafts before it accepted.
    """

    loss: float | Tensor = 0.0
    tokens: int | Tensor = 0
    agreed: int | Tensor = 0


@dataclass
class Objective:
    """Trains a model's prediction blocks along with whatever it is trained for.

        objective = Objective(model)
        with objective.weighed(0.3, targets=mask.sum()):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()

    Inside `weighed`, every forward pass with gradients adds λ/D · Σ_d Σ_i CE / `targets` to the loss's gradient (not to
    its value). Targets are the labels that the model is called with (`labels`, or `shift_labels`, which are a step
    ahead); those given to `weighed` if it is called without.

    Args:
        model: a `V3ForCausalLM` with at least one prediction block, not yet wrapped.
        detach: whether the decoder, its embedding and its head learn nothing from this loss.
        ends: tokens that end a document, for rows in which documents follow each other without positions of their own:
            no block is shown, and none is asked about, tokens of two documents at once.

    Raises:
        ValueError: the model has no prediction blocks.
    """

    model: Any
    detach: bool = False
    ends: Sequence[int] = ()
    counts: list[DepthCount] = field(init=False)

    def __post_init__(self) -> None:
        self.blocks = blocks(self.model)
        if not self.blocks:
            raise ValueError("the model has no blocks of multi-token prediction (num_nextn_predict_layers is 0)")
        self.counts = [DepthCount() for _ in self.blocks]
        self._scale: float | Tensor | None = None
        self._labels: Tensor | None = None
        self._given: Tensor | None = None
        self.model.register_forward_pre_hook(self._note_labels, with_kwargs=True)
        self.model.get_decoder().register_forward_hook(self._predict, with_kwargs=True)

    @contextmanager
    def weighed(self, weight: float, targets: int | Tensor = 1, labels_BT: Tensor | None = None) -> Iterator[None]:
        """Train the blocks in the forward passes within.

        Args:
            weight: λ.
            targets: what the summed cross-entropy is divided by; a step's losses add up.
            labels_BT: target token at each position, -100 where there is none, if the model is called without labels.
        """
        self._scale = weight / (len(self.blocks) * torch.as_tensor(targets).clamp(min=1))
        self._given = labels_BT
        try:
            yield
        finally:
            self._scale = self._labels = self._given = None

    def read(self) -> list[DepthCount]:
        """What was counted since the last call, one entry a depth."""
        counts, self.counts = self.counts, [DepthCount() for _ in self.blocks]
        return counts

    def _note_labels(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._labels = self._given
        if kwargs.get("shift_labels") is not None:
            self._labels = F.pad(kwargs["shift_labels"], (1, 0), value=IGNORED)[:, :-1]
        elif kwargs.get("labels") is not None:
            self._labels = kwargs["labels"]

    def _predict(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if self._scale is None or self._labels is None or not torch.is_grad_enabled():
            return None
        hidden_BTD: Tensor = output.last_hidden_state
        ids_BT: Tensor = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        losses = self.losses(ids_BT, hidden_BTD, self._labels.to(ids_BT.device), **kwargs)
        loss = torch.stack(losses).sum() * self._scale
        output.last_hidden_state = _Carried.apply(hidden_BTD, loss)  # type: ignore[no-untyped-call]
        return output

    def losses(self, ids_BT: Tensor, hidden_BTD: Tensor, labels_BT: Tensor, **decoder: Any) -> list[Tensor]:
        """Summed cross-entropy of each depth.

        Args:
            ids_BT: tokens.
            hidden_BTD: what the decoder made of them, after its last norm.
            labels_BT: the tokens again where they are to be predicted, -100 elsewhere.
            decoder: the other arguments that the decoder was called with.
        """
        documents_BT = documents(ids_BT, decoder.get("attention_mask"), decoder.get("position_ids"), self.ends)
        if self.detach:
            hidden_BTD = hidden_BTD.detach()
        state_BTD, losses = hidden_BTD, []
        for depth, block in enumerate(self.blocks, 1):
            embedded_BTD = self.model.get_input_embeddings()(ahead(ids_BT, depth))
            if self.detach:
                embedded_BTD = embedded_BTD.detach()
            one_BT = (documents_BT >= 0) & (documents_BT == ahead(documents_BT, depth, -1))
            state_BTD = self._run(block, state_BTD, embedded_BTD, ids_BT, one_BT, **decoder)
            targets_BT = ahead(labels_BT, depth + 1, IGNORED)
            targets_BT = targets_BT.where(documents_BT == ahead(documents_BT, depth + 1, -1), IGNORED)
            asked_BT = targets_BT != IGNORED
            own_ND = ahead(hidden_BTD.detach(), depth)[asked_BT]
            losses.append(self._cross_entropy(state_BTD[asked_BT], targets_BT[asked_BT], own_ND, depth))
        return losses

    def _run(
        self, block: nn.Module, state: Tensor, embedded: Tensor, ids_BT: Tensor, one_BT: Tensor, **decoder: Any
    ) -> Tensor:
        """One block over whole rows; positions that two documents meet in, and padding, are seen by no other one, nor
        does their choice of experts count."""
        mask, positions_BT = decoder.get("attention_mask"), decoder.get("position_ids")
        passed_on = {name: value for name, value in decoder.items() if name not in OTHERS}
        if positions_BT is None:
            positions_BT = torch.arange(ids_BT.shape[1], device=ids_BT.device)[None]
        causal = create_causal_mask(
            config=self.model.config,
            inputs_embeds=embedded,
            attention_mask=one_BT.long() if mask is not None or self.ends else None,
            past_key_values=None,
            position_ids=positions_BT,
        )
        return cast(
            Tensor,
            block(
                state,
                embedded,
                Sequences.of(ids_BT, mask, decoder.get("position_ids")).without(~one_BT.flatten()),
                attention_mask=causal,
                position_ids=positions_BT,
                position_embeddings=self.model.get_decoder().rotary_emb(embedded, position_ids=positions_BT),
                **passed_on,
            ),
        )

    def _cross_entropy(self, states_ND: Tensor, targets_N: Tensor, own_ND: Tensor, depth: int) -> Tensor:
        loss = states_ND.new_zeros((), dtype=torch.float32)
        agreed = torch.zeros((), dtype=torch.long, device=states_ND.device)
        chunks = zip(*(torch.split(each, CHUNK) for each in (states_ND, targets_N, own_ND)), strict=True)
        for states, targets, own in chunks:
            part, same = checkpoint(self._chunk, states, targets, own, use_reentrant=False)
            loss, agreed = loss + part, agreed + same
        count = self.counts[depth - 1]
        count.loss, count.tokens = count.loss + loss.detach(), count.tokens + targets_N.numel()
        count.agreed = count.agreed + agreed
        return loss

    def _chunk(self, states_ND: Tensor, targets_N: Tensor, own_ND: Tensor) -> tuple[Tensor, Tensor]:
        head = self.model.get_output_embeddings()
        logits_NV = F.linear(states_ND, head.weight.detach()) if self.detach else head(states_ND)
        with torch.no_grad():
            same = (logits_NV.argmax(-1) == head(own_ND).argmax(-1)).sum()
        return F.cross_entropy(logits_NV.float(), targets_N, reduction="sum"), same


class _Carried(torch.autograd.Function):
    """The first argument; its gradient, when it comes, brings the second one's: one."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, loss: Tensor) -> Tensor:
        ctx.one = torch.ones_like(loss)
        return carrier.view_as(carrier)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], ctx.one


def blocks(model: Any) -> list[nn.Module]:
    """The prediction blocks of a `V3ForCausalLM`, by depth; none for other models."""
    if not hasattr(model.config, "num_nextn_predict_layers"):
        return []
    return list(model.get_decoder().layers[model.config.num_hidden_layers :])


def ahead(values_BT: Tensor, steps: int, fill: int = 0) -> Tensor:
    """Each position's value of `steps` later (along the second dimension), `fill` where the row has ended."""
    rolled = values_BT.roll(-steps, dims=1)
    rolled[:, values_BT.shape[1] - min(steps, values_BT.shape[1]) :] = fill
    return rolled


def documents(ids_BT: Tensor, mask: Any, position_ids: Tensor | None, ends: Sequence[int] = ()) -> Tensor:
    """Number of the document that each token is part of, -1 for padding; the arguments are `Sequences.of`'s.

    Args:
        ends: tokens that end a document, which they are still part of.
    """
    sequences = Sequences.of(ids_BT, mask, position_ids)
    index_BT = sequences.index_T.view(ids_BT.shape)
    padding_BT = index_BT == sequences.number
    if ends:
        ended_BT = torch.isin(ids_BT, torch.tensor(list(ends), device=ids_BT.device)).long()
        index_BT = index_BT * (ids_BT.shape[1] + 1) + ended_BT.cumsum(1) - ended_BT
    return index_BT.masked_fill(padding_BT, -1)
