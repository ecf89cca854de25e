"""The reward `accuracy`: every problem is judged by its own task's grader.

In a recipe::

    tasks: [gsm8k/train, countdown/train]
    rewards: [{use: accuracy}, {use: think_format, weight: 0.1, gate: accuracy}]

`accuracy` is then `math` for the rows of GSM8K and `countdown` for the others; the column `task` tells which is which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.context import StageContext
from pipeline.schema.pieces import RewardSpec, TaskSpec
from pipeline.tasks.base import TaskError
from pipeline.tasks.resolve import Resolved, resolve
from rewards import Batch, Composite, Item, Part, RewardFunction, Verdict

ACCURACY = "accuracy"


class Accuracy:
    """Judge each completion by the grader of the task that its row belongs to.

    Args:
        graders: task name -> `{use, options}` of the reward that grades it.
        base: folder against which graders given as `file.py:name` are read.
    """

    def __init__(self, graders: Mapping[str, Mapping[str, Any]], base: str | None = None) -> None:
        folder = None if base is None else Path(base)
        self._graders = {
            task: RewardFunction(grader["use"], grader.get("options"), folder, in_trainer=False)
            for task, grader in graders.items()
        }
        for grader in self._graders.values():
            grader.prepare()

    def verify(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict an item. Raises ValueError for a row without a known `task`."""
        rows_by_task: dict[str, list[int]] = {}
        for row, item in enumerate(items):
            task = item.columns.get("task")
            if task not in self._graders:
                raise ValueError(f"no grader for task {task!r}; there are: {', '.join(sorted(self._graders))}")
            rows_by_task.setdefault(task, []).append(row)
        verdicts: dict[int, Verdict] = {}
        for task, rows in rows_by_task.items():
            batch = Batch.of([items[row] for row in rows])
            verdicts |= zip(rows, self._graders[task].verdicts(batch), strict=True)
        return [verdicts[row] for row in range(len(items))]

    def close(self) -> None:
        """Stop the graders' processes."""
        for grader in self._graders.values():
            grader.close()


def accuracy_options(tasks: Sequence[Resolved], base: Path | None = None) -> dict[str, Any]:
    """Arguments of `Accuracy` for these tasks.

    Raises:
        TaskError: two tasks of one name are graded differently.
    """
    graders: dict[str, dict[str, Any]] = {}
    for entry in tasks:
        grader = {"use": entry.task.grader, "options": dict(entry.task.grader_options)}
        if graders.setdefault(entry.name, grader) != grader:
            raise TaskError(
                f"two entries called {entry.name!r} are graded differently; define them under `tasks:` with two names"
            )
    return {"graders": graders, "base": None if base is None else str(base)}


def reward_part(spec: RewardSpec, accuracy: Mapping[str, Any]) -> Part:
    """One reward of a recipe as a part of a composite; `accuracy` are the arguments that `use: accuracy` stands for."""
    is_accuracy = spec.use == ACCURACY
    return Part(
        use=f"{Accuracy.__module__}:{Accuracy.__name__}" if is_accuracy else spec.use,
        weight=spec.weight,
        gate=spec.gate,
        clip=None if spec.clip is None else (spec.clip[0], spec.clip[1]),
        where=spec.where,
        options={**accuracy, **spec.options} if is_accuracy else spec.options,
        name=spec.name or (ACCURACY if is_accuracy else None),
    )


def composite(rewards: Sequence[RewardSpec], tasks: Sequence[TaskSpec], context: StageContext[Any]) -> Composite:
    """The rewards of a stage as one TRL reward function.

    Raises:
        TaskError: a task does not exist, or two of one name are graded differently.
        RewardError: a reward or option does not exist, or a gate names no earlier reward.
    """
    accuracy = accuracy_options([resolve(spec, context.tasks, context.base) for spec in tasks], context.base)
    specs = [spec.model_copy(update={"options": context.resolved(spec.options)}) for spec in rewards]
    return Composite([reward_part(spec, accuracy) for spec in specs], context.base)
