"""Groups that teach nothing, replaced by groups that do: dynamic sampling (DAPO, arXiv 2503.14476, section 3.2).

A group whose rollouts all have the same reward has no gradient. After a generation batch is judged, such groups are
replaced: first by groups with variance that earlier rounds left over, then by sampling more prompts, for a bounded
number of rounds. What is left of the last round waits in a queue, first in, first out, and is kept in checkpoints.

Each round samples the missing groups divided by the share of groups that had variance in the batch, so that one round
is mostly enough. Extra prompts come from a stream of their own: permutations of the training set, made from the seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from trl.trainer.utils import pad

from pipeline.schema.efficiency import Efficiency
from pipeline.training.rows import agreed, loss_mask

Row = dict[str, torch.Tensor]
"""One rollout without padding: (prompt,), (completion,) tensors, and an advantage."""
PER_TOKEN = ("old_per_token_logps", "sampling_per_token_logps", "ref_per_token_logps", "importance_sampling_ratio")
_LEAST_LIVE = 0.25
"""Share of live groups below which a round is not made larger: a hopeless batch must not cost more than four times."""


class Refill:
    """Mixin for `GRPOTrainer`: `efficiency.refill_rounds` and `refill_queue`.

    Attributes:
        queue: groups with variance that wait for a batch.
        drawn: extra prompts that were sampled so far, by all processes together.
    """

    efficiency: Efficiency
    args: Any
    accelerator: Any
    model: Any
    num_generations: int
    train_dataset: Any
    use_vllm: bool
    vllm_importance_sampling_correction: bool
    sampling_extra: bool = False
    """Whether prompts are sampled on top of a batch just now."""
    queue: list[list[Row]]
    drawn: int
    _metrics: Any

    def prepare_refill(self) -> None:
        """Start with an empty queue; call once, at the end of `__init__`.

        Raises:
            ValueError: a process's share of a generation batch does not hold whole groups.
        """
        self.queue, self.drawn = [], 0
        rows = self.args.per_device_train_batch_size * self.args.steps_per_generation
        if self.efficiency.refill_rounds and rows % self.num_generations:
            raise ValueError(
                f"efficiency.refill_rounds: the {rows} rollouts that a process samples at a time are not whole groups"
                f" of num_generations={self.num_generations}"
            )

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        if not self.efficiency.refill_rounds or not self.model.training:
            return batch
        groups = self._groups(batch)
        wanted, live = len(groups), [group for group in groups if _is_live(group)]
        dead = [group for group in groups if not _is_live(group)]
        from_queue = min(len(self.queue), wanted - len(live))
        live, self.queue = live + self.queue[:from_queue], self.queue[from_queue:]
        share, sampled, rounds = max((wanted - len(dead)) / wanted, _LEAST_LIVE), wanted, 0
        while rounds < self.efficiency.refill_rounds and (missing := agreed(self, wanted - len(live))) > 0:
            extra = self._sample_extra(min(wanted, agreed(self, math.ceil(missing / share))))
            live += [group for group in extra if _is_live(group)]
            rounds, sampled = rounds + 1, sampled + len(extra)
        self.queue = [*self.queue, *live[wanted:]][: self.efficiency.refill_queue]
        chosen = live[:wanted] + dead[: max(0, wanted - len(live))]
        counts = {"sampled": sampled, "from_queue": from_queue, "dead": max(0, wanted - len(live))}
        self._log_refill(rounds, **counts, queued=len(self.queue))
        return self._joined([row for group in chosen for row in group])

    def _sample_extra(self, groups: int) -> list[list[Row]]:
        """Sample and judge prompts that the batch did not ask for, as many in each process."""
        processes, mine = self.accelerator.num_processes, self.accelerator.process_index
        numbers = range(self.drawn + mine * groups, self.drawn + (mine + 1) * groups)
        self.drawn += groups * processes
        drawn = extra_prompts(numbers, len(self.train_dataset), self.args.seed)
        problems = [self.train_dataset[index] for index in drawn]
        inputs = [dict(problem) for problem in problems for _ in range(self.num_generations)]
        self.sampling_extra = True
        try:
            batch: dict[str, Any] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        finally:
            self.sampling_extra = False
        corrected = self.use_vllm and self.vllm_importance_sampling_correction  # by what the sampler thinks of them
        if "old_per_token_logps" not in batch and not corrected:
            # They may be trained on by a later policy, so what this one thinks of them is needed then.
            ids_BT = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
            mask_BT = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
            keep, size = batch["completion_ids"].size(1), self.args.per_device_train_batch_size
            trainer: Any = self
            with torch.no_grad():
                batch["old_per_token_logps"], _, _ = trainer._get_per_token_logps_and_entropies(
                    self.model, ids_BT, mask_BT, keep, size
                )
        return self._groups(batch)

    def _groups(self, batch: dict[str, Any]) -> list[list[Row]]:
        rows = split(batch)
        return [rows[i : i + self.num_generations] for i in range(0, len(rows), self.num_generations)]

    def _joined(self, rows: Sequence[Row]) -> dict[str, Any]:
        trainer: Any = self
        batch = join(rows, trainer._tokenizer.pad_token_id, self.accelerator.device)
        batch["num_items_in_batch"] = self.accelerator.gather(loss_mask(batch).sum()).sum()
        return batch

    def _log_refill(self, rounds: int, **prompts: int) -> None:
        """Log the rounds that it took, and numbers of prompts, summed over processes."""
        mine = torch.tensor([list(prompts.values())], device=self.accelerator.device)
        counts = {"rounds": rounds} | dict(zip(prompts, self.accelerator.gather(mine).sum(0).tolist(), strict=True))
        for name, count in counts.items():
            self._metrics["train"][f"refill/{name}"].append(float(count))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        if self.efficiency.refill_rounds:
            torch.save({"queue": self.queue, "drawn": self.drawn}, self._queue_file(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if self.efficiency.refill_rounds and checkpoint is not None:
            saved = torch.load(self._queue_file(checkpoint), map_location="cpu", weights_only=True)
            self.queue, self.drawn = saved["queue"], saved["drawn"]

    def _queue_file(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"refill-{self.accelerator.process_index}.pt"


def extra_prompts(numbers: Sequence[int], problems: int, seed: int) -> list[int]:
    """The indices of the extra prompts of these numbers: the training set is gone through in a new order each time."""
    orders: dict[int, list[int]] = {}
    for time in {number // problems for number in numbers}:
        orders[time] = list(range(problems))
        random.Random(f"{seed} extra prompts {time}").shuffle(orders[time])
    return [orders[number // problems][number % problems] for number in numbers]


def split(batch: dict[str, Any]) -> list[Row]:
    """The rows of a batch without their padding, on the CPU."""
    batch = {name: value.cpu() for name, value in batch.items() if isinstance(value, torch.Tensor)}  # each at once
    prompts_B = batch["prompt_mask"].sum(1).tolist()
    completions_B = batch["completion_mask"].sum(1).clamp(min=1).tolist()  # a masked completion keeps one masked token
    rows: list[Row] = []
    for index, (prompt, completion) in enumerate(zip(prompts_B, completions_B, strict=True)):
        row = {
            "prompt_ids": batch["prompt_ids"][index, batch["prompt_ids"].size(1) - prompt :],
            "completion_ids": batch["completion_ids"][index, :completion],
            "completion_mask": batch["completion_mask"][index, :completion],
            "advantages": batch["advantages"][index],
        }
        row |= {name: _unpadded(batch[name], index, completion) for name in PER_TOKEN if name in batch}
        rows.append({name: value.clone() for name, value in row.items()})
    return rows


def join(rows: Sequence[Row], padding: int, device: Any) -> dict[str, Any]:
    """A batch of rows, padded as TRL pads. What only some rows know of their tokens is NaN in the others."""

    def padded(values: Sequence[torch.Tensor], fill: float = 0, side: str = "right") -> torch.Tensor:
        joined: torch.Tensor = pad(list(values), padding_value=fill, padding_side=side)
        return joined.to(device)

    prompts = [row["prompt_ids"] for row in rows]
    batch = {
        "prompt_ids": padded(prompts, padding, "left"),
        "prompt_mask": padded([torch.ones_like(ids) for ids in prompts], 0, "left"),
        "completion_ids": padded([row["completion_ids"] for row in rows], padding),
        "completion_mask": padded([row["completion_mask"] for row in rows]),
        "advantages": torch.stack([row["advantages"] for row in rows]).to(device),
    }
    for name in PER_TOKEN:
        if any(name in row for row in rows):
            unknown = [torch.full(row["completion_ids"].shape, math.nan) for row in rows]
            batch[name] = padded([row.get(name, nan) for row, nan in zip(rows, unknown, strict=True)])
    return batch


def _unpadded(values: torch.Tensor, index: int, completion: int) -> torch.Tensor:
    """A row's values: one a token, or a single one for the whole completion (sequence-level weights)."""
    row = values[index]
    return row if len(row) == 1 else row[:completion]


def _is_live(group: Sequence[Row]) -> bool:
    return any(row["advantages"].item() != 0 for row in group)
