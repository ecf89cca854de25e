"""Which problems each generation batch holds, from the seed alone: asked by the trainer, and by whoever samples ahead.

An epoch is a new order of all problems; those that do not fill its last batch are left out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Generator, randperm
from torch.utils.data import Sampler


@dataclass(frozen=True)
class ProblemOrder:
    """The order of a run.

    Attributes:
        problems: number of problems.
        groups: problems of a generation batch, of all processes.
        group: rollouts of a problem.
        uses: micro-batches that a generation batch serves.
        accumulated: micro-batches of an optimizer step.
        seed: of the run.
        shuffled: whether epochs have orders of their own.
    """

    problems: int
    groups: int
    group: int
    uses: int
    accumulated: int
    seed: int
    shuffled: bool = True

    @classmethod
    def of(cls, trainer: Any) -> ProblemOrder:
        """The order of a GRPO trainer."""
        args = trainer.args
        return cls(
            problems=len(trainer.train_dataset),
            groups=args.generation_batch_size // trainer.num_generations,
            group=trainer.num_generations,
            uses=args.steps_per_generation * trainer.num_iterations,
            accumulated=args.gradient_accumulation_steps,
            seed=args.seed,
            shuffled=trainer.shuffle_dataset,
        )

    @property
    def epoch_batches(self) -> int:
        """Generation batches of an epoch."""
        return self.problems // self.groups

    @property
    def _epoch_steps(self) -> int:
        return max(1, math.ceil(self.epoch_batches * self.uses / self.accumulated))

    def number_at(self, step: int) -> int:
        """Number of the generation batch that training needs next after so many optimizer steps."""
        epoch, rest = divmod(step, self._epoch_steps)
        return epoch * self.epoch_batches + math.ceil(rest * self.accumulated / self.uses)

    def step_at(self, number: int) -> int:
        """Optimizer steps after which training needs a generation batch."""
        epoch, rest = divmod(number, self.epoch_batches)
        return epoch * self._epoch_steps + rest * self.uses // self.accumulated

    def rows(self, number: int) -> list[int]:
        """The problems of a generation batch, as rows of the dataset."""
        epoch, at = divmod(number, self.epoch_batches)
        return list(_permuted(self, epoch)[at * self.groups : (at + 1) * self.groups])

    def save(self, folder: Path) -> None:
        """Keep what the order does not follow from alone: nothing but the seed here."""

    def load(self, folder: Path) -> None:
        """Take up what a checkpoint has kept."""

    def sampler(self, epoch: Callable[[], int]) -> Sampler[int]:
        """What a data loader of the trainer draws from: every row of a batch for each rollout and each use.

        Args:
            epoch: gives the number of the epoch that begins.
        """
        return _Repeated(self, epoch)


@lru_cache(maxsize=2)
def _permuted(order: ProblemOrder, epoch: int) -> list[int]:
    if not order.shuffled:
        return list(range(order.problems))
    mixed = random.Random(f"{order.seed} {epoch}").getrandbits(63)
    permutation: list[int] = randperm(order.problems, generator=Generator().manual_seed(mixed)).tolist()
    return permutation


class _Repeated(Sampler[int]):
    def __init__(self, order: ProblemOrder, epoch: Callable[[], int]) -> None:
        self.order, self.epoch = order, epoch

    def __iter__(self) -> Iterator[int]:
        order, first = self.order, self.epoch() * self.order.epoch_batches
        for number in range(first, first + order.epoch_batches):
            batch = [row for row in order.rows(number) for _ in range(order.group)]
            for _ in range(order.uses):
                yield from batch

    def __len__(self) -> int:
        order = self.order
        return order.epoch_batches * order.groups * order.group * order.uses
