"""An order of problems that follows what became of them: those that every rollout solved, or none, come up less often.

Without a pool each problem comes up once an epoch. With `pool: {solved: 4, failed: 2}`, one whose whole group was right
rests until the others have come up 4 times, after a second time in a row 8 times, and 16 at most; one whose whole group
failed, 2 times. So a problem's share of the batches is its own, however many others rest (fair queueing). Solved means
an equal reward above zero for all rollouts of a group, failed one of zero or less, as in the metrics `groups/…`.

A batch is planned from outcomes that are old enough to be known whoever asks for it, so that it is the same if it is
sampled ahead, and after a resumption. Checkpoints hold the outcomes; what was planned follows from them.
"""

from __future__ import annotations

import heapq
import json
import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor

from pipeline.schema.efficiency import PoolSpec
from pipeline.training.grpo.problem_order import ProblemOrder

FILE = "pool.json"
EARLIEST, LATEST = 0.5, 1.5
"""Bounds of the random part of a rest, so that each time has a new order; one on average."""
MOST_TIMES = 4
"""How often in a row a problem is solved that it rests longer each time."""


Problem = tuple[Any, Any]
"""The `task` of a row and its `id` there."""


class Outcome(StrEnum):
    """What became of a problem's group of rollouts."""

    LIVE = "live"
    SOLVED = "solved"
    FAILED = "failed"


@dataclass
class Account:
    """What is known of the problems of a run, and which batches follow from it.

    Attributes:
        outcomes: number of a generation batch -> row of the data set -> what became of it.
        planned: the rows of each batch.
        last: row -> its latest outcome, and how often in a row.
        due: row -> its place in the order: those with the smallest come up.
        taken: row -> its place when it came up last.
    """

    outcomes: dict[int, Mapping[int, Outcome]] = field(default_factory=dict)
    planned: list[list[int]] = field(default_factory=list)
    last: dict[int, tuple[Outcome, int]] = field(default_factory=dict)
    due: dict[int, float] = field(default_factory=dict)
    taken: dict[int, float] = field(default_factory=dict)
    waiting: list[tuple[float, int]] = field(default_factory=list)
    """A heap of (due, row); an entry counts if that is still the row's due."""
    problem_of: list[Problem] = field(default_factory=list)
    """Row -> its problem: that of several rows, where a task's weight has it come up several times."""

    def put(self, row: int, due: float) -> None:
        """Give a row a place."""
        if self.due.get(row) != due:  # an entry counts once
            self.due[row] = due
            heapq.heappush(self.waiting, (due, row))

    def take(self) -> int:
        """The row that is due first."""
        while True:
            due, row = heapq.heappop(self.waiting)
            if self.due[row] == due:
                self.taken[row] = due
                return row


