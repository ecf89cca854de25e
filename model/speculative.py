"""Self-speculative decoding: the prediction blocks draft, the model verifies, and several tokens come of one pass.

    model.generate(**batch, use_mtp=True, num_assistant_tokens=2, max_new_tokens=100)

Each round drafts K tokens, runs the decoder once over them, and keeps those that it would have said itself, and one
token of its own besides. Greedy output is that of plain greedy decoding; sampled output has its distribution, by the
rejection rule of Leviathan et al. (arXiv 2211.17192, algorithm 1).

Rows of a batch keep different numbers of tokens. So the cache is addressed by position: what a token leaves behind lies
in the slot of its position, a query sees the slots up to its own, and a rejected draft needs no removal: its slot is
written anew before any query reaches it.

Block d drafts the d-th token (see `model.mtp`). Past the last block, that block goes on alone, fed with its own output
in place of the decoder's, as vLLM does it.

transformers has the same switch for one row at a time and as many drafts as blocks. Another model that drafts
(`assistant_model`) is its own, for one row at a time; a batch raises there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinPLogitsWarper,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from model.mtp import blocks
from model.slots import SlotCache

WARPERS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper)
"""What may change a distribution here: these look at one token's logits and at nothing else."""


@dataclass(slots=True)
class Speculation:
    """What speculation brought, summed over rows.

    Attributes:
        rounds: passes of the decoder after the prompt's, times the rows that took part.
        drafted: tokens drafted.
        accepted: drafts that were kept.
    """

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0

    def __add__(self, other: Speculation) -> Speculation:
        return Speculation(self.rounds + other.rounds, self.drafted + other.drafted, self.accepted + other.accepted)

    def __sub__(self, other: Speculation) -> Speculation:
        return Speculation(self.rounds - other.rounds, self.drafted - other.drafted, self.accepted - other.accepted)

    @property
    def acceptance(self) -> float:
        """Share of the drafts that was kept."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """Tokens that a pass of the decoder gives a row; 1 without speculation."""
        return 1 + self.accepted / self.rounds if self.rounds else 1.0


@dataclass
class _Batch:
    """Rows that are still being written; token and slot number are the same thing.

    Attributes:
        row_B: their numbers in the caller's batch.
        ids_BS: tokens, drafts included.
        known_B: how many of them are settled. The last of these has not been through the decoder yet.
    """

    row_B: Tensor
    ids_BS: Tensor
    known_B: Tensor

    def keep(self, rows_N: Tensor) -> None:
        self.row_B, self.ids_BS, self.known_B = self.row_B[rows_N], self.ids_BS[rows_N], self.known_B[rows_N]


def generate(
    model: Any,
    plain: Callable[..., Any],
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    **kwargs: Any,
) -> Any:
    """`model.generate`, which speculates if `use_mtp` asks for it.

    Args:
        model: a `V3ForCausalLM`.
        plain: transformers' `generate`, bound to it.
        inputs, generation_config, kwargs: see `transformers.GenerationMixin.generate`. Of the config, `use_mtp` is the
            switch and `num_assistant_tokens` the number of drafts a round: as many as there are blocks if not given.

    Raises:
        ValueError: the model has no prediction blocks, or something is asked for that speculation cannot do.
    """
    config = generation_config or model.generation_config
    asked = kwargs.pop("use_mtp", None)
    if not (config.use_mtp if asked is None else asked):
        return plain(inputs, generation_config=generation_config, **kwargs)
    depth = len(blocks(model))
    if not depth:
        raise ValueError("use_mtp: the model has no blocks of multi-token prediction (num_nextn_predict_layers is 0)")
    drafts = kwargs.pop("num_assistant_tokens", None) or config.num_assistant_tokens or depth
    if config.use_mtp:  # transformers would take it for its own way
        generation_config = deepcopy(config)
        generation_config.use_mtp = None
    loop = partial(_decode, drafts=drafts)
    return plain(inputs, generation_config=generation_config, custom_generate=loop, **kwargs)


@torch.no_grad()
def _decode(
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    drafts: int,
    **kwargs: Any,
) -> Tensor:
    """The decoding loop that transformers' `generate` calls, with everything prepared."""
    config = generation_config
    strange = [type(part).__name__ for part in logits_processor if not isinstance(part, WARPERS)]
    if strange or config.num_beams > 1 or config.return_dict_in_generate:
        raise ValueError(f"use_mtp: beams, dictionaries {' '.join(['and', *strange]) if strange else ''} cannot be had")
    kernel = model.config._attn_implementation
    if kernel.startswith(("flash", "flex")):
        raise ValueError(f"use_mtp: rows at different places need masks that {kernel} does not take; use sdpa")
    criteria = [part for part in stopping_criteria if not isinstance(part, MaxLengthCriteria | EosTokenCriteria)]
    ends = config._eos_token_tensor
    end_ids = [] if ends is None else ends.tolist()
    width, longest = input_ids.shape[1], int(config.max_length) - input_ids.shape[1]
    mask_BT = kwargs.get("attention_mask", torch.ones_like(input_ids)).bool()
    prompts = [ids[mask] for ids, mask in zip(input_ids, mask_BT, strict=True)]
    loop = _Loop(model, prompts, longest, drafts, logits_processor if config.do_sample else None, end_ids, criteria)
    completions = loop.run()
    model.speculation += loop.told
    pad = 0 if config._pad_token_tensor is None else int(config._pad_token_tensor)
    out_BT = input_ids.new_full((len(prompts), width + max(map(len, completions))), pad)
    out_BT[:, :width] = input_ids
    for row, completion in zip(out_BT, completions, strict=True):
        row[width : width + len(completion)] = completion
    return out_BT


