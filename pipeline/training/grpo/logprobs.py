"""Log-probabilities of completions, from rows without padding.

TRL pads every sequence to the longest of the generation batch. Here the real tokens of several sequences lie one after
another in a row, positions start anew at each of them, and attention stays within each (see `varlen`). The language
model's head only ever sees the tokens it is asked about, in chunks (TRL's fused head, `fused_lm_head=True`), so the
logits of a whole vocabulary are never there at once.

    padded                                   packed
    [ . . p p a b . . ]                      [ p p a b | p p p c d e | p f ]
    [ . p p p c d e . ]                 positions 0 1 2 3  0 1 2 3 4 5  0 1
    [ . . . p f . . . ]
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.labels import IGNORED
from pipeline.training import varlen
from pipeline.training.grpo.batch import Batch
from pipeline.training.grpo.micro_batches import passes_of
from pipeline.training.parallel.sharding import reshard

LARGEST_GAP = 0.1
"""Nats a token. Rounding to bfloat16 makes about 0.01, and weights that are not the policy's about 1."""


class Logprobs(NamedTuple):
    """Log-probabilities of completion tokens, and what the same forward pass tells; 0 where no token counts.

    Attributes:
        logprobs_BC: at the temperature of sampling.
        entropy_BC: of the distribution at each token, where the model gives it.
        router_loss: of a mixture of experts that has one.
    """

    logprobs_BC: Tensor
    entropy_BC: Tensor | None
    router_loss: Tensor | None


def padded(trainer: Any, model: Any, batch: Batch, entropy: bool = False, router_loss: bool = False) -> Logprobs:
    """As TRL computes them, `per_device_train_batch_size` rows at a time."""
    return Logprobs(
        *trainer._get_per_token_logps_and_entropies(
            model,
            batch.ids,
            batch.attended,
            batch.completion_ids_BC.size(1),
            trainer.args.per_device_train_batch_size,
            compute_entropy=entropy,
            compute_aux_loss=router_loss,
        )
    )


def packed(trainer: Any, model: Any, batch: Batch, router_loss: bool = False) -> Logprobs:
    """Of one packed row. Where no token counts they depend on the weights, too: FSDP waits for each backward pass."""
    rows_R = batch.mask_BC.any(1).nonzero().flatten()
    part = batch if router_loss or not len(rows_R) else batch.select(rows_R)  # a router loss is one of all rows
    keep = batch.completion_ids_BC.size(1)
    mask_RT = part.attended.bool()
    positions_RT = mask_RT.cumsum(1) - 1
    scored_RT = mask_RT & (positions_RT > 0)
    scored_RT[:, :-keep] = False
    ids_N, positions_N, scored_N = part.ids[mask_RT], positions_RT[mask_RT], scored_RT[mask_RT]
    labels_N = torch.full_like(ids_N, IGNORED)  # each position is asked for the token after it
    labels_N[:-1] = torch.where(scored_N[1:], ids_N[1:], IGNORED)
    options: dict[str, Any] = {"output_router_logits": True} if router_loss else {}
    if trainer.accelerator.unwrap_model(model).config._attn_implementation == varlen.NAME:
        options |= varlen.boundaries(mask_RT.sum(1).tolist(), ids_N.device)
    with trainer.accelerator.autocast():
        outputs = model(
            input_ids=ids_N[None],
            position_ids=positions_N[None],
            shift_labels=labels_N[None],
            fused_lm_head=True,
            **options,
        )
    kept_RC = scored_RT[:, -keep:]

    def spread(values_1N: Tensor) -> Tensor:
        found_RC = values_1N.new_zeros(kept_RC.shape).masked_scatter(kept_RC, values_1N[0][labels_N != IGNORED])
        if len(part) == len(batch):
            return found_RC
        return found_RC.new_zeros(len(batch), keep).index_copy(0, rows_R, found_RC)

    entropy_BC = None if outputs.entropy is None else spread(outputs.entropy)
    return Logprobs(spread(outputs.log_probs), entropy_BC, outputs.aux_loss)


def with_gradient(trainer: Any, model: Any, part: Batch, router_loss: bool = False) -> Logprobs:
    """Of one training pass."""
    if trainer.efficiency.packing:
        scores = packed(trainer, model, part, router_loss)
    else:
        scores = padded(trainer, model, part, entropy=True, router_loss=router_loss)
    if part.checked_BC is not None:
        confirm(trainer.accelerator, part.checked_BC, scores.logprobs_BC, part.mask_BC)
    return scores


def confirmable(trainer: Any) -> bool:
    """Whether `confirm` is needed, and can tell: dropout makes each pass another one."""
    drops = any(isinstance(part, torch.nn.Dropout) and part.p for part in trainer.model.modules())
    return bool(trainer.accelerator.is_fsdp2) and not drops


def confirm(accelerator: Any, checked_BC: Tensor, new_BC: Tensor, mask_BC: Tensor) -> None:
    """Refuse to train on log-probabilities that a pass without gradient does not confirm. Collective.

    FSDP2 gathers and frees weights around both kinds of passes, and by other hooks. Where one of them computes with
    weights that are not the policy's, losses and gradients look like any others.

    Raises:
        RuntimeError: the mean difference of a process is more than `LARGEST_GAP`; in every process.
    """
    apart = ((new_BC - checked_BC) * mask_BC).abs().sum().detach().float() / mask_BC.sum().clamp(min=1)
    worst = float(accelerator.gather(apart[None]).max())
    if worst > LARGEST_GAP:
        raise RuntimeError(
            f"under FSDP2 a training pass gives tokens log-probabilities that are {worst:.3g} nats from those of a pass"
            " without gradient with the same weights, so its gradients would be wrong; train with"
            " `launch: {accelerate: ddp}`"
        )


@torch.no_grad()
def without_gradient(trainer: Any, model: Any, batch: Batch) -> Tensor:
    """(B, C) log-probabilities of a whole generation batch, in passes of bounded size. Collective."""
    found_BC = torch.zeros(batch.mask_BC.shape, device=batch.mask_BC.device)
    if trainer.efficiency.packing:
        for rows in passes_of(batch.lengths.tolist(), trainer.efficiency.tokens_per_pass, trainer.accelerator):
            scores = packed(trainer, model, batch.part(rows))
            if rows:
                found_BC[rows] = scores.logprobs_BC.float()
    else:
        found_BC = padded(trainer, model, batch).logprobs_BC
    reshard(model)
    return found_BC
