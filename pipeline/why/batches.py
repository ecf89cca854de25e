"""Kept batches as tensors, and what a change makes of them: other rewards, prompts, masks or log-probabilities."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.training.grpo import objective
from pipeline.training.grpo.batch import Batch
from pipeline.training.grpo.recorded import completion_ids
from pipeline.why.case import Case


@dataclass(frozen=True, slots=True)
class Kept:
    """The batch of one optimizer step, of all ranks.

    Attributes:
        step: the optimizer step.
        micro: its micro-batches.
        rows: what is known of their rows, for each micro-batch.
        trainer_BC: for each micro-batch, the log-probabilities that the trainer had.
    """

    step: int
    micro: list[Batch]
    rows: list[list[dict[str, Any]]]
    trainer_BC: list[Tensor]

    def having(self, micro: list[Batch]) -> Kept:
        """The same step with other micro-batches."""
        return Kept(self.step, micro, self.rows, self.trainer_BC)


def read(case: Case, step: int, device: Any) -> Kept:
    """The batch of a step that was kept with an alarm."""
    ranks = case.record["ranks"]
    micro: list[Batch] = []
    rows: list[list[dict[str, Any]]] = []
    trainer_BC: list[Tensor] = []
    names = {field.name for field in fields(Batch)}
    for rank in range(ranks):
        path = case.folder / f"batch-{step}.rank-{rank}.safetensors"
        tensors = load_file(path)
        lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
        for at in range(sum(name.endswith("/mask_BC") for name in tensors)):
            held = {n.partition("/")[2]: v.to(device) for n, v in tensors.items() if n.startswith(f"{at}/")}
            tokens = float(held.pop("tokens")) / ranks  # one process replays them
            micro.append(Batch(**{n: v for n, v in held.items() if n in names}, tokens=tokens))
            rows.append([line for line in lines if line["micro_batch"] == at])
            trainer_BC.append(held["trainer_BC"])
    return Kept(step, micro, rows, trainer_BC)


def groups(kept: Kept) -> list[list[tuple[int, int]]]:
    """The rollouts of each prompt, as (micro-batch, row)."""
    found: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for at, batch in enumerate(kept.micro):
        for row in range(len(batch)):
            ids = batch.prompt_ids_BP[row][batch.prompt_mask_BP[row].bool()].tolist()
            found.setdefault(tuple(ids), []).append((at, row))
    return list(found.values())


def dead_share(kept: Kept, scores: Sequence[Sequence[float]]) -> float:
    """The share of groups whose rewards are all equal: the definition that the trainer has."""
    every = groups(kept)
    dead = [bool(objective.equal_groups(_of(scores, group)[:, None], len(group))[0]) for group in every]
    return sum(dead) / len(dead)


def same_share(kept: Kept) -> float:
    """The share of groups whose completions are all the same."""
    every = groups(kept)
    texts = [{kept.rows[at][row]["text"] for at, row in group} for group in every]
    return sum(len(found) == 1 for found in texts) / len(every)


def rewarded(kept: Kept, scores: Sequence[Sequence[float]], scale: str) -> Kept:
    """The batch with the advantages of other rewards.

    Args:
        kept: the batch.
        scores: a reward for each row of each micro-batch; NaN for none.
        scale: what differences are divided by; see `objective.advantages`.
    """
    advantages = [torch.zeros(len(batch)) for batch in kept.micro]
    every = torch.cat([torch.tensor(list(of), dtype=torch.float32) for of in scores])
    for group in groups(kept):
        values_K = _of(scores, group)
        found_K = objective.advantages(
            values_K[:, None], torch.ones(1), len(group), "group" if scale == "group" else "none"
        )
        if scale == "batch":
            found_K = found_K / (objective.deviation(every, 0) + objective.STD_FLOOR)
        for (at, row), value in zip(group, found_K.tolist(), strict=True):
            advantages[at][row] = value
    micro = [b.knowing(advantages_B=a.to(b.mask_BC.device)) for b, a in zip(kept.micro, advantages, strict=True)]
    return kept.having(micro)


def _of(scores: Sequence[Sequence[float]], group: Sequence[tuple[int, int]]) -> Tensor:
    return torch.tensor([scores[at][row] for at, row in group], dtype=torch.float32)


def scores_of(kept: Kept, name: str) -> list[list[float]]:
    """A recorded reward of every row; NaN where there was none."""
    every = [[row["rewards"].get(name) for row in rows] for rows in kept.rows]
    return [[math.nan if score is None else score for score in of] for of in every]


def cut_off(kept: Kept, padding: int, counted: bool) -> Kept:
    """The batch whose completions that were cut off count, or do not."""
    micro = []
    for batch, rows in zip(kept.micro, kept.rows, strict=True):
        mask_BC = batch.mask_BC.clone()
        held = {"completion_ids_BC": batch.completion_ids_BC, "mask_BC": torch.zeros_like(mask_BC)}
        for row, line in enumerate(rows):
            if line["finish"] == "length":
                mask_BC[row] = 0
                mask_BC[row, : len(completion_ids(held, row, padding)) if counted else 0] = 1
        share = float(mask_BC.sum()) / max(1.0, float(batch.mask_BC.sum()))
        micro.append(batch.knowing(mask_BC=mask_BC, tokens=batch.tokens * share))
    return kept.having(micro)


def bare(kept: Kept, tokenizer: Any) -> Kept:
    """The batch whose prompts are the questions alone, without template; what was known of the others is forgotten."""
    from trl.trainer.utils import pad

    micro = []
    for batch, rows in zip(kept.micro, kept.rows, strict=True):
        ids = [torch.tensor(tokenizer(str(row["question"])).input_ids, dtype=torch.long) for row in rows]
        device = batch.mask_BC.device
        prompts = pad(ids, padding_value=tokenizer.pad_token_id, padding_side="left").to(device)
        mask = pad([torch.ones_like(one) for one in ids], padding_value=0, padding_side="left").to(device)
        micro.append(batch.knowing(prompt_ids_BP=prompts, prompt_mask_BP=mask, old_BC=None, sampler_BC=None))
    return kept.having(micro)


def engine_agrees(kept: Kept) -> Kept:
    """The batch whose engine gave the log-probabilities that the trainer had."""
    pairs = zip(kept.micro, kept.trainer_BC, strict=True)
    return kept.having(
        [batch if batch.sampler_BC is None else batch.knowing(sampler_BC=known_BC) for batch, known_BC in pairs]
    )