class _Loop:
    """One batch from its prompts to its completions."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Tensor],
        longest: int,
        drafts: int,
        warpers: LogitsProcessorList | None,
        end_ids: Sequence[int],
        criteria: Sequence[StoppingCriteria] = (),
    ) -> None:
        self.model, self.decoder, self.head = model, model.get_decoder(), model.get_output_embeddings()
        self.blocks = blocks(model)
        self.warpers, self.drafts, self.longest = warpers, drafts, longest
        device = prompts[0].device
        self.end_ids = torch.tensor(list(end_ids), dtype=torch.long, device=device)
        lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=device)
        slots = int(lengths_B.max()) + longest + drafts + len(self.blocks) + 1
        ids_BS = torch.zeros(len(prompts), slots, dtype=torch.long, device=device)
        for row, prompt in zip(ids_BS, prompts, strict=True):
            row[: len(prompt)] = prompt
        self.batch = _Batch(torch.arange(len(prompts), device=device), ids_BS, lengths_B)
        self.start_B, self.cache, self.told = lengths_B, SlotCache(slots), Speculation()
        self.criteria, self.sequences = criteria, list(prompts)

    def run(self) -> list[Tensor]:
        """Completions, each up to and with its first end token."""
        batch = self.batch
        slots_BW = torch.arange(int(self.start_B.max()), device=batch.ids_BS.device).expand(len(batch.ids_BS), -1)
        hidden_BWD = self._decoder(slots_BW)
        last_B = batch.known_B - 1  # where in the window the last token is that the decoder has seen
        rows_B = torch.arange(len(last_B), device=last_B.device)
        first_B = self._choose(self._warped(self.head(hidden_BWD[rows_B, last_B])))
        self._write(first_B[:, None], torch.zeros_like(last_B))
        kept = self._finish(torch.zeros_like(last_B))
        hidden_BWD, slots_BW, last_B = hidden_BWD[kept], slots_BW[kept], last_B[kept]
        while len(batch.row_B):
            recent_BED = _window(hidden_BWD, last_B - (len(self.blocks) - 2), len(self.blocks) - 1)
            drafts_BK, guesses_BKV = self._draft(slots_BW, hidden_BWD, last_B)
            verified_BQ = batch.known_B[:, None] - 1 + torch.arange(self.drafts + 1, device=last_B.device)
            fresh_BQD = self._decoder(verified_BQ)
            logits_BQV = self._warped(self.head(fresh_BQD))
            accepted_B, next_B = self._judge(drafts_BK, guesses_BKV, logits_BQV)
            self.told.rounds += len(accepted_B)
            self.told.drafted += drafts_BK.numel()
            self.told.accepted += int(accepted_B.sum())
            # The blocks behind the first saw drafts where tokens are now settled: the window reaches back to them.
            first_B = batch.known_B - len(self.blocks)
            hidden_BWD = torch.cat([recent_BED, fresh_BQD], dim=1)
            slots_BW = (first_B[:, None] + torch.arange(hidden_BWD.shape[1], device=last_B.device)).clamp(min=0)
            last_B = accepted_B + len(self.blocks) - 1
            self._write(next_B[:, None], accepted_B)
            kept = self._finish(accepted_B)
            hidden_BWD, slots_BW, last_B = hidden_BWD[kept], slots_BW[kept], last_B[kept]
        return [ids[start:] for ids, start in zip(self.sequences, self.start_B.tolist(), strict=True)]

    def _decoder(self, slots_BQ: Tensor) -> Tensor:
        """The decoder's last hidden states for the tokens in these slots."""
        output = self.decoder(
            input_ids=self.batch.ids_BS.gather(1, slots_BQ),
            attention_mask=self._mask(slots_BQ),
            position_ids=slots_BQ,
            past_key_values=self.cache,
            use_cache=False,
        )
        hidden_BQD: Tensor = output.last_hidden_state
        return hidden_BQD

    def _block(self, block: nn.Module, hidden_BQD: Tensor, slots_BQ: Tensor, ahead: int) -> Tensor:
        """A block's output for these slots, shown the tokens `ahead` of them."""
        embedded_BQD = self.decoder.embed_tokens(self.batch.ids_BS.gather(1, slots_BQ + ahead))
        output: Tensor = block(
            hidden_BQD,
            embedded_BQD,
            attention_mask=self._mask(slots_BQ),
            position_ids=slots_BQ,
            position_embeddings=self.decoder.rotary_emb(embedded_BQD, position_ids=slots_BQ),
            past_key_values=self.cache,
        )
        return output

    def _mask(self, slots_BQ: Tensor) -> Tensor:
        """What attention adds to its scores."""
        seen_B1QS = self.cache.at(slots_BQ)
        mask_B1QS = torch.zeros(seen_B1QS.shape, dtype=self.model.dtype, device=slots_BQ.device)
        return mask_B1QS.masked_fill(~seen_B1QS, torch.finfo(self.model.dtype).min)

    def _draft(self, slots_BW: Tensor, hidden_BWD: Tensor, last_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """Draft tokens behind the settled ones, and write them there.

        Args:
            slots_BW: slots that the decoder has seen since the last round, and those that drafts stood behind.
            hidden_BWD: what it made of them.
            last_B: where in the window the last of them is whose next token is settled.

        Returns:
            The drafts [B, K], and if they are sampled what they were drawn from, [B, K, V].
        """
        batch, depth = self.batch, len(self.blocks)
        rows_B = torch.arange(len(last_B), device=last_B.device)
        drafts, guesses = [], []
        for step in range(1, self.drafts + 1):
            if step <= depth:
                hidden_BWD = self._block(self.blocks[step - 1], hidden_BWD, slots_BW, step)
                latest_BD = hidden_BWD[rows_B, last_B]
            else:
                slots_B1 = batch.known_B[:, None] - 2 + step - depth
                latest_BD = self._block(self.blocks[-1], latest_BD[:, None], slots_B1, depth)[:, 0]
            scores_BV = self._warped(self.head(latest_BD))
            draft_B = self._choose(scores_BV)
            batch.ids_BS[rows_B, batch.known_B - 1 + step] = draft_B
            drafts.append(draft_B)
            guesses.append(scores_BV)
        return torch.stack(drafts, 1), None if self.warpers is None else torch.stack(guesses, 1).softmax(-1)

    def _judge(self, drafts_BK: Tensor, guesses_BKV: Tensor | None, logits_BQV: Tensor) -> tuple[Tensor, Tensor]:
        """How many drafts each row keeps, and the token that follows them."""
        if guesses_BKV is None:
            own_BQ = logits_BQV.argmax(-1)
            accepted_B = (drafts_BK == own_BQ[:, :-1]).long().cumprod(1).sum(1)
            return accepted_B, own_BQ.gather(1, accepted_B[:, None])[:, 0]
        return accept(drafts_BK, guesses_BKV, logits_BQV.softmax(-1))

    def _warped(self, logits_V: Tensor) -> Tensor:
        """Logits of any batch shape as the sampler sees them, in float32."""
        scores = logits_V.float()
        if not self.warpers:
            return scores
        flat: Tensor = self.warpers(None, scores.flatten(end_dim=-2))
        return flat.view_as(scores)

    def _choose(self, scores_BV: Tensor) -> Tensor:
        if self.warpers is None:
            return scores_BV.argmax(-1)
        return scores_BV.softmax(-1).multinomial(1)[:, 0]

    def _write(self, next_B1: Tensor, accepted_B: Tensor) -> None:
        """Settle the accepted drafts, which stand there already, and the token behind them."""
        batch = self.batch
        batch.ids_BS.scatter_(1, (batch.known_B + accepted_B)[:, None], next_B1)
        batch.known_B = batch.known_B + accepted_B + 1

    def _finish(self, accepted_B: Tensor) -> Tensor:
        """Take finished rows out of the batch; the places of those that stay."""
        batch, start_B = self.batch, self.start_B[self.batch.row_B]
        steps_Q = torch.arange(self.drafts + 1, device=accepted_B.device)
        fresh_B = batch.known_B - 1 - accepted_B  # the first of the tokens that this round settled
        new_BQ = batch.ids_BS.gather(1, fresh_B[:, None] + steps_Q)
        end_BQ = torch.isin(new_BQ, self.end_ids) & (steps_Q <= accepted_B[:, None])
        ended_B = end_BQ.any(1)
        stop_B = torch.where(ended_B, fresh_B + end_BQ.int().argmax(1) + 1, batch.known_B)
        stop_B = torch.minimum(stop_B, start_B + self.longest)
        going_B = ~ended_B & (stop_B < start_B + self.longest)
        for place, (row, stop, going) in enumerate(torch.stack([batch.row_B, stop_B, going_B], 1).tolist()):
            if self.criteria or not going:
                self.sequences[row] = batch.ids_BS[place, :stop].clone()
        if self.criteria:
            going_B &= ~self._called_off()[batch.row_B]
        kept_N = going_B.nonzero()[:, 0]
        if len(kept_N) < len(batch.row_B):
            batch.keep(kept_N)
            self.cache.keep(kept_N)
        return kept_N

    def _called_off(self) -> Tensor:
        """Rows of the caller's batch that one of its own criteria ends; it sees all of them, padded on the left."""
        longest = max(map(len, self.sequences))
        ids_BT = torch.stack([nn.functional.pad(ids, (longest - len(ids), 0)) for ids in self.sequences])
        called_off = [criterion(ids_BT, None) for criterion in self.criteria]
        return torch.stack(called_off).any(0)


def accept(drafts_BK: Tensor, guesses_BKV: Tensor, targets_BQV: Tensor) -> tuple[Tensor, Tensor]:
    """Speculative rejection: what is kept, and the token behind it, are distributed as if drawn from the targets.

    A draft x is kept with probability min(1, p(x) / q(x)); the first that is not is replaced by a draw from the
    positive part of p - q; if all are kept, one more is drawn from the last p.

    Args:
        drafts_BK: drafts.
        guesses_BKV: q, the distributions that they were drawn from.
        targets_BQV: p, with one position more.

    Returns:
        How many drafts are kept [B], and the token behind them [B].
    """
    drafts, rows_B = drafts_BK.shape[1], torch.arange(len(drafts_BK), device=drafts_BK.device)
    p_BK = targets_BQV[:, :-1].gather(-1, drafts_BK[..., None])[..., 0]
    q_BK = guesses_BKV.gather(-1, drafts_BK[..., None])[..., 0]
    kept_BK = torch.rand_like(q_BK) * q_BK < p_BK
    accepted_B = kept_BK.long().cumprod(1).sum(1)
    p_BV = targets_BQV[rows_B, accepted_B]
    q_BV = guesses_BKV[rows_B, accepted_B.clamp(max=drafts - 1)]
    rest_BV = (p_BV - q_BV).clamp(min=0)
    # All accepted, or (by rounding) nothing left of the difference: p itself.
    whole_B = (accepted_B == drafts) | (rest_BV.sum(-1) == 0)
    return accepted_B, torch.where(whole_B[:, None], p_BV, rest_BV).multinomial(1)[:, 0]


def _window(values_BWD: Tensor, first_B: Tensor, width: int) -> Tensor:
    """`width` values of each row, from `first_B` on; places before the beginning count as the first."""
    places_BE = (first_B[:, None] + torch.arange(width, device=first_B.device)).clamp(min=0)
    return values_BWD.gather(1, places_BE[..., None].expand(-1, -1, values_BWD.shape[-1]))
