"""Groups that teach nothing, replaced by groups that do: dynamic sampling (DAPO, arXiv 2503.14476, section 3.2).

A group whose rollouts all have the same reward has no gradient. After a generation batch is judged, such groups are
replaced: first by groups with variance that earlier rounds left over, then by sampling more prompts, for a bounded
number of rounds. What is left of the last round waits in a queue, first in, first out, and is kept in checkpoints.

Each round samples the missing groups divided by the share of groups that had variance in the batch, so that one round
is mostly enough. Extra prompts come from a stream of their own: permutations of the training set, made from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.rollout.base import derived_seed
from pipeline.schema.efficiency import Efficiency
from pipeline.training.grpo.batch import Batch, Row
from pipeline.training.grpo.problem_order import ProblemOrder
from pipeline.training.parallel.collectives import largest, summed

FILES = "dynamic-sampling-"
"""Begins the names of a checkpoint's files; the number of a process follows."""
_LEAST_LIVE = 0.25
"""Share of live groups below which a round is not made larger: a hopeless batch must not cost more than four times."""


class DynamicSampling:
    """`efficiency.dynamic_sampling_rounds` and `dynamic_sampling_queue`.

    Args:
        trainer: a `GrpoTrainer`.

    Attributes:
        queue: groups with variance that wait for a batch.
        drawn: extra prompts that were sampled so far, by all processes together.

    Raises:
        ValueError: a process's share of a generation batch does not hold whole groups.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.queue, self.drawn = trainer, list[list[Row]](), 0
        efficiency: Efficiency = trainer.efficiency
        self.rounds, self.longest_queue = efficiency.dynamic_sampling_rounds, efficiency.dynamic_sampling_queue
        rows = trainer.args.per_device_train_batch_size * trainer.args.steps_per_generation
        if self.rounds and rows % trainer.num_generations:
            raise ValueError(
                f"efficiency.dynamic_sampling_rounds: the {rows} rollouts that a process samples at a time are not"
                f" whole groups of num_generations={trainer.num_generations}"
            )

    def filled(self, batch: Batch, scored: Callable[[list[Any]], Batch]) -> Batch:
        """A batch with as many live groups as can be had. Collective.

        Args:
            batch: sampled and judged.
            scored: samples and judges further problems.
        """
        if not self.rounds:
            return batch
        accelerator, groups = self.trainer.accelerator, self._groups(batch)
        wanted, live = len(groups), [group for group in groups if is_live(group)]
        dead = [group for group in groups if not is_live(group)]
        from_queue = min(len(self.queue), wanted - len(live))
        live, self.queue = live + self.queue[:from_queue], self.queue[from_queue:]
        share, sampled, rounds = max((wanted - len(dead)) / wanted, _LEAST_LIVE), wanted, 0
        while rounds < self.rounds and (missing := largest(accelerator, wanted - len(live))) > 0:
            problems = self._draw(min(wanted, largest(accelerator, math.ceil(missing / share))))
            extra = self._groups(scored(problems))
            live += [group for group in extra if is_live(group)]
            rounds, sampled = rounds + 1, sampled + len(extra)
        self.queue = [*self.queue, *live[wanted:]][: self.longest_queue]
        chosen = live[:wanted] + dead[: max(0, wanted - len(live))]
        counts = {"sampled": sampled, "from_queue": from_queue, "dead": max(0, wanted - len(live))}
        self._log(rounds, **counts, queued=len(self.queue))
        filled: Batch = self.trainer.counted([row for group in chosen for row in group])
        return filled

    def save(self, folder: Path) -> None:
        """Keep the queue of this process."""
        if self.rounds:
            file = folder / f"{FILES}{self.trainer.accelerator.process_index}.pt"
            torch.save({"queue": self.queue, "drawn": self.drawn}, file)

    def load(self, folder: Path) -> None:
        """Take up the queue of a checkpoint; those of more processes, or of fewer, are shared out."""
        if self.rounds:
            accelerator, count = self.trainer.accelerator, len(list(folder.glob(f"{FILES}*.pt")))
            files = [folder / f"{FILES}{number}.pt" for number in range(count)]
            saved = [torch.load(file, map_location="cpu", weights_only=True) for file in files]
            mine = saved[accelerator.process_index :: accelerator.num_processes]
            self.queue = [group for one in mine for group in one["queue"]][: self.longest_queue]
            self.drawn = saved[0]["drawn"]

    def _draw(self, groups: int) -> list[Any]:
        """Problems that the batch did not ask for, as many in each process, once for each rollout."""
        trainer, mine = self.trainer, self.trainer.accelerator.process_index
        numbers = range(self.drawn + mine * groups, self.drawn + (mine + 1) * groups)
        self.drawn += groups * trainer.accelerator.num_processes
        order = extra_prompts(len(trainer.train_dataset), trainer.args.seed)
        drawn = [trainer.train_dataset[row] for number in numbers for row in order.rows(number)]
        return [problem for problem in drawn for _ in range(trainer.num_generations)]

    def _groups(self, batch: Batch) -> list[list[Row]]:
        rows, n = batch.rows(), self.trainer.num_generations
        return [rows[i : i + n] for i in range(0, len(rows), n)]

    def _log(self, rounds: int, **prompts: int) -> None:
        """Log the rounds that it took, and numbers of prompts, summed over processes."""
        of_all = summed(self.trainer.accelerator, *prompts.values())
        for name, count in {"rounds": float(rounds), **dict(zip(prompts, of_all, strict=True))}.items():
            self.trainer._metrics["train"][f"dynamic_sampling/{name}"].append(count)


def extra_prompts(problems: int, seed: int) -> ProblemOrder:
    """An order of its own: one problem at a time, through the training set in a new order each time."""
    return ProblemOrder(problems, 1, 1, 1, 1, derived_seed(seed, "extra prompts"))


def is_live(group: Sequence[Row]) -> bool:
    """Whether a group has a gradient."""
    return any(row["advantage"].item() != 0 for row in group)