@dataclass(frozen=True)
class PooledOrder(ProblemOrder):
    """The order of a run with a pool; see `ProblemOrder` for the other fields.

    Attributes:
        solved, failed: times that others come up meanwhile.
        lag: generation batches after which the outcomes of one are known to whoever plans another.
    """

    solved: float = 1.0
    failed: float = 1.0
    lag: int = 2
    account: Account = field(default_factory=Account, compare=False, repr=False)

    @classmethod
    def following(cls, order: ProblemOrder, pool: PoolSpec, staleness: int) -> PooledOrder:
        """The same run with a pool, whose engines sample so many batches ahead.

        Batches are asked for a whole optimizer step early, and by the data loader one more.
        """
        step = math.ceil(order.accumulated / order.uses)
        return cls(**vars(order), solved=pool.solved, failed=pool.failed, lag=max(step + 1, staleness + 2))

    def rows(self, number: int) -> list[int]:
        """See `ProblemOrder.rows`. The outcomes of all batches up to `number - lag` have to be known.

        Raises:
            RuntimeError: they are not.
        """
        planned = self.account.planned
        while len(planned) <= number:
            self._plan(len(planned))
        return list(planned[number])

    def rows_of(self, problems: Sequence[Problem], number: int) -> list[int]:
        """The rows that problems of a batch are: those that were planned for it, and others where it had others."""
        planned, others = defaultdict[Problem, list[int]](list), dict[Problem, int]()
        for row, problem in enumerate(self.account.problem_of):
            others.setdefault(problem, row)
        for row in self.rows(number):
            planned[self.account.problem_of[row]].append(row)
        return [planned[one].pop(0) if planned[one] else others[one] for one in problems]

    def learn(self, number: int, outcomes: Mapping[int, Outcome]) -> None:
        """Take down what became of a batch."""
        self.account.outcomes[number] = dict(outcomes)

    def shares(self) -> dict[str, float]:
        """Shares of all problems whose last group was solved, or failed."""
        last = [outcome for outcome, _ in self.account.last.values()]
        return {name.value: last.count(name) / self.problems for name in (Outcome.SOLVED, Outcome.FAILED)}

    def save(self, folder: Path) -> None:
        """Keep the outcomes."""
        kept = [[number, list(of.items())] for number, of in sorted(self.account.outcomes.items())]
        (folder / FILE).write_text(json.dumps(kept), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Take up the outcomes of a checkpoint; what was planned is planned again."""
        stored = json.loads((folder / FILE).read_text(encoding="utf-8"))
        vars(self.account).update(vars(Account()))
        self.account.outcomes = {number: {row: Outcome(name) for row, name in of} for number, of in stored}

    def _plan(self, number: int) -> None:
        account = self.account
        if number == 0:
            plain = super().rows
            first = [row for batch in range(math.ceil(self.problems / self.groups)) for row in plain(batch)]
            others = sorted(set(range(self.problems)) - set(first))
            for place, row in enumerate([*first, *others]):
                account.put(row, place / self.groups)
        if (known := number - self.lag) >= 0:
            if known not in account.outcomes:
                raise RuntimeError(f"batch {number} is planned before the outcomes of batch {known} are known")
            self._settle(known)
        taken = [account.take() for _ in range(self.groups)]
        for row in taken:
            account.put(row, account.taken[row] + self._epoch * self._spread(row, number))
        account.planned.append(taken)

    def _settle(self, number: int) -> None:
        """Let the problems of a batch rest that taught nothing."""
        rests = {Outcome.SOLVED: self.solved, Outcome.FAILED: self.failed}
        for row, outcome in self.account.outcomes[number].items():
            before, times = self.account.last.get(row, (outcome, 0))
            times = times + 1 if before is outcome else 1
            self.account.last[row] = (outcome, times)
            if outcome is not Outcome.LIVE:
                longer = rests[outcome] * (min(times, MOST_TIMES) if outcome is Outcome.SOLVED else 1)
                taken = self.account.taken.get(row, self.account.due[row])
                due = taken + self._epoch * longer * self._spread(row, number)
                self.account.put(row, max(due, self.account.due[row]))

    @property
    def _epoch(self) -> float:
        return self.problems / self.groups

    def _spread(self, row: int, number: int) -> float:
        if not self.shuffled:
            return 1.0
        return random.Random(f"{self.seed} {row} {number}").uniform(EARLIEST, LATEST)


def order(trainer: Any, pool: PoolSpec | None) -> ProblemOrder:
    """The order of a GRPO trainer, with a pool if there is to be one."""
    plain = ProblemOrder.of(trainer)
    return plain if pool is None else PooledOrder.following(plain, pool, trainer.sampler.max_staleness)


def learn(trainer: Any, problems: Sequence[Mapping[str, Any]], solved_G: Tensor, failed_G: Tensor) -> None:
    """Tell the pool of a trainer, if it has one, what became of a generation batch. Collective.

    Args:
        trainer: a `GrpoTrainer`.
        problems: of this process's rollouts, group by group.
        solved_G, failed_G: for the groups of all processes.
    """
    pooled, dataset = trainer.order, trainer.train_dataset
    if not isinstance(pooled, PooledOrder):
        return
    if not pooled.account.problem_of:
        tasks = dataset["task"] if "task" in dataset.column_names else [None] * len(dataset)
        pooled.account.problem_of += zip(tasks, dataset["id"], strict=True)
    every = gather_object([(problem.get("task"), problem["id"]) for problem in problems])[:: pooled.group]
    pairs = zip(solved_G.tolist(), failed_G.tolist(), strict=True)
    names = [Outcome.SOLVED if solved else Outcome.FAILED if failed else Outcome.LIVE for solved, failed in pairs]
    rows = pooled.rows_of([tuple(one) for one in every], trainer.batch_number)
    pooled.learn(trainer.batch_number, dict(zip(rows, names, strict=True)))
    for name, share in pooled.shares().items():
        trainer._metrics["train"][f"pool/{name}"].append(share)
