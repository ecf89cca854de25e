"""Log-probabilities of completions from rows without padding.

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

from typing import Any

import torch

from pipeline.schema.efficiency import Efficiency
from pipeline.training import varlen
from pipeline.training.rows import agreed, balanced

IGNORED = -100
"""The label of a token that is not scored."""


class Packing:
    """Mixin for `GRPOTrainer`: `efficiency.packing`."""

    efficiency: Efficiency
    accelerator: Any

    def prepare_packing(self, *models: Any) -> None:
        """Let these models (`None` is passed over) attend to packed sequences; call once they exist."""
        for model in models:
            if self.efficiency.packing and model is not None:
                varlen.install(self.accelerator.unwrap_model(model))

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **media: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if not self.efficiency.packing or any(value is not None for value in media.values()):
            return super()._get_per_token_logps_and_entropies(  # type: ignore[misc, no-any-return]
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss, **media
            )
        mask_BT = attention_mask.bool()
        # A router loss is no sum over rows: it needs all of them, and in one pass.
        every = torch.arange(input_ids.size(0), device=input_ids.device)
        rows, idle = ([every], 0) if compute_aux_loss else self._passes(mask_BT, logits_to_keep)
        parts = [
            self._packed_pass(model, input_ids[part], mask_BT[part], logits_to_keep, compute_aux_loss) for part in rows
        ]
        for _ in range(idle):  # another process has more passes, and all must call the model as often
            self._packed_pass(model, input_ids[rows[0]], mask_BT[rows[0]], logits_to_keep, compute_aux_loss)
        order = torch.cat(rows)

        def joined(index: int) -> Any:
            found = torch.cat([part[index] for part in parts])
            return found.new_zeros(input_ids.size(0), logits_to_keep).index_copy(0, order, found)

        return joined(0), joined(1) if compute_entropy else None, parts[0][2] if compute_aux_loss else None

    def _passes(self, mask_BT: torch.Tensor, keep: int) -> tuple[list[torch.Tensor], int]:
        """The rows of each pass, and how many idle passes follow; rows without any completion token are left out."""
        lengths_B, scored_B = mask_BT.sum(1).tolist(), mask_BT[:, -keep:].sum(1).tolist()
        rows = [row for row, tokens in enumerate(scored_B) if tokens]
        if not rows:  # the result must hang on the weights all the same
            rows = [min(range(len(lengths_B)), key=lengths_B.__getitem__)]
        passes = balanced([lengths_B[row] for row in rows], self.efficiency.tokens_per_pass)
        wanted = agreed(self, len(passes))
        if wanted > len(passes):
            passes = balanced([lengths_B[row] for row in rows], self.efficiency.tokens_per_pass, wanted)
        chosen = [torch.tensor([rows[i] for i in part], device=mask_BT.device) for part in passes]
        return chosen, wanted - len(chosen)

    def _packed_pass(
        self, model: Any, ids_RT: torch.Tensor, mask_RT: torch.Tensor, keep: int, aux: bool
    ) -> tuple[Any, Any, Any]:
        """Log-probabilities and entropies (rows, keep), 0 where no completion token is, and the auxiliary loss."""
        positions_RT = mask_RT.cumsum(1) - 1
        scored_RT = mask_RT & (positions_RT > 0)
        scored_RT[:, :-keep] = False
        ids_N, positions_N, scored_N = ids_RT[mask_RT], positions_RT[mask_RT], scored_RT[mask_RT]
        labels_N = torch.full_like(ids_N, IGNORED)  # each position is asked for the token after it
        labels_N[:-1] = torch.where(scored_N[1:], ids_N[1:], IGNORED)
        told_apart: dict[str, Any] = {}
        if aux:
            told_apart["output_router_logits"] = True
        if self.accelerator.unwrap_model(model).config._attn_implementation == varlen.NAME:
            told_apart |= varlen.boundaries(mask_RT.sum(1).tolist(), ids_N.device)
        with self.accelerator.autocast():
            outputs = model(
                input_ids=ids_N[None],
                position_ids=positions_N[None],
                shift_labels=labels_N[None],
                fused_lm_head=True,
                **told_apart,
            )

        def spread(values_1N: torch.Tensor) -> torch.Tensor:
            kept_RC = scored_RT[:, -keep:]
            return values_1N.new_zeros(kept_RC.shape).masked_scatter(kept_RC, values_1N[0][labels_N != IGNORED])

        entropies_RC = None if outputs.entropy is None else spread(outputs.entropy)
        return spread(outputs.log_probs), entropies_RC, outputs.aux_loss
